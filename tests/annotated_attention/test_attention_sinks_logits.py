"""The proof of `attention_sinks_logits`: each test is a claim that its page makes."""

import runpy
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests import proof
from tests.proof import SQUARE, Case, assert_agrees, assert_close, assert_gradcheck, changed, normal
from torch import Tensor

from annotated_attention.attention_sinks import (
    LearnableSink,
    SinkKVCache,
    SinkLogits,
    fused_sink_attention,
    sink_attention,
    sink_gate,
    streaming_mask,
)
from annotated_attention.language_model import (
    LanguageModel,
    LanguageModelConfig,
    SelfAttention,
)
from annotated_attention.rotary import rotary_attention

FIGURES = Path(__file__).parents[2] / "lessons" / "10_attention_sinks" / "figures.py"
silent_head = lru_cache(runpy.run_path(str(FIGURES))["silent_head"])
GROUPED = Case("grouped", g=3, r=2, t=5, s=7)


def logits(h: int = 3, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    return 2 * normal("sinks", h, dtype=dtype, device=device)


def plain_sinks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The formula with its two exponentials and their sum, after the largest is taken from both."""
    wide = torch.promote_types(query.dtype, torch.float32)
    r = query.shape[1] // key.shape[1]
    q, k, v = query.to(wide), key.to(wide).repeat_interleave(r, 1), value.to(wide).repeat_interleave(r, 1)
    scores = q @ k.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        scores = scores + mask.to(wide)
    z = sinks.to(wide)[:, None, None]
    largest = torch.maximum(scores.amax(-1, keepdim=True), z).detach()
    keys, nothing = (scores - largest).exp(), (z - largest).exp()
    return ((keys @ v) / (keys.sum(-1, keepdim=True) + nothing)).to(query.dtype)


def given(sinks: Tensor, *functions: Callable[..., Tensor]) -> list[Callable[..., Tensor]]:
    """Functions of query, key and value. The gradient at the logits is left to tests of its own: it is a sum
    over texts and queries, and of three numbers the largest error is a matter of luck."""
    return [lambda q, k, v, f=f: f(q, k, v, sinks.to(q.dtype)) for f in functions]


def zero_key(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, mask: Tensor | None = None) -> Tensor:
    """PyTorch's attention over one key more, whose score is the logit: the peer in the tested dtype."""
    (b, h, t, _), s = query.shape, key.shape[2]
    mask = query.new_zeros(t, s) if mask is None else mask
    if mask.dtype == torch.bool:
        mask = query.new_zeros(mask.shape).masked_fill(~mask, -torch.inf)
    mask = torch.cat([sinks[:, None, None].expand(b, h, t, 1), mask.to(query.dtype).expand(b, h, t, s)], -1)
    key, value = (torch.cat([torch.zeros_like(x[:, :, :1]), x], 2) for x in (key, value))
    return F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)


@pytest.mark.parametrize("case", [*proof.CASES, GROUPED], ids=str)
@proof.each_dtype
def test_agrees_with_the_plain_formula(case: Case, dtype: torch.dtype, device: str) -> None:
    inputs = *case.inputs(dtype, device), logits(case.h, dtype, device)
    ours, peer, oracle = given(inputs[3], sink_attention, zero_key, plain_sinks)
    assert_agrees(ours, peer, inputs[:3], oracle=oracle)
    mask = proof.causal(case.t, case.s, device)
    ours, peer = (
        partial(sink_attention, is_causal=True, scale=0.3),
        partial(plain_sinks, mask=mask, scale=0.3),
    )
    assert_close(ours(*inputs), peer(*inputs), peer(*(x.double() for x in inputs)))


@proof.each_mask
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def test_masks(mask_kind: str, dtype: torch.dtype, device: str) -> None:
    mask = proof.draw_mask(mask_kind, GROUPED, dtype, device)
    functions = (partial(f, mask=mask) for f in (zero_key, plain_sinks))
    z = logits(6, dtype, device)
    ours, peer, oracle = given(z, partial(sink_attention, attn_mask=mask), *functions)
    assert_agrees(ours, peer, GROUPED.inputs(dtype, device), oracle=oracle)


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "both-ways"])
def test_gradcheck(is_causal: bool, device: str) -> None:
    case = Case("small", b=1, g=2, r=2, t=3, s=3, d=2, e=2)
    function = partial(sink_attention, is_causal=is_causal)
    assert_gradcheck(function, [*case.inputs(device=device), logits(4, device=device)])


