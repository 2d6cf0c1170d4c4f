# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The KV cache, hands on
#
# A model that writes reads its own text again and again, unless it keeps the keys and values of what it has
# read. Here you count what is saved, watch a cache fill, break it in the ways in which caches break, and read
# guesses that you take back. Guess before you open an answer. A wrong guess is worth more than a right answer
# read.

# %% jupyter={"source_hidden": true}
# On a machine that lacks the course (Colab, for one) this installs it; elsewhere it does nothing.
import importlib.util
import subprocess
import sys

INSTALL = "annotated-attention[notebooks]"
if importlib.util.find_spec("annotated_attention") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", INSTALL], check=True)

# %% jupyter={"source_hidden": true}
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import PathPatch
from matplotlib.path import Path

# %config InlineBackend.figure_formats = ["svg"]

# The colours of the book: one for each role, the same in formulas, code and plots.
PAPER, INK, SOFT, LINE = "#fffefb", "#1f2328", "#66707a", "#e6e3da"
QUERY, KEY, VALUE = "#0b5fa5", "#a04600", "#08724f"
WEIGHTS, BIAS, MASK = "#7a2b8c", "#ad1237", "#5b6470"

plt.rc("figure", figsize=(7, 3), facecolor=PAPER)
plt.rc("figure.constrained_layout", use=True)
plt.rc("axes", facecolor=PAPER, edgecolor=LINE, labelcolor=SOFT, titlecolor=INK, titlesize=10, labelsize=9)
plt.rc("axes", prop_cycle=plt.cycler(color=[QUERY, KEY, VALUE, WEIGHTS, BIAS, MASK]))
plt.rc("axes", grid=True, axisbelow=True)
plt.rc("axes.spines", top=False, right=False)
plt.rc("grid", color=LINE)
plt.rc("text", color=INK)
plt.rc(("xtick", "ytick"), color=SOFT, labelsize=8)
plt.rc("legend", frameon=False, fontsize=8)
plt.rc("font", **{"sans-serif": ["DejaVu Sans"]})
plt.rc("svg", fonttype="none", hashsalt="annotated-attention")
torch.manual_seed(0)


def heatmap(ax, values, colour, vmin=0.0, vmax=1.0):
    """Draw a matrix (queries down, keys across) as squares of one colour: faint at vmin, full at vmax. What
    is exactly 0, as a hidden weight is, gets a stroke."""
    values = torch.as_tensor(values)
    levels = ((values - vmin) / (vmax - vmin)).clamp(0, 1).mul(32).round()
    square = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) - 0.5
    # One path for all squares of a level keeps the figure small and sharp.
    for level in levels[levels > 0].unique():
        corners = (levels == level).nonzero().flip(-1)[:, None] + square
        path = Path(corners.reshape(-1, 2), [1, 2, 2, 2, 79] * len(corners))
        ax.add_patch(PathPatch(path, facecolor=colour, alpha=level.item() / 32, linewidth=0))
    strokes = (values == 0).nonzero().flip(-1)[:, None] + square[1:4:2]
    path = Path(strokes.reshape(-1, 2), [1, 2] * len(strokes))
    ax.add_patch(PathPatch(path, fill=False, edgecolor=MASK, alpha=0.4, linewidth=0.5))
    ax.set(aspect="equal", xlabel="key", ylabel="query")
    ax.set(xlim=(-0.5, levels.shape[1] - 0.5), ylim=(levels.shape[0] - 0.5, -0.5))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(plt.MaxNLocator("auto", integer=True))
    ax.grid(False)


# %%
import timeit

from annotated_attention.kv_cache import KVCache, decode_cost, generate_batch, kv_cache_bytes, make_caches
from annotated_attention.language_model import LanguageModel, LanguageModelConfig, generate

torch.set_grad_enabled(False)
config = LanguageModelConfig(d_model=64, n_layers=3, n_heads=4, position_embedding="sinusoidal")
model = LanguageModel(config).double()
# Nobody has trained it: it writes noise. Larger weights make that noise depend on all that came before.
for parameter in model.parameters():
    if parameter.ndim == 2:
        parameter.mul_(10)

