"""The course's mechanisms beside everybody else who computes the same here: each backend of SDPA, FlexAttention, and
the packages that are installed. Who is absent is listed too, with the reason."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from annotated_attention.alibi import alibi_attention, alibi_slopes
from annotated_attention.bigbird import BigBirdPlan, bigbird_attention, bigbird_plan
from annotated_attention.flash import flash_attention
from annotated_attention.linear import linear_attention
from annotated_attention.longformer import LongformerSelfAttention
from annotated_attention.multi_head import merge_heads, split_heads
from annotated_attention.sliding_window import sliding_window_attention
from benchmarks import peers
from benchmarks.growth import HEADS, ROUNDS, WIDTH, once, peak_mib
from benchmarks.measure import device, medians

T, WINDOW, REACH, BLOCK = 4096, 512, 257, 64


def beside(
    what: str,
    ours: peers.Maker,
    others: Mapping[str, peers.Maker],
    inputs: tuple[Tensor, ...],
    backward: bool = False,
) -> Iterator[dict[str, Any]]:
    """A case for each: milliseconds, the ratio of ours to it, MiB that it holds at most; or why it is absent."""
    prepared = lambda function: partial(once, function, inputs, backward)  # noqa: E731
    found = peers.tried({"ours": ours, **others}, prepared)
    times = medians(found.calls, ROUNDS)
    about = {"what": what, "t": T, "pass": "both" if backward else "forward"}
    for name, ms in times.items():
        case = {**about, "peer": name, "ms": ms, "ratio": times["ours"] / ms}
        # What is compiled makes its tensors out of sight.
        yield case if name == peers.FLEX else {**case, "mib": peak_mib(found.calls[name], inputs)}
    for name, why in found.absent.items():
        yield {**about, "peer": name, "absent": why}


class BigBirdLayer(nn.Module):
    """Three projections around the mechanism, as in Transformers' module."""

    def __init__(self, plan: BigBirdPlan) -> None:
        super().__init__()
        self.plan = plan
        self.w = nn.ModuleList(nn.Linear(HEADS * WIDTH, HEADS * WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        qkv = (split_heads(w(x), HEADS) for w in self.w)
        return merge_heads(bigbird_attention(*qkv, block_size=BLOCK, plan=self.plan))


def transformers_longformer() -> Callable[[Tensor], Tensor]:
    peers.package("Transformers")
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention as Theirs

    config = LongformerConfig(
        hidden_size=HEADS * WIDTH, num_attention_heads=HEADS, attention_window=[2 * (REACH - 1)],
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    layer = Theirs(config, 0).to(device()).eval()
    mask = torch.zeros(1, T, device=device())
    mask[:, 0] = 1.0
    return lambda x: layer(
        x,
        attention_mask=mask,
        is_index_masked=mask < 0,
        is_index_global_attn=mask > 0,
        is_global_attn=True,
    )[0]


def transformers_bigbird() -> Callable[[Tensor], Tensor]:
    peers.package("Transformers")
    from transformers import BigBirdConfig
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel

    config = BigBirdConfig(
        hidden_size=HEADS * WIDTH, num_attention_heads=HEADS, block_size=BLOCK, num_random_blocks=3,
        max_position_embeddings=T, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    # In evaluation it would leave its random blocks out; there is no dropout to leave out.
    layer = BigBirdBlockSparseAttention(config, seed=0).to(device()).train()
    masks = BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(1, T, device=device()), BLOCK)
    blocked, band, from_mask, to_mask = masks
    return lambda x: layer(
        x, band_mask=band, from_mask=from_mask, to_mask=to_mask,
        from_blocked_mask=blocked, to_blocked_mask=blocked,
    )[0]  # fmt: skip


def run() -> Iterator[dict[str, Any]]:
    torch.manual_seed(0)
    yield {"what": "versions", **peers.versions()}
    inputs = torch.randn(3, 1, HEADS, T, WIDTH, device=device()).unbind()
    for is_causal in (True, False):
        ours = partial(
            lambda *qkv, is_causal: flash_attention(*qkv, is_causal=is_causal)[0], is_causal=is_causal
        )
        what = "causal" if is_causal else "all keys"
        for backward in (False, True) if is_causal else (False,):
            yield from beside(what, lambda: ours, peers.dense(T, is_causal), inputs, backward)  # noqa: B023
    ours = partial(sliding_window_attention, window=WINDOW)
    yield from beside("window", lambda: ours, peers.window(T, WINDOW), inputs)
    slopes = alibi_slopes(HEADS, device=device())
    yield from beside("ALiBi", lambda: alibi_attention, peers.alibi(T, slopes), inputs)
    yield from beside("linear", lambda: linear_attention, peers.linear(), inputs)

    # Whole layers, since Transformers has no function for these.
    x = torch.randn(1, T, HEADS * WIDTH, device=device())
    first = torch.arange(T, device=device())[None] == 0
    layer = LongformerSelfAttention(HEADS * WIDTH, HEADS, REACH).to(device())
    others = {"Transformers": transformers_longformer}
    yield from beside("Longformer layer", lambda: partial(layer, global_mask=first), others, (x,))
    plan = bigbird_plan(T // BLOCK, n_window=3, n_global=2, n_random=3, seed=0)
    block = BigBirdLayer(plan).to(device())
    yield from beside("BigBird layer", lambda: block, {"Transformers": transformers_bigbird}, (x,))
