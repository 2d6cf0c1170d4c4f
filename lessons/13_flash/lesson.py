# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Flash, hands on
#
# Attention divides by the sum of a row, so it seems to need the whole row: a table of scores that grows with the
# square of the text. Flash attention gives the same and holds one tile of it. Here you take it apart.

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
import pathlib
from functools import reduce

import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from annotated_attention.flash import flash_attention, merge_attention
from annotated_attention.scaled_dot_product import scaled_dot_product_attention
from coursekit.experiments import load

# %% [markdown]
# ## 1. A maximum that is not known yet
#
# `exp(12)` is no float16, and `exp(89)` no float32. So a softmax takes the largest score away from all before
# `exp`. To know it, one must have seen all keys; to use it, one sees them again. Must the scores be kept, then?
# No: the largest *so far* will do, if what was summed relative to it is put right whenever a larger one comes.
# With $m$ for the largest and $\ell$ for the sum of $e^{z - m}$, a new score $z$ makes
#
# $$m' = \max(m, z), \qquad \ell' = e^{m - m'}\,\ell + e^{z - m'}.$$
#
# **Predict.** Below are the scores of one query and 40 keys, in the order in which they come. At which keys
# is $\ell$ multiplied by something other than 1? Can it fall?

# %%
torch.manual_seed(2)
z = 2 * torch.randn(40, dtype=torch.float64)
m, l, steps = torch.tensor(-torch.inf), torch.tensor(0.0), []
for score in z:
    larger = torch.maximum(m, score)
    factor = torch.exp(m - larger)
    m, l = larger, factor * l + torch.exp(score - larger)
    steps.append((m, l, factor))
ms, ls, factors = torch.tensor(steps).T.numpy()

fig, (top, bottom) = plt.subplots(2, 1, figsize=(7, 3.8), sharex=True)
top.plot(z, ".", color=SOFT, label="score")
top.step(range(40), ms, where="post", color=QUERY, label="m, the largest so far")
bottom.plot(ls, "o-", color=WEIGHTS, markersize=3, label="l, the sum relative to m")
bottom.bar(range(1, 40), 1 - factors[1:], color=BIAS, alpha=0.5, label="share of l that is lost")
for ax in (top, bottom):
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
bottom.set(xlabel="key")
plt.show()
print(f"at the end: m + ln l = {m + l.log():.12f}, logsumexp = {z.logsumexp(0):.12f}")

# %% [markdown]
# At each new record of $m$, and nowhere else. A high record shrinks the past, and $\ell$ falls. The sum of the
# values, $o$, shrinks by the same factors. In the end $o / \ell$ is the output, and $m + \ln \ell$ the logarithm
# of the denominator, the *lse*.
#
# Records are rare: key $j$ is the largest of the first $j$ one time in $j$, so of $s$ random scores about
# $1 + \tfrac12 + \tfrac13 + \dots \approx \ln s + 0.58$ are. With 4,096 keys, nine.
#
# ## 2. Any order, and no way back
#
# All that is known of some keys is (output, lse), and `merge_attention` makes one of two. A text is cut into 8
# pieces.
#
# **Predict.** By how much do the results differ if the pieces are merged from left to right, from right to
# left, or in a random order?

# %%
query, key, value = torch.randn(3, 1, 2, 64, 8, dtype=torch.float64)
whole = flash_attention(query, key, value)
pieces = [flash_attention(query, k, v) for k, v in zip(key.split(8, 2), value.split(8, 2), strict=True)]
orders = {"left to right": range(8), "right to left": range(7, -1, -1), "random": torch.randperm(8)}
for name, order in orders.items():
    output, lse = reduce(lambda a, b: merge_attention(*a, *b), [pieces[n] for n in order])
    off = [(x - y).abs().max() for x, y in ((output, whole[0]), (lse, whole[1]))]
    print(f"{name:13}  output off by {off[0]:.0e}, lse by {off[1]:.0e}")

# %% [markdown]
# By rounding. A merge is commutative and associative, like a sum, and the empty result, (0, $-\infty$), is its
# zero. So pieces may come one after the other on one chip, or at once on many (many readers, lesson 16).
#
# A sum has a difference. Has a merge? Take $b$ away again: $o_a = (o - w\, o_b) / (1 - w)$, with the share
# $w = e^{L_b - L}$, where $L$ is the lse.
#
# **Predict.** In float32, how large is the error of $o_a$ if $a$ had half of the weight? A thousandth?
# $10^{-8}$?

# %%
shares, errors = 10.0 ** torch.arange(-0.5, -9, -0.25), []
output_a, output_b, lse_b = torch.randn(1000, 8), torch.randn(1000, 8), torch.zeros(1000)
for share in shares:
    lse_a = lse_b + torch.log(share / (1 - share))
    output, lse = merge_attention(output_a, lse_a, output_b, lse_b)
    w = torch.exp(lse_b - lse)[:, None]
    errors.append(((output - w * output_b) / (1 - w) - output_a).abs().median())

