# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Multi-head attention, hands on
#
# One attention gives a query one mean of the values. Multi-head attention gives it several, each of another
# part of the vectors. In this notebook you take the layer apart: which numbers belong to which head, what
# heads cost, what they can do that one cannot, and where PyTorch's layer means the opposite. Guess before you
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
from annotated_attention.multi_head import MultiHeadAttention, merge_heads, multi_head_cost, split_heads

# %% [markdown]
# ## 1. Which number belongs to which head?
#
# Let a token have $m = 12$ numbers, and let there be three heads. Each gets four of them.
#
# **Predict.** A text of four tokens is `x`, of shape `1 4 12`. `x.view(1, 3, 4, 4)` has the shape of three
# heads, four tokens, four numbers. Is it the same as `split_heads(x, 3)`?
#
# <details markdown="1"><summary>Answer</summary>
#
# No. A view reads the numbers in a row and never moves any. The first twelve, which are the first token, all
# go to head 0, as if they were three tokens.
#
# </details>

# %%
x = torch.arange(48).view(1, 4, 12)
print(split_heads(x, 3)[0, 0])
print(x.view(1, 3, 4, 4)[0, 0])

# The same as a picture: every row is a token, and the shade says which head a number goes to.
heads = torch.arange(1, 4).view(1, 3, 1, 1).expand(1, 3, 4, 4)
owners = {
    "split_heads": merge_heads(heads)[0],
    "view, no transpose": heads.reshape(4, 12),
    "dealt like cards": heads.permute(0, 2, 3, 1).reshape(4, 12),
}
fig, axes = plt.subplots(1, 3, figsize=(7, 1.7), sharey=True)
for ax, (name, owner) in zip(axes, owners.items(), strict=True):
    heatmap(ax, owner, QUERY, vmax=3)
    ax.set(title=name, xlabel="number", ylabel="token" if ax is axes[0] else "")
    ax.set(xticks=[0, 4, 8, 11], yticks=range(4))
plt.show()

# %% [markdown]
# All three give the right shape, and no error tells them apart. Dealing the numbers out like cards does no
# harm in training, since the projection before it can learn any order; but weights that were trained with one
# order are noise in the other. The view is worse: it mixes tokens, and with them the past and the future.
#
# ## 2. What do heads cost?
#
# **Predict.** A layer is 512 wide. Which of these grow when it gets 32 heads in place of one: its parameters,
# its arithmetic, its memory?
#
# <details markdown="1"><summary>Answer</summary>
#
# Memory, where the weights are kept: one matrix `t s` for each head, and with it the softmax's arithmetic.
# The projections and the products, which are nearly all of the work, stay the same.
#
# </details>

# %%
text = torch.randn(1, 256, 512)
for n_heads in (1, 4, 8, 32):
    layer = MultiHeadAttention(512, n_heads)
    _, weights = layer(text, text, text)
    parameters = sum(part.numel() for part in layer.parameters())
    print(f"{n_heads:2} heads: {parameters:,} parameters, {weights.numel():9,} weights")
projections, attention = multi_head_cost(b=1, t=256, s=256, m=512)
print(f"any number: {projections:,} operations of projections, {attention:,} of the products between them")

# %% [markdown]
# ## 3. Many narrow heads or one wide one?
#
# Heads come for nothing, then? Not quite. The scores of a head are products of vectors of $d = m/n$ numbers.
# A table of such products has a rank of at most $d$, however long the text.
#
# **Predict.** The model is 64 wide and the text has 64 tokens. How many of the 64 singular values of a head's
# scores are not zero, with 1 head, with 4, with 16?

# %%
text = torch.randn(1, 64, 64, dtype=torch.float64)
fig, ax = plt.subplots()
for n_heads, colour in ((1, WEIGHTS), (4, QUERY), (16, KEY)):
    layer = MultiHeadAttention(64, n_heads).double()
    q, k = split_heads(layer.w_q(text), n_heads), split_heads(layer.w_k(text), n_heads)
    with torch.no_grad():
        scores = torch.einsum("b h t d, b h s d -> b h t s", q, k)[0, 0]
    values = torch.linalg.svdvals(scores)
    name = f"{n_heads} head{'s' * (n_heads > 1)}: rank {torch.linalg.matrix_rank(scores)}"
    ax.plot(range(1, 65), values / values[0], "o-", color=colour, markersize=3, label=name)
