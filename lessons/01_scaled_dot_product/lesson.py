# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Scaled dot-product attention, hands on
#
# The first lesson of the course needs nothing but matrices and a little PyTorch. You will work attention out
# on paper, see why it divides by a square root, break it in three ways, send a gradient back through it by
# hand, and find out what it costs. Each part asks you to *predict* before you run. Do commit to an answer, on
# paper if you can: a wrong guess teaches more than a right page.

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
import tracemalloc

import numpy as np
from torch.nn import functional as F

from annotated_attention import scaled_dot_product as course

# %% [markdown]
# ## 1. One query, four keys
#
# A query is a question, a key is the label on a piece of information, a value is that information. All three
# are vectors. The dot product of query and key says how well the label fits; the softmax turns these scores
# into weights that sum to one; the output is the values, mixed by the weights:
#
# $$z_j = \frac{\mathbf{q} \cdot \mathbf{k}_j}{\sqrt d}, \quad p_j = \frac{e^{z_j}}{\sum_k e^{z_k}}, \quad
# \mathbf{o} = \sum_j p_j \mathbf{v}_j$$
#
# Some numbers for paper. The query is $[2, 2, 0, 0]$. The keys, in units of $\ln 2$, are $[0, 0, 1, 0]$,
# $[1, -1, 0, 0]$, $[1, 0, 0, 0]$ and $[1, 1, 0, 0]$. The values are single numbers: $8, 0, 4, 2$.
#
# **Predict.** What are the four weights, and what is the output? ($e^{\ln 2} = 2$ and $\sqrt d = 2$.)
#
# <details markdown="1"><summary>Answer</summary>
#
# The dot products are $0, 0, 2 \ln 2, 4 \ln 2$, the scores half of that: $0, 0, \ln 2, 2 \ln 2$. Their
# exponentials are $1, 1, 2, 4$ and sum to 8, so the weights are $\frac18, \frac18, \frac28, \frac48$ and the
# output is $\frac{8 + 0 + 8 + 8}{8} = 3$.
#
# </details>

# %%
q = np.array([2.0, 2.0, 0.0, 0.0])
k = np.log(2) * np.array([[0, 0, 1, 0], [1, -1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]])
v = np.array([8.0, 0.0, 4.0, 2.0])
scores = k @ q / np.sqrt(4)
p = np.exp(scores) / np.exp(scores).sum()
print("weights", p, " output", p @ v)

# %% [markdown]
# The first two keys point in different directions and got the same weight: both are at a right angle to the
# query, and attention sees a key only through its dot product.
#
# **Change it.** Make the query twice as long: `q = 2 * q`. The question is the same, but the weights are now
# 1, 1, 4 and 16 out of 22: length sets how sharply a query chooses. Then try `q = 0 * q`. What does a query
# that asks nothing receive?
#
# ## 2. Many queries at once
#
# Several queries get a row of weights each, and no row knows of the others. The course keeps arrays as
# `b h t d`: batch, head, position, width.
#
# **Predict.** Below, the seven keys are shuffled together with their values. What happens to the weights, and
# what to the outputs?
#
# <details markdown="1"><summary>Answer</summary>
#
# The columns of the weights are shuffled in the same way. The outputs are the same numbers, because a sum
# does not depend on the order of its terms. Attention sees a bag of keys; order must be put in, as ALiBi does
# in lesson 6.
#
# </details>

# %%
query = 2 * torch.randn(1, 1, 5, 16)
key, value = torch.randn(1, 1, 7, 16), torch.randn(1, 1, 7, 3)
order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
fig, axes = plt.subplots(1, 2)
for ax, keys, title in zip(axes, [key, key[:, :, order]], ["keys in order", "keys shuffled"], strict=True):
    heatmap(ax, course.attention_weights(query, keys)[0, 0], WEIGHTS)
    ax.set_title(title)

before = course.scaled_dot_product_attention(query, key, value)
after = course.scaled_dot_product_attention(query, key[:, :, order], value[:, :, order])
print("largest difference between the outputs:", (before - after).abs().max().item())

# %% [markdown]
# ## 3. Why the square root
#
# **Predict.** The entries of a query and a key are independent, with mean 0 and variance 1. What is the
# variance of their dot product at width 64?
#
# <details markdown="1"><summary>Answer</summary>
#
# It is 64. Each of the $d$ products $q_i k_i$ has mean 0 and variance 1, and the variances of independent
# terms add up. So dot products are of size $\sqrt d$, and dividing by $\sqrt d$ brings them back to size 1 at
# every width. Dividing by $d$ would overdo it.
#
# </details>
#
# Does that matter? Below, 200 queries choose among 32 random keys. The right panel shows what learning
# depends on: weight $j$ moves at the rate $p_j (1 - p_j)$ when its score moves. The plot has the sum over the
# keys.