fig, ax = plt.subplots(figsize=(7, 2.4))
ax.plot(shares, errors, "o-", color=VALUE, markersize=4)
ax.axvline(torch.finfo(torch.float32).eps, color=SOFT, linewidth=0.8, linestyle=":")
ax.set(xscale="log", yscale="log", xlabel="share of what should come back", ylabel="error of it")
ax.set(xlim=(1, 1e-9), ylim=(1e-8, 9))
ax.text(1e-8, 1e-5, "0 / 0", color=VALUE, ha="center")
plt.show()

# %% [markdown]
# The error is that of rounding divided by the share. Beyond the dotted line nothing comes back: beside a number
# ten million times as large, it was never there. A merge forgets. (Task 6 of the exercise seems to need the
# way back.)
#
# ## 3. Tiles
#
# The queries are cut as well: a tile of keys, once loaded, serves all queries of a tile.
#
# **Predict.** 4,096 tokens, causal, tiles of 256 queries and 512 keys: 16 by 8. How many are skipped, and how
# many need a mask?


# %%
def kinds(t, block_q, block_k):
    """Of each tile: 0 if nothing is seen, 2 if all is, 1 if it crosses the diagonal."""
    i, j = torch.arange(0, t, block_q)[:, None], torch.arange(0, t, block_k)
    return (j < i + block_q).int() + (j + block_k - 1 <= i).int()


fig, axes = plt.subplots(1, 4, figsize=(7, 2.5))
for ax, (u, a) in zip(axes, ((256, 512), (512, 512), (256, 256), (128, 128)), strict=True):
    tiles = kinds(4096, u, a)
    skipped, masked = (int((tiles == kind).sum()) for kind in (0, 1))
    heatmap(ax, tiles / 2, WEIGHTS)
    computed = f"{1 - skipped / tiles.numel():.0%} computed"
    ax.set(title=f"{u} × {a}", xlabel=f"{skipped} skipped, {masked} masked\n{computed}")
    ax.set(xticks=[], yticks=[], ylabel="", aspect=u / a)
plt.show()

# %% [markdown]
# 56 and 16. The tiles on the diagonal are computed whole, half of them for nothing, so smaller tiles compute
# less. But what is loaded serves fewer queries: 128 at a time read the keys twice as often as 256.
#
# ## 4. What is in memory
#
# A hook sees each tensor that an operation makes. Watch the largest of a forward and a backward pass.
#
# **Predict.** From 512 to 2,048 tokens: how does it grow with all scores at once, and how with tiles?


# %%
class Watch(TorchDispatchMode):
    """Remembers the bytes of the largest tensor, and counts the work of products of matrices."""

    nbytes = products = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for x in made if isinstance(made, tuple | list) else [made]:
            if isinstance(x, torch.Tensor):
                self.nbytes = max(self.nbytes, x.nbytes)
        if "mm" in function.__name__:
            self.products += made.numel() * args[-1].shape[-2]
        return made


def inputs(t, d=32):
    return [torch.randn(1, 1, t, d, requires_grad=True) for _ in range(3)]


def tiled(query, key, value):
    return flash_attention(query, key, value)[0]


lengths, seen = (512, 1024, 2048), {}
for name, attend in (("all scores", scaled_dot_product_attention), ("tiles", tiled)):
    for t in lengths:
        given, kept = inputs(t), []
        keep = torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x) or x, lambda x: x)
        with Watch() as watch:
            with keep:
                output = attend(*given)
            output.sum().backward()
        seen[name, t] = watch.nbytes / 2**20, kept, watch.products / (32 * t * t)

fig, ax = plt.subplots(figsize=(7, 2.4))
for name, colour in (("all scores", MASK), ("tiles", WEIGHTS)):
    ax.plot(lengths, [seen[name, t][0] for t in lengths], "o-", color=colour, label=name)
ax.set(xlabel="tokens", ylabel="largest tensor, MiB", xticks=lengths)
ax.legend()
plt.show()

# %% [markdown]
# All scores: 16 times. Tiles: not at all. The largest thing there is a tile of 256 by 512 scores, until the
# text itself is larger.
#
# ## 5. What is kept for the way back
#
# The backward pass needs the weights, and autograd keeps them. Flash keeps queries, keys, values, output, and
# one number a query: the lse $L_i$. It makes each tile of weights anew, $P_{ij} = e^{S_{ij} - L_i}$.
#
# **Predict.** The forward pass is two products of matrices, $QK^\top$ and $PV$. How many is the backward pass if
# the weights were kept, and how many if not?
#
# <details markdown="1"><summary>Answer</summary>
#
# Four: $dV = P^\top dO$, $dP = dO\,V^\top$, $dQ = dS\,K$, $dK = dS^\top Q$. And five, since $QK^\top$ is made
# once more: 7 products instead of 6.
#
# </details>

