# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Attention with linear biases, hands on
#
# ALiBi gives a token no position. It takes something from each score instead: the distance between query and
# key, times a slope that every head has of its own. Here you predict what that does, run it, and see whether
# you were right. Guess before you open an answer. A wrong guess is worth more than a right answer read.

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

from annotated_attention.alibi import alibi_attention, alibi_bias, alibi_slopes

# %% [markdown]
# ## 1. One slope a head
#
# A slope $m$ is the price of one step of distance: a key that lies $r$ tokens back loses $m\,r$ from its
# score. Eight heads get the slopes $1/2$, $1/4$, $1/8$ and so on, each half of the one before.
#
# **Predict.** What is the last of the eight? And for sixteen heads: is the last one flatter still?

# %%
for n_heads in (4, 8, 16):
    first, second, *_, last = alibi_slopes(n_heads).tolist()
    print(f"{n_heads:2} heads: {first:.4f}, {second:.4f}, ... {last:.4f}")

# %% [markdown]
# It is $2^{-8} = 1/256$ in each case. More heads divide the same range more finely; none looks further.
#
# Twelve is no power of two. The rule takes the eight slopes of eight heads, and then every other slope of
# sixteen heads until there are twelve.

# %%
fig, ax = plt.subplots(figsize=(7, 1.9))
for row, n_heads in enumerate((16, 8, 12)):
    ax.plot(alibi_slopes(n_heads).log2(), [row] * n_heads, "o", color=SOFT, markersize=5)
new = alibi_slopes(12)[8:]
ax.plot(new.log2(), [2] * 4, "o", color=BIAS, markersize=7, label="the last four of 12, index 8 to 11")
ax.set(yticks=range(3), yticklabels=["16 heads", "8 heads", "12 heads"], ylim=(-0.5, 2.8))
ax.set(xlabel="log2 of the slope", xticks=range(-8, 0))
ax.legend(loc="upper left")
plt.show()

# %% [markdown]
# The four new heads stand between old ones, at the steep end. Look at the order: the ninth head (index 8) has
# the steepest slope of all. A checkpoint keeps its heads in this order, so sorting the slopes would hand
# every head the wrong one.
#
# ## 2. What a head sees
#
# Let all scores be equal. Then the bias alone decides, and the weights show what a head prefers before it has
# read a word.
#
# **Predict.** Below are 32 tokens (strokes mark the hidden future). How wide is the dark band of the head
# with slope 1/2? What does the head with slope 1/256 look like?

# %%
scores = torch.zeros(8, 32, 32)
future = torch.ones(32, 32, dtype=torch.bool).triu(1)
weights = (scores + alibi_bias(8, 32, 32)).masked_fill(future, -torch.inf).softmax(dim=-1)

fig, axes = plt.subplots(1, 4, figsize=(7, 2.1), sharey=True)
for ax, head in zip(axes, (0, 2, 4, 7), strict=True):
    heatmap(ax, weights[head], WEIGHTS, vmax=0.4)
    ax.set(title=f"slope 1/{2 ** (head + 1)}", ylabel="" if head else "query")
    ax.set(xticks=[0, 31], yticks=[0, 31])
plt.show()

# %% [markdown]
# The first head hardly looks back five tokens. The last one takes the mean of everything so far, as if there
# were no bias. ALiBi has no single reach: it is a set of windows, each twice as wide as the one before, with
# soft edges.
#
# **Change it.** Set `scores = 3 * torch.randn(8, 32, 32)` and run the cell again. In which heads can a good
# score win against distance?
#
# ## 3. Does the query's position matter?
#
# The bias is $-m\,(i - j)$. Someone writes $m\,j$ instead, which knows nothing of the query.
#
# **Predict.** How different are the outputs of causal attention with the two biases?
#
# <details markdown="1"><summary>Answer</summary>
#
# They are the same. In row $i$ the two biases differ by the constant $m\,i$, and a softmax does not see what
# is added to its whole row.
#
# </details>


# %%
def weights_with(bias, scores):
    """Causal weights of `scores` plus `bias`, in float64."""
    t, s = scores.shape[-2:]
    future = torch.ones(t, s, dtype=torch.bool).triu(1)
    return (scores + bias).double().masked_fill(future, -torch.inf).softmax(dim=-1)


slopes = alibi_slopes(12, dtype=torch.float64)[:, None, None]
scores = torch.randn(12, 32, 32, dtype=torch.float64)
relative = alibi_bias(12, 32, 32, dtype=torch.float64)
absolute = slopes * torch.arange(32)

difference = (weights_with(relative, scores) - weights_with(absolute, scores)).abs().max()
print(f"largest difference of any weight: {difference:.1e}")