# %% [markdown]
# ## 1. How often is a token read?
#
# The model gets a prompt of 20 tokens and writes 100 more. For each, it reads the whole text so far.
#
# **Predict.** How many tokens go through the model in all? And how many if it reads each token only once?
#
# <details markdown="1"><summary>Answer</summary>
#
# $20 + 21 + \dots + 119 = 6950$. Read once: 20 of the prompt and 99 more. The last is written, never read.
#
# </details>

# %%
readings = []
hook = model.embedding.register_forward_pre_hook(lambda _, inputs: readings.append(inputs[0].numel()))
prompt = torch.randint(256, (1, 20))

again = generate(model, prompt, 100, temperature=0.0)
print(f"without a cache: {sum(readings):5} tokens in {len(readings)} passes")
readings.clear()
caches = make_caches(model, 119)
once = generate(model, prompt, 100, temperature=0.0, caches=caches)
print(f"with a cache:    {sum(readings):5} tokens in {len(readings)} passes")
print("the same text:", torch.equal(again, once))
hook.remove()

try:
    generate(model, prompt, 101, caches=make_caches(model, 119))
except ValueError as error:
    print("one more:", error)

# %% [markdown]
# As many passes, a 58th of the tokens, the same text; and a capacity of 119 was enough, to the token.
#
# ## 2. A cache fills
#
# **Predict.** A cache has room for 12 tokens. Five are read, then three more, one at a time. How do its bytes
# grow? (4 heads of width 16, float64.)
#
# <details markdown="1"><summary>Answer</summary>
#
# They do not. The first token takes the memory for all that may come: $4 \cdot (16 + 16) \cdot 8$ bytes for
# each of 12 tokens. What is not used yet, nobody else can have.
#
# </details>

# %%
cache = KVCache(12)
for t in (5, 1, 1, 1):
    keys, values = cache.update(torch.randn(1, 4, t, 16).double(), torch.randn(1, 4, t, 16).double())
    print(f"{t} more: {cache.nbytes:6,} bytes, keys at", *cache.positions[0].tolist())

# %% [markdown]
# **Predict.** Llama-2-7B has 32 layers with 32 heads of width 128, in bf16. How much does it keep of one
# token: about 5 KB, 50 KB or 500 KB? And of a text of 4,096?

# %%
print(f"Llama-2-7B: {kv_cache_bytes(32, 32, 128, 1) / 2**10:.0f} KiB a token, ", end="")
print(f"{kv_cache_bytes(32, 32, 128, 4096) / 2**30:.0f} GiB a text")
predicted = kv_cache_bytes(3, 4, 16, 119, dtype=torch.float64)
print(f"our model: predicted {predicted:,}, measured {sum(cache.nbytes for cache in caches):,} bytes")

# %% [markdown]
# Half a megabyte, for a token whose own number fits into two bytes.
#
# ## 3. Why it is allowed
#
# A cache is right only if old keys never change. First five tokens are appended, then token 12 is replaced.
#
# **Predict.** In each of the three layers, at which positions do the keys move in the first case? In the
# second?
#
# <details markdown="1"><summary>Answer</summary>
#
# Appended tokens move nothing: that is causality. The replaced one moves its own key in the first layer;
# above that, also those of all tokens behind it, which have looked at it. They must be read again.
#
# </details>


# %%
def keys_of(tokens):
    """The keys of each layer after reading the tokens: `layer position width`."""
    caches = make_caches(model, tokens.shape[1])
    model(tokens, caches=caches)
    return torch.stack([cache.keys[0].transpose(0, 1).flatten(1) for cache in caches])


tokens = torch.randint(256, (1, 30))
edited = torch.where(torch.arange(30) == 12, (tokens + 1) % 256, tokens)

