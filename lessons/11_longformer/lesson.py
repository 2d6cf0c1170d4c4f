# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Longformer, hands on
#
# A window for every token, and a few tokens that see everything and are seen by all. Here you draw who sees
# whom, count what it costs, and find out how far news travels, and how loud it is when it arrives. Guess
# before you open an answer. A wrong guess is worth more than a right answer read.

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
import numpy as np

from annotated_attention.longformer import longformer_attention
from annotated_attention.longformer_tiles import longformer_scores

# %% [markdown]
# ## 1. Who sees whom
#
# If every query scores every key alike, each takes the mean of what it sees. With one-hot values the outputs
# are then the weights themselves: 1 over the number of keys in sight, and 0 for all others.
#
# **Predict.** Three patterns for 24 tokens: a window of 4; the same with dilation 3; a window of 4 and token
# 5 global. How many keys does token 12 see in each? In the third, is row 5 darker than the others, or paler?


# %%
def weights(t, window, global_tokens=(), dilation=1):
    """The weights when all scores are equal, in float64: queries down, keys across."""
    is_global = torch.zeros(1, t, dtype=torch.bool)
    is_global[:, list(global_tokens)] = True
    equal, values = torch.zeros(1, 1, t, 1, dtype=torch.float64), torch.eye(t, dtype=torch.float64)
    mean = longformer_attention(equal, equal, values[None, None], window, is_global, dilation=dilation)
    return mean[0, 0]


patterns = {"window 4": weights(24, 4), "dilation 3": weights(24, 4, dilation=3)}
patterns["token 5 global"] = weights(24, 4, [5])
fig, axes = plt.subplots(1, 3, figsize=(7, 2.6), sharey=True)
for ax, (title, pattern) in zip(axes, patterns.items(), strict=True):
    heatmap(ax, pattern, WEIGHTS, vmax=0.25)
    ax.set(title=title, ylabel="query" if ax is axes[0] else "")
    ax.set(xticks=[0, 5, 12, 23], yticks=[0, 5, 12, 23])
    print(f"{title}: token 12 sees {(pattern[12] > 0).sum()} keys, token 5 sees {(pattern[5] > 0).sum()}")
plt.show()

# %% [markdown]
# Seven, seven and eight. The window counts the token itself, so 4 means three to each side, and dilation
# spreads the same seven keys over 19 tokens. Row 5 is pale: it shares its attention among all 24.
#
# ## 2. What it costs
#
# Longformer-base reads 4,096 tokens with a window of 257, so that a token has at most 513 scores. A global
# token adds a row and a column.
#
# **Predict.** Which share of the $t^2$ scores of full attention is that? And suppose that the first token of
# every sentence is global, one token in 64: is the cost still linear?
#
# <details markdown="1"><summary>Answer</summary>
#
# An eighth: 515 of 4,096, and a little less, because the ends of a text have a window on one side only. With
# one global token in 64 the cost is not linear: $t/64$ rows and $t/64$ columns of $t$ scores are $t^2/32$,
# and the dashed line becomes parallel to full attention. It is not enough that global tokens are few. Their
# number must not grow with the text.
#
# </details>

# %%
lengths = [2**k for k in range(6, 18)]
fig, ax = plt.subplots()
ax.plot(lengths, [t**2 for t in lengths], color=MASK, label="full attention")
for name, part, style in (("one global token", 0, "-"), ("one global token in 64", 1 / 64, "--")):
    seen = [longformer_scores(t, 257, max(1, int(part * t)))[0] for t in lengths]
    ax.plot(lengths, seen, style, color=WEIGHTS, label=name)
    print(f"{name}: {seen[6] / 4096**2:.1%} of all scores at 4,096 tokens, {seen[11]:,} at 131,072")
ax.set(xscale="log", yscale="log", xlabel="tokens", ylabel="scores of a head")
ax.legend()
plt.show()

