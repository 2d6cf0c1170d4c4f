# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Cross-attention, hands on
#
# One sequence asks, another answers. Here you train a small model that writes dates in another form, look at
# what it looks at, and then break it in the ways in which such models are broken. Guess before you open an
# answer. A wrong guess is worth more than a right answer read.

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
import torch.nn.functional as F
from torch import nn

from annotated_attention.cross_attention import DecoderBlock
from annotated_attention.multi_head import merge_heads, split_heads
from annotated_attention.scaled_dot_product import attention_weights

# %% [markdown]
# ## 1. What does a writer look at?
#
# The task: read `12 march 2024`, write `2024-03-12`. All parts are there, in another order, and a month
# becomes two digits. Dates are cut into characters; the shorter ones are filled up with character 0.

# %%
MONTHS = ["january", "february", "march", "april", "may", "june", "july"]
MONTHS += ["august", "september", "october", "november", "december"]
CHARACTERS = "_ -0123456789abcdefghijklmnopqrstuvwxyz"  # the first is padding


def encode(texts):
    longest = max(len(text) for text in texts)
    padded = [text.ljust(longest, "_") for text in texts]
    return torch.tensor([[CHARACTERS.index(c) for c in text] for text in padded])


def decode(rows):
    return ["".join(CHARACTERS[n] for n in row) for row in rows.tolist()]


def dates(n):
    """`n` random dates: as they are read, and as they are to be written."""
    days, months = torch.randint(1, 29, (n,)), torch.randint(12, (n,))
    dates = torch.stack([days, months, torch.randint(1000, 3000, (n,))], dim=1).tolist()
    read = [f"{d} {MONTHS[m]} {y}" for d, m, y in dates]
    return encode(read), encode([f"{y}-{m + 1:02}-{d:02}" for d, m, y in dates])


(source, target), (unseen, wanted) = dates(8192), dates(1000)
print(*zip(decode(source[:4]), decode(target[:4]), strict=True), sep="\n")

# %% [markdown]
# The model is one `DecoderBlock` of the page, with two heads, its cross-attention opened to show the weights
# and to take any mask. There is no encoder: the vectors of the context are those of its characters, each with
# its distance from either end of the date.


# %%
class Writer(nn.Module):
    def __init__(self, m=64):
        super().__init__()
        n = len(CHARACTERS)
        self.character, self.place = nn.Embedding(n, m), nn.Embedding(10, m)
        self.from_start, self.from_end = nn.Embedding(17, m), nn.Embedding(17, m)
        self.block = DecoderBlock(m, m, 2)
        self.norm, self.head = nn.LayerNorm(m), nn.Linear(m, n)

    def read(self, source):
        """The context, and where it is real."""
        real, j = source != 0, torch.arange(source.shape[1])
        to_end = (real.sum(dim=1, keepdim=True) - 1 - j).clamp(min=0)
        return self.character(source) + self.from_start(j) + self.from_end(to_end), real

    def embed(self, target):
        """What was written so far: before the first character there is a 0."""
        written = F.pad(target[:, :-1], (1, 0))
        return self.character(written) + self.place.weight[: target.shape[1]]

    def forward(self, source, target, mask=None):
        """Logits, and the weights of cross-attention, `b h t s`."""
        context, real = self.read(source)
        mask = real[:, None, None, :] if mask is None else mask
        block, attention, x = self.block, self.block.cross_attention, self.embed(target)
        x = x + block.self_attention(block.self_norm(x))
        key, value = attention.project(context)
        query = split_heads(attention.w_q(block.cross_norm(x)), 2)
        weights = attention_weights(query, key, mask)
        x = x + attention.w_o(merge_heads(weights @ value))
        x = x + block.mlp(block.mlp_norm(x))
        return self.head(self.norm(x)), weights


