# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A language model, hands on
#
# A text of bytes goes in, and for each byte a guess at the next one comes out. You build such a model, look at
# it before it has learned anything, train it for some seconds on the source of Python's own library, and let
# it write. Then you change its attention with one line. Guess before you run a cell: a wrong guess is worth
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
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path as File
from tempfile import TemporaryDirectory

from annotated_attention.alibi import alibi_attention
from annotated_attention.language_model import (
    LanguageModel,
    LanguageModelConfig,
    SelfAttention,
    generate,
    language_model_cost,
)
from annotated_attention.language_model_corpus import as_text, library_files, split
from annotated_attention.language_model_training import BEGIN, bits_per_byte, crops, train

text, held_out = split(library_files())
print(f"{len(text) / 1e6:.1f} million bytes to read, {len(held_out) / 1e6:.1f} million held out")
print(as_text(text[3000:3200]))

# %% [markdown]
# ## 1. Before it has learned anything
#
# **Predict.** A new model of 256 possible bytes has seen nothing. How many bits does it need for a byte, that
# is, how large is the mean of $-\log_2 P$ of the byte that comes? And which text does it write?
#
# <details markdown="1"><summary>Answer</summary>
#
# About eight: to a model without opinions all 256 bytes are equally likely, and $-\log_2 \frac1{256} = 8$. If
# you ever see a first loss well above $\ln 256 = 5.55$ nats, something is wrong with the initialisation. It
# writes noise.
#
# </details>

# %%
config = LanguageModelConfig(max_length=64, d_model=64, n_layers=2, n_heads=4)
torch.manual_seed(0)
model = LanguageModel(config)
print(f"{bits_per_byte(model, held_out[:20_000]):.2f} bits per byte")
start = torch.tensor([[BEGIN]])
written = generate(model, start, 40, generator=torch.Generator().manual_seed(0))
print(repr(as_text(written[0, 1:])))

# %% [markdown]
# It is a little less than eight. One opinion it does have: the stream of a byte begins as that byte's own
# vector, and of all the vectors it is compared with in the end, the most similar is that one. So a new model
# expects every byte to be repeated, and in a text with so many runs of spaces that is not bad.

# %%
parts = {"embedding": model.embedding, "positions": model.position_embedding}
parts |= {"attention, each layer": model.blocks[0].attention, "MLP, each layer": model.blocks[0].mlp}
for name, part in parts.items():
    print(f"{name:22} {sum(x.numel() for x in part.parameters()):7,}")
products, operations = language_model_cost(config, t=64)
print(f"{operations:,} operations to train on one byte, of which {6 * products:,} are 6N")

# %% [markdown]
# The MLP has twice as much as attention. The embedding counts once, although it is used twice: it turns bytes
# into vectors at the bottom, and vectors into logits at the top.
#
# ## 2. It must not see the future
#
# **Predict.** Byte 20 of a text is changed. Which of the 40 predictions change: those at which places?

# %%
crop = held_out[None, 1000:1040].long()
changed = crop.clone()
changed[0, 20] = (changed[0, 20] + 1) % 256
moved = (model(crop) - model(changed)).abs().amax(dim=-1)[0].detach()

fig, ax = plt.subplots(figsize=(7, 1.8))
ax.bar(range(40), moved, color=[VALUE if x else MASK for x in moved])
ax.set(xlabel="place of the prediction", ylabel="largest change")
plt.show()
print("first prediction that moved:", moved.nonzero()[0].item())

# %% [markdown]
# Place 20 itself moves, because its prediction is about byte 21 and may use byte 20. Nothing before it moves,
# not even by a rounding. This check takes a second and finds the bug that makes a loss look wonderful.
#
# ## 3. Can it learn at all?
#
# Before an hour is spent on training, one batch is learned by heart. A model that cannot even do that has a
# fault; there is no need to wait for it.
#
# **Predict.** There are 8 crops of 64 bytes, and 120 thousand parameters. How low does the loss go?
#
# <details markdown="1"><summary>Answer</summary>
#
# Nearly to zero, but not quite: every crop begins with the same byte 0, and nobody can know which of the eight
# goes on from there. $\log_2 8 = 3$ bits for the first byte of 64 is the 0.05 that remains.
#
# </details>