fig, axes = plt.subplots(2, 1, figsize=(7, 2.6), sharex=True)
cases = {"five tokens appended": tokens[:, :25], "token 12 replaced": edited}
for ax, (title, other) in zip(axes, cases.items(), strict=True):
    moved = (keys_of(tokens)[:, : other.shape[1]] - keys_of(other)).norm(dim=-1) > 1e-9
    heatmap(ax, moved.double(), KEY)
    ax.set(title=title, xlabel="", ylabel="layer", xlim=(-0.5, 29.5), yticks=range(3))
axes[-1].set(xlabel="position")
plt.show()

# %% [markdown]
# Filled are the keys that moved. So two conversations can share the keys and values of one beginning, but not
# those of one end.
#
# ## 4. Three ways to break it
#
# **Predict.** Behind the prompt, tokens are read one at a time. Which of these mistakes raises an error?
# Which is the worst?
#
# - a new token is told position 0, which is also what the top-left mask `is_causal=True` makes of it;
# - it is told a position that is one too high;
# - the cache is one token short: the last of the prompt was not read.


# %%
def read_one_by_one(told, short=0):
    """The logits of tokens 20 to 39; token `i` is told the position `told(i)`."""
    caches = make_caches(model, 40)
    model(once[:, : 20 - short], caches=caches)
    steps = [model(once[:, [i]], positions=torch.tensor([told(i)]), caches=caches) for i in range(20, 40)]
    return torch.cat(steps, dim=1)[0]


mistakes = {
    "no mistake": read_one_by_one(lambda i: i),
    "position 0": read_one_by_one(lambda i: 0),
    "position i + 1": read_one_by_one(lambda i: i + 1),
    "one token short": read_one_by_one(lambda i: i - 1, short=1),
}
whole = model(once)[0, 20:40]
for name, logits in mistakes.items():
    error, changed = (logits - whole).abs().max(), (logits.argmax(-1) != whole.argmax(-1)).double().mean()
    print(f"{name:15}: logits off by {error:.0e}, another token in {changed:3.0%} of the steps")

# %% [markdown]
# None raises an error, and the last two leave most tokens as they were: a trained model would go on to write
# fluent text. A cache has one honest test: piece by piece must equal all at once, to rounding.
#
# ## 5. Texts of different lengths
#
# Three prompts of 9, 5 and 2 tokens are read together, padded on the right. Then each goes on.
#
# **Predict.** While the prompts are read, padding does no harm. Why? And which of the three texts would be
# spoiled if it stayed in the cache?
#
# <details markdown="1"><summary>Answer</summary>
#
# It stands to the right of its text, and nobody looks to the right. But the next token stands further right
# still, and would see it. The longest prompt has no padding, so only the other two would be spoiled.
#
# </details>

# %%
prompts = [torch.randint(256, (n,)) for n in (9, 5, 2)]
padded, new = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True), torch.randint(256, (3, 1))
for forget in (False, True):
    caches = make_caches(model, 10)
    model(padded, caches=caches)
    for cache in caches:
        cache.truncate([9, 5, 2] if forget else [9, 9, 9])
    logits = model(new, caches=caches)[:, -1]
    alone = [model(torch.cat(pair)[None])[0, -1] for pair in zip(prompts, new, strict=True)]
    errors = (logits - torch.stack(alone)).abs().amax(dim=-1)
    print("padding", "forgotten:" if forget else "kept:     ", *(f"{error:7.0e}" for error in errors))
print("positions:", *caches[0].positions.tolist(), sep="\n  ")

together = generate_batch(model, prompts, 40, temperature=0.0, chunk_size=4)
alone = [generate(model, prompt[None], 40, temperature=0.0)[0] for prompt in prompts]
print("each text as it would be alone:", all(map(torch.equal, together, alone)))

# %% [markdown]
# ## 6. Guesses that are taken back
#
# A large model reads five tokens in hardly more time than one: the weights are fetched once for all. So let
# somebody cheap guess the next four, read them in one pass, keep those that the model would have written,
# and forget the rest. This is speculative decoding.
#
# **Predict.** The guesser is the model itself with noise on its weights. Will the text be the model's own, or
# something between the two?
#
# <details markdown="1"><summary>Answer</summary>
#
# The model's own, exactly. A guess is kept only if the model chooses the same token; where it does not, its
# own choice is taken. A bad guesser costs time, never quality.
#
# </details>

