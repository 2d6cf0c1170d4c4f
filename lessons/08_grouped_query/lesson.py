# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Grouped-query attention, hands on
#
# Many query heads, few heads of keys and values. Here you find out who reads what, catch the bug that gives
# the right shape, count what is kept, and take a trained model's heads away, to see what it costs and how
# much of it a little training brings back. Guess before you open an answer.

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
import copy
import json
import pathlib

from torch.utils._python_dispatch import TorchDispatchMode

from annotated_attention.grouped_query import (
    GroupedQueryAttention,
    grouped_query_attention,
    mean_pool_kv_heads,
)
from annotated_attention.kv_cache import kv_cache_bytes
from annotated_attention.language_model import LanguageModel, LanguageModelConfig
from annotated_attention.language_model_corpus import library_files, split
from annotated_attention.language_model_training import bits_per_byte, train

# %% [markdown]
# ## 1. Who reads what
#
# Six query heads, and six, three, two or one head of keys. Change one key head, and see which outputs move.
#
# **Predict.** With two key heads: which query heads move when key head 0 changes? Draw the four pictures,
# query heads down, key heads across.

# %%
query = torch.randn(1, 6, 4, 8)
fig, axes = plt.subplots(1, 4, figsize=(7, 2.4), sharey=True)
for ax, g in zip(axes, (6, 3, 2, 1), strict=True):
    key, value = torch.randn(2, 1, g, 5, 8)
    before = grouped_query_attention(query, key, value)
    moves = torch.zeros(6, g)
    for u in range(g):
        other = key.clone()
        other[:, u] = torch.randn(5, 8)
        moved = grouped_query_attention(query, other, value) != before
        moves[:, u] = moved.any(dim=-1).any(dim=-1)[0]
    heatmap(ax, moves, KEY, vmax=1.3)
    ax.set(title=f"g = {g}", xlabel="key head", ylabel="query head" if g == 6 else "")
    ax.set(xticks=range(g), yticks=range(6), aspect="auto")
plt.show()

# %% [markdown]
# Blocks of neighbours: head $n$ reads key head $\lfloor n/r \rfloor$. The first picture is multi-head
# attention, the last multi-query. There is no switch: the function looks at how many key heads came.
#
# ## 2. The bug with the right shape
#
# Whoever has a function for equal numbers of heads only, repeats the keys. `key.repeat(1, r, 1, 1)` has the
# right shape, the numbers look fine, and nothing is raised.
#
# **Predict.** Six query heads, two key heads. How many of the six heads come out *right*?
#
# <details markdown="1"><summary>Answer</summary>
#
# Four. `repeat` deals the heads out in turn, so head $n$ reads key head $n \bmod g$ where
# $\lfloor n/r \rfloor$ is right. For $n = 0, \dots, 5$ these are 0 1 0 1 0 1 and 0 0 0 1 1 1, which agree in
# four places. A check that looks at the first head, or at the last, sees nothing.
#
# </details>

