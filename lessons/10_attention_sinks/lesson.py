# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Attention sinks, hands on
#
# A softmax cannot say no: its weights sum to one, whether there was something to find or not. Here you see
# where a head puts what it has no use for, what happens if that place is thrown away, and three ways to give
# it one. Guess before you open an answer. A wrong guess is worth more than a right answer read.

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
from annotated_attention.attention_sinks import SinkKVCache
from annotated_attention.rotary import rotary_attention

# %% [markdown]
# ## 1. Nothing to say
#
# **Predict.** Eleven keys have values of length 1. One query looks for key 7, another for none of them: its
# scores are noise. How long is each output? And how long, if there is one more key, key 0, that *every* query
# likes a little and whose value is zero?

# %%
key = torch.nn.functional.normalize(torch.randn(12, 64), dim=-1)
value = torch.nn.functional.normalize(torch.randn(12, 64), dim=-1)
value[0] = 0.0
queries = {"key 7": 7 * key[0] + 12 * key[7], "nothing": 7 * key[0]}

fig, axes = plt.subplots(2, 2, figsize=(7, 3), sharex=True, sharey=True)
for row, (sought, query) in zip(axes, queries.items(), strict=True):
    for ax, first, there in zip(row, (1, 0), ("no key 0", "with key 0"), strict=True):
        weights = (query @ key[first:].T).softmax(dim=-1)
        ax.bar(range(first, 12), weights, color=WEIGHTS)
        length = (weights @ value[first:]).norm()
        ax.set(title=f"looks for {sought}, {there}: output {length:.2f}", xticks=range(12))
plt.show()

# %% [markdown]
# The second query takes home a mixture that means nothing. With key 0 it takes nothing, and the first query
# hardly notices. Key 0 is an *attention sink*. Nobody builds it into a model: it is learned, and mostly it is
# the first token, for under a causal mask that is the one that every query sees.
#
# ## 2. Evict it
#
# **Predict.** A window drops the first token, where a query had parked 90% of its weight. By what factor do
# all its other weights grow? And if it had parked 99%?

# %%
scores = torch.randn(12, 32, dtype=torch.float64)
scores[:, 0] = torch.linspace(0, 12, 12)  # from query to query the sink is liked more
before, after = scores.softmax(dim=-1), scores[:, 1:].softmax(dim=-1)
factors = after / before[:, 1:]
for parked, least, most in zip(before[:, 0], factors.amin(dim=-1), factors.amax(dim=-1), strict=True):
    print(f"parked {parked:6.2%}: others grow by {least:6.1f} to {most:6.1f}; {1 / (1 - parked):6.1f}")

# %% [markdown]
# By $1/(1 - \text{parked})$, the last number, and all keys of a row alike: silence becomes noise at full volume.
#
# ## 3. A head that learns to park
#
# One head with rotary positions reads texts of 32 tokens, the first of which is always the same. Some tokens
# *ask*: there, the head is to output what stood two tokens earlier. At all others it is to output 0.
#
# **Predict.** It has one softmax, and values are linear in the token. How will it manage to say 0?


# %%
def quiet_texts(n, t=32):
    """Texts, what to say at each token, and where anything is asked: `n t 11`, `n t 8`, `n t`."""
    content, asked = torch.randn(n, t, 8), torch.rand(n, t) < 0.3
    asked[:, :3] = False
    content[:, 0] = 0.0
    wanted = content.roll(2, dims=1).where(asked[..., None], 0.0)
    marks = torch.stack([asked, (torch.arange(t) == 0).expand(n, t), torch.ones_like(asked)], dim=-1)
    return torch.cat([content, marks], dim=-1), wanted, asked


class Head(torch.nn.Module):
    def __init__(self, attend=rotary_attention):
        super().__init__()
        self.attend = attend
        self.w_q, self.w_k, self.w_v = (torch.nn.Linear(11, n, bias=False) for n in (32, 32, 8))

    def project(self, x):
        return [w(x)[:, None] for w in (self.w_q, self.w_k, self.w_v)]

    def forward(self, x, j):
        return self.attend(*self.project(x), j, j)[:, 0]


