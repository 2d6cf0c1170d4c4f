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
print("16 heads:", *(f"{slope:.4f}" for slope in alibi_slopes(16)[:8]), "...")
print("12 heads:", *(f"{slope:.4f}" for slope in alibi_slopes(12)))

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

# %% [markdown]
# The worst head ends up wrong by nearly all of its largest weight, ½. The short form has a use all the same:
# it belongs to the key alone. Just keep it away from low precision, or add it to float32 scores.
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
for name, slopes_of_12 in (("published", published), ("short cut", short_cut)):
    print(f"{name}:", *(f"{slope:.3f}" for slope in slopes_of_12))

worst = (published - short_cut).abs().argmax().item()
print(f"worst: index {worst}, {published[worst]:.3f} against {short_cut[worst]:.3f}")

# %% [markdown]
# The ninth head (index 8) is off by 0.69: a head that looked at its neighbours now looks across a page. A
# model that is trained and used with the short cut is fine, the slopes are a choice. A model that was trained
# with one and is run with the other is broken.
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
# That is why the model does not break. It is also why you should not expect much more: where no head looks, a
# longer text brings nothing.
#
# ## 7. What the paper promises
#
# Evaluated in pieces, a model trained on 512 tokens improves from 19.73 to 18.40 when it reads 3,072 (tables
# 2 and 5 of arXiv:2108.12409). But in longer pieces fewer tokens stand near a beginning, where hardly any
# context helps. So the paper evaluates with stride 1 too: each token is the last of a window of its own, and
# has full context. Then ALiBi goes from 17.98 to 18.3, and sinusoidal positions from 18.35 to 360 (tables 13
# to 15).
#
# `attn experiment alibi` trained small models on 64 bytes at a time, with three seeds for each kind of
# position, and had them read up to 512. These are its results; nothing is trained here.
#
# **Predict.** Draw four curves: bits per byte against the length, with stride 1. Which rise, how far, and
# where do they begin to? Then two for ALiBi alone, stride 1 and blocks. Where do they meet?

# %%
import json
from pathlib import Path as File

results = File("results/experiment.default.json")
if not results.exists():
    print("there are no results yet: `attn experiment alibi` makes them")
else:
    runs = [(run["settings"], run["measured"]) for run in json.loads(results.read_text())["runs"]]
    fig, axes = plt.subplots(1, 2)
    kinds = {"sinusoidal": KEY, "learned": VALUE, "rotary": QUERY, "alibi": BIAS}
    panels = [(axes[0], position, "sliding", colour) for position, colour in kinds.items()]
    panels += [(axes[1], "alibi", "blocks", SOFT), (axes[1], "alibi", "sliding", BIAS)]
    for ax, position, how, colour in panels:
        ours = [m for s, m in runs if (s["position"], s["length"]) == (position, 64) and "trained" in m]
        tested = [int(name.split("_")[1]) for name in ours[0] if name.startswith(how)]
        bits = torch.tensor([[measured[f"{how}_{length}"] for length in tested] for measured in ours])
        ax.plot(tested, bits.mean(0), color=colour, label=f"{position}, {how}")
        ax.fill_between(tested, bits.amin(0), bits.amax(0), color=colour, alpha=0.2, linewidth=0)
    for ax in axes:
        ax.axvline(64, color=SOFT, linewidth=0.8, linestyle=":")
        ax.set(xscale="log", xticks=[4, 16, 64, 512], xticklabels=["4", "16", "64", "512"])
        ax.set(xlabel="bytes read at a time", ylabel="bits per byte")
        ax.legend()
    plt.show()

# %% [markdown]
# ALiBi is flat. In blocks it seems to improve, but the two curves meet where hardly any byte is early: with
# stride 1 nothing of that gain is left. The others break: learned positions at the first entry that was never
# trained, sinusoidal ones at once too, rotary ones between 96 and 128 bytes. Did you expect sinusoidal ones to
# lose the least of the three? They are the worst already at 64. And up to 96 bytes the best is not ALiBi, but
# rotary. None of the four gets better beyond 32, so these models are too small to show a use of long context.
#
# ## Now you
#
# - Give all eight heads the slope 1/256 in section 2. What is lost? Now give all of them 1/2.
# - In section 6, find the slope whose head uses 512 keys. Is it one of the eight? And since a trained model's
#   scores can be large enough to overcome the bias: multiply `torch.randn` by 5. Where do the plateaus move?
# - Then write it yourself: `attn start alibi` puts six tasks into your working folder, and
#   `attn check alibi` tells you how far you are.
