# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Rotary positions, hands on
#
# A query and a key are turned by angles that grow with their positions, and their product feels how far apart
# they are. Here you turn vectors by hand, misread a checkpoint, and take a model beyond the length of its
# training. Guess before you open an answer. A wrong guess is worth more than a right answer read.

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
import math
from functools import partial

import torch.nn.functional as F

from annotated_attention.language_model import LanguageModel, LanguageModelConfig, SelfAttention
from annotated_attention.language_model_corpus import library_files, split
from annotated_attention.language_model_training import BEGIN, train
from annotated_attention.rotary import (
    apply_rotary,
    half_split_order,
    ntk_base,
    rotary_angles,
    rotary_attention,
    rotary_frequencies,
    yarn_frequencies,
    yarn_scale,
)

# %% [markdown]
# ## 1. One pair, by hand
#
# A pair of numbers is a complex number. To turn it by $\varphi$ is to multiply it by $e^{\mathrm{i}\varphi}$,
# and the product of two pairs, as vectors, is the real part of one conjugated times the other. A query at 3
# and a key at 1 are turned, by 0.7 a position, and multiplied.
#
# **Predict.** The same two move to 103 and 101. How does the product change? And if only the query moves?

# %%
query, key, theta = torch.tensor(2 + 1j), torch.tensor(-1 + 3j), 0.7
for i, j in ((3, 1), (103, 101), (103, 1), (3, 3), (103, 103)):
    at_i = query * torch.exp(torch.tensor(1j * i * theta))
    at_j = key * torch.exp(torch.tensor(1j * j * theta))
    print(f"query at {i:3}, key at {j:3}: {(at_i.conj() * at_j).real:+.5f}")

# %% [markdown]
# Only the difference counts: $e^{-\mathrm{i}\,103\,\theta}\,e^{\mathrm{i}\,101\,\theta} =
# e^{-\mathrm{i}\,2\,\theta}$, for conjugating turns backwards. At distance 0 nothing is turned at all.
#
# ## 2. The hands of a clock
#
# One pair cannot tell 1 from $1 + 2\pi/\theta$. So a head of width 32 has 16, each slower than the one before.
# Below is the cosine of some pairs' angles.
#
# **Predict.** The first pair turns by 1 radian a position. After how many positions is it round? And how far
# has the last of the 16 turned after 200?

# %%
angles = rotary_angles(torch.arange(200), 32)

fig, ax = plt.subplots(figsize=(7, 2.6))
for pair, colour in ((0, BIAS), (5, QUERY), (7, KEY), (9, VALUE), (15, WEIGHTS)):
    ax.plot(angles[:, pair].cos(), color=colour, linewidth=1.2)
    wavelength = 2 * math.pi / rotary_frequencies(32)[pair]
    label = f"pair {pair}, round in {wavelength:,.0f}"
    ax.text(202, angles[-1, pair].cos(), label, color=colour, va="center", fontsize=8)
ax.set(xlabel="position", ylabel="cosine of the angle", xlim=(0, 250))
plt.show()

# %% [markdown]
# The fast hands tell neighbours apart and come round every few tokens. The slow ones hardly move: pair 15
# turns by two degrees. A model that reads 200 tokens in training never sees what the slow pairs do further
# on. Keep that in mind for the end.
#
# ## 3. A head without content
#
# All tokens are the same: every key is one vector $\mathbf{u}$. The queries too, except that each is turned
# back by five positions, once and for all: $R_{-5}\,\mathbf{u}$. Then both are turned to where they stand.
#
# **Predict.** What does the matrix of scores look like? Where is the largest score of query 20? Of query 2?
#
# <details markdown="1"><summary>Answer</summary>
#
# It is the same along each diagonal, and largest at distance 5: query 20 looks at key 15. The key that query 2
# wants would stand at $-3$, before the text. It makes do with what comes nearest, by angles.
#
# </details>


# %%
def turned(x, position):
    """The vectors `x`, of any number of axes, all at one position."""
    at_position = rotary_angles(torch.tensor([position]), x.shape[-1])
    return apply_rotary(x.reshape(1, -1, 1, x.shape[-1]), at_position).reshape(x.shape)


u = torch.randn(64, dtype=torch.float64)
keys = torch.stack([turned(u, j) for j in range(32)])
queries = torch.stack([turned(turned(u, -5), i) for i in range(32)])
scores = queries @ keys.T
weights = scores.masked_fill(torch.ones(32, 32).triu(1) > 0, -torch.inf).softmax(dim=-1)

fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.2))
heatmap(left, scores, QUERY, vmin=scores.min(), vmax=scores.max())
heatmap(right, weights, WEIGHTS)
left.set(title="scores")
right.set(title="weights, under a causal mask")
plt.show()

# %% [markdown]
# Here is a head that finds the fifth token back, everywhere, by turns alone.
#
# ## 4. Must scores decay with distance?
#
# It is often said so. Three heads of 64 pairs: in the first, query and key are the same vector, in the second
# they are unrelated, and in the third they are the same, but the query was turned back by 300 first.
#
# **Predict.** Draw the three curves over distance before you run the cell.

# %%
distances = [*range(0, 64, 2), *range(64, 1024, 4)]
x, y = 8 * F.normalize(torch.randn(2, 128, dtype=torch.float64))
heads = {"same": (x, x), "unrelated": (x, y), "turned by 300": (turned(x, -300), x)}

fig, ax = plt.subplots(figsize=(7, 3))
for (name, (query, key)), colour in zip(heads.items(), (QUERY, MASK, KEY), strict=True):
    scores = [query @ turned(key, -r) for r in distances]
    ax.plot(distances, scores, color=colour, label=name)
ax.set(xlabel="distance", ylabel="score", ylim=(-30, 74))
ax.legend(loc="upper right", ncols=3)
plt.show()

# %% [markdown]
# Only the first falls, and not evenly; the third prefers 300. What the paper proves to fall is a bound. A head
# *sees* distance; whether near is better than far, it has to learn.
#
# ## 5. The wrong layout
#
# Which numbers are a pair? Meta's Llama takes neighbours, (0, 1), (2, 3) and so on; Transformers takes one
# number of each half. A checkpoint trained with one is loaded into code for the other.
#
# **Predict.** Is there an error? How much of the attention goes to wrong tokens? Is any query left as it was?
#
# <details markdown="1"><summary>Answer</summary>
#
# No error: the shapes are the same. The first query sees one key only, so nothing changes there. At distance 0
# every score is right, in any layout; at all others, numbers are mixed that do not belong together.
#
# </details>

# %%
query, key = 2 * torch.randn(2, 1, 4, 64, 32)
angles = rotary_angles(torch.arange(64), 32)
future = torch.ones(64, 64, dtype=torch.bool).triu(1)


def weights_in(query, key, interleaved):
    q, k = (apply_rotary(x, angles, interleaved=interleaved) for x in (query, key))
    return (q @ k.mT / 32**0.5).masked_fill(future, -torch.inf).softmax(dim=-1)


trained = weights_in(query, key, interleaved=True)
permuted = torch.stack([query, key])[..., half_split_order(32)]
for name, (q, k) in {"as it is": (query, key), "rows permuted": permuted}.items():
    # Half the sum of absolute differences: the share of attention that moved.
    difference = (trained - weights_in(q, k, interleaved=False)).abs()
    moved = difference.sum(dim=-1).mean(dim=(0, 1)) / 2
    print(f"{name:14}{moved.mean():4.0%} of the attention moved, the first query's {moved[0]:.0%}")

# %% [markdown]
# The rows of $W_Q$ and $W_K$ decide where a number lies. Permute them once, when the checkpoint is converted.
#
# ## 6. Angles in few digits
#
# An angle is position times frequency, and what counts is its remainder of a turn. bfloat16 has 8 binary
# digits, float16 has 11, float32 has 24.
#
# **Predict.** Angles are computed in each of them. From which position on is some pair off by a tenth?

# %%
positions = 2 ** torch.arange(0, 21)
exact = rotary_angles(positions - 1, 128)
fig, ax = plt.subplots(figsize=(7, 2.8))
dtypes = {torch.bfloat16: (BIAS, 21), torch.float16: (KEY, 16), torch.float32: (QUERY, 21)}
for dtype, (colour, end) in dtypes.items():
    rounded = (positions - 1).to(dtype)[:, None] * rotary_frequencies(128).to(dtype)
    # Two points of the circle are twice the sine of half their angle apart.
    worst = 2 * torch.sin((exact - rounded) / 2).abs().amax(dim=-1)[:end]
    ax.plot(positions[:end], worst.clamp(1e-8), ".-", color=colour, label=str(dtype)[6:])
