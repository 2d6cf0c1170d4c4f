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
lesson 3's model, 64 wide, without positions; in its slot queries, keys and values pass a convolution over two
tokens, by which a value can be written under the token before it, then the mechanism, then an RMS norm. All have
these; one layer, so that the state is that layer's and a window is as far as it says. Softmax reads in four heads
of width 8, a state is one head with values of width 32 and keys of width $d$, which sets its size. AdamW, the same
steps and texts for all. Counted: right answers in 256 new texts, and the bytes in float32 that the layer keeps at
the end of a text. Beside it, `recall_accuracy`: random tables, no training.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from coursekit.experiments import Claim, Runs
from einops import rearrange
from torch import Tensor, nn

from annotated_attention.attention_sinks import streaming_mask
from annotated_attention.grouped_query import grouped_query_attention
from annotated_attention.kv_cache import kv_cache_bytes
from annotated_attention.language_model import LanguageModel, LanguageModelConfig
from annotated_attention.language_model_training import rate_factor
from annotated_attention.linear import linear_attention
from annotated_attention.linear_decay import decayed_linear_attention, retention_log_decay
from annotated_attention.linear_decoding import linear_state_bytes
from annotated_attention.linear_features import (
    elu_plus_one,
    positive_random_features,
    relu_features,
    taylor_features,
)
from annotated_attention.linear_recall import delta_rule, recall_accuracy, recall_batch, sum_rule
from annotated_attention.linear_state_space import state_bytes, state_space_attention
from annotated_attention.sliding_window import sliding_window_attention

WIDTH, HEADS, SINKS, VALUES = 64, 4, 4, 32
Report = Callable[[float], None]

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
    "quick": {"pairs": 8, "vocabulary": 32, "steps": 150, "texts": 16, "rate": 1e-2},
    "default": {"pairs": 16, "vocabulary": 64, "steps": 400, "texts": 16, "rate": 5e-3},
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


def run(settings: dict, report: Report) -> dict:
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
        self.parts = [self.h * self.d, self.g * self.d, self.g * self.e]
        self.w_in = nn.Linear(WIDTH, sum(self.parts), bias=False)
        self.short = nn.Conv1d(sum(self.parts), sum(self.parts), 2, padding=1, groups=sum(self.parts))
        self.gates = nn.Linear(WIDTH, 2)
        self.w_o = nn.Linear(self.h * self.e, WIDTH, bias=False)
        self.phi = {"elu + 1": elu_plus_one, "ReLU": relu_features, "1, x, x²": taylor_features}.get(name)
        if name == "random":
            self.phi = positive_random_features(self.d, n)
        self.f = n if self.phi is None else self.phi(torch.zeros(self.d)).shape[0]
        self.bytes = self.kept(t)

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
        joint = self.short(self.w_in(x).mT)[..., : x.shape[1]].mT
        q, k, v = (
            rearrange(part, "b t (h c) -> b h t c", h=heads)
            for part, heads in zip(joint.split(self.parts, -1), (self.h, self.g, self.g), strict=True)
        )
        beta, gate = (part.mT for part in self.gates(x).split(1, -1))
        found = self.attend(q, k, v, beta, gate)
        found = F.rms_norm(found, found.shape[-1:], eps=1e-5)
        return self.w_o(rearrange(found, "b h t e -> b t (h e)"))


def trained(settings: dict, report: Report) -> dict:
    n, vocabulary, steps = settings["pairs"], settings["vocabulary"], settings["steps"]
    t, device = 3 * n, settings.get("device", "cpu")

    def layer(config: LanguageModelConfig, _: int) -> nn.Module:
        return Reader(settings["mechanism"], settings["size"], t)

    config = LanguageModelConfig(
        vocabulary, t, WIDTH, n_layers=1, position_embedding="none", make_attention=layer
    )
    model = LanguageModel(config)
    reader: Reader = model.blocks[0].attention  # pyright: ignore

    # The model begins as GPT-2 does, with scores near 0. These tasks are short: start with scores of size 1.
    nn.init.normal_(reader.w_in.weight, std=WIDTH**-0.5)
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
    state = state_bytes(1, 1, d, d)
    cache = kv_cache_bytes(1, 1, d, 3 * n, dtype=torch.float32)
    return {
        "recall": recall_accuracy(attend, *new_texts(n, vocabulary), table),
        "bytes": cache if settings["mechanism"] == "softmax" else state,
    }


def claims(runs: Runs) -> list[Claim]:
    raise NotImplementedError