def learn(head, first=0):
    """300 steps; with `first=1` the head never sees token 0."""
    optimizer, j = torch.optim.Adam(head.parameters(), lr=0.02), torch.arange(32 - first)
    for _ in range(300):
        x, wanted, _ = quiet_texts(32)
        loss = (head(x[:, first:], j) - wanted[:, first:])[:, 2:].square().sum(dim=-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.requires_grad_(False)


head, j = learn(Head()), torch.arange(32)
x, wanted, asked = quiet_texts(256)
query, key, value = head.project(x)
one_hot = torch.eye(32).expand(256, 1, 32, 32)  # as values, they give back the weights
weights = rotary_attention(query, key, one_hot, j, j)[:, 0]

fig, axes = plt.subplots(1, 2, figsize=(7, 3))
heatmap(axes[0], weights[0], WEIGHTS)
rows = asked[0].nonzero()
axes[0].plot(torch.full_like(rows, 31), rows, "o", color=QUERY, markersize=3)
axes[0].set(title="weights; queries with a dot ask")
axes[1].bar(j, value.norm(dim=-1).mean(dim=0)[0], color=VALUE)
axes[1].set(title="length of the values", xlabel="key")
plt.show()

on_first, asked = weights[:, 3:, 0], asked[:, 3:]
print(f"on the first token: {on_first[asked].mean():.1%} if asked, {on_first[~asked].mean():.1%} if not")

# %% [markdown]
# Nobody told it to. The first token's value has shrunk to almost nothing, and who has nothing to say looks there.
#
# ## 4. Which token lies where
#
# `SinkKVCache` keeps the first tokens and the newest. A new token overwrites the oldest of the window: no key
# is moved, only counted anew.
#
# **Predict.** Two sinks and a window of four; twelve tokens, 0 to 11, have come. Which slot was written last?
# Which positions do the six slots have *inside the cache*?
#
# <details markdown="1"><summary>Answer</summary>
#
# Token 11 lies in slot $2 + (11 - 2) \bmod 4 = 3$, at position 5, the last. In order of slots: 0, 1, 4, 5, 2, 3.
#
# </details>

# %%
cache, tokens, places = SinkKVCache(2, 4), torch.full((16, 6), -1), torch.full((16, 6), -1)
for step in range(16):
    held, _ = cache.update(torch.full((1, 1, 1, 1), float(step)), torch.zeros(1, 1, 1, 1))
    tokens[step, : held.shape[2]] = held.flatten()
    places[step, : held.shape[2]] = cache.positions

fig, axes = plt.subplots(1, 2, figsize=(7, 3.6), sharey=True)
panels = {"token of the text": tokens, "position in the cache": places}
for ax, (title, numbers) in zip(axes, panels.items(), strict=True):
    heatmap(ax, (numbers + 1) / (numbers.max() + 1), KEY, vmax=1.6)
    for step, slot in (numbers >= 0).nonzero().tolist():
        ax.text(slot, step, int(numbers[step, slot]), ha="center", va="center", fontsize=7)
    ax.set(title=title, xlabel="slot", ylabel="newest token", aspect="auto")
plt.show()

# %% [markdown]
# On the left, numbers grow for ever; on the right, none gets beyond 5. Distances within the window are the
# same in both. Only those to the sinks differ: from token 11 to token 0 it is 11 in the text, 5 in the cache.
#
# ## 5. A stream
#
# The trained head reads 300 tokens, one at a time, through two caches of 32 tokens. One keeps the newest
# only, the other keeps one sink.
#
# **Predict.** At which token does the first cache fail? How much more memory does the second need?

# %%
x, wanted, _ = quiet_texts(64, 300)
caches = {"0 + 32": SinkKVCache(0, 32), "1 + 31": SinkKVCache(1, 31)}

fig, ax = plt.subplots(figsize=(7, 2.6))
for (name, cache), colour in zip(caches.items(), (BIAS, KEY), strict=True):
    outputs = []
    for query, key, value in zip(*(part.split(1, dim=2) for part in head.project(x)), strict=True):
        keys, values = cache.update(key, value)
        j = cache.positions
        outputs.append(rotary_attention(query, keys, values, j.max()[None], j)[:, 0])
    squared = (torch.cat(outputs, dim=1) - wanted).square().sum(dim=-1).mean(dim=0)
    ax.plot(range(2, 300), squared[2:], color=colour, label=f"{name}: {cache.nbytes:,} bytes")
ax.set(yscale="log", xlabel="token of the text", ylabel="squared error")
ax.legend()
plt.show()

# %% [markdown]
# At token 32, which evicts the first: at once, and for good. The memory is the same.
#
# ## 6. What the paper promises
#
# Language models were trained on texts that begin anywhere (*vanilla*), on the same with a 1 in the denominator
# (*zero sink*), on texts that all begin with one token (*sink token*). They read streams of 16 caches.
#
# **Predict.** What does each lose without sinks, what with 1, 2, 4 or 8? Then the sink token, evicted or kept,
# with places of the text or of the cache: which of the four cases work, and which two cannot differ?
#
# <details markdown="1"><summary>Answer</summary>
#
# Evicted is one case, however one counts: all positions move alike, and scores know differences only. Kept, and
# counted in the cache, works for ever: it is what was trained. Kept, and counted in the text, a rotary sink
# stands at angles that training never showed, and ALiBi's bias buries it.
#
# </details>

# %%
import json
import pathlib

results = pathlib.Path("results/experiment.default.json")
runs = json.loads(results.read_text("utf-8"))["runs"] if results.exists() else []


def above(name, **wanted):
    """Bits per byte above reading the cache anew: mean, lowest and highest of the seeds."""
    found = [run["measured"] for run in runs if wanted.items() <= run["settings"].items()]
    bits = torch.tensor([measured[name] - measured["recompute"] for measured in found])
    return bits.mean(), bits.min(), bits.max()


kinds = {"token": ("sink token", WEIGHTS), "zero": ("zero sink", BIAS), "vanilla": ("vanilla", KEY)}
counts = ("0", "1", "2", "4", "8")
cases = {"sinks_4": "kept, cache", "in_text_4": "kept, text"}
cases |= {"cache_0": "evicted, cache", "in_text_0": "evicted, text"}
if runs:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8), width_ratios=(3, 2))
    for kind, (label, colour) in kinds.items():
        points = [above(f"sinks_{n}", kind=kind, position="rotary") for n in counts]
        mean, low, high = zip(*points, strict=True)
        left.plot(counts, mean, "o-", color=colour, markersize=3, label=label)
        left.fill_between(counts, low, high, color=colour, alpha=0.2, linewidth=0)
    left.set(xlabel="sinks kept, of 32 places", title="bits per byte above reading anew")
    left.legend()
    for row, name in enumerate(cases):
        for y, position, colour in ((row + 0.2, "rotary", QUERY), (row - 0.2, "alibi", VALUE)):
            mean, _, _ = above(name, kind="token", position=position)
            right.barh(y, mean, 0.36, color=colour)
            right.text(max(mean, 0), y, f" {mean:.3f}", va="center", fontsize=7)
    right.set(yticks=range(4), yticklabels=cases.values(), title="four cases: rotary blue, ALiBi green")
    right.margins(x=0.25)
    plt.show()