ax.set(xlabel="singular value", ylabel="size", yscale="log")
ax.legend(loc="center right")
plt.show()

# %% [markdown]
# With 16 heads each one sees the text through four numbers a token. It can answer simple questions, and
# sixteen of them at once.
#
# **Predict.** And the weights, after the softmax: do they have a low rank too?

# %%
weights = torch.softmax(scores / 2, dim=-1)
print("rank of the scores ", torch.linalg.matrix_rank(scores).item())
print("rank of the weights", torch.linalg.matrix_rank(weights).item())

# %% [markdown]
# They have full rank, since exp is not linear. So it would be wrong to say that a narrow head cannot produce
# rich weights. What it cannot do is to choose them freely: 64 by 64 weights follow from 64 times 4 numbers on
# either side.
#
# What several heads can do and one cannot is to look at two places and keep them apart. Let two keys carry
# the values $(1, 0)$ and $(0, 1)$.
#
# **Predict.** Can one head return $(1, 1)$? Can two heads of width 1?
#
# <details markdown="1"><summary>Answer</summary>
#
# One head returns a mean of the values, and every mean lies on the line between them: $(p, 1-p)$. Two heads
# take the first number from the first key and the second from the second, and return $(1, 1)$.
#
# </details>

# %%
values = torch.eye(2)
share = torch.linspace(0, 1, 11)
one_head = torch.stack([p * values[0] + (1 - p) * values[1] for p in share])
two_heads = torch.cartesian_prod(share, share)

fig, ax = plt.subplots(figsize=(3.4, 3.2))
ax.plot(*two_heads.T, ".", color=SOFT, markersize=4, label="two heads")
ax.plot(*one_head.T, "o-", color=VALUE, markersize=5, label="one head")
ax.set(xlabel="first number", ylabel="second number", aspect="equal")
ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
plt.show()

# %% [markdown]
# ## 4. The same layer as PyTorch's
#
# `torch.nn.MultiheadAttention` is this layer. Copy its weights and the two agree.

# %%
theirs = torch.nn.MultiheadAttention(64, 4, batch_first=True).eval()
ours = MultiHeadAttention.from_torch(theirs)
text = torch.randn(2, 10, 64)
with torch.no_grad():
    our_output, our_weights = ours(text, text, text)
    their_output, their_weights = theirs(text, text, text, average_attn_weights=False)
print(f"outputs differ by {(our_output - their_output).abs().max():.1e}")
print(f"weights differ by {(our_weights - their_weights).abs().max():.1e}")

# %% [markdown]
# Now a mask. We say what a query may see: a causal mask is True on and below the diagonal.
#
# **Predict.** Pass the same mask to PyTorch's layer. What do its weights look like? Which row is odd?
#
# <details markdown="1"><summary>Answer</summary>
#
# There True forbids. Each token sees its future only, and the last one, which has no future, sees nothing:
# its row is NaN.
#
# </details>

# %%
mask = torch.ones(10, 10, dtype=torch.bool).tril()
with torch.no_grad():
    _, our_weights = ours(text, text, text, mask)
    _, same_mask = theirs(text, text, text, attn_mask=mask, average_attn_weights=False)
    _, opposite = theirs(text, text, text, attn_mask=~mask, average_attn_weights=False)

fig, axes = plt.subplots(1, 3, figsize=(7, 2.4), sharey=True)
panels = {"ours, mask": our_weights, "PyTorch, mask": same_mask, "PyTorch, ~mask": opposite}
for ax, (name, weights) in zip(axes, panels.items(), strict=True):
    heatmap(ax, weights[0, 0].nan_to_num(0), WEIGHTS, vmax=0.5)
    ax.set(title=name, ylabel="query" if ax is axes[0] else "")
plt.show()
print("last row of the middle one:", same_mask[0, 0, -1])

# %% [markdown]
# A stroke marks a weight of 0 (in the last row of the middle one, NaN). The picture in the middle is a model
# that sees nothing but the future. In training its loss would fall wonderfully.
#
# A text that is shorter than its batch is filled up, and no query may see the filling. Such a mask has the
# shape `b 1 1 s`: the same for all heads and all queries.

# %%
lengths = torch.tensor([10, 6])
padding = torch.arange(10) < lengths[:, None]
with torch.no_grad():
    output, weights = ours(text, text, text, padding[:, None, None, :])
    alone, _ = ours(text[1:, :6], text[1:, :6], text[1:, :6])
