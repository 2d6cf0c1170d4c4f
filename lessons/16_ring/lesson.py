# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Ring, hands on
#
# A text that fits on no single device is dealt out to several, and every token still sees all before it.
# Here is the ring, first in one process, where the network is a list, then in two real ones.

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
import os
import tempfile

from annotated_attention.flash import flash_attention, merge_attention
from annotated_attention.ring_zigzag import seen_by, zigzag_positions, zigzag_shard, zigzag_unshard
from annotated_attention.rotary import apply_rotary, rotary_angles

# %% [markdown]
# ## 1. Who holds what
#
# Each of 8 ranks has a share of the text. Queries stay. Keys and values go round: after each step every rank
# sends what it holds to the next, and the last one to the first.
#
# **Predict.** Which keys does rank 2 hold at step 3? How often does each share travel until all have met all?

# %%
n, u, held = 8, 64, list(range(8))
for step in range(n):
    print(f"step {step}: ranks 0 to {n - 1} hold", *held)
    # All send, all receive: that is the whole network.
    held = held[-1:] + held[:-1]

# %% [markdown]
# Those of rank 7: $(r - m) \bmod n$ for rank $r$ at step $m$. And $n - 1$ times, for the first step needs no
# message. No rank ever holds more than its own share, the one that is passing through and room for the next.
#
# ## 2. Waiting
#
# In a causal text a token sees what stands before it. Nobody can begin a step before the keys have come, so
# everybody waits for the slowest.
#
# **Predict.** Cut the text into 8 stretches, one for each rank. How many times faster than one device are 8?
#
# <details markdown="1"><summary>Answer</summary>
#
# Not much more than 4. At every step but the first some rank sees all of the keys that it holds, so it takes as
# long as if nothing were hidden: half of the work is saved, and what is gained is idleness. Rank 0 is done after
# the first step, and waits.
#
# </details>
#
# Now cut it into 16 pieces, and give rank $r$ the pieces $r$ and $15 - r$, one early and one late. Is that fair *at
# every step*, or only in the sum?


# %%
def pairs(cut):
    """Visible pairs of a query and a key, for each rank at each step."""
    rows = [[cut[r][:, None] >= cut[(r - m) % n] for m in range(n)] for r in range(n)]
    return torch.tensor([[int(sees.sum()) for sees in row] for row in rows])


cuts = {
    "one stretch each": [torch.arange(u) + r * u for r in range(n)],
    "zigzag": [zigzag_positions(u, r, n) for r in range(n)],
    "one by one": [torch.arange(u) * n + r for r in range(n)],
}
fig, axes = plt.subplots(3, 1, figsize=(7, 5), sharex=True)
for ax, (name, cut) in zip(axes, cuts.items(), strict=True):
    work, time = pairs(cut), 0
    for m, colour in enumerate([WEIGHTS] + [QUERY] * (n - 1)):
        ax.barh(range(n), work[:, m], left=time, color=colour, edgecolor=PAPER, height=0.9)
        time += int(work[:, m].max())
    ax.set(title=f"{name}: {work.sum() / time:.2f} times as fast", ylabel="rank", yticks=(0, n - 1))
    ax.invert_yaxis()
    ax.grid(False)
axes[-1].set(xlabel="time, in pairs of a query and a key; the step with its own keys is purple")
plt.show()

# %% [markdown]
# At every step: 8.00, with no gap at all. Of the keys of another rank $r'$ all queries see the early piece and none
# sees the late one if $r' < r$; if $r' > r$, the late queries see both and the early ones neither. Either way it is
# half of the table, and a rectangle. To deal tokens out one by one (*striped attention*) is almost as even.
#
# ## 3. The ring in one process
#
# Attend to what is there, merge, pass it on. `seen_by` says which queries see which keys.


# %%
def ring(query, key, value, n, merge=merge_attention, source_of=lambda rank, source: source):
    """Causal attention by n ranks: outputs in the order of the text."""
    u = query.shape[2] // n
    queries = [zigzag_shard(query, r, n) for r in range(n)]
    held = [(r, zigzag_shard(key, r, n), zigzag_shard(value, r, n)) for r in range(n)]
    outputs = [torch.zeros_like(q) for q in queries]
    lses = [q.new_full(q.shape[:3], -torch.inf) for q in queries]
    for step in range(n):
        for rank, (source, k, v) in enumerate(held):
            rows, columns = seen_by(rank, source_of(rank, source), u, True)
            k, v = k[:, :, columns], v[:, :, columns]
            part = flash_attention(queries[rank][:, :, rows], k, v, is_causal=step == 0)
            before = outputs[rank][:, :, rows], lses[rank][:, :, rows]
            outputs[rank][:, :, rows], lses[rank][:, :, rows] = merge(*before, *part)
        held = held[-1:] + held[:-1]
    return zigzag_unshard(outputs)


