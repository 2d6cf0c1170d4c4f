# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Linear attention, hands on
#
# Without the softmax, keys and values can be summed up before anybody asks. Here you see what that saves,
# what it looks like, and what is lost in the sum. Guess before you open an answer: a wrong guess is worth
# more than a right answer read.

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
import json
import pathlib

import torch.nn.functional as F

from annotated_attention.language_model import LanguageModel, LanguageModelConfig
from annotated_attention.linear import elu_plus_one, linear_attention, taylor_features
from annotated_attention.linear_decay import decayed_linear_attention, segment_sum
from annotated_attention.linear_decoding import LinearCache, LinearSelfAttention
from annotated_attention.linear_recall import delta_rule, recall_accuracy, recall_batch, sum_rule
from annotated_attention.scaled_dot_product import attention_weights

# %% [markdown]
# ## 1. Two brackets
#
# $(Q K^\top) V$ and $Q (K^\top V)$ are the same matrix. The first makes a table of $t \times t$ on the way,
# the second one of $d \times d$.
#
# **Predict.** With $d = 64$, from which length on is the second less work? How many times less at 65,536
# tokens?

# %%
d = 64
for t in (16, 64, 1024, 65536):
    left, right = 2 * t * t * d, 2 * t * d * d
    print(f"{t:6,} tokens: {left:15,} and {right:11,} multiplications, a ratio of {left / right:,.2f}")

# %% [markdown]
# They are even at $t = d$, and the ratio is $t/d$. A softmax stands between the two products and
# forbids the second bracket: $\exp(\mathbf{q}^\top \mathbf{k})$ is no product of a vector made of
# $\mathbf{q}$ and one made of $\mathbf{k}$, of any finite length.
# $\varphi(\mathbf{q})^\top \varphi(\mathbf{k})$ is.
#
# ## 2. What the weights look like
#
# **Predict.** The same queries and keys, 40 tokens of width 8, all large. On the left the weights of a
# softmax, in the middle those of $\varphi(x) = \operatorname{elu}(x) + 1$. Which picture is sharper? As
# matrices without a mask: what are their ranks?
#
# <details markdown="1"><summary>Answer</summary>
#
# The softmax: where a product is larger by 3, the weight is twenty times as large. Its matrix has full rank,
# 40. The other is a product of a $40 \times 8$ and an $8 \times 40$ matrix, divided row by row: its rank is
# 8, however long the text. The features $1, x, x^2$ (on the right, with all products of two) are more, 73,
# and the picture comes nearer to that of the softmax.
#
# </details>

# %%
torch.manual_seed(0)
query, key = 1.5 * torch.randn(2, 1, 1, 40, 8, dtype=torch.float64)
identity = torch.eye(40, dtype=torch.float64)[None, None]


def weights_of(feature_map, is_causal):
    """With one-hot values the output is the weights themselves."""
    scaled = 8**-0.25 * query, 8**-0.25 * key
    return linear_attention(*scaled, identity, feature_map=feature_map, is_causal=is_causal)


weights = {
    "softmax": lambda is_causal: attention_weights(query, key, is_causal=is_causal),
    "elu + 1": lambda is_causal: weights_of(elu_plus_one, is_causal),
    "1, x, x²": lambda is_causal: weights_of(taylor_features, is_causal),
}
fig, axes = plt.subplots(1, 3, figsize=(7, 2.6))
for ax, (name, of) in zip(axes, weights.items(), strict=True):
    heatmap(ax, of(True)[0, 0], WEIGHTS, vmax=0.5)
    ax.set(title=name, ylabel="query" if name == "softmax" else "")
    whole = of(False)[0, 0]
    seen = (-(whole * whole.log()).sum(dim=-1)).exp().mean()
    rank = torch.linalg.matrix_rank(whole)
    print(f"{name:8}: rank {rank}, a query spreads over {seen:.1f} of 40 keys")
plt.show()

# %% [markdown]
# The middle picture is nearly even: every query finds almost the mean of all before it.
#
# ## 3. One function, three forms
#
# With a causal mask, all pairs in a table (*parallel*), a state that goes from token to token (*recurrent*),
# and something between, a table within each *chunk* and a state from chunk to chunk.
#
# **Predict.** 4,096 tokens of width 64. How many multiplications do the parallel and the recurrent form take,
# and how many steps that must wait for one another? What size of chunk would you take?

# %%
query, key, value = torch.randn(3, 1, 1, 300, 16)
oracle = linear_attention(query.double(), key.double(), value.double(), form="parallel")
for form, u in (("parallel", 300), ("recurrent", 1), ("chunked", 7), ("chunked", 64), ("chunked", 1000)):
    output = linear_attention(query, key, value, form=form, chunk_size=u)
    print(f"{form:9} {u:4}: error {(output - oracle).abs().max():.0e}")

