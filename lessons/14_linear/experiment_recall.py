r"""# Recall against bytes of state

**Claim.** What a model can look up is bounded by what it keeps. Arora et al. (2023), arXiv:2312.04927, trained
17 models and laid 82% of the distance between attention and gated convolutions to associative recall: with
attention, 70M parameters beat 1.4B without. Arora et al. (2024), arXiv:2402.18668, plot recall against the size
of the state: whatever the mechanism, more state is more recall.

**Prediction.** Of 16 pairs, asked for in any order:

1. A softmax over all tokens answers everything, with 4, 2 or 1 heads of keys: its quarter of the bytes is free,
   as 31 keys are easily kept apart in 8 dimensions.
2. A window answers the share of questions whose pair is still in it, and no more; that share can be counted
   beforehand. Four sinks in a window of the same bytes trade the oldest pair but one for the first two, so that
   in questions of random order they change nothing.
3. Every state recalls more with more rows. With 4 rows for 16 pairs none answers 90%; with 32, one for each key
   of the vocabulary, all those that do not fade by the clock do.
4. At equal bytes the delta rule is above elu + 1, because what it writes is a difference, and a learned gate
   above a constant decay, which forgets the first pair before it is asked for.
5. The gated delta rule is no better than the delta rule here: nothing is ever to be wiped.
6. Trained keys are better than the random ones of the untrained reader at the same width.
7. Some state answers 90% in a quarter of the bytes of the dense cache, and more than a window of equal bytes.

**Setting.** `recall_batch`: 16 pairs from 31 keys and 32 values, then all 16 questions, 48 tokens. One layer of
lesson 3's model, 64 wide, without positions; in its slot, the mechanism. So that pairs can be bound, the key of a
place is made of the token *before* it (a short convolution, cut down to a shift), and $W_K$ begins as a copy of
$W_Q$; behind the mechanism stands an RMS norm. All have these, the same steps, rates and texts. One layer, so that the
state is that layer's and a window is as far as it says. Softmax reads in four heads of width 8; a state is one head
with values of width 32 and keys of width $d$, the rows, which set its size. Counted: right answers in 256 new texts,
and the bytes in float32 that the layer keeps at the end of a text (but for the token that the shift keeps, in all
alike). Beside it, `recall_accuracy`: random tables, no training.

**Outcome.** A softmax as expected, with one key head too. Windows are within three in a hundred of the share they hold;
that of 8 tokens stays below it, for so few questions that it can answer teach it little in 300 steps. Sinks do count
there: four of them hold two pairs for *every* question, the four tokens they replace only for the first few. More rows
are more recall in every kind. But with 32 rows positive features are not all at 90%: random ones stay below in every
seed, elu + 1 in one. And the constant decay, which was to fail, does not: pairs that stand side by side have faded
alike, and where keys are apart, we think, the norm restores the rest. It is behind the gate with 8 rows only, where
keys overlap. The delta rule is above elu + 1 at every size, and not above a gate on a sum: no key comes twice. Least
expected: 8 rows come to 90% with a gate, a step or a correction, in a twelfth of the cache. Signs matter more than
gates: with 8 rows, elu + 1 answers half, and the constant decay, whose keys may be negative, nearly nine in ten. That
is owed to the task: 31 keys can be learned by heart and laid apart, those of a language cannot.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from annotated_attention.attention_sinks import streaming_mask
from annotated_attention.grouped_query import grouped_query_attention
from annotated_attention.kv_cache import kv_cache_bytes
from annotated_attention.language_model import LanguageModel, LanguageModelConfig
from annotated_attention.language_model_training import rate_factor
from annotated_attention.linear import linear_attention, positive_random_features
from annotated_attention.linear_decay import decayed_linear_attention, retention_log_decay
from annotated_attention.linear_decoding import linear_state_bytes
from annotated_attention.linear_features import elu_plus_one, relu_features, taylor_features
from annotated_attention.linear_recall import delta_rule, recall_accuracy, recall_batch, sum_rule
from annotated_attention.linear_state_space import state_bytes, state_space_attention
from annotated_attention.multi_head import merge_heads, split_heads
from annotated_attention.sliding_window import sliding_window_attention
from coursekit.experiments import Claim, Runs

WIDTH, HEADS, SINKS, VALUES = 64, 4, 4, 32

# How large the state is: heads of keys, tokens kept, or the width of keys.
SIZES = {
    "softmax": (4, 2, 1),
    "window": (8, 16, 32),
    "sinks": (8, 16, 32),
    "elu + 1": (4, 8, 16, 32),
    "ReLU": (8, 32),
    "1, x, x²": (2, 4),
    "random": (8, 32),
    "constant decay": (8, 32),
    "gated decay": (4, 8, 16, 32),
    "state space": (8, 32),
    "delta rule": (4, 8, 16, 32),
    "gated delta": (8, 32),
}
UNTRAINED = {"softmax": (8, 32), "sum": (4, 8, 16, 32), "delta rule": (4, 8, 16, 32)}
QUICK = {"softmax": (1,), "window": (8,), "elu + 1": (4, 32), "delta rule": (4, 32)}
TEXTS = {
    "quick": {"pairs": 8, "vocabulary": 32, "steps": 100, "texts": 16, "rate": 1e-2},
    "default": {"pairs": 16, "vocabulary": 64, "steps": 300, "texts": 16, "rate": 5e-3},
    "full": {"pairs": 64, "vocabulary": 256, "steps": 1000, "texts": 64, "rate": 3e-3},
}


def plan(size: str, seeds: Sequence[int]) -> list[dict]:
    if size not in TEXTS:
        raise ValueError(f"size is {size!r}: one of {', '.join(TEXTS)} is wanted")
    common = TEXTS[size] | ({"device": "cuda"} if size == "full" else {})
    sizes = QUICK if size == "quick" else SIZES
    return [
        {"mechanism": name, "size": n, "trained": trained, **common, "seed": seed}
        for trained, chosen in ((True, sizes), (False, UNTRAINED))
        for seed in seeds
        for name, several in chosen.items()
        for n in several
    ]


def run(settings: dict, report: Callable[[float], None]) -> dict:
    torch.manual_seed(settings["seed"])
    return trained(settings, report) if settings["trained"] else untrained(settings)


class Reader(nn.Module):
    """What all have: projections, a convolution over two tokens, the mechanism, a norm."""

    def __init__(self, name: str, n: int, t: int) -> None:
        super().__init__()
        self.name, self.n, softmax = name, n, name in ("softmax", "window", "sinks")
        self.h = HEADS if softmax else 1
        self.g = n if name == "softmax" else self.h
        self.d, self.e = (VALUES // HEADS,) * 2 if softmax else (n, VALUES)
        self.d = VALUES if name == "random" else self.d
        self.w_q = nn.Linear(WIDTH, self.h * self.d, bias=False)
        self.w_k = nn.Linear(WIDTH, self.g * self.d, bias=False)
        self.w_v = nn.Linear(WIDTH, self.g * self.e, bias=False)
        self.gates = nn.Linear(WIDTH, 2)
        self.w_o = nn.Linear(self.h * self.e, WIDTH, bias=False)
        self.phi = {"elu + 1": elu_plus_one, "ReLU": relu_features, "1, x, x²": taylor_features}.get(name)
        if name == "random":
            self.phi = positive_random_features(self.d, n)
        self.f = n if self.phi is None else self.phi(torch.zeros(self.d)).shape[0]
        self.bytes = self.kept(t)

    def begin(self) -> None:
        """With scores of size 1, not GPT-2's near 0, and a query that looks for its own token."""
        for layer in (self.w_q, self.w_v):
            nn.init.normal_(layer.weight, std=WIDTH**-0.5)
        self.w_k.weight.data.copy_(self.w_q.weight[: len(self.w_k.weight)])

    def kept(self, t: int) -> int:
        """Bytes of one layer and one text of `t` tokens, in float32."""
        if self.phi is not None:
            return linear_state_bytes(1, self.h, self.f, self.e)
        if self.h == 1:
            return state_bytes(1, self.h, self.d, self.e)
        tokens = t if self.name == "softmax" else min(self.n, t)
        return kv_cache_bytes(1, self.g, self.d, tokens, dtype=torch.float32)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, gate: Tensor) -> Tensor:
        if self.name == "softmax":
            return grouped_query_attention(q, k, v, is_causal=True)
        if self.name == "window":
            return sliding_window_attention(q, k, v, self.n)
        if self.name == "sinks":
            i = torch.arange(q.shape[2], device=q.device)
            mask = streaming_mask(i, i, SINKS, self.n - SINKS)
            return grouped_query_attention(q, k, v, mask)
        if self.phi is not None:
            quarter = self.d**-0.25
            return linear_attention(quarter * q, quarter * k, v, feature_map=self.phi)
        if self.name == "constant decay":
            fades = retention_log_decay(1, device=q.device)
            return decayed_linear_attention(q, k, v, fades.expand_as(gate))
        if self.name == "gated decay":
            return decayed_linear_attention(q, k, v, F.logsigmoid(gate) / 16)
        if self.name == "state space":
            rate = -torch.ones(1, device=q.device)
            return state_space_attention(v, F.softplus(gate - 4), rate, k, q)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        fades = F.logsigmoid(gate) / 16 if self.name == "gated delta" else None
        return delta_rule(q, k, v, beta.sigmoid(), fades)

    def forward(self, x: Tensor, *, positions: None = None, cache: None = None) -> Tensor:
        before = F.pad(x, (0, 0, 1, 0))[:, :-1]
        q, k = split_heads(self.w_q(x), self.h), split_heads(self.w_k(before), self.g)
        v = split_heads(self.w_v(x), self.g)
        beta, gate = (part.mT for part in self.gates(x).split(1, -1))
        found = self.attend(q, k, v, beta, gate)
        found = F.rms_norm(found, found.shape[-1:], eps=1e-5)
        return self.w_o(merge_heads(found))