# %%
rng = np.random.default_rng(0)
widths = 2 ** np.arange(11)
panels = {"variance of a score": [], "largest weight": [], "sum of p (1 − p)": []}
for d in widths:
    scores = rng.standard_normal((200, d)) @ rng.standard_normal((d, 32))
    scores = np.stack([scores, scores / np.sqrt(d)])
    weights = torch.softmax(torch.from_numpy(scores), dim=-1).numpy()
    results = scores.var(axis=-1), weights.max(axis=-1), (weights * (1 - weights)).sum(axis=-1)
    for values, result in zip(panels.values(), results, strict=True):
        values.append(result.mean(axis=-1))
fig, axes = plt.subplots(1, 3, figsize=(7, 2.4))
for ax, (title, values) in zip(axes, panels.items(), strict=True):
    unscaled, scaled = np.transpose(values)
    ax.plot(widths, unscaled, "o-", ms=3, color=BIAS, label="unscaled")
    ax.plot(widths, scaled, "o-", ms=3, color=WEIGHTS, label="divided by √d")
    ax.set(title=title, xlabel="width d", xscale="log")
axes[0].legend()
axes[0].set_yscale("log")

# %% [markdown]
# Without the scale, at width 1024, nearly every query has put everything on one key before it has learnt
# anything, and the derivative that should correct it is close to 0. With it the width makes no difference.
#
# **Change it.** Divide by `d` instead of `np.sqrt(d)` and look at the largest weight. With 32 keys, which
# value does it fall to?
#
# ## 4. Masks
#
# In a boolean mask **True means attend** (in `torch.nn.MultiheadAttention` it means the opposite). The causal
# mask lets query $i$ see keys $0 \dots i$. If there are not as many queries as keys, either the first query
# is level with the first key, or the last with the last.
#
# **Predict.** A model has kept the keys of three tokens and now reads four more: 4 queries, 7 keys. Which of
# the two does it need? With 7 queries and 4 keys, which queries see nothing under the second?
#
# <details markdown="1"><summary>Answer</summary>
#
# The newest token must see all 7 keys, so the ends must be level: *bottom-right*. `is_causal=True` means
# *top-left*, here as in PyTorch, so this mask must be built and passed. With 7 queries and 4 keys it leaves
# the first three queries with no key at all.
#
# </details>

# %%
fig, axes = plt.subplots(1, 4, figsize=(7, 2.6), width_ratios=[7, 7, 4, 4])
for (t, s), pair in zip([(4, 7), (7, 4)], [axes[:2], axes[2:]], strict=True):
    query, key = 0.5 * torch.randn(1, 1, t, 16), torch.randn(1, 1, s, 16)
    bottom_right = torch.ones(t, s, dtype=torch.bool).tril(diagonal=s - t)
    heatmap(pair[0], course.attention_weights(query, key, is_causal=True)[0, 0], WEIGHTS)
    heatmap(pair[1], course.attention_weights(query, key, bottom_right)[0, 0], WEIGHTS)
    pair[0].set(title="top-left", xticks=range(s))
    pair[1].set(title="bottom-right", xticks=range(s), ylabel="")

# %% [markdown]
# A stroke marks a key that is hidden; a blank square is a weight too small to be seen.
#
# What does a query receive that sees no key? The formula says 0/0. A mask of $-\infty$ in a plain softmax
# makes NaN, which spreads through a model; a mask of $-10^9$, met in much code, makes all scores equal and so
# mixes the values that were to be hidden. This course and PyTorch return 0.

# %%
query, key, nothing = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 4, 16), torch.zeros(1, 4, dtype=bool)
value = torch.tensor([10.0, 20.0, 30.0, 40.0]).reshape(1, 1, 4, 1)
for fill in [-torch.inf, -1e9]:
    scores = (query @ key.mT / 4).masked_fill(~nothing, fill)
    print(f"masked with {fill:g}:", (torch.softmax(scores, dim=-1) @ value).item())
print("this course:", course.scaled_dot_product_attention(query, key, value, nothing).item())
print("PyTorch:", F.scaled_dot_product_attention(query, key, value, nothing).item())

# %% [markdown]
# ## 5. Scores that are too large
#
# **Predict.** Two equal scores weigh ½ each. In half, single and double precision the largest numbers are
# about $e^{11}$, $e^{88}$ and $e^{709}$. What does the formula return, as it is written, for scores just
# above 11, 88 and 709? And just below?

# %%
for dtype in [torch.float16, torch.float32, torch.float64]:
    limit = np.log(torch.finfo(dtype).max)
    for z in [limit - 1, limit - 0.5, limit + 0.5]:
        scores = torch.tensor([z, z], dtype=dtype)
        plain = scores.exp() / scores.exp().sum()
        shifted = (scores - scores.max()).exp() / (scores - scores.max()).exp().sum()
        print(f"{str(dtype)[6:]} {z:5.1f}  plain {plain.tolist()}  shifted {shifted.tolist()}")