else:
    print("`attn experiment attention_sinks` makes the results in some minutes")

# %% [markdown]
# Only the model with a sink token has something to lose, and one sink gives it all back; the other two hardly
# park on a first token. That takes a larger model: Llama-2-13B has a perplexity of 5,158 with 0 + 1024 tokens
# and of 5.40 with 4 + 1020 (table 1 of arXiv:2309.17453). And it takes both, sinks and counting anew.
#
# ## 7. Nothing, as a score
#
# All this is for one large term in a denominator. Let a head have it without a token: a score $z$ for nothing,
# and no value. With the logarithm $L$ of the sum of exponentials over the keys, the output is plain attention
# times $\sigma(L - z)$. With $z = 0$ the term is exactly 1: softmax-off-by-one.
#
# A constant is diluted by every key that comes: to be silent, a head must hold *all* its scores far below $z$. The
# score of a sink token can do more: it is large for those queries that need it.
#
# **Predict.** Two layers of four heads are to do what our head did. Where is the weight of a silent head with a
# first token, with $z = 0$, with both, with neither? Then an MLP is put behind each layer, which could throw away
# what a silent head brings. Do the heads still park?

# %%
results = pathlib.Path("results/experiment_nothing.default.json")
runs = json.loads(results.read_text("utf-8"))["runs"] if results.exists() else []
kinds = {"token": ("token", "none", False), "$z = 0$": ("anywhere", "zero", False)}
kinds |= {"both": ("token", "zero", False), "neither": ("anywhere", "none", False)}
kinds |= {"token, MLPs": ("token", "none", True)}
if runs:
    fig, axes = plt.subplots(3, 5, figsize=(7, 3), sharex=True, sharey=True)
    for (name, (begins, sink, mlp)), column in zip(kinds.items(), axes.T, strict=True):
        kind = {"task": "fetch", "begins": begins, "sink": sink, "mlp": mlp}.items()
        found = [run["measured"] for run in runs if kind <= run["settings"].items()]
        for ax, what in zip(column, ("first_silent", "nothing_silent", "first_asked"), strict=True):
            heatmap(ax, torch.tensor(found[0][what]).clamp(1e-3, 1), BIAS if "no" in what else WEIGHTS)
            ax.set(xlabel="", ylabel=what.replace("_", ",\n") if name == "token" else "")
        factors = [each["error_evicted"] / each["error_kept"] for each in found]
        column[0].set(title=f"{name}\n{min(factors):,.0f} to {max(factors):,.0f}×")
    plt.show()
else:
    print("`attn experiment attention_sinks_nothing` makes the results in some minutes")

# %% [markdown]
# Rows are layers, columns heads, of one seed; above, by how much evicting the first token multiplies the error, over
# three. With neither no head is silent. With both these take $z$; Xiao et al.'s model with $z = 0$ still used the
# first token, perplexity 29,214 without it, 18.01 with four (table 3). And MLPs do not keep heads from parking.
#
# ## Now you
#
# - In section 3, let silent tokens output ones instead of zeros. What becomes of the first token's value?
# - Import `SinkLogits` too, train `learn(Head(SinkLogits(1, around=rotary_attention)))`, and evict token 0.
# - Then write it yourself: `attn start attention_sinks`, and `attn check attention_sinks` says how far you are.
