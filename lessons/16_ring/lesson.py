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
# What this notebook lets you see, in a sentence or two.

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


# %% [markdown]
# **Predict.** Three queries look at five keys. What does each row of weights sum to?
#
# <details markdown="1"><summary>Answer</summary>
#
# One: they are a softmax. With values of one, the result is one everywhere.
#
# </details>

# %%
from annotated_attention.ring import ring_attention

query, key, value = torch.randn(1, 1, 3, 8), torch.randn(1, 1, 5, 8), torch.ones(1, 1, 5, 1)
print(ring_attention(query, key, value).flatten().round(decimals=4))