query, key, value = torch.randn(3, 1, 2, 512, 32)
whole, _ = flash_attention(query, key, value, is_causal=True)

# %% [markdown]
# **Predict.** Rank 0 meets the shares in the order 0, 7, 6, ..., and rank 7 in the order 7, 6, 5, ... By how much
# do their results differ from those of one device, in float32? And does the error grow with the number of ranks?

# %%
exact, _ = flash_attention(query.double(), key.double(), value.double(), is_causal=True)
print(f"one device: off by {(whole - exact).abs().max():.1e}")
for n in (1, 2, 4, 8, 16):
    print(f"{n:2} ranks:   off by {(ring(query, key, value, n) - exact).abs().max():.1e}")

# %% [markdown]
# By rounding, as one device does, and it does not grow: a merge is a sum, has no order, and weighs by at most 1.
#
# ## 4. Three ways to get it wrong
#
# These run without a complaint:
#
# - *The keys of another.* Rank 1 of 4 takes what comes for the keys of the rank before their owner.
# - *A forgotten lse.* Each rank takes the plain mean of what it had and what came.
# - *Positions from 0.* Each rank turns its queries and keys by rotary angles, as if its share were a text.
#
# **Predict.** For each of them: at which positions of the text is the output wrong?
#
# <details markdown="1"><summary>Answer</summary>
#
# The first only in the two pieces of rank 1: what it believes stays with it. The second and the third everywhere but
# in the first piece of all: whoever sees one part only needs no weights, and distances within a piece are right
# wherever it begins. A test with one rank, or of the first tokens, finds none of the three.
#
# </details>

# %%
n, u = 4, query.shape[2] // 4


def confused(rank, source):
    return (source - 1) % n if rank == 1 != source else source


def mean(output_a, lse_a, output_b, lse_b):
    # ln 1 for whoever saw something, ln 0 for whoever did not.
    return merge_attention(output_a, (lse_a > -torch.inf).log(), output_b, (lse_b > -torch.inf).log())


def turned(x, positions):
    return apply_rotary(x, rotary_angles(positions, x.shape[-1]))


right, restarted = torch.arange(n * u), zigzag_unshard([torch.arange(u)] * n, dim=0)
rotary, _ = flash_attention(turned(query, right), turned(key, right), value, is_causal=True)
wrong = {
    "the keys of another": ring(query, key, value, n, source_of=confused) - whole,
    "a forgotten lse": ring(query, key, value, n, merge=mean) - whole,
    "positions from 0": ring(turned(query, restarted), turned(key, restarted), value, n) - rotary,
}
fig, axes = plt.subplots(3, 1, figsize=(7, 3.6), sharex=True)
for ax, (name, off) in zip(axes, wrong.items(), strict=True):
    ax.semilogy(off.abs().amax(dim=(0, 1, 3)) + 1e-8, color=BIAS, linewidth=0.8)
    ax.set(title=name, ylim=(1e-8, 9), yticks=(1e-8, 1e-4, 1), xticks=range(0, 513, 64))
axes[1].set(ylabel="largest error of a token")
axes[2].set(xlabel="position; rank 0 has the first and the last piece of 64")
plt.show()

# %% [markdown]
# ## 5. Two processes, and what they say to each other
#
# Now `ring_attention` itself, with its backward pass, in two processes with a network between them. Each counts the
# bytes that it hands to `isend`. Then rank 1 leaves without a word, and rank 0 tries once more.
#
# **Predict.** A text of 1,024 tokens in float32, 4 heads on 2 heads of keys, all of width 32. How many bytes does each
# rank send forward? How many backward? And what becomes of rank 0 in the end?

# %%
SCRIPT = """
import os, sys
from datetime import timedelta
import torch
import torch.distributed as dist
from annotated_attention.ring import ring_attention
from annotated_attention.ring_zigzag import zigzag_shard

rank, n = int(sys.argv[1]), 2
there = {"rank": rank, "world_size": n, "store": dist.FileStore("store", n)}
dist.init_process_group("gloo", timeout=timedelta(minutes=1), **there)
sent, exchange = [], dist.batch_isend_irecv

def counted(messages):
    sent.append(sum(x.tensor.nbytes for x in messages if x.op is dist.isend))
    return exchange(messages)

dist.batch_isend_irecv = counted
*text, grad = (zigzag_shard(x, rank, n) for x in torch.load("text"))
text = [x.requires_grad_() for x in text]
output, _ = ring_attention(*text, is_causal=True)
forward = sum(sent)
output.backward(grad)
print(f"rank {rank}: {forward:,} bytes forward, {sum(sent) - forward:,} backward", flush=True)
torch.save([output.detach(), *(x.grad for x in text)], f"result {rank}")
dist.barrier()
if rank == 0:
    try:
        ring_attention(*text, is_causal=True)
    except RuntimeError as error:
        print(str(error).partition("(")[0], flush=True)
os._exit(0)
"""