# %%
for name, (_, kept, products) in {name: seen[name, 2048] for name in ("all scores", "tiles")}.items():
    mebibytes = sum({x.data_ptr(): x.nbytes for x in kept}.values()) / 2**20
    print(f"{name:10} keep {mebibytes:4.1f} MiB and take {products:.0f} products")

# %% [markdown]
# 32 times as much is kept, in each head of each layer. A sixth more work is the price, and a causal text makes
# it a gain: nearly half of the tiles are skipped.
#
# ## 6. What the papers promise
#
# Fewer bytes moved, and the same output. Both were measured for the book; the runs lie beside this notebook.
#
# **Predict.** In a fast memory of 192 KiB, tiles of 64 keys and 16 to 512 queries: does traffic fall with the
# size of the tile all the way? And in bf16, who is nearer to the exact output, tiles or the plain formula?
#
# <details markdown="1"><summary>Answer</summary>
#
# Traffic halves with every doubling, until the tile spills: then its scores go out and come back, as in the plain
# formula. And tiles lie three times nearer, or more. Scores and weights of a tile are never written out, so they
# can be in float32 for free, and so can the sums. "Sloppy" keeps those in bf16: with every tile it gets worse.
#
# </details>

# %%
folder = pathlib.Path("results")
fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.6))
if (folder / "experiment_errors.default.json").exists():
    moved, errors = (load(folder / f"experiment{x}.default.json").runs for x in ("", "_errors"))
    for fast in (64, 192, 512):
        tile = moved.where(kind="tile", fast=fast)
        queries = [run.settings["block_q"] for run in tile]
        left.loglog(queries, [x / 2**20 for x in tile.values("moved")], "o-", label=f"{fast} KiB")
    errors, ts = errors.where(dtype="bfloat16", inputs="outliers"), (256, 1024, 4096)
    for way, colour in (("plain", MASK), ("sloppy", BIAS), ("sdpa", QUERY), ("tiles 64 by 64", WEIGHTS)):
        spreads = [errors.where(t=t).spread(f"{way} output") for t in ts]
        right.loglog(ts, [x.mean for x in spreads], "o-", color=colour, label=way)
        right.fill_between(ts, [x.low for x in spreads], [x.high for x in spreads], color=colour, alpha=0.2)
    left.set(xlabel="queries in a tile", ylabel="MiB moved")
    right.set(xlabel="tokens", ylabel="error in bf16")
    for ax, xs, ys in ((left, (16, 64, 256), (8, 32, 128)), (right, ts, (0.002, 0.006, 0.02))):
        ax.set_xticks(xs, xs)
        ax.set_yticks(ys, ys)
        ax.minorticks_off()
        ax.legend()
else:
    print("attn experiment flash makes the results that are shown here")
plt.show()

# %% [markdown]
# ## 7. Many texts with one beginning
#
# Eight texts begin with the same 512 tokens, then each has 32 of its own. Each is to write its next token.
#
# **Predict.** How many keys are read if each text has a cache of its own? If the beginning is there once?

# %%
prefix, own = torch.randn(2, 1, 2, 512, 16).double(), torch.randn(2, 8, 2, 32, 16).double()  # keys, values
query = torch.randn(8, 2, 1, 16).double()

# Eight texts with a query each, or one text with eight queries: to the keys it is all the same.
shared = flash_attention(query.transpose(0, 2), *prefix)
merged, _ = merge_attention(*(x.transpose(0, 2) for x in shared), *flash_attention(query, *own))

separate = F.scaled_dot_product_attention(query, *torch.cat([prefix.expand(2, 8, -1, -1, -1), own], dim=3))
print(f"largest difference: {(merged - separate).abs().max():.0e}")
print(f"keys read: {8 * (512 + 32):,} and {512 + 8 * 32:,}")

# %% [markdown]
# A sixth, and the more texts, the less. Decoding waits for memory, so this is time.
#
# ## Now you
#
# - In section 1, sort the scores, up and then down. How often is $\ell$ rescaled, and how large does it become?
# - In section 3, which tiles does a sliding window of 512 need? Change `kinds`, and count.
# - In section 4, go on to 8,192 tokens with the tiles alone. Where does the line bend, and what is it then?
# - In section 6, plot `dk` in place of `output`. What happens to `sdpa`, and when?
# - Then write it yourself: `attn start flash` puts six tasks into your working folder, and `attn check flash`
#   tells you how far you are.