t, d = 4096, 64
for u in (1, 8, 64, 512, 4096):
    # Within chunks t u (d + d), and t d d each to write states and to read them.
    products = 2 * t * u * d + 2 * t * d * d
    print(f"chunks of {u:5,}: {products:13,} multiplications, {t // u:5,} steps, one after another")

# %% [markdown]
# Above the recurrent form, 34 million multiplications in 4,096 steps; below the parallel one, two billion at
# once. All errors are float32's rounding: it is one function. Up to $u = d$ a longer chunk no more than
# doubles the work, and saves steps: chunks are about as long as a head is wide.
#
# ## 4. A cache that does not grow
#
# A small model, untrained, reads a text token by token, and keeps nothing but its states.
#
# **Predict.** Does it say what it would say to the whole text at once? Its heads are 16 wide, in two layers
# of four: how many numbers does it keep after 40 tokens, and after 4 million?

# %%
layers = {"make_attention": lambda *_: LinearSelfAttention(64, 4)}
model = LanguageModel(LanguageModelConfig(d_model=64, n_layers=2, vocab_size=50, **layers))
text, caches, outputs, held = torch.randint(50, (1, 40)), [LinearCache(), LinearCache()], [], []
with torch.no_grad():
    for token in text.split(1, dim=1):
        outputs.append(model(token, caches=caches))
        held.append(sum(cache.nbytes for cache in caches) // 4)
    error = (torch.cat(outputs, dim=1) - model(text)).abs().max()
print(f"error {error:.0e}; numbers kept after 1, 20, 40 tokens: {held[0]:,}, {held[19]:,}, {held[39]:,}")

# %% [markdown]
# A matrix and a column for the denominator, $16 \cdot 17$ numbers for each of eight heads: 2,176, forever. A
# `KVCache` holds as many after eight and a half tokens.
#
# ## 5. What is lost in the sum
#
# A text of $n$ pairs of a key and a value, then questions: each key once more, in any order. Keys and values
# are random vectors of width 32, not trained. A state of 32 by 32 numbers has to answer for all of them.
#
# **Predict.** Order them by how many pairs they can hold: a softmax, `elu + 1`, the bare sum of
# $\mathbf{k} \mathbf{v}^\top$ without features or denominator, the features $1, x, x^2$, and the delta rule,
# which before it writes takes out what the state says already.
#
# <details markdown="1"><summary>Answer</summary>
#
# The softmax holds all, for nothing was summed. The features $1, x, x^2$ are 1,057: a large state, and a good
# one. The bare sum begins to fail below 32 pairs. The delta rule fails earlier: taking out along one key
# disturbs all the others. And `elu + 1` knows nothing: the features of short vectors are all near 1, so every
# answer is nearly the mean of all values.
#
# </details>

# %%
torch.manual_seed(0)
table = F.normalize(torch.randn(512, 32), dim=-1)
mechanisms = {
    "softmax": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=30.0),
    "1, x, x²": lambda q, k, v: linear_attention(3 * q, 3 * k, v, feature_map=taylor_features),
    "sum": sum_rule,
    "delta rule": lambda q, k, v: delta_rule(q, k, v, torch.ones(q.shape[:3])),
    "elu + 1": linear_attention,
}
pairs = [2, 4, 8, 16, 32, 64, 128]
texts = [recall_batch(16, n, 3 * n, 512) for n in pairs]
fig, ax = plt.subplots(figsize=(7, 3))
for (name, attend), colour in zip(mechanisms.items(), (QUERY, WEIGHTS, KEY, VALUE, BIAS), strict=True):
    right = [recall_accuracy(attend, *text, table) for text in texts]
    wide = 3 if name == "softmax" else 1.5  # two lines on top of each other
    ax.plot(pairs, right, "o-", color=colour, linewidth=wide, markersize=4, label=name)
ax.axvline(32, color=SOFT, linewidth=0.8, linestyle=":")
ax.set(xscale="log", xticks=pairs, xlabel="pairs", ylabel="right answers")
ax.xaxis.set_major_formatter("{x:.0f}")
ax.minorticks_off()
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# A state can be exact for as many pairs as it has rows. Beyond that answers blur, which is why many models
# with linear layers keep a few with a softmax. (Trained keys do better than random ones; the limit stays.)
#
# **Predict.** Now a key comes twice, first with the value *old*, then with *new*. What do the sum, the mean
# (`elu + 1`) and the delta rule answer?

# %%
key = F.normalize(torch.randn(1, 1, 1, 32), dim=-1).expand(1, 1, 2, 32)
old_and_new = torch.eye(2)[None, None]
for name in ("sum", "elu + 1", "delta rule"):
    old, new = mechanisms[name](key, key, old_and_new)[0, 0, -1].tolist()
    print(f"{name:10}: {old:.2f} old + {new:.2f} new")

