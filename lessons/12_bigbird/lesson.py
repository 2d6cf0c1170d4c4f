# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # BigBird, hands on
#
# A plan says which block of tokens looks at which: those around it, a few hubs, and some that were drawn by
# lot. Here you draw plans, watch news travel through them layer by layer, and pay the bill. Guess before you
# open an answer. A wrong guess is worth more than a right answer read.

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
from annotated_attention.bigbird import bigbird_attention, bigbird_cost, bigbird_plan, plan_mask
from annotated_attention.bigbird_graph import path_lengths


def plan_of(n_blocks, n_window=3, n_global=0, n_random=0, seed=0):
    """A plan, with the settings that this notebook changes least left out."""
    return bigbird_plan(n_blocks, n_window=n_window, n_global=n_global, n_random=n_random, seed=seed)


# %% [markdown]
# ## 1. Three kinds of arcs
#
# Below, a row of squares is a block of queries, a column a block of keys.
#
# **Predict.** With a window of 3, 2 global blocks and 3 random ones a row has 8 squares. What share of all
# squares is filled for 16 blocks? And for 64?
#
# <details markdown="1"><summary>Answer</summary>
#
# About $(8 + 2)/n$, for the rows of the 2 global blocks are full: more than half for 16 blocks, 15% for 64. A
# row does not grow with the text, so its share shrinks.
#
# </details>

# %%
COLOURS = {"window_blocks": QUERY, "global_blocks": KEY, "random_blocks": WEIGHTS}


def draw_plan(ax, plan):
    """The plan as squares, each kind in its colour."""
    for kind, colour in COLOURS.items():
        mask = torch.full((plan.n_blocks, plan.n_blocks), -1.0)
        for i, blocks in enumerate(getattr(plan, kind)):
            mask[i, list(blocks)] = 1.0
        heatmap(ax, mask, colour)
    share = plan_mask(plan).float().mean()
    ax.set(xlabel="key block", ylabel="query block", title=f"{plan.n_blocks} blocks: {share:.0%}")


fig, axes = plt.subplots(1, 3, figsize=(7, 2.8))
for ax, n_blocks in zip(axes, (16, 32, 64), strict=True):
    draw_plan(ax, plan_of(n_blocks, n_global=2, n_random=3))
for kind, colour in COLOURS.items():
    axes[1].plot([], [], "s", color=colour, label=kind.removesuffix("_blocks"))
axes[1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=3)
plt.show()

# %% [markdown]
# ## 2. News travels one arc a layer
#
# 24 blocks, a window of 3, one random block in a row, no hub. Layers of attention are stacked, each with a
# residual, and all with this plan. Then we ask for gradients: which blocks of the *input* can move which
# block of the output?
#
# **Predict.** After one layer the picture is the plan itself. After how many is it full? With the window
# alone it would take 23.


# %%
def moved_by(plan, n_layers, block_size=2):
    """The sizes of the gradients: `n n`, blocks of the output by blocks of the input."""
    n = plan.n_blocks
    # As many copies of a text as it has blocks. Copy i is asked for block i: one backward pass will do.
    x = torch.randn(1, 1, n * block_size, 4).double().repeat(n, 1, 1, 1).requires_grad_()
    y = x
    for _ in range(n_layers):
        y = (y + bigbird_attention(y, y, y, block_size, plan)) / 2
    asked = y.unflatten(2, (n, block_size))[range(n), 0, range(n)]
    (grad,) = torch.autograd.grad(asked.square().sum(), x)
    return grad.abs().unflatten(2, (n, block_size)).sum(dim=(1, 3, 4))


plan = plan_of(24, n_random=1)
lengths = path_lengths(plan)
fig, axes = plt.subplots(1, 5, figsize=(7, 1.9), sharey=True)
for n_layers, ax in enumerate(axes, start=1):
    moved = moved_by(plan, n_layers) > 0
    heatmap(ax, moved.float(), BIAS)
    ax.set(title=f"{n_layers}: {moved.float().mean():.0%}", xlabel="", ylabel="")
    assert torch.equal(moved, lengths <= n_layers)
axes[0].set(ylabel="block of the output")
axes[2].set(xlabel="block of the input that moves it, after 1 to 5 layers")
plt.show()
print("layers until all have heard of all:", int(lengths.max()))

# %% [markdown]
# The `assert` compares with numbers that no attention was needed for: the lengths of the shortest paths in
# the graph of the plan. They agree in every square, and after 8 layers all is full. What can be heard
# of is settled when the plan is drawn.
#
# Look at what stays empty longest: columns, not rows. Each block *listens* to a random one, but nobody sees to
# it that it is *listened to*. Ten of the 24 were drawn by nobody, among them the first five, and what block 0
# has to say must walk until somebody with better luck has heard of it.
#
# ## 3. The longest way
#
# **Predict.** The text becomes four times as long. How many more layers does it take until all have heard of
# all, with the window alone? With one random block in a row? With three?

