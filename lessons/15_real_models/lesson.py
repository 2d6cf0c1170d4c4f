# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Real models
#
# Companion to the lessons before it.

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
import warnings

# Transformers is an extra of the course. This installs it where it is missing, and keeps it quiet.
if importlib.util.find_spec("transformers") is None:
    EXTRA = "annotated-attention[models]"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", EXTRA], check=True)
os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
warnings.filterwarnings("ignore", message="IProgress")

import transformers

transformers.utils.logging.disable_progress_bar()

from annotated_attention.attention_sinks_logits import sink_gate
from annotated_attention.grouped_query import grouped_query_attention
from annotated_attention.language_model_sampling import generate
from annotated_attention.real_models_interface import masked, register
from annotated_attention.real_models_modules import annotate
from annotated_attention.real_models_weights import Llama, load
from annotated_attention.scaled_dot_product import attention_weights
from annotated_attention.sliding_window import sliding_window_mask

register()

# %% [markdown]
# ## 1. Every logit stays where it was
#
# SmolLM2 is a Llama of 135 million parameters. If your machine reaches it, this cell fetches its published
# weights, 270 MB; otherwise a smaller Llama with random ones stands in. All that follows holds for both.


# %%
def louder(model, factor=50):
    """Random weights begin so small that attention hardly chooses, and a wrong one is hardly noticed."""
    for parameter in model.parameters():
        parameter.data.mul_(factor / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 1)
    return model.eval()


SIZES = {"hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 3, "vocab_size": 256}
SIZES |= {"num_attention_heads": 6, "num_key_value_heads": 2, "eos_token_id": None}


def smaller():
    torch.manual_seed(0)
    return louder(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)))


model, weights_are = load("HuggingFaceTB/SmolLM2-135M", smaller)
print("weights:", weights_are)

# %% [markdown]
# **Predict.** The model reads 48 tokens with the library's plain attention, with the fused one of PyTorch, and
# with ours: lesson 8 under masks, lesson 13 in tiles. How far apart are the logits?

# %%
torch.manual_seed(1)
tokens = torch.randint(2, 250, (2, 48))


def logits(name, model=model, **more):
    """The logits of all tokens under an attention function of this name."""
    model.set_attn_implementation(name)
    with torch.no_grad():
        return model(tokens, **more).logits


reference = logits("eager")
print(f"largest logit {reference.abs().max():.0f}")
for name in ("sdpa", "annotated", "annotated_tiled"):
    print(f"{name:16} {(logits(name) - reference).abs().max():.0e}")

# %% [markdown]
# Roundings of float32. Sums in another order round otherwise; 0 is possible, if the order is the same too.
#
# **Predict.** But 0 is also what a function gives that is never called. How could you tell?


# %%
def broken(module, query, key, value, *others, **more):
    return masked(module, query, key, -value, *others, **more)


transformers.AttentionInterface.register("broken", broken)
print(f"broken {(logits('broken') - reference).abs().max():.0e}")

# %% [markdown]
# Break it, and see whether anything moves. A test counts after it has failed.
#
# ## 2. Padding that nobody masks
#
# Attention functions are one table of the library, functions that make masks another. The second is forgotten.
#
# **Predict.** Two texts, the second one 20 tokens shorter and padded on the left. Which logits are wrong?
#
# <details markdown="1"><summary>Answer</summary>
#
# All of the second text. A name that makes no masks gets none: its tokens attend to 20 tokens of padding. The
# first text has none, and is right: the causal mask is not lost, for it follows from `None`.
#
# </details>

# %%
transformers.AttentionInterface.register("forgetful", masked)
padding = torch.ones_like(tokens)
padding[1, :20] = 0
right = logits("eager", attention_mask=padding)

fig, axes = plt.subplots(1, 2, figsize=(7, 2.4), sharey=True)
for ax, name in zip(axes, ("annotated", "forgetful"), strict=True):
    error = (logits(name, attention_mask=padding) - right).abs().amax(dim=-1).clamp(min=1e-8)
    for text, colour in ((0, QUERY), (1, KEY)):
        seen = padding[text].bool()
        style = {"color": colour, "markersize": 3, "label": f"text {text}"}
        ax.plot(seen.nonzero()[:, 0], error[text, seen], "o-", **style)
    ax.set(title=name, xlabel="token", yscale="log")
axes[0].set(ylabel="largest error of a logit")
axes[0].legend()
plt.show()

# %% [markdown]
# ## 3. Look inside
#
# The table takes any function, so also one that keeps what it sees. Three models with two layers each: Llama,
# Mistral with a window of 8, and gpt-oss, which has sink logits and, in its first layer, that window.
#
# **Predict.** Draw the weights of one head of the first layer. What do the rows sum to, in each model?

# %%
kept = []


def watching(module, query, key, value, attention_mask, *, scaling, s_aux=None, **others):
    """Calls `masked`, and keeps the weights of head 0: lesson 1's, less what lesson 10's sink takes."""
    mask = attention_mask
    if mask is None:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
    weights = attention_weights(query[:, :1], key[:, :1], mask, scale=scaling)
    if s_aux is not None:
        scores = scaling * query[:, :1] @ key[:, :1].mT
        lse = scores.masked_fill(~mask, -torch.inf).logsumexp(dim=-1)
        weights = weights * sink_gate(lse, s_aux[:1])
    kept.append(weights[0, 0])
    return masked(module, query, key, value, attention_mask, scaling=scaling, s_aux=s_aux, **others)


transformers.AttentionInterface.register("watching", watching)
transformers.AttentionMaskInterface.register("watching", transformers.masking_utils.sdpa_mask)