*text, grad = (torch.randn(1, heads, 1024, 32) for heads in (4, 2, 2, 4))
environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
with tempfile.TemporaryDirectory() as folder:
    torch.save([*text, grad], f"{folder}/text")
    start = {"stdout": subprocess.PIPE, "text": True, "env": environment, "cwd": folder}
    ranks = [subprocess.Popen([sys.executable, "-c", SCRIPT, str(rank)], **start) for rank in range(2)]
    try:
        print(*(rank.communicate(timeout=120)[0] for rank in ranks), sep="", end="")
    finally:
        [rank.kill() for rank in ranks]
    shards = [torch.load(f"{folder}/result {rank}") for rank in range(2)]

output, _ = flash_attention(*(x.requires_grad_() for x in text), is_causal=True)
wanted = output.detach(), *torch.autograd.grad(output, text, grad)
for name, one, *both in zip(("output", "dq", "dk", "dv"), wanted, *shards, strict=True):
    print(f"{name:6} off by {(zigzag_unshard(both) - one).abs().max():.0e} from one device")

# %% [markdown]
# A share has 512 tokens: 512 · 2 · (32 + 32) · 4 bytes = 262,144, sent once, for with two ranks there is one hop.
# Backward the keys travel again, and the sums of their gradients with them: twice as much. No message says whose keys
# it brings; that follows from rank and step. Rank 0 does not hang: it says where it was.
#
# ## 6. More ranks
#
# A layer of the size of Llama 3 8B (32 heads on 8, of width 128), a text of 131,072 tokens, in bf16. One could do
# without a ring: all ranks *gather* the keys of all, and attend to the whole text at once.
#
# **Predict.** From 8 to 64 ranks: how does the memory of a rank change, either way? And what it sends?
#
# <details markdown="1"><summary>Answer</summary>
#
# With the ring it falls to an eighth; with gathering it comes to rest at the keys of the whole text. What a rank sends
# is $(n - 1)/n$ of all keys, nearly the same for 8 and for 64. But its work falls to an eighth as well.
#
# </details>

# %%
t, h, g, d, counts = 131_072, 32, 8, 128, 2 ** torch.arange(0, 11)
# Bytes of a share: queries and output, keys and values. A ring has room for what leaves and what arrives.
queries, keys = 4 * h * d * t / counts, 4 * g * d * t / counts
memory = {"ring": queries + 3 * keys, "gather": queries + keys + keys * counts}
# Of a step: two products of t by t by d, half of which is hidden, and one message.
operations = 2 * h * d * (t / counts) ** 2

fig, axes = plt.subplots(1, 2, figsize=(7, 2.8))
for (name, sizes), colour in zip(memory.items(), (QUERY, KEY), strict=True):
    axes[0].loglog(counts, sizes / 2**20, "o-", color=colour, markersize=3, label=name)
axes[0].legend()
axes[1].loglog(counts[1:], (operations / keys)[1:], "o-", color=WEIGHTS, markersize=3)
for name, bandwidth, x in (("NVLink, 450 GB/s", 450e9, 2), ("InfiniBand, 50 GB/s", 50e9, 64)):
    axes[1].axhline(989e12 / bandwidth, color=SOFT, linewidth=0.8)
    axes[1].text(x, 989e12 / bandwidth * 1.15, name, color=SOFT, fontsize=8)
for ax, label in zip(axes, ("MiB of a rank, in one layer", "operations per byte sent"), strict=True):
    ax.set_xticks(counts[::2], counts[::2].tolist(), minor=False)
    ax.set(xlabel="ranks", ylabel=label)
plt.show()

# %% [markdown]
# The lines are what an H100 computes in bf16 while it sends a byte, by the datasheets (989 TFLOP/s). Above a line
# sending costs no time, for the next keys come before the work is done. Below it the ring waits: over InfiniBand from
# 16 ranks on, over NVLink from 128. A ring is for texts that are long *for each rank*.
#
# ## Now you
#
# - In section 2, shuffle the text: `torch.randperm(n * u).chunk(n)`. Is chance fair? Why does nobody do it?
# - In section 3, let the ring turn the other way: `held[1:] + held[:1]`. What else has to be changed?
# - In section 3, start `lses` from 0 in place of $-\infty$. Which formula of lesson 10 have you built?
# - Then write it yourself: `attn start ring` brings six tasks, and `attn check ring` tells you how far you are.