cheaper = next(t for t in range(1, 4096) if longformer_scores(t, 257, 1)[1] < t**2)
print(f"with its tiles the code computes fewer scores than full attention from {cheaper} tokens on")

# %% [markdown]
# ## 3. How far news travels
#
# Now layers. The gradient of one token's output with respect to another token's input says whether the one
# has heard of the other.
#
# **Predict.** Window 4, 20 tokens. After how many layers has the last token heard of the first? And if token
# 10 is global?


# %%
def hears(n_layers, global_tokens, t=20, window=4):
    """Which output depends on which input, by gradients."""
    is_global = torch.zeros(1, t, dtype=torch.bool)
    is_global[:, global_tokens] = True

    def stack(x):
        for _ in range(n_layers):
            x = longformer_attention(x, x, x, window, is_global)
        return x.sum(dim=(0, 1, 3))

    x = torch.randn(1, 1, t, 4, dtype=torch.float64)
    return torch.autograd.functional.jacobian(stack, x)[:, 0, 0].abs().sum(dim=-1) > 0


fig, axes = plt.subplots(2, 3, figsize=(7, 4.6), sharex=True, sharey=True)
for row, global_tokens in zip(axes, ([], [10]), strict=True):
    for ax, n_layers in zip(row, (1, 2, 3), strict=True):
        heatmap(ax, hears(n_layers, global_tokens).double(), QUERY, vmax=1.4)
        ax.set(title=f"{n_layers} layer{'s' * (n_layers > 1)}", xlabel="", ylabel="")
    row[0].set(ylabel="token 10 global" if global_tokens else "window only")
plt.show()
print("window only: all is connected after layer", next(n for n in range(1, 20) if hears(n, []).all()))

# %% [markdown]
# Three tokens a layer, so seven layers for a distance of 19. With the global token two are enough for any
# text: it hears everything in the first, and everybody hears it in the second. Longformer-base has 12 layers
# that reach 256 tokens each, 3,072 of 4,096: by windows alone its first and last token never meet.
#
# ## 4. How loud it is when it arrives
#
# A gradient that is not zero is not yet a message. With equal scores each layer takes means, and $L$ layers
# are the $L$-th power of the weights of section 1. Its row says how much of each token is left in one output.
#
# **Predict.** 12 layers, window 17: they reach $12 \cdot 16 = 192$ tokens to each side. How much of the token
# 150 tokens away is left, beside that of the nearest? What does one global token change?
#
# <details markdown="1"><summary>Answer</summary>
#
# Four millionths. A mean of means is a random walk, which in $L$ layers spreads over $\sqrt{L\,w(w-1)/3}$
# tokens, here 33. Reach grows with $L$, what is heard with $\sqrt L$. The global token lifts all others to
# one floor.
#
# </details>

# %%
fig, ax = plt.subplots(figsize=(7, 3.2))
for name, global_tokens, colour in (("window", [], MASK), ("and a global token", [0], WEIGHTS)):
    for n_layers, style in ((2, ":"), (12, "-")):
        heard = torch.linalg.matrix_power(weights(1024, 17, global_tokens), n_layers)[512]
        ax.plot(heard[512:813], style, color=colour, label=f"{name}, {n_layers} layers")
    far = 1 - heard[412:613].sum()
    print(f"{name}: {heard[662] / heard[512]:.0e} of the nearest at 150 tokens; {far:.1%} from beyond 100")
ax.set(yscale="log", ylim=(1e-9, 0.1), xlabel="distance", ylabel="share in the output")
ax.legend(loc="upper right", ncols=2)
plt.show()

