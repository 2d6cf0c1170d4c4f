# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Attention with linear biases, hands on

# %%
# On a machine that lacks the course (Colab, for one) this installs it; elsewhere it does nothing.
import importlib.util
import subprocess
import sys

INSTALL = "annotated-attention[notebooks]"
if importlib.util.find_spec("annotated_attention") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", INSTALL], check=True)

# %%
import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LinearSegmentedColormap

# %config InlineBackend.figure_formats = ["svg"]

# The colours of the book: one for each role, the same in formulas, code and plots.
PAPER, INK, SOFT, LINE = "#fffefb", "#1f2328", "#66707a", "#e6e3da"
QUERY, KEY, VALUE = "#0b5fa5", "#a04600", "#08724f"
WEIGHTS, BIAS, MASK = "#7a2b8c", "#ad1237", "#5b6470"

plt.rcParams.update(
    {
        "figure.figsize": (7, 3),
        "figure.facecolor": PAPER,
        "figure.constrained_layout.use": True,
        "axes.facecolor": PAPER,
        "axes.edgecolor": LINE,
        "axes.labelcolor": SOFT,
        "axes.titlecolor": INK,
        "axes.titlesize": 10,
        "axes.labelsize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.prop_cycle": plt.cycler(color=[QUERY, KEY, VALUE, WEIGHTS, BIAS, MASK]),
        "grid.color": LINE,
        "text.color": INK,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "svg.fonttype": "none",
        "svg.hashsalt": "annotated-attention",
    }
)
torch.manual_seed(0)


def heatmap(ax, values, colour, **options):
    """Draw a matrix (queries down, keys across) as cells of one colour that fade to the paper."""
    fade = LinearSegmentedColormap.from_list("fade", [f"{colour}00", colour])
    ax.pcolormesh(values, cmap=fade, edgecolors=LINE, linewidth=0.4, **options)
    ax.set(aspect="equal", xlabel="key", ylabel="query")
    ax.invert_yaxis()
    ax.grid(False)