def trained(settings: dict, report: Callable[[float], None]) -> dict:
    n, vocabulary, steps = settings["pairs"], settings["vocabulary"], settings["steps"]
    t, device = 3 * n, settings.get("device", "cpu")

    def layer(config: LanguageModelConfig, _: int) -> nn.Module:
        return Reader(settings["mechanism"], settings["size"], t)

    known = {"n_layers": 1, "position_embedding": "none", "make_attention": layer}
    model = LanguageModel(LanguageModelConfig(vocabulary, t, WIDTH, **known))
    [reader] = [part for part in model.modules() if isinstance(part, Reader)]

    reader.begin()
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    texts = torch.Generator().manual_seed(settings["seed"])
    losses = []
    for step in range(steps):
        tokens, targets = recall_batch(settings["texts"], n, t, vocabulary, generator=texts)
        logits = model(tokens.to(device))
        loss = F.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = settings["rate"] * rate_factor(step, steps, 20)
        optimizer.step()
        losses.append(loss.item())
        report((step + 1) / steps)

    tokens, targets = new_texts(n, vocabulary)
    with torch.no_grad():
        found = model(tokens.to(device)).argmax(-1).cpu()
    asked = targets >= 0
    return {
        "recall": (found == targets)[asked].double().mean().item(),
        "bytes": reader.bytes,
        "reach": reach(reader, tokens, targets),
        "loss": sum(losses[-20:]) / 20,
    }