# %%
for g in (1, 2, 3, 6):
    key, value = torch.randn(2, 1, g, 5, 8)
    exact = grouped_query_attention(query, key, value)
    k, v = (x.repeat(1, 6 // g, 1, 1) for x in (key, value))
    output = grouped_query_attention(query, k, v)  # now six heads on both sides
    right = torch.isclose(output, exact, atol=1e-5).flatten(2).all(dim=-1)[0]
    print(f"g = {g}, right heads:", *right.nonzero()[:, 0].tolist())

# %% [markdown]
# With one key head and with six, the bug cannot be seen at all. So test with $1 < g < h$, and every head.
#
# ## 3. What is never made
#
# `repeat_interleave(r, dim=1)` is right, and wasteful: it writes every key $r$ times, only to read each copy
# once. The function of this lesson lays the heads of a group behind one another, as more queries of one head.
#
# **Predict.** One new token, 4,096 keys, 32 query heads on 8 key heads, width 64. How many numbers has the
# largest tensor that is made, with repeated keys and without?


# %%
class Largest(TorchDispatchMode):
    numbers = 0  # of the largest result of any operation

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


new, (key, value) = torch.randn(1, 32, 1, 64), torch.randn(2, 1, 8, 4096, 64)
with Largest() as repeated:
    k, v = (x.repeat_interleave(4, dim=1) for x in (key, value))
    exact = grouped_query_attention(new, k, v)
with Largest() as folded:
    output = grouped_query_attention(new, key, value)

print(f"keys {key.numel():,}; largest: {repeated.numbers:,} repeating, {folded.numbers:,} folding")
print(f"largest difference of the outputs: {(output - exact).abs().max():.0e}")

# %% [markdown]
# Folding makes nothing larger than the keys that were there.
#
# ## 4. What is kept
#
# A cache keeps a key and a value of every token, in every key head of every layer. Llama-2-70B has 80 layers,
# 64 query heads, 8 key heads, width 128, and 138 GB of weights in bfloat16. A server has eight cards of 80 GB.
#
# **Predict.** How many conversations of 8,192 tokens fit beside the weights? How many would fit with 64 key
# heads?

# %%
tokens = torch.arange(0, 8193, 64)
fig, ax = plt.subplots(figsize=(7, 3))
for g, style in ((64, "-"), (8, "--"), (1, ":")):
    gigabytes = [kv_cache_bytes(80, g, 128, int(length)) / 1e9 for length in tokens]
    ax.plot(tokens, gigabytes, style, color=KEY)
    fit = int((8 * 80 - 138) / gigabytes[-1])
    ax.text(8300, gigabytes[-1], f"g = {g}: {fit:,} fit", color=KEY, va="center")
ax.set(xlabel="tokens of one conversation", ylabel="GB of keys and values", xlim=(0, 10_900))
ax.set(xticks=range(0, 8193, 2048))
plt.show()

# %% [markdown]
# Eight times as many people at once, on the same machine, and an eighth of the reading for each new token. The
# operations stay as many. What grows is the work done with each byte that is read, while an accelerator could do
# hundreds of operations. So fewer heads are faster, though nothing less is computed.
#
# ## 5. Take a trained model's heads away
#
# A small language model: two layers, eight heads, trained for seconds on the source code of Python's standard
# library. It is judged by the bits that it needs for a byte of files that it has not seen.

# %%
text, held_out = split(library_files())
sizes = {"max_length": 64, "d_model": 64, "n_layers": 2, "n_heads": 8}
STEPS = 400
settings = {"batch_size": 8, "learning_rate": 3e-3}

torch.manual_seed(0)
multi_head = LanguageModel(LanguageModelConfig(**sizes))
train(multi_head, text, steps=STEPS, **settings)


def bits(model):
    return bits_per_byte(model, held_out[:16_384])


print(f"{bits(multi_head):.2f} bits; guessing takes 8")

# %% [markdown]
# Now let its heads share: in each layer, the keys and values of every group give way to their mean. Then
# train it for another tenth of the steps.
#
# **Predict.** With 4, 2 and 1 heads of keys and values: how many bits right after the conversion, and how
# many after the training?


# %%
def converted(model, n_kv_heads):
    """A copy of `model` with fewer heads of keys and values."""
    model = copy.deepcopy(model)
    for block in model.blocks:
        block.attention = GroupedQueryAttention.from_multi_head(block.attention, n_kv_heads)
    return model


more = {"steps": STEPS // 10, "warmup": 5, "seed": 1, "batch_size": 8, "learning_rate": 1e-3}
for g in (8, 4, 2, 1):
    model = converted(multi_head, g)
    print(f"g = {g}: {bits(model):.2f} bits, then", end=" ")
    train(model, text, **more)
    print(f"{bits(model):.2f}")

# %% [markdown]
# The conversion does great harm, and more with every head that goes. The little training mends most of it:
# the harm was to a small part of the model, the rest was kept.
#
# ## 6. What a mean loses
#
# Why is the harm so great? The mean of vectors that are alike is like each of them. The mean of $r$ vectors
# that are perpendicular is short: $1/\sqrt r$ of them. But unlike in what? Turn the queries and the keys of a
# head by the same rotation, and every score stays as it was. Turn its values, and the columns of $W_O$ that
# take them up, and the output stays. A model does not care in which basis a head keeps its keys and values;
# the mean does. So turn every head of a group towards the first before taking it. The best rotation is
# $U V^\top$, from the singular value decomposition $W_K^0 W_K^{n\top} = U \Sigma V^\top$.
#
# **Predict.** How many bits does the turned model need? And the turned model, converted?


# %%
def turned(model, n_kv_heads):
    """The same model, each head's keys and values turned towards its group's first head."""
    model, r = copy.deepcopy(model), 8 // n_kv_heads
    for block in model.blocks:
        q, k, v, o = (w.weight.detach() for w in block.attention.children())
        q, k, v, o = (w.view(8, 8, 64) for w in (q, k, v, o.T.contiguous()))
        for n in range(8):
            for first, parts in ((k, (k, q)), (v, (v, o))):
                u, _, vt = torch.linalg.svd(first[n - n % r] @ first[n].T)
                for part in parts:
                    part[n] = u @ vt @ part[n]
        block.attention.w_o.weight.data = o.reshape(64, 64).T.contiguous()
    return model


def mean_key(model, g):
    weight = model.blocks[0].attention.w_k.weight.detach()
    return mean_pool_kv_heads(weight, 8, g).norm() / weight.norm() * (8 / g) ** 0.5


for g in (4, 2, 1):
    model = turned(multi_head, g)
    print(f"g = {g}: mean key {mean_key(multi_head, g):.2f} of a head, turned", end=" ")
    print(f"{mean_key(model, g):.2f}; bits: turned {bits(model):.2f}", end=", ")
    model = converted(model, g)
    print(f"converted {bits(model):.2f}", end=", ")
    train(model, text, **more)
    print(f"trained {bits(model):.2f}")

# %% [markdown]
# The turned model is the model that it was. Untouched, its heads are as unlike as random ones. Turned, their
# mean is longer, the conversion costs less, and the training ends lower (Jin et al., arXiv:2412.20677).
#
# ## 7. What the paper promises
#
# Ainslie et al. converted T5-Large to one head of keys and values (arXiv:2305.13245, figure 4). After another 5%
# of the steps, the best had begun from the mean of all heads, the next from the first head, the worst from new
# ones. `attn experiment grouped_query` asks that of models with rotary positions, with three seeds, and trains
# others that have few heads from the start. It takes minutes, so here are its results.
#
# **Predict.** Which order do you expect here? And how many bits do few heads cost if one has them from the start?

# %%
files = [pathlib.Path("results") / f"experiment{part}.default.json" for part in ("", "_uptraining")]
if all(file.exists() for file in files):
    loss, uptraining = (json.loads(file.read_text("utf-8"))["runs"] for file in files)
    trained = {}
    for run in loss:
        if run["settings"]["kind"] == "loss":
            name = run["settings"]["name"], run["measured"]["cache_bytes"]
            trained.setdefault(name, []).append(run["measured"]["bits"])
    for (name, size), values in trained.items():
        print(f"{name:7} {size:5} bytes a token: {min(values):.2f} to {max(values):.2f} bits")

    fig, ax = plt.subplots(figsize=(7, 3.2))
    for n, g in enumerate((4, 2, 1)):
        for m, start in enumerate(("turned", "longer", "mean", "first", "random")):
            for when, colour in ((0, MASK), (1, KEY)):
                runs = [run["measured"] for run in uptraining if "all" in run["measured"]]
                values = [run[f"{start} {g}"][when] for run in runs]
                ax.plot([6 * n + m] * len(values), values, "o-", color=colour, alpha=0.7)
            ax.text(6 * n + m, 2.55, start, ha="center", rotation=20, color=SOFT, fontsize=8)
    ax.set(xticks=(2, 8, 14), xticklabels=("g = 4", "g = 2", "g = 1"), ylabel="bits", ylim=(2.4, None))
    plt.show()
else:
    print("The results are not here: `attn experiment grouped_query` makes them.")

# %% [markdown]
# <details markdown="1"><summary>What came out</summary>
#
# Few heads from the start cost such small models nothing, but for chance; one *query* head beside the same cache
# costs some 6%, narrow heads some 20%. A conversion is another matter. New heads are the worst start, as in the
# paper. Whether the mean or the first head is better, the seeds do not agree. Turned heads are far better than
# both. T5's heads may be more alike, or its 5% enough to forget where they began: ours are 40 steps.
#
# </details>
#
# ## Now you
#
# - In section 6, turn the keys only, or the values only. Which of the two brings more?
# - Then write it yourself: `attn start grouped_query` puts the tasks into your working folder, and
#   `attn check grouped_query` tells you how far you are.