# %%
torch.manual_seed(1)
batch = crops(text, 8, 64)
torch.manual_seed(0)
parrot = LanguageModel(config)
losses = train(parrot, text, steps=150, learning_rate=1e-2, warmup=10, draw=lambda *_: batch)
for step in (0, 50, 149):
    print(f"step {step:3}: {losses[step] / math.log(2):.3f} bits per byte")

# %% [markdown]
# ## 4. Counting
#
# A loss says little by itself. So here are two models that only count: how often each byte occurs, and how
# often each follows each.

# %%
learn, judge = text.long(), held_out.long()
single = torch.bincount(learn, minlength=256).double() + 1
pairs = torch.bincount(256 * learn[:-1] + learn[1:], minlength=256**2).double().view(256, 256) + 0.1
bits_single = -(single / single.sum()).log2()[judge].mean().item()
bits_pairs = -(pairs / pairs.sum(1, keepdim=True)).log2()[judge[:-1], judge[1:]].mean().item()
print(f"counting bytes: {bits_single:.2f} bits; counting pairs: {bits_pairs:.2f} bits")

# %% [markdown]
# ## 5. Training
#
# **Predict.** The model gets 600 steps, about ten seconds. It sees up to 63 bytes of the past, the counter of
# pairs sees one. Does it win? At which step does it pass the counter of bytes?

# %%
options = {"steps": 600, "learning_rate": 5e-3, "warmup": 30}
losses = train(model, text, **options)


def smooth(losses, width=20):
    """Bits per byte, each the mean of `width` steps."""
    return torch.tensor(losses).unfold(0, width, 1).mean(-1) / math.log(2)


fig, ax = plt.subplots()
ax.plot(smooth(losses), color=QUERY)
for bits, name in ((bits_single, "bytes counted"), (bits_pairs, "pairs counted")):
    ax.axhline(bits, color=MASK, linewidth=0.8, linestyle="--")
    ax.text(600, bits + 0.08, name, color=SOFT, ha="right", fontsize=8)
ax.set(xlabel="step", ylabel="bits per byte", ylim=(2.5, 8.2))
plt.show()
print(f"held out: {bits_per_byte(model, held_out[:100_000]):.2f} bits per byte")

# %% [markdown]
# It first learns what the counters know. First how often each byte occurs, for that needs no attention at all;
# then which follows which, which the MLP can do; and only then, slowly, what stands further back. The training
# in five minutes, with a model seven times as large, goes on from there to below 2 bits
# (`python -m annotated_attention.language_model_corpus`).
#
# ## 6. Writing
#
# **Predict.** The same model writes at temperature 0, 0.7 and 1.5. Which text gets stuck, and which is nonsense?


# %%
def write(prompt, model=model, **options):
    tokens = torch.tensor([[BEGIN, *prompt.encode()]])
    generator = torch.Generator().manual_seed(0)
    written = generate(model, tokens, 65 - tokens.shape[1], generator=generator, **options)
    return repr(as_text(written[0, 1:]))


for temperature in (0.0, 0.7, 1.5):
    print(f"temperature {temperature}: {write('    def ', temperature=temperature)}")

# %% [markdown]
# At 0 it says the likeliest thing for ever. At 1.5 many unlikely bytes come, each alone improbable. Now keep
# temperature 1 and cut the tail instead.

# %%
for top_p in (1.0, 0.9, 0.5):
    print(f"top_p {top_p}: {write('    def ', top_p=top_p)}")

# %% [markdown]
# How much is cut is not the same everywhere. The number of bytes that are needed for 90% of the probability,
# at each place of a text:

# %%
line = "    def __init__(self, name):"
tokens = torch.tensor([[BEGIN, *line.encode()]])
ordered = model(tokens)[0].softmax(-1).sort(descending=True).values.detach()
needed = (ordered.cumsum(-1) - ordered < 0.9).sum(-1)[:-1]

fig, ax = plt.subplots(figsize=(7, 2))
ax.bar(range(len(line)), needed, color=VALUE)
ax.set_xticks(range(len(line)), line.replace(" ", "·"), fontfamily="monospace")
ax.set(ylabel="bytes kept")
ax.grid(False, axis="x")
plt.show()

# %% [markdown]
# Where a name begins, many bytes are possible; after `sel` it is sure of the `f`, and then of the comma. A share
# adapts to that. A fixed number of the likeliest bytes would not.
#
# ## 7. Another attention, with one line
#
# The model has a slot for attention. Lesson 6's goes in like this, and the learned positions go out, because
# ALiBi knows distances itself.
#
# **Predict.** The learned positions end at 64. What happens to each of the two models at a text of 65 bytes,
# and of 256?


# %%
def alibi(query, key, value, i, j):
    return alibi_attention(query, key, value, offset=int(i[..., 0].unique()))


def attention(config, layer):
    return SelfAttention(config.d_model, config.n_heads, attend=alibi)


torch.manual_seed(0)
other = LanguageModel(replace(config, position_embedding="none", make_attention=attention))
other_losses = train(other, text, **options)

# %%
fig, ax = plt.subplots()
ax.plot(smooth(losses), color=QUERY, label="learned positions")
ax.plot(smooth(other_losses), color=BIAS, label="ALiBi")
ax.set(xlabel="step", ylabel="bits per byte", ylim=(2.5, 5))
ax.legend()
plt.show()
for length in (64, 256):
    for name, each in (("learned", model), ("ALiBi", other)):
        try:
            found = f"{bits_per_byte(each, held_out[:100_000], length=length):.2f} bits per byte"
        except ValueError as error:
            found = str(error)
        print(f"{length:3} bytes, {name:7}: {found}")

# %% [markdown]
# ALiBi learns faster here: to look at the byte before, it need not find out where that is. And it reads texts
# four times as long as those of its training. How much it makes of them is the question of lesson 6.
#
# ## 8. Stop, and go on
#
# **Predict.** A run is interrupted after 25 of 40 steps; its last checkpoint is that of step 20. It is started
# again. By how much do its parameters differ, in the end, from those of a run that was never interrupted?


# %%
def run(checkpoint: File | None = None, report: Callable[[int, float], None] | None = None):
    torch.manual_seed(0)
    model = LanguageModel(config)
    train(model, text, steps=40, checkpoint=checkpoint, every=20, report=report)
    return torch.cat([x.detach().flatten() for x in model.parameters()])


def interrupt(step: int, loss: float) -> None:
    if step == 25:
        raise KeyboardInterrupt


with TemporaryDirectory() as folder:
    checkpoint = File(folder) / "model.pt"
    try:
        run(checkpoint, interrupt)
    except KeyboardInterrupt:
        print("interrupted")
    resumed = run(checkpoint)
print("largest difference:", (resumed - run()).abs().max().item())

# %% [markdown]
# By nothing. Each step draws from a seed of its own, so what was drawn before does not matter; and a checkpoint
# holds AdamW's two running means of each parameter. Forget those, and a resumed run begins with a jolt.
#
# ## Now you
#
# - In section 5, set `learning_rate` to 0.1, then to 1e-4. How would you tell each curve from a fault?
# - Leave out the positions, with `position_embedding="none"` and nothing in their place. How much worse is it?
#   Where does the model get any order from?
# - Then write it yourself: `attn start language_model` puts the tasks into your working folder, and
#   `attn check language_model` tells you how far you are.