difference = (output[1, :6] - alone[0]).abs().max()
print(f"the short text beside the long one and alone differ by {difference:.1e}")

# %% [markdown]
# ## 5. Dropout
#
# In training each weight is dropped with probability $p$, and those that stay are divided by $1 - p$.
#
# **Predict.** Run the layer on the same text many times and take the mean of the outputs. Does it approach
# the output in evaluation mode?
#
# <details markdown="1"><summary>Answer</summary>
#
# Yes. A weight is $w/(1-p)$ with probability $1-p$ and 0 otherwise, so its mean is $w$; and all that comes
# after the weights is linear. The distance shrinks with the square root of the number of runs.
#
# </details>

# %%
layer = MultiHeadAttention(64, 4, dropout=0.2)
with torch.no_grad():
    runs = torch.stack([layer(text, text, text)[0] for _ in range(1024)])
    layer.eval()
    evaluation, _ = layer(text, text, text)

counts = [2**k for k in range(11)]
distance = [(runs[:n].mean(dim=0) - evaluation).square().mean().sqrt() for n in counts]
fig, ax = plt.subplots(figsize=(7, 2.6))
ax.plot(counts, distance, "o-", color=WEIGHTS)
expected = [distance[0] / n**0.5 for n in counts]
ax.plot(counts, expected, "--", color=SOFT, label="one over the square root")
ax.set(xscale="log", yscale="log", xlabel="runs", ylabel="distance from evaluation")
ax.legend()
plt.show()

# %% [markdown]
# That holds for one layer. In a deep model the next one is not linear, and the mean of its outputs is not the
# output for the mean. A classic mistake is to forget `.eval()`: the same question then gets another answer
# each time.
#
# ## 6. The order of heads is a name
#
# **Predict.** Swap head 0 and head 3 everywhere: their rows in the three input projections, their columns in
# $W_O$. What changes?

# %%
order = torch.tensor([3, 1, 2, 0])
places = torch.arange(64).view(4, 16)[order].flatten()
with torch.no_grad():
    before, before_weights = ours(text, text, text)
    for projection in (ours.w_q, ours.w_k, ours.w_v):
        projection.weight.copy_(projection.weight[places])
        projection.bias.copy_(projection.bias[places])
    ours.w_o.weight.copy_(ours.w_o.weight[:, places])
    after, after_weights = ours(text, text, text)
print(f"outputs differ by {(after - before).abs().max():.1e}")
print(f"weights differ by {(after_weights - before_weights).abs().max():.1e}")
print(f"weights, reordered, differ by {(after_weights - before_weights[:, order]).abs().max():.1e}")

# %% [markdown]
# The output is a sum over heads, and a sum has no order. A layer with 8 heads is one of $8! = 40{,}320$ that
# compute the same, so "head 3" of one training run has nothing to do with head 3 of another.
#
# ## 7. A bias on the keys
#
# **Predict.** Fill the bias of the key projection with huge random numbers. How much does the output change?

# %%
layer = MultiHeadAttention(64, 4).double().eval()
text = text.double()
before, _ = layer(text, text, text)
with torch.no_grad():
    layer.w_k.bias.copy_(100 * torch.randn(64))
after, _ = layer(text, text, text)
after.square().sum().backward()
print(f"outputs differ by     {(after - before).abs().max():.1e}")
print(f"gradient of that bias {layer.w_k.bias.grad.abs().max():.1e}")
print(f"gradient of w_q's     {layer.w_q.bias.grad.abs().max():.1e}")

# %% [markdown]
# Nothing but rounding. A bias $\mathbf{b}$ adds $\mathbf{q}_i^\top \mathbf{b}$ to all scores of query $i$
# alike, and a softmax does not feel a constant. The parameter never learns; some models leave it out.
#
# ## Now you
#
# - In section 3, draw `scores` for a longer text, say 256 tokens. Does the rank grow with it?
# - In section 4, leave out `average_attn_weights=False`. What shape come PyTorch's weights in?
# - In section 5, set `dropout=0.9`. How many runs does it take to come within 0.01?
# - In section 7, put the large bias on the value instead. What changes is simple: what is it?
# - Then write it yourself: `attn start multi_head` puts six tasks into your working folder, and
#   `attn check multi_head` tells you how far you are.