model = Writer()
optimizer = torch.optim.AdamW(model.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=400)
for chosen in torch.randint(len(source), (400, 64)):
    logits, _ = model(source[chosen], target[chosen])
    loss = F.cross_entropy(logits.flatten(0, 1), target[chosen].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()

model.requires_grad_(False)
right = (model(unseen, wanted)[0].argmax(-1) == wanted).all(dim=1).float()
print(f"of 1,000 other dates, {right.sum():.0f} are written without a mistake")

# %% [markdown]
# **Predict.** Ten characters are written. Draw a table with a row for each and a column for each character
# that is read: where are the dark squares? And what does a hyphen look at, which is always the same?

# %%
shown = [("12 march 2024", "2024-03-12"), ("7 september 1985", "1985-09-07")]
fig, axes = plt.subplots(2, 2, figsize=(7, 5.2))
for row, (read, written) in zip(axes, shown, strict=True):
    _, weights = model(encode([read]), encode([written]))
    for head, ax in enumerate(row):
        heatmap(ax, weights[0, head], WEIGHTS)
        ax.set(xlabel="read", ylabel="written", title=f"head {head + 1}")
        ax.set_xticks(range(len(read)), read)
        ax.set_yticks(range(len(written)), written)
plt.show()

# %% [markdown]
# Year, month and day, in their new order: three blocks that cross. Nobody told the model which character
# belongs to which. It was told what to write, and learned where to look because that helps: this is figure 3
# of Bahdanau et al. (arXiv:1409.0473). For a month it takes a letter or two, a head each.
#
# A hyphen needs nothing, but weights sum to one: it looks somewhere, and the layers behind have learned to
# make nothing of it. Not every dark square is a reason.
#
# ## 2. A set
#
# **Predict.** The context's vectors are shuffled. What is written? And if the characters of the date are
# shuffled before they become vectors?
#
# <details markdown="1"><summary>Answer</summary>
#
# First the same: cross-attention sees a set, and order is in the vectors, as distances from the ends. Shuffle
# the characters, and each gets another's distances.
#
# </details>

# %%
one, order = encode(["12 march 2024"]), torch.randperm(13)
(context, real), x = model.read(one), model.embed(encode(["2024-03-12"]))
whole = model.block(x, context, padding_mask=real)
shuffled = model.block(x, context[:, order], padding_mask=real[:, order])
print(f"vectors shuffled: the output moves by {(whole - shuffled).abs().max():.0e}")
logits, _ = model(one[:, order], encode(["2024-03-12"]))
print("characters shuffled:", *decode(one[:, order]), "->", *decode(logits.argmax(-1)))

# %% [markdown]
# ## 3. Never causal
#
# A decoder has a causal mask, so somebody passes it to cross-attention as well.
#
# **Predict.** Character $i$ may now look at the first $i + 1$ characters of the date only. Which of the ten
# are still right?

# %%
causal = torch.ones(10, 17, dtype=torch.bool).tril() & (unseen != 0)[:, None, None, :]
for name, mask in (("as trained", None), ("causal", causal)):
    share = (model(unseen, wanted, mask)[0].argmax(-1) == wanted).float().mean(dim=0)
    print(f"{name:11}", *(f"{c}{x:4.0%}" for c, x in zip("yyyy-mm-dd", share, strict=True)))

# %% [markdown]
# The year is read last and written first: the queries that need it may not see it, and guess. The day is
# written when the mask has opened. No part of the context is a future: all of it was there from the start.
#
# ## 4. The forgotten padding mask
#
# Shorter dates are padded to 17 characters. Forget the mask, and padding is read like the rest of the date.
#
# **Predict.** Which dates suffer, short or long? Does a date give the same answer alone?
#
# <details markdown="1"><summary>Answer</summary>
#
# The short ones, which have the most padding. Alone, a date has none: no test with one text finds this bug.
#
# </details>

# %%
everything, lengths = torch.ones(1, 17, dtype=torch.bool), (unseen != 0).sum(dim=1)
logits, weights = model(unseen, wanted, everything)
without_mask = (logits.argmax(-1) == wanted).all(dim=1).float()
on_padding = (weights * (unseen == 0)[:, None, None]).sum(dim=-1).mean(dim=(1, 2))
fig, axes = plt.subplots(1, 2, figsize=(7, 2.5))
panels = ((0, right, SOFT), (0, without_mask, VALUE), (1, on_padding, WEIGHTS))
for place, values, colour in panels:
    by_length = [values[lengths == n].mean() for n in range(10, 18)]
    axes[place].plot(range(10, 18), by_length, "o-", color=colour, markersize=4, clip_on=False)
    axes[place].set(xlabel="characters of the date", ylim=(0, None))
axes[0].legend(["mask", "mask forgotten"], loc="lower center")
axes[0].set(title="share written without a mistake")
axes[1].set(title="share of attention on padding")
plt.show()

for texts in (["1 may 1999"], ["1 may 1999", "12 september 2024"]):
    no_mask = everything[:, : len(texts[-1])]
    logits, _ = model(encode(texts), encode(["1999-05-01"] * len(texts)), no_mask)
    print(f"{decode(logits.argmax(-1))[0]} without a mask, from the batch {texts}")

# %% [markdown]
# ## 5. Projected once
#
# The context can be passed at every step, or projected once and passed as `keys_values`.
#
# **Predict.** Whisper's context has 1,500 vectors, 1,280 wide. How many times as much work is the first way,
# for a text of 100 tokens? (Only this layer counts.)

# %%
from torch.utils.flop_counter import FlopCounterMode

from annotated_attention.cross_attention import CrossAttention

with torch.device("meta"):  # shapes without numbers: operations are only counted
    layer, audio = CrossAttention(1280, 1280, 20), torch.empty(1, 1500, 1280)


def operations(call, *inputs, **more):
    with FlopCounterMode(display=False) as counter:
        call(*inputs, **more)
    return counter.get_total_flops()


n, token, keys_values = torch.arange(1, 449), audio[:, :1], layer.project(audio)
every_time = n * operations(layer, token, audio)
once = operations(layer.project, audio)
once = once + n * operations(layer, token, keys_values=keys_values)
fig, ax = plt.subplots(figsize=(7, 2.6))
ax.plot(n, every_time, color=MASK, label="context at every step")
ax.plot(n, once, color=KEY, label="projected once")
ax.set(xlabel="tokens written", ylabel="operations", yscale="log")
ax.legend()
plt.show()
print(f"100 tokens: {every_time[99] / once[99]:.0f} times the work")

# %% [markdown]
# ## 6. LLaVA's way
#
# LLaVA does not ask the image, it puts it into the text: a projector makes tokens of the patches (576 there,
# six here), and they take the places of as many placeholders.

# %%
from annotated_attention.cross_attention import VisionProjector, insert_features

patches = VisionProjector(1024, 64)(torch.randn(1, 6, 1024))
is_image = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0]], dtype=torch.bool)
inserted = insert_features(torch.randn(1, 11, 64), patches, is_image)
print("patches 0 to 5 are tokens 3 to 8:", torch.equal(inserted[0, 3:9], patches[0]))