# %% [markdown]
# On paper the two are one. A computer rounds, and here they part. bfloat16, in which large models run, keeps
# eight binary digits.
#
# **Predict.** Both biases are rounded to bfloat16 before they are added. As the text grows, which of the two
# goes wrong, and in which heads?
#
# <details markdown="1"><summary>Answer</summary>
#
# $m\,j$, in the steep heads. It grows with the text, and a large number has coarse neighbours: the newest
# keys, which matter most, receive the same bias. $-m\,(i-j)$ is small where the weight is large, so its
# rounding falls on keys that hardly count.
#
# </details>

# %%
lengths = [2**k for k in range(4, 15)]
errors = {"-m (i - j)": [], "m j": []}
for s in lengths:
    j, i = torch.arange(s), s - 1  # i is the last query
    for name, bias in (("-m (i - j)", -slopes[:, 0] * (i - j)), ("m j", slopes[:, 0] * j)):
        exact, rounded = bias.softmax(-1), bias.bfloat16().double().softmax(-1)
        errors[name].append((rounded - exact).abs().amax(dim=-1))  # one number for each head

fig, ax = plt.subplots()
for (name, by_length), style in zip(errors.items(), ("o-", "o--"), strict=True):
    worst = [by_head.max() for by_head in by_length]
    ax.plot(lengths, worst, style, color=BIAS, markersize=4)
    ax.annotate(name, (lengths[-1], worst[-1]), (6, -3), textcoords="offset points", color=BIAS)
ax.set(xscale="log", yscale="log", xlabel="tokens", ylabel="largest error of a weight")
ax.set(title="Two biases that are equal on paper, rounded to bfloat16: the worst head")
plt.show()

for name, head in (("steepest", slopes.argmax()), ("flattest", slopes.argmin())):
    print(f"m j at 16,384 tokens, {name} head: a weight is off by {errors['m j'][-1][head]:.4f}")

# %% [markdown]
# At the end the steepest head is wrong by nearly all of its largest weight, which is ½, the flattest by a
# tenth of its own, which is 0.004. The short form has a use all the same: it belongs to the key alone. Just
# keep it away from low precision, or add it to float32 scores, as the code of this course does.
#
# ## 4. One token at a time
#
# A model that writes computes one query against all keys so far. The query's own index is then 0, but it
# stands at the end of the text, and `offset` says so.
#
# **Predict.** Twenty tokens are there; the last one is computed alone, once with the right offset and once
# without. What does it look at when the offset is forgotten?

# %%
panels = {"offset=19": alibi_bias(8, 1, 20, offset=19), "offset forgotten": alibi_bias(8, 1, 20)}
fig, axes = plt.subplots(1, 2, sharey=True, figsize=(7, 2.3))
for ax, (title, bias) in zip(axes, panels.items(), strict=True):
    ax.bar(range(20), bias[2, 0].softmax(dim=-1), color=WEIGHTS)
    ax.set(title=f"{title}, slope 1/8", xlabel="key", xticks=[0, 5, 10, 15, 19])
axes[0].set(ylabel="weight")
plt.show()

# %% [markdown]
# It looks at the beginning, as if the whole text were its future and the oldest token its nearest. A model
# with this bug still writes, only badly, and no error is raised. So test it: a text computed token by token
# must equal the text computed at once.

# %%
query, key, value = (torch.randn(2, 8, 20, 16, dtype=torch.float64) for _ in range(3))
at_once = alibi_attention(query, key, value)
steps = []
for i in range(20):
    token, seen = slice(i, i + 1), slice(i + 1)
    steps.append(alibi_attention(query[:, :, token], key[:, :, seen], value[:, :, seen], offset=i))
print(f"largest difference: {(torch.cat(steps, dim=2) - at_once).abs().max():.1e}")

# %% [markdown]
# ## 5. A short cut for 12 heads
#
# For powers of two the slopes are $2^{-8h/n}$, and code that uses this for every $n$ is in circulation.
#
# **Predict.** For 12 heads, is the short cut nearly right?

# %%
published = alibi_slopes(12, dtype=torch.float64)
short_cut = 2.0 ** (-8 * torch.arange(1, 13, dtype=torch.float64) / 12)

fig, ax = plt.subplots(figsize=(7, 2.6))
ax.plot(published, "o-", color=BIAS, label="published models")
ax.plot(short_cut, "x--", color=MASK, label="the short cut")
ax.set(xlabel="index of the head", ylabel="slope", xticks=range(12), yscale="log")
ax.legend()
plt.show()

worst = (published - short_cut).abs().argmax().item()
print(f"worst: index {worst}, {published[worst]:.3f} against {short_cut[worst]:.3f}")

# %% [markdown]
# The ninth head (index 8) is off by 0.69: a head that looked at its neighbours now looks across a page. A
# model that is trained and used with the short cut is fine, the slopes are a choice. A model that was trained
# with one and is run with the other is broken. How badly?