# %% [markdown]
# The delta rule can edit. That is what it pays for above.
#
# ## 6. To forget on purpose
#
# Let a state fade: before a token is added, all that was there is multiplied by $a$. In RetNet that is a
# constant of the head; in newer models the token says how much is to stay: a gate. Two texts stand in one
# row, 12 tokens and 12, and the first token of the second shuts the gate: $a = 0$, $\log a = -\infty$.
#
# **Predict.** Draw the matrix of what is left of token $j$ when token $i$ reads. Does the second text find
# what it would find alone, exactly or nearly?

# %%
query, key, value = torch.randn(3, 1, 1, 24, 8, dtype=torch.float64)
gates = torch.full((1, 1, 24), -0.15, dtype=torch.float64)
gates[..., 5] = -2.0  # one token that says: forget most of it
gates[..., 12] = -torch.inf
packed = decayed_linear_attention(query, key, value, gates, chunk_size=5)
alone = decayed_linear_attention(*(x[:, :, 12:] for x in (query, key, value, gates)), chunk_size=5)

fig, ax = plt.subplots(figsize=(3.2, 3.2))
heatmap(ax, segment_sum(gates).exp()[0, 0], BIAS)
plt.show()
print(f"the second text, packed and alone: they differ by {(packed[:, :, 12:] - alone).abs().max():.0e}")

# %% [markdown]
# Exactly, but for rounding, as the chunks are cut elsewhere: logarithms are added up, never subtracted, so
# $-\infty$ is a number like any other. And token 5 had its wish: a gate is a mask, one of shades.
#
# ## 7. What the paper promises
#
# The first linear transformers generated images of 784 pixels 317 times as fast as a softmax
# (arXiv:2006.16236). That softmax read everything again for each pixel. Arora et al. (2023, arXiv:2312.04927)
# and others say what is paid for it: the more state, the more recall, whatever the mechanism.
#
# **Predict.** A model of eight layers writes its token number 784. How many times as long as with states does
# it take if it reads everything again? And if it has a cache of keys and values? Then: 16 pairs, asked for
# in any order, a layer that is *trained* for it. Which of these come to 90%, and in how many bytes: a
# softmax, a window, elu + 1, gated decay, the delta rule?


# %%
def spread(ax, points, colour, label):
    """Means over seeds, from the least to the greatest."""
    xs = sorted({x for x, _ in points})
    several = [[y for at, y in points if at == x] for x in xs]
    ax.plot(xs, [sum(ys) / len(ys) for ys in several], "o-", color=colour, label=label, markersize=4)
    ax.vlines(xs, [min(ys) for ys in several], [max(ys) for ys in several], color=colour)
    ax.set(xscale="log")
    ax.legend()


files = [pathlib.Path(f"results/{name}.default.json") for name in ("experiment", "experiment_recall")]
if not all(file.exists() for file in files):
    print("Nothing measured here yet: attn experiment linear")
else:
    times, recall = (json.loads(file.read_text())["runs"] for file in files)
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3))
    for name, b, colour in (("prefix", 1, WEIGHTS), ("cache", 1, KEY), ("cache", 16, QUERY)):
        wanted = {"part": "model", "texts": b}
        runs = [run for run in times if wanted.items() <= run["settings"].items()]
        points = [
            (run["settings"]["t"], run["measured"][f"{name}_ms"] / run["measured"]["state_ms"])
            for run in runs
        ]
        spread(left, points, colour, f"{name}, {b} text{'s' * (b > 1)}")
    names = ("softmax", "window", "elu + 1", "gated decay", "delta rule")
    for name, colour in zip(names, (QUERY, MASK, KEY, VALUE, BIAS), strict=True):
        wanted = {"mechanism": name, "trained": True}
        runs = [run["measured"] for run in recall if wanted.items() <= run["settings"].items()]
        spread(right, [(run["bytes"], run["recall"]) for run in runs], colour, name)
    left.set(yscale="log", xlabel="tokens before", title="time of a token, states = 1")
    right.set(xlabel="bytes of state", title="right answers, trained")
    plt.show()

# %% [markdown]
# Far ahead of a prefix that is read again, and about even with a cache, for one text: a large factor is in the
# opponent, and states pay where many long texts are read at once. On the right, a softmax
# answers everything, with a quarter of its cache too, and a window what it still holds. Gated decay and the
# delta rule come to 90% with 8 rows, a twelfth of the cache; elu + 1 needs 32, for what is never negative is
# hard to keep apart. It helps that 31 keys can be learned by heart. In a language there are more.
#
# ## Now you
#
# - In section 2, multiply queries and keys by 4. How many keys does each of the three spread over now?
# - In section 3, let $d$ be 256. Where does the bend move, and why?
# - In section 5, give `elu + 1` keys and queries that are 20 times as long. Why does that help, and where
#   does it end? Then let `beta` be 0.5.
# - In section 6, what must `gates` be for a window of one token, and what for a state that forgets nothing?
# - Then write it yourself: `attn start linear` puts six tasks into your working folder, and
#   `attn check linear` tells you how far you are.
