# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sliding windows, hands on
#
# A query looks at the last $w$ keys and at nothing else. Here you see what that saves, what a cache becomes,
# and how far a stack of such layers reaches all the same. Guess before you open an answer: a wrong guess is
# worth more than a right answer read.

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
from functools import partial

import torch.nn.functional as F

from annotated_attention.language_model import LanguageModel, LanguageModelConfig, SelfAttention
from annotated_attention.rotary import rotary_attention
from annotated_attention.sliding_window import (
    RollingKVCache,
    causal_window_attention,
    receptive_field,
    sliding_window_attention,
    sliding_window_cost,
    sliding_window_mask,
)

# %% [markdown]
# ## 1. The band
#
# **Predict.** Sixteen tokens, a causal window of 4. How many of the 256 pairs of query and key are left? Draw
# the two-sided window, and that of four new tokens behind twelve old ones.
#
# <details markdown="1"><summary>Answer</summary>
#
# 58: four for each of the sixteen queries, less the $3 + 2 + 1$ that would lie before the text. In general
# $t\,w - w(w-1)/2$. The four new tokens have the last four rows of the first picture.
#
# </details>

# %%
masks = {
    "causal": sliding_window_mask(16, 16, 4),
    "two-sided": sliding_window_mask(16, 16, 4, is_causal=False),
    "the last 4 of 16": sliding_window_mask(4, 16, 4, offset=12),
}
fig, axes = plt.subplots(1, 3, figsize=(7, 2.6))
for ax, (title, mask) in zip(axes, masks.items(), strict=True):
    heatmap(ax, mask.float(), WEIGHTS)
    ax.set(title=f"{title}: {int(mask.sum())}", ylabel="query" if title == "causal" else "")
plt.show()

# %% [markdown]
# ## 2. What is not computed
#
# A mask hides scores that were computed. To save anything, they must not be computed: the queries are cut
# into blocks, and each block is shown the keys that some query of it sees.
#
# **Predict.** A text of 4,096 tokens, a window of 256. Blocks of one query waste nothing. Blocks of 256: how
# many scores are made for each that is wanted? And why not take blocks of one?

# %%
sizes = [2**n for n in range(13)]
costs = [sliding_window_cost(4096, 256, u) for u in sizes]
made, calls = [made / wanted for wanted, made in costs], [4096 // u for u in sizes]
fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.6))
for ax, numbers, title in ((left, made, "scores made for each wanted"), (right, calls, "calls")):
    ax.plot(sizes, numbers, "o-", color=WEIGHTS, markersize=4)
    ax.set(xscale="log", yscale="log", xlabel="queries in a block", title=title)
plt.show()

# %% [markdown]
# A block of $u$ queries sees $u + w - 1$ keys, so it makes $(u + w - 1)/w$ scores for each that is wanted:
# nearly two when it is as long as the window. Smaller blocks waste less, but each call has its price.
#
# **Predict.** Now the text grows, and the window stays: 4,096, as in Mistral 7B. At 131,072 tokens, what
# share of the scores of causal attention is left?