# %%
scores = torch.randn(12, 256, 256)
distance = (torch.arange(256)[:, None] - torch.arange(256)).abs()
trained, run = (weights_with(-m[:, None, None] * distance, scores) for m in (published, short_cut))
# Half the sum of absolute differences: the share of attention that goes somewhere else.
moved = (trained - run).abs().sum(dim=-1).mean(dim=-1) / 2
print("attention that moved, by head:", *(f"{share:.0%}" for share in moved))

# %% [markdown]
# Every head is disturbed, and the last four send most of their attention to other keys than in training.
#
# ## 6. Train short, test long: what changes for a head?
#
# ALiBi's promise is that a model trained on short texts can read longer ones. No model is trained here. A
# simpler question comes first: when the text grows, does a head see something it has never seen?
#
# To measure how many keys a head uses, take the entropy of its weights. $2^{\text{entropy in bits}}$ is the
# number of keys that would share the attention if it were spread evenly: 1 for a head that looks at one
# token, $s$ for the mean over $s$ tokens.
#
# **Predict.** The scores are random. From 16 tokens to 16,384, how does that number grow without a bias? With
# slope 1/2? With slope 1/256?

# %%
shown = {"no bias": 0.0, "slope 1/256": 2.0**-8, "slope 1/32": 2.0**-5, "slope 1/2": 2.0**-1}


def keys_in_use(slope, s, samples=32):
    """The effective number of keys of the last of `s` queries, for random scores."""
    scores = torch.randn(samples, s) - slope * torch.arange(s).flip(0)
    return 2 ** torch.special.entr(scores.softmax(dim=-1)).sum(dim=-1).div(np.log(2)).mean()


fig, ax = plt.subplots(figsize=(7, 3.2))
for (name, slope), colour in zip(shown.items(), (MASK, BIAS, BIAS, BIAS), strict=True):
    counts = [keys_in_use(slope, s) for s in lengths]
    ax.plot(lengths, counts, "o-", color=colour, markersize=4)
    ax.annotate(name, (lengths[-1], counts[-1]), (6, -3), textcoords="offset points", color=colour)
ax.axvline(512, color=SOFT, linewidth=0.8, linestyle=":")
ax.text(480, 6000, "training stopped here", color=SOFT, fontsize=8, ha="right")
ax.set(xscale="log", yscale="log", xlabel="tokens", ylabel="keys in use", xlim=(14, 70_000))
plt.show()

# %% [markdown]
# Without a bias it grows in proportion to the text: the attention is diluted. With a bias it stops growing at
# a number that depends on the slope alone: $e/m$ for equal scores, 0.6 of that for these random ones.
#
# Suppose training stopped at 512 tokens. To the right of the dotted line a head without a bias meets a
# mixture that it was never trained on, more diluted with every token. A head with a bias meets what it knows.
#
# The same from the other side: in a text of 4,096 tokens, how much attention goes further back than 512?

# %%
scores = torch.randn(64, 1, 4096) - alibi_slopes(8)[:, None] * torch.arange(4096).flip(0)
beyond = scores.softmax(dim=-1)[..., :-512].sum(dim=-1).mean(dim=0)
for slope, share in zip(alibi_slopes(8), beyond, strict=True):
    print(f"slope 1/{1 / slope:<3.0f}   beyond 512: {share:5.1%}")

# %% [markdown]
# Six of the eight heads send nothing there, the seventh 2%, the last about one part in seven. That is why the
# model does not break. It is also why you should not expect much more: where no head looks, a longer text
# brings nothing.
#
# The paper's own numbers say both. Evaluated in pieces, a model trained on 512 tokens improves from 19.73 to
# 18.40 when it reads 3,072 (tables 2 and 5 of arXiv:2108.12409). But in longer pieces fewer tokens stand near
# a beginning, where hardly any context helps. Evaluated so that every token has full context, ALiBi goes from
# 17.98 to 18.3, flat, while sinusoidal positions go from 18.35 to 360 (tables 13 to 15). It is not hurt by a
# longer text, and hardly uses it.
#
# ## Now you
#
# - Give all eight heads the slope 1/256 in section 2. What is lost? Now give all of them 1/2.
# - In section 3, replace `bfloat16` by `half`. Which bias suffers, and at which length?
# - In section 6, find the slope whose head uses 512 keys. Is it one of the eight? And since a trained model's
#   scores can be large enough to overcome the bias: multiply `torch.randn` by 5. Where do the plateaus move?
# - Without a causal mask the bias is $-m\,|i - j|$. Reverse queries, keys and values with `.flip(2)`, and
#   compare the outputs of `alibi_attention` for `is_causal=False` and `True`. What tells left from right?
# - Then write it yourself: `attn start alibi` puts six tasks into your working folder, and
#   `attn check alibi` tells you how far you are.