@proof.each_case
@pytest.mark.parametrize("dtype", proof.DTYPES[:2], ids=["float64", "float32"])
def test_it_is_attention_times_a_gate(case: Case, dtype: torch.dtype, device: str) -> None:
    """The peer is the gated attention of PyTorch, in the tested dtype."""

    def gated(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor) -> Tensor:
        lse = (query @ key.mT * case.d**-0.5).logsumexp(-1)
        return F.scaled_dot_product_attention(query, key, value) * sink_gate(lse, sinks)

    inputs = *case.inputs(dtype, device), logits(case.h, dtype, device)
    exact = plain_sinks(*(x.double() for x in inputs))
    assert_close(sink_attention(*inputs), gated(*inputs), exact)
    assert_close(gated(*inputs), plain_sinks(*inputs), exact)


@proof.each_case
@proof.each_dtype
def test_minus_infinity_is_pytorch(case: Case, dtype: torch.dtype, device: str) -> None:
    none = torch.full((case.h,), -torch.inf, device=device)
    ours = partial(sink_attention, sink_logits=none)
    inputs = case.inputs(dtype, device)
    assert_agrees(ours, F.scaled_dot_product_attention, inputs, oracle=proof.plain_attention)


def test_zero_is_softmax_off_by_one(device: str) -> None:
    query, key, value = SQUARE.inputs(device=device)
    exponentials = (query @ key.mT * SQUARE.d**-0.5).exp()
    miller = exponentials / (1 + exponentials.sum(-1, keepdim=True)) @ value
    assert_close(sink_attention(query, key, value, torch.zeros(3, device=device)), miller, miller)


@proof.each_dtype
def test_gradient_of_the_logit_shortens_the_output(dtype: torch.dtype, device: str) -> None:
    def predicted(query: Tensor, key: Tensor, value: Tensor, z: Tensor) -> Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)
        query, key, value, z = (x.to(wide) for x in (query, key, value, z))
        gate = sink_gate((query @ key.mT * SQUARE.d**-0.5).logsumexp(-1), z)
        return -(1 - gate) * plain_sinks(query, key, value, z)

    inputs = *SQUARE.inputs(dtype, device), logits(dtype=dtype, device=device)
    *fixed, z = inputs
    _, direction = torch.func.jvp(lambda z: sink_attention(*fixed, z), (z,), (torch.ones_like(z),))
    exact = predicted(*(x.double() for x in inputs))
    assert_close(direction, predicted(*inputs).to(dtype), exact, factor=3)


def test_a_sink_logit_lets_a_head_be_silent() -> None:
    head, without = silent_head(False, True), silent_head(False, False)
    silent = ~head["asked"]
    silent[:, :2] = False
    assert without["error"] > 0.5
    assert head["error"] < 0.001
    assert head["weights"].sum(-1)[silent].mean() < 0.05
    assert head["weights"].sum(-1)[head["asked"]].mean() > 0.95


def test_a_sink_logit_does_not_forbid_a_sink_token() -> None:
    head = silent_head(True, True)
    silent = ~head["asked"]
    silent[:, :2] = False
    assert head["weights"][..., 0][silent].mean() > 0.3
    assert head["error_evicted"] > 10 * head["error"]


@proof.each_dtype
def test_empty_rows_are_zero(dtype: torch.dtype, device: str) -> None:
    for z in (1.0, -torch.inf):
        sinks = torch.full((3,), z, dtype=dtype, device=device)
        inputs = [x.requires_grad_() for x in (*SQUARE.inputs(dtype, device), sinks)]
        mask = proof.draw_mask("bool-empty-rows", SQUARE, device=device)
        output = sink_attention(*inputs, mask)
        gradients = torch.autograd.grad(output.sum(), inputs)
        assert all(x.isfinite().all() for x in (output, *gradients))
        assert (output[:, :, ::2] == 0).all()
        assert (gradients[0][:, :, ::2] == 0).all()
        assert output[:, :, 1::2].abs().min() > 0
        lse = torch.full((2, 3, 7), -torch.inf, dtype=dtype, device=device, requires_grad=True)
        gate = sink_gate(lse, sinks)
        assert all((x == 0).all() for x in (gate, *torch.autograd.grad(gate.sum(), (lse, sinks))))