# %% [markdown]
# With the global token a quarter of the output comes from beyond 100 tokens: a whisper of each, but of all. A
# trained model need not take plain means, and can pass on one thing undiminished. By windows it must learn
# that for every layer on the way, by the global token for two. Lesson 12 has trained such models: one fact
# crosses by one global token, of eight most are lost.
#
# ## 5. Three changes to a global token
#
# Sixteen tokens, window 3, token 6 global. Global queries have their own projections, of everything, so a
# token has two keys: one that local queries meet, and a starred one for global queries.
#
# **Predict.** Which outputs move (a) if token 6 is global no longer? (b) if its ordinary key changes? (c) if
# its starred key does?

# %%
own, starred = (torch.randn(3, 1, 1, 16, 4, dtype=torch.float64) for _ in range(2))
is_global = (torch.arange(16) == 6)[None]
other_key = torch.zeros_like(own)
other_key[1, :, :, 6] = 3.0
changes = {
    "(a) no longer global": (own, starred, torch.zeros_like(is_global)),
    "(b) another key": (own + other_key, starred, is_global),
    "(c) another starred key": (own, starred + other_key, is_global),
}
before = longformer_attention(*own, 3, is_global, global_qkv=tuple(starred))
fig, axes = plt.subplots(1, 3, figsize=(7, 2.2), sharey=True)
for ax, (title, (qkv, global_qkv, mask)) in zip(axes, changes.items(), strict=True):
    after = longformer_attention(*qkv, 3, mask, global_qkv=tuple(global_qkv))
    moved = (after - before).norm(dim=-1)[0, 0]
    ax.bar(range(16), moved, color=[BIAS if i == 6 else KEY for i in range(16)])
    ax.set(title=title, xlabel="token", xticks=[0, 4, 6, 8, 15])
    print(f"{title}: these move:", *(moved > 1e-9).nonzero()[:, 0].tolist())
axes[0].set(ylabel="how far it moves")
plt.show()

# %% [markdown]
# (a) moves all but the four neighbours: those saw token 6 through their windows before, and still do. It had
# been counted once, not twice. (b) moves all but token 6 itself, which never looks at an ordinary key while
# it is global. (c) moves token 6 alone.
#
# ## 6. Dilation, layer by layer
#
# Four layers with a window of 2: each token sees itself and one key to each side, $\delta$ tokens away.
#
# **Predict.** From the middle of 41 tokens, what is seen after four layers if $\delta$ is 1, 1, 1, 1? If it
# is 4, 4, 4, 4? If it is 1, 2, 4, 8?

# %%
fig, axes = plt.subplots(3, 1, figsize=(7, 3.6), sharex=True)
for ax, dilations in zip(axes, ((1, 1, 1, 1), (4, 4, 4, 4), (1, 2, 4, 8)), strict=True):
    seen = [torch.eye(41, dtype=torch.float64)[20]]
    for dilation in reversed(dilations):  # from the top down: what the output asks for
        seen.append(seen[-1] @ weights(41, 2, dilation=dilation))
    heatmap(ax, (torch.stack(seen) > 0).double(), KEY, vmax=1.4)
    ax.set(title=f"dilations {dilations}", xlabel="", ylabel="layers down", aspect="auto")
    print(f"dilations {dilations}: {int((seen[-1] > 0).sum())} tokens seen")
axes[-1].set(xlabel="token")
plt.show()

# %% [markdown]
# 9 tokens; 9 tokens, spread wide, with holes that no further layer fills; and 31 without a hole, since steps
# that double reach every distance up to 15. Longformer mixes dilations too, but those of heads in one layer.
#
# ## 7. A forgotten padding mask
#
# **Predict.** A text of 24 tokens, window 3, token 0 global, shares a batch with a text of 32 and is padded.
# Somebody forgets `padding_mask`. How many of the 24 outputs are wrong after one layer? After two?
#
# <details markdown="1"><summary>Answer</summary>
#
# After one layer three: the last two, whose windows reach into the padding, and the global token, which looks
# at everything. After two layers all of them. What makes news fast makes mistakes fast, too.
#
# </details>