# %%
sizes = [2**k for k in range(3, 9)]
fig, ax = plt.subplots(figsize=(7, 3))
for n_random, fade in ((1, 1.0), (2, 0.7), (3, 0.5)):
    runs = [[path_lengths(plan_of(n, 3, 0, n_random, seed)).max() for n in sizes] for seed in range(8)]
    runs = torch.tensor(runs)
    ax.fill_between(sizes, runs.amin(0), runs.amax(0), color=WEIGHTS, alpha=0.12, linewidth=0)
    ax.plot(sizes, runs.mean(0), "o-", color=WEIGHTS, alpha=fade, markersize=4)
    end, height = (sizes[-1], runs[:, -1].mean()), {2: 0, 3: -7}.get(n_random, -3)
    ax.annotate(f"{n_random} random", end, (6, height), textcoords="offset points", color=WEIGHTS, alpha=fade)
ax.plot(sizes, [n - 1 for n in sizes], color=QUERY)
ax.annotate("window alone", (17, 16), (-6, 0), textcoords="offset points", ha="right", color=QUERY)
ax.plot(sizes, [2] * len(sizes), color=KEY)
ax.annotate("1 global", (sizes[-1], 2), (6, -3), textcoords="offset points", color=KEY)
ax.set(xscale="log", xlabel="blocks", ylabel="layers", ylim=(0, 18), xlim=(7, 400), yticks=range(0, 18, 4))
ax.set_xticks(sizes, sizes)
ax.minorticks_off()
plt.show()

# %% [markdown]
# With the window alone four times as many, with random blocks one to three more: their lines are straight
# where the axis below is logarithmic. The bands reach from the best to the worst of eight draws: one can be
# unlucky with a plan, but not by much. And with a hub it is two, whatever the length. There the lot has
# nothing left to shorten.
#
# ## 4. One plan, or a new one in each layer?
#
# So far all layers had one plan. The released models draw another for each layer.
#
# **Predict.** 128 blocks, a window of 3, one random block in a row. Do all hear of all sooner, later, or
# after as many layers?
#
# <details markdown="1"><summary>Answer</summary>
#
# Sooner, for two reasons. A block that nobody drew, and these are about $e^{-1}$ of all, has no luck in any
# layer if all have one plan. And new arcs bring new news: a second layer asks somebody else.
#
# </details>


# %%
def layers_needed(seed, fresh):
    """Layers until all have heard of all, with one plan or with a fresh one in each layer."""
    known, layer = torch.eye(128), 0
    while not known.all():
        plan = plan_of(128, n_random=1, seed=100 * seed + layer * fresh)
        known, layer = ((plan_mask(plan).float() @ known) > 0).float(), layer + 1
    return layer


fig, ax = plt.subplots(figsize=(7, 2))
bins = torch.arange(6, 13)
for shift, fresh, colour, name in ((-0.2, 0, MASK, "one plan"), (0.2, 1, WEIGHTS, "one a layer")):
    counts = torch.tensor([layers_needed(seed, fresh) for seed in range(40)])
    print(f"{name}: {counts.double().mean():.1f} layers on average")
    ax.bar(bins + shift, (counts[:, None] == bins).sum(dim=0), 0.4, color=colour, label=name)
ax.set(xlabel="layers until all have heard of all", ylabel="of 40 draws", xticks=bins)
ax.legend()
plt.show()

# %% [markdown]
# ## 5. The bill
#
# Blocks of 64, a window of 3, 2 global and 3 random blocks, as in the paper.
#
# **Predict.** From which length on does the plan spare anything? How long is a text for which it needs a
# tenth?