# %% [markdown]
# Above, infinity by infinity is NaN. Just below is worse: each $e^z$ is a number, their sum is not, and the
# weights become 0 with no NaN to warn anyone. The cure costs nothing: subtract the row's largest score from
# all. The weights stay the same, no exponent is above 0, and the sum is at least 1.
#
# ## 6. The way back
#
# A loss sends a gradient $\mathbf{g}$ to the output. The gradient by weight $j$ is
# $g_j = \mathbf{g} \cdot \mathbf{v}_j$, large where value $j$ points along $\mathbf{g}$. But weights cannot
# all grow, they sum to 1. So the softmax hands the scores only what lies above the average:
#
# $$\frac{\partial L}{\partial z_j} = p_j \Bigl(g_j - \sum_k p_k g_k\Bigr)$$
#
# **Predict.** What is the sum of this over the keys? Think of what the weights do when all scores of a row
# grow by the same amount.

# %%
query, key, value, grad = (rng.standard_normal((1, 1, n, w)) for n, w in [(5, 16), (7, 16), (7, 3), (5, 3)])
weights = course.attention_weights(torch.from_numpy(query), torch.from_numpy(key)).numpy()
d_weights = grad @ value.swapaxes(-1, -2)
d_scores = weights * (d_weights - (weights * d_weights).sum(axis=-1, keepdims=True))
fig, axes = plt.subplots(1, 3, figsize=(7, 2.2))
rows = [("weights", weights, WEIGHTS), ("gradient by weight", d_weights, VALUE), ("by score", d_scores, BIAS)]
for ax, (title, row, colour) in zip(axes, rows, strict=True):
    ax.bar(range(7), row[0, 0, 0], color=colour)
    ax.set(title=title, xlabel="key")
axes[1].axhline((weights * d_weights)[0, 0, 0].sum(), color=INK, lw=1, ls="--")
print("sum of the third panel:", d_scores[0, 0, 0].sum())

# %% [markdown]
# The sum is 0: moving all scores together moves no weight. The dashed line is the average under the weights.
# Keys on either side of it are pushed apart, in proportion to their weights: a key with weight 0 learns
# nothing. The rest of the way is two matrix products, and NumPy by hand agrees with PyTorch's autograd:

# %%
inputs = [torch.from_numpy(x).requires_grad_() for x in (query, key, value)]
by_autograd = torch.autograd.grad(F.scaled_dot_product_attention(*inputs), inputs, torch.from_numpy(grad))
by_hand = course.numpy_attention_backward(grad, query, key, value)
for name, ours, theirs in zip(["query", "key", "value"], by_hand, by_autograd, strict=True):
    print(f"{name:6} largest difference {np.abs(ours - theirs.numpy()).max():.1e}")

# %% [markdown]
# ## 7. The same call in production
#
# `torch.nn.functional.scaled_dot_product_attention` is the function that models call. The course's version
# takes the same arguments and gives the same answer. One of them is dropout. To see where it acts, make the
# values the identity matrix: then the output *is* the weights. **Predict** its row sums.

# %%
inputs = torch.randn(1, 1, 6, 16), torch.randn(1, 1, 6, 16), torch.eye(6)[None, None]
ours, theirs = course.scaled_dot_product_attention(*inputs), F.scaled_dot_product_attention(*inputs)
print("largest difference:", (ours - theirs).abs().max().item())
many = [x.expand(2000, -1, -1, -1) for x in inputs]
dropped = course.scaled_dot_product_attention(*many, dropout_p=0.25)
one_row = {"weights": ours[0], "one dropout": dropped[0], "mean of 2,000": dropped.mean(dim=0)}
for name, (head,) in one_row.items():
    print(f"{name:14}{head[0].numpy().round(2)}  sum {head[0].sum():.2f}")

# %% [markdown]
# Rows sum to 1 only on average: a weight is dropped or divided by 0.75, and nothing is normalised again. The
# function knows no training mode: a module that is being evaluated must pass 0 itself.
#
# ## 8. What it costs
#
# **Predict.** The sequence doubles. By how much do the inputs grow, and the memory of attention?

# %%
lengths, peaks = 2 ** np.arange(5, 12), []
for t in lengths:
    x = rng.standard_normal((1, 1, t, 64))
    tracemalloc.start()
    course.numpy_attention(x, x, x)
    peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
    tracemalloc.stop()
fig, ax = plt.subplots(figsize=(5, 2.8))
ax.loglog(lengths, peaks, "o-", color=WEIGHTS, label="attention, measured")
ax.loglog(lengths, 3 * lengths * 64 * 8 / 2**20, color=QUERY, label="query, key and value")
ax.loglog(lengths, lengths**2 * 8 / 2**20, "--", color=SOFT, label="one array of t² numbers")
ax.set(xlabel="sequence length t", ylabel="MiB")
ax.legend()
plt.show()

# %% [markdown]
# The inputs double, the weights take four times as much: one number for each pair of query and key, in each
# head. At 32,768 tokens in half precision that is 2 GiB a head. Many later mechanisms are ways around this
# square; FlashAttention, a later lesson, computes the very same function without ever holding it in memory.
# **Now you.** The exercise builds all of this from empty functions: `attn start scaled_dot_product`.