def test_neither_scale_nor_mask_touch_the_logit(device: str) -> None:
    """All scores are 0: what a key gets depends on the logit and on how many keys there are."""
    zeros, values = torch.zeros(1, 3, 7, 11, device=device), torch.ones(1, 3, 7, 1, device=device)
    z = logits(dtype=torch.float32, device=device)
    three = torch.arange(7, device=device) < 3
    for scale in (None, 5.0):
        output = sink_attention(zeros, zeros, values, z, three.expand(7, 7), scale=scale)[0, :, 0, 0]
        expected = 3 / (3 + z.double().exp())
        assert_close(output, expected.float(), expected)


@proof.each_dtype
def test_large_logits_do_not_overflow(dtype: torch.dtype, device: str) -> None:
    case = replace(SQUARE, largest_score=1e4)
    query, key, value = case.inputs(dtype, device)
    for z in (6e4, 1e4, -6e4):
        sinks = torch.full((3,), z, dtype=dtype, device=device)
        ours, peer, oracle = given(sinks, sink_attention, zero_key, plain_sinks)
        assert_agrees(ours, peer, (query, key, value), oracle=oracle)
        gradient = torch.func.grad(lambda z: sink_attention(query, key, value, z).sum())(sinks)
        assert gradient.isfinite().all()
        if z == 6e4:
            assert (ours(query, key, value) == 0).all()


def test_future_and_other_heads_move_nothing(device: str) -> None:
    query, key, value = SQUARE.inputs(device=device)
    attend = partial(sink_attention, sink_logits=logits(device=device), is_causal=True)
    output = attend(query, key, value)
    later = attend(query, changed(key, 2, 4), changed(value, 2, 4))
    assert torch.equal(later[:, :, :4], output[:, :, :4])
    moved = sink_attention(query, key, value, changed(logits(device=device), 0, 1, 2), is_causal=True)
    assert (moved != output).flatten(2).any(-1).any(0).tolist() == [False, True, False]


def test_wrong_input_is_refused() -> None:
    query, key, value = GROUPED.inputs()
    functions = [proof.bare(sink_attention), proof.bare(fused_sink_attention)]
    for sinks in (torch.zeros(3), torch.zeros(6, 1), torch.zeros(6, dtype=torch.long)):
        for attend in functions:
            with pytest.raises(ValueError, match=r"sink_logits is .*: floats, \(6,\), are wanted"):
                attend(query, key, value, sinks)
    mask, z = proof.causal(5, 7), torch.zeros(6)
    refused = [
        (query[:, :5], key, value, torch.zeros(5), None, False, "query heads must be a multiple"),
        (query, key[..., :5], value, z, None, False, "key has shape"),
        (query, key.float(), value, z, None, False, "key is torch.float32"),
        (query, key, value, z, mask, True, "together with is_causal, None is wanted"),
        (query, key, value, z, mask[:, :5], False, "attn_mask is"),
    ]
    for *inputs, message in refused:
        for attend in functions:
            with pytest.raises(ValueError, match=message):
                attend(*inputs)
    for sizes in ((0, 1), (5, 0)):
        with pytest.raises(ValueError, match=r"d_model is .*, n_sinks is .*: at least 1 is wanted"):
            LearnableSink(*sizes)


def layer(attend, device: str, dtype: torch.dtype = torch.float64) -> SelfAttention:
    torch.manual_seed(proof.SEED)
    result = SelfAttention(18, 3, attend=attend).to(device, dtype)
    if isinstance(attend, SinkLogits):
        attend.sink_logits.data = logits(dtype=dtype, device=device)
    return result


def test_logits_are_trained_with_the_model(device: str) -> None:
    for around in (None, rotary_attention):
        attention = layer(SinkLogits(3, around=around), device)
        attention(normal("x", 2, 7, 18, device=device)).square().sum().backward()
        assert "attend.sink_logits" in dict(attention.named_parameters())
        assert attention.attend.sink_logits.grad.abs().min() > 0
    assert (SinkLogits(5).sink_logits == 0).all()