# %%
guesser = LanguageModel(config).double()
guesser.load_state_dict({name: x + 0.005 * torch.randn_like(x) for name, x in model.state_dict().items()})

text, passes = once[:, :20], 0
caches, drafts = make_caches(model, 125), make_caches(guesser, 125)
model(text[:, :-1], caches=caches)
guesser(text[:, :-1], caches=drafts)
while text.shape[1] < 120:
    held = text.shape[1] - 1  # all but the newest token have been read
    guessed = generate(guesser, text[:, held:], 4, temperature=0.0, caches=drafts)
    chosen = model(guessed, caches=caches).argmax(-1)
    passes += 1
    agreed = int((guessed[0, 1:] == chosen[0, :-1]).cumprod(0).sum())
    text = torch.cat([text, chosen[:, : agreed + 1]], dim=1)
    for cache in (*caches, *drafts):
        cache.truncate([min(held + agreed + 1, int(cache.lengths))])
    if agreed == 4:
        guesser(guessed[:, -1:], caches=drafts)  # the guesser never read its own last guess

print(f"{text.shape[1] - 20} tokens in {passes} passes of the model")
print("as the model alone:", torch.equal(text[:, :120], once))

# %% [markdown]
# ## 7. What it saves, and what it costs
#
# **Predict.** How does the time for one more token grow with the text, without a cache and with one?

# %%
model = LanguageModel(LanguageModelConfig(position_embedding="none"))
tokens, lengths = torch.randint(256, (1, 512)), [8, 64, 128, 192, 256, 320, 384, 448, 512]
anew, cached = [], []
for length in lengths:
    caches = make_caches(model, length + 8)
    model(tokens[:, :length], caches=caches)
    read_again = timeit.repeat(lambda n=length: model(tokens[:, :n]), number=1, repeat=8)
    read_one = timeit.repeat(lambda caches=caches: model(tokens[:, :1], caches=caches), number=1, repeat=8)
    anew.append(1e3 * min(read_again))
    cached.append(1e3 * min(read_one))

fig, ax = plt.subplots(figsize=(7, 2.6))
ax.plot(lengths, anew, "o-", color=MASK, markersize=4, label="the whole text again")
ax.plot(lengths, cached, "o-", color=KEY, markersize=4, label="one token and a cache")
ax.set(xlabel="tokens in the text", ylabel="ms for the next token", ylim=(0, None))
ax.legend()
plt.show()

# %% [markdown]
# On a large model, the memory becomes the time: a step reads the weights once for the batch, and each cache
# for its own text.
#
# **Predict.** Llama-2-7B, texts of 4,096 tokens. From how many texts on does a step read more bytes of cache
# than of weights? And how many operations does it do for each byte?

# %%
for batch in (1, 6, 7, 16, 64, 256):
    operations, read = decode_cost(6_738_415_616, 32, 32, 128, 4096, batch=batch)
    share = kv_cache_bytes(32, 32, 128, 4096, batch=batch) / read
    print(f"{batch:3} texts: {share:3.0%} of the bytes are cache, {operations / read:.1f} operations a byte")

# %% [markdown]
# From the seventh text on. Operations for each byte rise towards a limit of 7.3: more texts share the
# weights, but a byte of cache serves one text only, with one operation. An accelerator that could do hundreds
# in that time waits, whatever the batch. What helps is to have fewer bytes: lesson 8.
#
# ## Now you
#
# - In section 1, write 1,000 tokens. By which factor do the readings fall? Find the formula.
# - In section 3, replace token 29, the last. What must be read again?
# - In section 5, write 10 tokens more with the padding kept. Does a text recover?
# - In section 6, raise the noise from 0.005 to 0.05, or guess eight tokens at a time. Does it still pay?
# - Then write it yourself: `attn start kv_cache` puts the tasks into your working folder, and
#   `attn check kv_cache` tells you how far you are.