# %%
lengths = [2**n for n in range(9, 18)]
band = [sliding_window_cost(t, 4096, 1024)[1] for t in lengths]
causal = [t * (t + 1) // 2 for t in lengths]
fig, ax = plt.subplots(figsize=(7, 3.2))
for pairs, name, style in ((causal, "causal", "o--"), (band, "window of 4,096", "o-")):
    ax.plot(lengths, pairs, style, color=WEIGHTS, markersize=4)
    ax.annotate(name, (lengths[-1], pairs[-1]), (6, -3), textcoords="offset points", color=WEIGHTS)
ax.axvline(4096, color=SOFT, linewidth=0.8, linestyle=":")
ax.set(xscale="log", yscale="log", xlabel="tokens", ylabel="scores made, a head", xlim=(450, 700_000))
plt.show()
print(f"at {lengths[-1]:,} tokens: {band[-1] / causal[-1]:.1%}")

# %% [markdown]
# About $2w/t$, and a quarter more, which blocks of 1,024 waste. To the left of the dotted line the window is
# longer than the text: nothing is saved, and the tiles cost more than a causal kernel.
#
# ## 3. What is not read
#
# 0 times NaN is NaN. So a NaN shows who *read* a value, even with a weight of 0. Key and value 20 of 48 are
# NaN, the window is 6.
#
# **Predict.** Which outputs become NaN with a masked matrix of all scores? With blocks of 4? Of one?

# %%
query, key, value = torch.randn(3, 1, 1, 48, 8)
key[:, :, 20] = value[:, :, 20] = torch.nan
outputs = {"all, masked": F.scaled_dot_product_attention(query, key, value, sliding_window_mask(48, 48, 6))}
for u in (16, 4, 1):
    outputs[f"blocks of {u}"] = sliding_window_attention(query, key, value, 6, block_size=u)
spoiled = torch.cat([output.isnan().any(dim=-1)[0] for output in outputs.values()]).float()

fig, ax = plt.subplots(figsize=(7, 1.5))
heatmap(ax, spoiled, MASK)
ax.set(yticks=range(4), yticklabels=outputs, ylabel="", xlabel="query", aspect="auto")
plt.show()

# %% [markdown]
# The masked matrix reads everything for everyone. A block reads its span: besides the six queries that see
# key 20, their neighbours in the block are spoiled.
#
# ## 4. A cache that forgets
#
# A key that no query will see again is not kept. The cache is a ring: the newest goes where the oldest was.
#
# **Predict.** Five slots. Which token lies in slot 0 after token 12 came? In which order do they lie?

# %%
ring, steps = RollingKVCache(5), 14
fig, ax = plt.subplots(figsize=(7, 2.4))
for now in range(steps):
    ring.update(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    for slot, position in enumerate(ring.positions.tolist()):
        alpha, colour = (1, PAPER) if position == now else (0.15, INK)
        ax.add_patch(plt.Rectangle((now - 0.45, slot - 0.45), 0.9, 0.9, color=KEY, alpha=alpha))
        ax.text(now, slot, position, ha="center", va="center", fontsize=8, color=colour)
ax.set(xlim=(-0.6, steps - 0.4), ylim=(4.6, -0.6), xticks=range(steps), yticks=range(5))
ax.set(xlabel="after token", ylabel="slot")
ax.grid(False)
plt.show()

# %% [markdown]
# Token $j$ lies in slot $j \bmod 5$, so the order is 10, 11, 12, 8, 9. Attention does not mind: a sum over
# keys has no order. But rotary positions need to know *where* a key stands, and no slot says that.
#
# An untrained model with windows of 5 and rotary positions reads 24 tokens one at a time, with two caches:
# the ring, and a careless one that takes slots for positions.
#
# **Predict.** From which token on is the careless one wrong?


# %%
def window_model(n_layers, window, **sizes):
    """A model whose layers see `window` keys each, with rotary positions."""
    attend = partial(rotary_attention, attend=partial(causal_window_attention, window=window), base=100.0)
    sizes |= {"d_model": 64, "n_layers": n_layers, "position_embedding": "none"}
    sizes["make_attention"] = lambda *_: SelfAttention(64, 4, attend=attend)
    return LanguageModel(LanguageModelConfig(**sizes))


def louder(model, factor=10):
    """Larger weights make an untrained model depend on what it reads."""
    for parameter in model.parameters():
        parameter.data.mul_(factor if parameter.ndim == 2 else 1)
    return model


class Careless(RollingKVCache):
    def update(self, key, value):
        seen = super().update(key, value)
        self.positions = torch.arange(len(self.positions))
        return seen


torch.manual_seed(0)
model, text = louder(window_model(2, 5).double()), torch.randint(256, (1, 24))
for kind in (RollingKVCache, Careless):
    caches = [kind(5) for _ in model.blocks]
    with torch.no_grad():
        read = torch.cat([model(token, caches=caches) for token in text.split(1, dim=1)], dim=1)
        error = (read - model(text)).abs().amax(dim=-1)[0]
    wrong = (error > 1e-9).nonzero()[:, 0].tolist()
    print(f"{kind.__name__}: largest error {error.max():.0e}, wrong from: {min(wrong, default='never')}")
print(f"bytes after {text.numel()} tokens: {sum(cache.nbytes for cache in caches):,}")

# %% [markdown]
# From token 5 on: until the ring is full, slots *are* positions, and a test with a short text sees nothing.
# The bytes are those of five tokens in each layer, however long the text.
#
# ## 5. How far a stack sees
#
# One layer sees $w$ tokens. But each of those has seen $w$ tokens in the layer below.
#
# **Predict.** Four layers, $w = 8$. Which is the furthest token that can change the last output? As a token
# moves further away, does its influence fall evenly?
#
# <details markdown="1"><summary>Answer</summary>
#
# Each layer adds $w - 1 = 7$ steps, so it is 28 tokens back: 29 tokens with itself, $L(w-1) + 1$. (Not
# $L\,w = 32$: windows overlap in one token.) The influence falls in stairs. A token 7 back is one hop away,
# a token 8 back takes two, and each hop is one more passage through a layer.
#
# </details>

# %%
torch.manual_seed(0)
model = window_model(4, 8).double()
output = x = torch.randn(1, 48, 64, dtype=torch.float64, requires_grad=True)
for block in model.blocks:
    output = block(output)
(gradient,) = torch.autograd.grad(output[0, -1] @ torch.randn(64, dtype=torch.float64), x)
influence = gradient[0].norm(dim=-1).flip(0)  # by distance from the last token
seen = int((influence > 0).sum())

fig, ax = plt.subplots(figsize=(7, 3))
ax.plot(range(seen), influence[:seen], "o-", color=VALUE, markersize=4)
for n in range(5):
    ax.axvline(7 * n + 0.5, color=SOFT, linewidth=0.8, linestyle=":")
    if n:
        ax.text(7 * n - 3, 60, f"{n} hop{'s' * (n > 1)}", color=SOFT, fontsize=8, ha="center")
ax.text(38, 1e-3, "exactly 0", color=VALUE, ha="center")
ax.set(yscale="log", xlim=(-1, 47), ylim=(1e-12, 1e3))
ax.set(xlabel="tokens back", ylabel="gradient of the last output")
plt.show()
print(f"{seen} tokens are felt; receptive_field says {receptive_field(4, 8)}")

# %% [markdown]
# Behind the cliff it is not small, it is 0. Before it, each hop costs this model a factor of about a hundred:
# what *can* be seen is more than what *is*. The "131K tokens" of Mistral 7B are 32 hops.
#
# ## 6. What the paper promises
#
# Mistral's paper counts $L\,w$ tokens for $L$ layers; we counted $L(w-1) + 1$. So one of eight facts is planted
# at the start of a document of blanks, and models are trained to answer at every distance. `attn experiment
# sliding_window` does it; what it measured is in the file that is read here.
#
# **Predict.** Windows of 8, one to four layers: from which distance on is the answer a guess, right once in
# eight times? Does every model answer up to there? And of three stacks that all reach 28 tokens, four layers of
# 8, two of 15 and one of 29, which learns it in the fewest steps, if only the last token is asked?

# %%
import json
import pathlib

results = pathlib.Path("results/experiment.default.json")
runs = json.loads(results.read_text("utf-8"))["runs"] if results.exists() else []
if not runs:
    print("no results yet: attn experiment sliding_window")


def seeds(measured, **wanted):
    """What was measured with these settings, one for each seed."""
    return [run["measured"][measured] for run in runs if wanted.items() <= run["settings"].items()]


if runs:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8), width_ratios=(3, 2))
    for n in (4, 3, 2, 1):
        shares = torch.tensor(seeds("right", asked="everywhere", window=8, layers=n))[:, :40]
        far, fade = range(1, 41), 1.15 - 0.2 * n
        left.fill_between(far, shares.amin(0), shares.amax(0), color=QUERY, alpha=0.2 * fade, linewidth=0)
        left.plot(far, shares.mean(0), color=QUERY, alpha=fade)
        left.axvline(receptive_field(n, 8) - 0.5, color=BIAS, linewidth=0.8, linestyle=":")
    left.set(xlabel="tokens back", title="right answers, windows of 8", ylim=(0, 1.05))
    shapes = ((8, 1), (8, 2), (8, 3), (8, 4), (15, 2), (29, 1))
    for place, (window, n) in enumerate(shapes):
        steps = [step for step in seeds("learned", asked="at the end", window=window, layers=n) if step]
        right.plot(steps, [place] * len(steps), "o", color=QUERY, markersize=4, alpha=0.6)
    right.set(yticks=range(6), yticklabels=[f"{n} of {window}" for window, n in shapes], xlim=(0, 400))
    right.invert_yaxis()
    right.set(xlabel="steps", title="until all within reach is right")
    plt.show()

# %% [markdown]
# At 8, 15, 22 and 29: $L(w-1) + 1$, where no training can help, for the logits do not know of the fact. Up to
# there every model of every seed is right, which no formula promised. One layer of 29 learns first and four of 8
# last: nobody tells the tokens on the way what to carry, and each hop has to be found.
#
# ## Now you
#
# - In section 2, pass `is_causal=False` to `sliding_window_cost`. How does the waste change, and why?
# - In section 3, make all windows two-sided. Which outputs are spoiled by blocks of 4?
# - In section 5, give the layers windows of 2, 4, 8 and 16. How far do they see, and where are the stairs?
# - In section 6, plot dense attention (window 0) beside the windows. How many layers does it take?
# - Then write it yourself: `attn start sliding_window` puts six tasks into your working folder, and
#   `attn check sliding_window` tells you how far you are.