def test_a_partial_would_hide_the_parameters() -> None:
    attention = SelfAttention(18, 3, attend=partial(rotary_attention, attend=SinkLogits(3)))
    assert not [name for name, _ in attention.named_parameters() if "sink" in name]


@pytest.mark.parametrize("around", [None, rotary_attention], ids=["plain", "rotary"])
def test_a_window_is_enough(around, device: str) -> None:
    def windowed(query: Tensor, key: Tensor, value: Tensor, i: Tensor, j: Tensor) -> Tensor:
        sinks = logits(dtype=query.dtype, device=device)
        return sink_attention(query, key, value, sinks, streaming_mask(i, j, 0, 4))

    full = windowed if around is None else partial(rotary_attention, attend=windowed)
    x, cache = normal("x", 2, 43, 18, device=device), SinkKVCache(0, 4)
    step = layer(SinkLogits(3, around=around), device, torch.float32)
    with torch.no_grad():
        ours = torch.cat([step(token, cache=cache) for token in x.float().split(1, 1)], 1)
        peer, exact = layer(full, device, torch.float32)(x.float()), layer(full, device)(x)
    assert_close(ours, peer, exact)


def test_a_fixed_first_token_is_a_learnable_sink(device: str) -> None:
    """A model reads the byte 0 and a text, or its blocks read a learned vector and the text."""
    config = LanguageModelConfig(vocab_size=17, d_model=18, n_layers=2, n_heads=3, position_embedding="none")
    torch.manual_seed(proof.SEED)
    model, sink = LanguageModel(config).to(device).double(), LearnableSink(18).to(device).double()
    sink.sinks.data = model.embedding.weight.data[:1].clone()
    tokens = torch.randint(1, 17, (2, 7), generator=torch.Generator().manual_seed(0)).to(device)

    def logits_of(x: Tensor) -> Tensor:
        for block in model.blocks:
            x = block(x)
        return F.linear(model.norm(x), model.embedding.weight)[:, 1:]

    begun = F.pad(tokens, (1, 0))
    by_token, by_vector = model(begun)[:, 1:], logits_of(sink(model.embedding(tokens)))
    assert torch.equal(by_token, by_vector)
    # The loss leaves out the logit of byte 0, so that the row is not trained as an output too.
    learned, row = (
        torch.autograd.grad(z[..., 1:].logsumexp(-1).sum(), weight)[0]
        for z, weight in ((by_vector, sink.sinks), (by_token, model.embedding.weight))
    )
    assert learned.abs().max() > 0.001
    assert_close(learned, row[:1], row[:1])


@pytest.mark.parametrize("case", [SQUARE, Case("t<s"), GROUPED, Case("even", r=2, d=8, e=8)], ids=str)
@pytest.mark.parametrize("kind", ["none", "causal", "bool-rank-3", "float-rank-2"])
@proof.each_dtype
def test_a_zero_key_is_a_sink_logit(case: Case, kind: str, dtype: torch.dtype, device: str) -> None:
    mask, options = None, {}
    if kind == "causal":
        mask, options = proof.causal(case.t, case.s, device), {"is_causal": True}
    elif kind != "none":
        mask = proof.draw_mask(kind, case, dtype, device)
        options = {"attn_mask": mask}

    def fused(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor) -> Tensor:
        return fused_sink_attention(query, key, value, sinks, **options)

    z = logits(case.h, dtype, device)
    plain, formula = partial(sink_attention, attn_mask=mask), partial(plain_sinks, mask=mask)
    ours, peer, oracle = given(z, fused, plain, formula)
    assert_agrees(ours, peer, case.inputs(dtype, device), oracle=oracle)
    if dtype == torch.float64:
        assert_gradcheck(partial(fused, *case.inputs(device=device)), [z])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_agrees(device: str) -> None:
    query, key, value = SQUARE.inputs(torch.float32, device)
    z = logits(dtype=torch.float32, device=device)
    output, lse = proof.flex_with_lse(query, key, value)
    exact = plain_sinks(query.double(), key.double(), value.double(), z.double())
    assert_close(output * sink_gate(lse, z), sink_attention(query, key, value, z), exact)