# %% [markdown]
# No new layer, but more tokens, and each goes through the whole language model. With cross-attention the
# image stays outside, and every token of text pays for asking.
#
# **Predict.** A layer of width 4,096, an image of 576 patches of 1,024 numbers. Which is cheaper for a
# question of 100 tokens? And in a talk of 10,000 tokens about the one image?

# %%
from annotated_attention.cross_attention import cross_attention_cost, insertion_cost

s, c, m, t = 576, 1024, 4096, torch.arange(0, 10001, 10)
fig, ax = plt.subplots(figsize=(7, 2.8))
ways = {"cross-attention": cross_attention_cost(s, c, m), "inserted": insertion_cost(s, m)}
for (name, cost), colour in zip(ways.items(), (QUERY, KEY), strict=True):
    ax.plot(t, (cost.once + t * cost.per_token) / 1e9, color=colour, label=name)
    print(f"{name:16}{cost.once:15,} once, {cost.per_token:10,} a token, cache {cost.cache:,}")
ax.axvline(s * (6 + (s - c) / m), color=SOFT, linewidth=0.8, linestyle=":")
ax.set(xlabel="tokens of text", ylabel="billion operations", ylim=(0, None))
ax.legend()
plt.show()

# %% [markdown]
# Insertion pays nearly all at once, 25 times what it costs to project the image for cross-attention; a token
# of text then pays an eighth. They are even after 3,393 tokens, not quite six for each patch. The cache of a
# layer is the same, but cross-attention can do with fewer layers.
#
# ## Now you
#
# - In section 1, take `from_end` away from `read` and train again. Which part of the date suffers, and why?
# - Give the model one head (three places). How many dates are right? Which months does it confuse?
# - Train without the mask from the start. Does the model learn to leave padding alone?
# - In section 6, plot the costs for a long context, $s = 100{,}000$. What became of the crossing point?
# - Then write it yourself: `attn start cross_attention` puts the tasks into your working folder, and
#   `attn check cross_attention` tells you how far you are.