def new_texts(n: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    return recall_batch(256, n, 3 * n, vocabulary, generator=torch.Generator().manual_seed(10**6))


def reach(reader: Reader, tokens: Tensor, targets: Tensor) -> float:
    """The share of questions whose pair is among the tokens that are kept."""
    if reader.name not in ("window", "sinks"):
        return 1.0
    row, i = (targets >= 0).nonzero(as_tuple=True)
    j = (tokens[row] == targets[row, i, None]).double().argmax(-1)
    if reader.name == "window":
        return (i - j < reader.n).double().mean().item()
    return ((i - j < reader.n - SINKS) | (j < SINKS)).double().mean().item()


def untrained(settings: dict) -> dict:
    """A reader of random vectors, of the same width for keys and values."""
    d, n, vocabulary = settings["size"], settings["pairs"], settings["vocabulary"]

    def corrected(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return delta_rule(q, k, v, torch.ones_like(k[..., 0]))

    sharp = partial(F.scaled_dot_product_attention, is_causal=True, scale=64.0)
    attend = {"softmax": sharp, "sum": sum_rule, "delta rule": corrected}[settings["mechanism"]]
    table = F.normalize(torch.randn(vocabulary, d), dim=-1)
    cache, state = kv_cache_bytes(1, 1, d, 3 * n, dtype=torch.float32), state_bytes(1, 1, d, d)
    recall = recall_accuracy(attend, *new_texts(n, vocabulary), table)
    return {"recall": recall, "bytes": cache if settings["mechanism"] == "softmax" else state}


STATES = [name for name in SIZES if name not in ("softmax", "window", "sinks")]
ROWS = [name for name in STATES if name != "1, x, x²"]


def claims(runs: Runs) -> list[Claim]:
    learned, by_rote = runs.where(trained=True), runs.where(trained=False)
    sizes: dict[str, list[int]] = {name: [] for name in SIZES}
    for mechanism, size in sorted({(each.settings["mechanism"], each.settings["size"]) for each in learned}):
        sizes[mechanism].append(size)

    def right(name: str, size: int) -> list[float]:
        return learned.where(mechanism=name, size=size).values("recall")

    softmax = learned.where(mechanism="softmax").values("recall")
    excess = [
        each.measured["recall"] - each.measured["reach"]
        for each in learned
        if each.settings["mechanism"] in ("window", "sinks")
    ]
    grown = {
        name: min(right(name, several[-1])) - max(right(name, several[0]))
        for name in STATES
        if len(several := sizes[name]) > 1
    }
    found = [
        Claim(
            "A softmax over all tokens answers everything, with any number of key heads",
            "–",
            f"{min(softmax):.1%} at least",
            min(softmax) > 0.99,
            quick=True,
        ),
        Claim(
            "A window, with sinks or without, answers what it still holds, and no more",
            "–",
            f"between {min(excess):+.1%} and {max(excess):+.1%} of the share it holds",
            min(excess) > -0.02 and max(excess) < 0.1,
            quick=True,
        ),
        Claim(
            "Every kind of state recalls more with more rows",
            "more state, more recall (arXiv:2402.18668)",
            f"{min(grown.values()):+.1%} at least, from the smallest to the largest",
            min(grown.values()) > 0,
            quick=True,
        ),
    ]
    if not sizes["sinks"]:
        return found
    few = max(max(right(name, 4)) for name in ROWS if 4 in sizes[name])
    many = {name: min(right(name, 32)) for name in ROWS}
    fades = many.pop("constant decay")
    behind = [max(right("elu + 1", n)) - min(right("delta rule", n)) for n in sizes["elu + 1"]]
    forced = [max(right("constant decay", n)) - min(right("gated decay", n)) for n in (8, 32)]
    gated = [min(right("gated delta", n)) - max(right("delta rule", n)) for n in (8, 32)]
    random = [
        min(right("delta rule", n)) - max(by_rote.where(mechanism="delta rule", size=n).values("recall"))
        for n in sizes["delta rule"]
    ]
    whole = max(learned.where(mechanism="softmax").values("bytes"))
    states = [(learned.where(mechanism=k, size=n).values("bytes")[0], k, n) for k in STATES for n in sizes[k]]
    kept, name, size = max(states, key=lambda state: (min(right(*state[1:])) >= 0.9, -state[0]))
    window = learned.where(mechanism="window", size=sizes["window"][0])
    sinks = max(min(right("sinks", n)) - max(right("window", n)) for n in sizes["window"])
    return [
        *found,
        Claim(
            "Four sinks in a window of the same bytes change nothing",
            "–",
            f"{sinks:+.1%} at most",
            sinks <= 0,
        ),
        Claim(
            "With 4 rows no state answers 90%, with 32 every one does but the constant decay",
            "–",
            f"{few:.1%} at most; {min(many.values()):.1%} at least ({min(many, key=many.__getitem__)});"
            f" constant decay {fades:.1%}",
            fades < 0.9 <= min(many.values()) and few < 0.9,
        ),
        Claim(
            "Of equal rows, the delta rule is above elu + 1, a learned gate above a constant decay",
            "–",
            f"by {0 - max(behind):+.1%} and {0 - max(forced):+.1%} at least",
            max(behind) < 0 and max(forced) < 0,
        ),
        Claim(
            "The delta rule gains nothing by a gate, and at every size by training",
            "–",
            f"by the gate {max(gated):+.1%}, by training {min(random):+.1%} at least",
            max(gated) <= 0 and min(random) > 0,
        ),
        Claim(
            "A quarter of the bytes of the dense cache suffices for 90%, and a window of them does not",
            "–",
            f"{name} with {size} rows, {kept:,} of {whole:,} bytes, {min(right(name, size)):.1%} at least;"
            f" a window of {window.values('bytes')[0]:,}, {max(window.values('recall')):.1%} at most",
            kept <= whole / 4 and min(right(name, size)) >= 0.9 > max(window.values("recall")),
        ),
    ]