ax.axhline(0.1, color=SOFT, linewidth=0.8, linestyle=":")
ax.set(xscale="log", yscale="log", xlabel="position", ylabel="a turned point is off by")
ax.legend()
plt.show()

# %% [markdown]
# bfloat16 fails within a hundred positions, float16 soon after; float32 lasts for a million tokens. Hence
# `rotary_angles` answers in float64, and `apply_rotary` refuses less than float32. In several libraries,
# casting a model with `.half()` has cast its table of frequencies too.
#
# ## 7. Train short, read long
#
# Now a model: two layers of lesson 3's, trained on Python source in texts of 48 bytes, with rotary attention
# in the slot. Then it is asked for the same bytes in texts of 48, 96, 192 and 384.
#
# **Predict.** More context should help. Does it?

# %%
length, width = 48, 16
shape = {"max_length": length, "d_model": 64, "n_layers": 2, "n_heads": 64 // width}
config = LanguageModelConfig(
    **shape,
    position_embedding="none",
    make_attention=lambda c, layer: SelfAttention(c.d_model, c.n_heads, attend=rotary_attention),
)
torch.manual_seed(0)
model = LanguageModel(config)
text, held_out = split(library_files())
train(model, text, steps=400, batch_size=16, warmup=20)
model.requires_grad_(False)

contexts = [length * k for k in (1, 2, 4, 8)]
ends = torch.randint(contexts[-1], len(held_out), (128,))


def bits(attend):
    """Bits per byte of the same 24 bytes before each of the `ends`, the last of longer and longer texts."""
    for context in contexts:
        for block in model.blocks:
            block.attention.attend = attend
        tokens = torch.stack([held_out[end - context : end] for end in ends]).long()
        logits = model(F.pad(tokens[:, :-1], (1, 0), value=BEGIN))[:, -24:]
        yield F.cross_entropy(logits.mT, tokens[:, -24:]).item() / math.log(2)


for context, x in zip(contexts, bits(rotary_attention), strict=True):
    print(f"text of {context:3}: {x:.2f} bits per byte")

# %% [markdown]
# It gets worse and worse. Of the eight pairs of this model, two went round in training. The others now come
# to angles that they never had. Four remedies are to stretch the text by $f = 4$, without any training:
# divide all positions by 4 (interpolation), enlarge the base (NTK), slow down the pairs that did not go round
# often (by parts), and the same with a sharper softmax (YaRN).
#
# **Predict.** Which leaves the model as good as it was at 48 bytes? Which is best at 192? What happens at
# 384, beyond what was asked for?
#
# <details markdown="1"><summary>Answer</summary>
#
# Interpolation moves all neighbours closer together, which the model has never seen: it is flat, and bad at
# every length. NTK hardly touches the fast pairs and keeps the quality at 48, but its slow pairs soon come to
# new angles. Slowing by parts is flat up to $4 \cdot 48 = 192$, as designed, at some cost. At 384 there are
# new angles for all.
#
# </details>

# %%
factor = 4.0
by_parts = partial(rotary_attention, frequencies=yarn_frequencies(width, factor, length))
remedies = {
    "as trained": rotary_attention,
    "interpolation": partial(rotary_attention, frequencies=rotary_frequencies(width) / factor),
    "NTK": partial(rotary_attention, base=ntk_base(10000.0, factor, width)),
    "by parts": by_parts,
    "YaRN": lambda query, *rest: by_parts(yarn_scale(factor) ** 2 * query, *rest),
}
fig, ax = plt.subplots(figsize=(7, 3))
for colour, (name, attend) in zip((BIAS, MASK, KEY, QUERY, VALUE), remedies.items(), strict=True):
    ax.plot(contexts, list(bits(attend)), "o-", color=colour, markersize=4, label=name)
ax.set(xscale="log", xlabel="length of the text", ylabel="bits per byte")
ax.set_xticks(contexts, contexts)
ax.minorticks_off()
ax.legend()
plt.show()

# %% [markdown]
# Read it with care: a tiny model, one seed. In practice a model is tuned on long texts after such a change,
# and then interpolation recovers too. YaRN's temperature was fitted to models of 7 billion parameters and
# more; here it makes no difference worth a name.
#
# ## Now you
#
# - In section 3, turn the queries *forward* by five. What is left of that under a causal mask?
# - In section 7, train with `partial(rotary_attention, base=100.0)`. Does the model fail later?
# - Then write it yourself: `attn start rotary` puts six tasks into your working folder, and
#   `attn check rotary` tells you how far you are.