# %%
short = torch.randn(1, 1, 24, 4, dtype=torch.float64)
padded = torch.cat([short, torch.randn(1, 1, 8, 4, dtype=torch.float64)], dim=2)
is_global, is_token = (torch.arange(32) == 0)[None], (torch.arange(32) < 24)[None]
alone, masked, forgotten = short, padded, padded
for n_layers in (1, 2):
    alone = longformer_attention(alone, alone, alone, 3, is_global[:, :24])
    masked = longformer_attention(masked, masked, masked, 3, is_global, padding_mask=is_token)
    forgotten = longformer_attention(forgotten, forgotten, forgotten, 3, is_global)
    error, wrong = ((x[:, :, :24] - alone).abs().amax(dim=-1) for x in (masked, forgotten))
    print(f"layer {n_layers}: off by {error.max():.0e}; no mask: {(wrong > 1e-9).sum()} of 24 wrong")

# %% [markdown]
# ## 8. A needle
#
# One fact stands at the very beginning of a text, the question at its end. The question's score is $\sigma$
# for the needle, and random, of variance 1, for all other keys. The needle has the value 1, all others 0, so
# the output at the question is the share of its attention that the needle gets.
#
# **Predict.** The window is 257. What does the question find in a text of 65,536 tokens, if it is a token
# like any other? If it is global, how large must $\sigma$ be for the needle to get half of its attention?

# %%
strengths, lengths = (4.0, 8.0, 12.0), 2 ** torch.arange(3, 17)
found = {"global": [], "local": []}
for t in lengths.tolist():
    # One head for each strength. The keys are scores: the query is 1, and so is the scale.
    scores = torch.randn(1, 3, t, 1)
    scores[0, :, 0, 0] = torch.tensor(strengths)
    query, needle = torch.ones(1, 3, t, 1), torch.zeros(1, 3, t, 1)
    needle[:, :, 0] = 1.0
    last = (torch.arange(t) == t - 1)[None]
    for name, is_global in (("global", last), ("local", last & ~last)):
        output = longformer_attention(query, scores, needle, 257, is_global, scale=1.0)
        found[name].append(output[0, :, -1, 0])

fig, ax = plt.subplots(figsize=(7, 3.2))
for head, strength in enumerate(strengths):
    for name, style, colour in (("global", "o-", VALUE), ("local", "x:", MASK)):
        shares = [share[head] for share in found[name]]
        ax.plot(lengths, shares, style, color=colour, markersize=4)
    ax.axvline(np.exp(strength - 0.5), color=SOFT, linewidth=0.8, linestyle=":")
    ax.text(np.exp(strength - 0.5), 1.03, f"σ = {strength:.0f}", color=SOFT, fontsize=8, ha="center")
ax.set(xscale="log", xlabel="tokens", ylabel="share of the needle", ylim=(0, 1.1))
plt.show()
for name, shares in found.items():
    print(f"{name} question, {t:,} tokens:", *(f"{share:.3f}" for share in shares[-1].tolist()))

# %% [markdown]
# A local question finds nothing from 258 tokens on, however well the needle fits. A global one sees it, but
# among all others, which weigh $t\,\mathbb{E}[e^{x}] = t\,e^{1/2}$ together. So the needle has half of the
# attention where $t = e^{\sigma - 1/2}$, the dotted lines: for 65,536 tokens it takes 11.6. Whoever sees
# everything must tell it apart, a point better for each factor of $e$. The crowd in a window does not grow.
#
# ## Now you
#
# - In section 3 let token 10 be global in the first layer only, then in the second only. Who hears whom?
# - In section 4 take 3 layers of window 65, which reach as far as 12 of window 17. What do they hear at 150?
# - In section 6 find five dilations for window 3 that reach as far as possible without a hole.
# - In section 8 make the *needle* global, and the question not. What becomes of its share as the text grows?
# - Then write it yourself: `attn start longformer` puts six tasks into your working folder, and
#   `attn check longformer` tells you how far you are.