few = SIZES | {"num_hidden_layers": 2, "sliding_window": 8, "head_dim": 16, "num_local_experts": 2}
few |= {"num_experts_per_tok": 1}
kinds = {
    "Llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "Mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "gpt-oss": (transformers.GptOssConfig, transformers.GptOssForCausalLM),
}
fig, axes = plt.subplots(1, 3, figsize=(7, 2.7))
for ax, (title, (config, architecture)) in zip(axes, kinds.items(), strict=True):
    torch.manual_seed(0)
    one = louder(architecture(config(**few)), 30)
    if title == "gpt-oss":
        for layer in one.model.layers:
            layer.self_attn.sinks.data.fill_(1.0)
    logits("watching", one)
    weights = kept[-2][:24, :24]
    sums = weights.sum(dim=-1)
    heatmap(ax, weights, WEIGHTS)
    ax.set(title=f"{title}: sums {sums.min():.2f} – {sums.max():.2f}")
plt.show()

# %% [markdown]
# The window is a band, and gpt-oss spends less than it has: the rest went to nothing.
#
# ## 4. How wrong is a mistake?
#
# Four functions for the Mistral above, each wrong by one thought: key heads dealt out in turn (`repeat`), a
# window of 9, scores not scaled, and a single query aligned top-left. The model writes 24 tokens after a prompt
# of 48, each as the largest logit says.
#
# **Predict.** Which of them still writes the right tokens, and for how long? Which one is right as long as it
# reads, and wrong as soon as it writes?
#
# <details markdown="1"><summary>Answer</summary>
#
# Alignment. A prompt that is read at once is top-left and bottom-right at the same time; a test with a prompt
# sees nothing. The first token, which the prompt decides, is still right.
#
# Of the others, a wider window is the mildest: one key in nine.
#
# </details>


# %%
def wrongly(mistake):
    """Grouped attention for a model with a window of 8, and one mistake in it."""

    def function(module, query, key, value, attention_mask, *, scaling, **others):
        t, s = query.shape[2], key.shape[2]
        if mistake == "repeat":
            key, value = (x.repeat(1, 3, 1, 1) for x in (key, value))
        wider = mistake == "a window of 9"
        mask = sliding_window_mask(t, s, 8 + wider, offset=s - t)
        if mistake == "top-left when writing":
            mask = sliding_window_mask(t, s, 8)
        scale = 1.0 if mistake == "no scale" else scaling
        output = grouped_query_attention(query, key, value, mask, scale=scale)
        return output.transpose(1, 2).contiguous(), None

    return function


torch.manual_seed(0)
config = transformers.MistralConfig(**few)
mistral = louder(transformers.MistralForCausalLM(config), 30)
sampling = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
mistral.set_attn_implementation("eager")
wanted, right = mistral.generate(tokens, **sampling), logits("eager", mistral)
for mistake in ("none", "a window of 9", "no scale", "repeat", "top-left when writing"):
    transformers.AttentionInterface.register("wrong", wrongly(mistake))
    error = (logits("wrong", mistral) - right).norm() / right.norm()
    # A cache that keeps all keys, for the window of 9 looks further back than Mistral's own would keep.
    cache = transformers.DynamicCache()
    written = mistral.generate(tokens, past_key_values=cache, **sampling)
    same = (written == wanted)[:, 48:].float().cumprod(dim=1).sum(dim=1).mean()
    print(f"{mistake:22} reading: logits off by {error:4.0%}   writing: right for {same:4.1f} tokens")

# %% [markdown]
# ## 5. A model that does not ask
#
# BLOOM has ALiBi, and attention in the middle of its layers.
#
# **Predict.** What does `set_attn_implementation("annotated")` do to its logits? And `annotate`, which puts a
# module with lesson 6 in place of each of its attention modules?

# %%
torch.manual_seed(0)
config = transformers.BloomConfig(vocab_size=256, hidden_size=96, n_layer=3, n_head=6)
bloom = louder(transformers.BloomForCausalLM(config))
reference = bloom(tokens).logits.detach()
for name in ("annotated", "broken"):
    print(f"by name, {name}: {(logits(name, bloom) - reference).abs().max():.0e}")
print("modules exchanged:", annotate(bloom))
print(f"by module: {(bloom(tokens).logits - reference).abs().max():.0e}")

# %% [markdown]
# By name, nothing, however broken: the name is accepted and never looked up. The first comparison passed, and
# proved nothing.
#
# ## 6. Without the library
#
# The weights of section 1 in a model of this course: lesson 8's heads, lesson 5's turns, lesson 7's cache.
#
# **Predict.** How many tokens in a row are those that the library writes?

# %%
ours = Llama.from_transformers(model)
model.set_attn_implementation("eager")
model.generation_config.eos_token_id = None
theirs = model.generate(tokens, max_new_tokens=40, do_sample=False, pad_token_id=0)
caches = ours.make_caches(48 + 40)
mine = generate(ours, tokens, theirs.shape[1] - 48, temperature=0.0, caches=caches)
same = (mine == theirs)[:, 48:].float().cumprod(dim=1).sum(dim=1).tolist()
print(f"of {theirs.shape[1] - 48} tokens the same: {same}")

# %% [markdown]
# All of them. (Where two logits are equal up to a rounding, a text could take another turn, and be as right.)
#
# ## Now you
#
# - In section 2, pad on the right instead. Which logits are wrong now, and why?
# - In section 4, take the factor out of `louder`. How many of the mistakes would a test of a freshly initialised
#   model have found?
# - In section 6, replace the caches by lesson 9's rings, `RollingKVCache(16)`. Where does the text part from the
#   right one? And with 88?
# - Then write it yourself: `attn start real_models` puts six tasks into your working folder, and
#   `attn check real_models` tells you how far you are.