# %%
texts = [2**k for k in range(8, 17)]
bills = {t: bigbird_cost(t, 64, plan_of(t // 64, n_global=2, n_random=3)) for t in texts}
fig, ax = plt.subplots(figsize=(7, 2.8))
ax.plot(texts, [t * t for t in texts], color=MASK)
ax.plot(texts, bills.values(), "o-", color=WEIGHTS, markersize=4)
ax.plot(texts, [64 * 10 * t for t in texts], ":", color=WEIGHTS)
for name, place, colour in (("all pairs", 3e9, MASK), ("the plan", bills[2**16], WEIGHTS)):
    ax.annotate(name, (texts[-1], place), (6, -3), textcoords="offset points", color=colour)
ax.set(xscale="log", yscale="log", xlabel="tokens", ylabel="scores of a head", xlim=(200, 150_000))
plt.show()
print(*(f"{t:,}: {bills[t] / t**2:.1%}" for t in (512, 1024, 4096, 32768)), sep="    ")

# %% [markdown]
# Seven blocks, 448 tokens, are all seen: there the plan is full attention. The dotted line, $64 \cdot 10\,t$,
# is what the plan costs in the long run. It crosses $t^2$ at 640, and reaches a tenth of it at 6,400. So
# random blocks are for long texts; at BERT's 512 tokens there is next to nothing to gain.
#
# ## 6. A block counted four times
#
# A strip of keys is a list. In evaluation, Transformers fills the three random places of each row with block
# 0, which is global and there already.
#
# **Predict.** All scores are equal. What weight has block 0 with the plan, and what with that list? What
# would you add to the scores of block 0 to get the same by honest means?
#
# <details markdown="1"><summary>Answer</summary>
#
# An eighth, and a half. Four copies of $e^z$ are $e^{z + \log 4}$: so $\log 4$.
#
# </details>


# %%
def look(row):
    """The weight of each of 32 blocks for a query that scores all keys in the strip of these alike."""
    share = torch.full((len(row),), 1 / len(row))
    return torch.zeros(32).index_add(0, torch.tensor(row), share)


plan = plan_of(32, n_global=2, n_random=3)
row = plan.global_blocks[20] + plan.window_blocks[20]
fig, axes = plt.subplots(1, 2, figsize=(7, 1.9), sharey=True)
for ax, name, places in zip(axes, ("as drawn", "zeros"), (plan.random_blocks[20], (0, 0, 0)), strict=True):
    weights = look(row + places)
    ax.bar(range(32), weights, color=WEIGHTS)
    ax.set(title=f"{name}: block 0 has {weights[0]:.1%}", xlabel="key block")
axes[0].set(ylabel="weight")
plt.show()

# %% [markdown]
# Nothing fails: no weight is negative, and they sum to one. A comparison with the plain masked formula shows
# it, because a mask cannot say "twice".
#
# ## 7. What the paper promises
#
# Its table 1: random blocks predict masked words better than a window (60.1 against 58.3), both are better than
# either (62.7), and all pairs better still (64.2). Here 16 blocks of 4 tokens hold a fact, every other token is
# asked for it, and patterns of five blocks a row are trained (`attn experiment bigbird`).
#
# **Predict.** Two layers. Which of the three answers most? And with a global token? Then eight facts, and each
# token asks for one of them: who still answers, where the way takes two arcs?

# %%
import json
import pathlib

results = pathlib.Path("results/experiment.default.json")
runs = json.loads(results.read_text("utf-8"))["runs"] if results.exists() else []
if not runs:
    print("no results yet: attn experiment bigbird")


def seeds(measured, **wanted):
    """What was measured in two layers with these settings, one for each seed."""
    wanted |= {"layers": 2}
    return [run["measured"][measured] for run in runs if wanted.items() <= run["settings"].items()]


patterns = ("window", "random", "window and random", "longformer", "window and global", "bigbird")
if runs:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.6), sharey=True)
    for place, pattern in enumerate(patterns):
        for ax, facts, colour in ((left, 1, KEY), (right, 1, KEY), (right, 8, QUERY)):
            shares = seeds("right" if ax is left else "right_by_hops", pattern=pattern, facts=facts)
            shares = shares if ax is left else [hops[2] for hops in shares]
            ax.plot(shares, [place] * len(shares), "o", color=colour, markersize=4, alpha=0.6)
    left.set(yticks=range(6), yticklabels=patterns, xlim=(0, 1.05), title="one fact, all questions")
    left.invert_yaxis()
    right.set(xlim=(0, 1.05), title="two arcs: one fact, eight facts")
    plt.show()

# %% [markdown]
# Random blocks, which here have the most paths; the mixture leads in the paper, where language asks neighbours
# most. A global token answers from anywhere: where all stands at 7/8, one of the eight values was not learned. But
# of eight facts it loses most, for it must carry all; four hubs and random blocks lose less.
#
# ## Now you
#
# - In section 2, give the plan `n_global=1`. After how many layers is the picture full?
# - In section 3, draw `path_lengths(...).mean()` instead of the largest. What becomes of the bands?
# - In section 4, take `n_random=3`. What share of the blocks does nobody draw then? Is there less to gain?
# - In section 6, find the number of zeros with which block 0 takes 90% of the weight.
# - Then write it yourself: `attn start bigbird` puts six tasks into your working folder, and
#   `attn check bigbird` tells you how far you are.
