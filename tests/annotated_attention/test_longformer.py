"""The proof of `longformer`: each test is a claim that its page makes."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests import proof
from tests.proof import Case, assert_agrees, assert_close, changed, normal, plain_attention
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.flop_counter import FlopCounterMode

from annotated_attention import sliding_window
from annotated_attention.longformer import LongformerSelfAttention, longformer_attention, longformer_mask_mod
from annotated_attention.multi_head import merge_heads, split_heads
from annotated_attention.sliding_window import receptive_field

TEXT = Case("text", g=3, r=2, t=23, s=23)
TEXTS = [
    TEXT,
    replace(TEXT, name="one-token", t=1, s=1),
    replace(TEXT, name="three-tiles", g=1, t=293, s=293),
    replace(TEXT, name="strided", strided=True),
    replace(TEXT, name="empty-batch", b=0),
    replace(TEXT, name="empty-text", t=0, s=0),
    replace(TEXT, name="large-scores", largest_score=1e4),
]
SIX = ("query", "key", "value", "global query", "global key", "global value")
each_text = pytest.mark.parametrize("case", TEXTS, ids=str)


def global_places(b: int, t: int, device: str = "cpu") -> Tensor:
    """Three global tokens in the first text (fewer if it is short), none in the second."""
    mask = torch.zeros(b, t, dtype=torch.bool)
    mask[:1, [j for j in (0, 5, 22) if j < t]] = True
    return mask.to(device)


def padding(b: int, t: int, device: str = "cpu") -> Tensor:
    """The first text ends two tokens early, and misses one more; the second is whole."""
    mask = torch.ones(b, t, dtype=torch.bool)
    mask[:1, max(t - 2, 1) :] = mask[:1, 9:10] = False
    return mask.to(device)


def pattern(window: int, is_global: Tensor, real: Tensor, dilation: int) -> Tensor:
    """Who sees whom, `b t t`, said in the other direction: a pair is forbidden if ..."""
    i = torch.arange(is_global.shape[1], device=is_global.device)
    off = (i[:, None] % dilation != i % dilation) | (i[:, None] // dilation - i // dilation).abs().ge(window)
    off = off & ~is_global[:, :, None] & ~is_global[:, None, :]
    return ~(off | ~real[:, :, None] | ~real[:, None, :])


def dense(
    *tensors: Tensor,
    window: int,
    global_mask: Tensor,
    padding_mask: Tensor | None = None,
    dilation: int = 1,
    scale: float | None = None,
    attend: Callable[..., Tensor] = plain_attention,
) -> Tensor:
    """Two full attentions, one for the local rows and one for the global rows, of three tensors or six."""
    real = torch.ones_like(global_mask) if padding_mask is None else padding_mask
    is_global = global_mask & real
    # A row of padding may see all; its output is dropped.
    mask = (pattern(window, is_global, real, dilation) | ~real[:, :, None])[:, None]
    near, far = attend(*tensors[:3], mask, scale=scale), attend(*tensors[-3:], mask, scale=scale)
    return torch.where(is_global[:, None, :, None], far, near).masked_fill(~real[:, None, :, None], 0)


torch_sdpa = partial(F.scaled_dot_product_attention, enable_gqa=True)


def ours(*tensors: Tensor, window: int, global_mask: Tensor, **rest: object) -> Tensor:
    starred = tensors[3:] or None
    return longformer_attention(*tensors[:3], window, global_mask, global_qkv=starred, **rest)  # type: ignore


def six(case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu") -> tuple[Tensor, ...]:
    inputs = case.inputs(dtype, device)
    return *inputs, *(normal(f"starred {n}", *x.shape).to(x) for n, x in enumerate(inputs))


def options(case: Case, device: str, *names: str) -> dict:
    known = {"padding_mask": padding(case.b, case.t, device), "dilation": 3}
    chosen = {name: known[name] for name in names if name in known}
    return {"window": 4, "global_mask": global_places(case.b, case.t, device), **chosen}


@each_text
@proof.each_dtype
def test_agrees_with_the_dense_mask(case: Case, dtype: torch.dtype, device: str) -> None:
    chosen = options(case, device, "padding_mask", "dilation")
    tensors = six(case, dtype, device)
    peer, oracle = (partial(dense, **chosen, attend=attend) for attend in (torch_sdpa, plain_attention))
    assert_agrees(partial(ours, **chosen), peer, tensors, oracle=oracle, names=SIX)


@pytest.mark.parametrize("dilation", [1, 3], ids=["whole", "dilated"])
@pytest.mark.parametrize("padded", [False, True], ids=["no-padding", "padding"])
@pytest.mark.parametrize("n", [3, 6], ids=["ordinary", "starred"])
@pytest.mark.parametrize("places", [True, False], ids=["global", "no-global"])
def test_any_option_agrees(dilation: int, padded: bool, n: int, places: bool, device: str) -> None:
    chosen = options(TEXT, device, *["padding_mask"] * padded, *["dilation"] * (dilation > 1))
    chosen["global_mask"] &= places
    tensors = six(TEXT, torch.float64, device)[:n]
    assert_agrees(partial(ours, **chosen), partial(dense, **chosen), tensors, names=SIX[:n])


@given(st.data())
def test_any_text_agrees(device: str, data: st.DataObject) -> None:
    t = data.draw(st.integers(1, 40))
    masks = st.lists(st.booleans(), min_size=3 * t, max_size=3 * t)
    global_mask, real = (torch.tensor(data.draw(masks), device=device).view(3, t) for _ in range(2))
    window, dilation = data.draw(st.integers(1, 45)), data.draw(st.integers(1, 45))
    block_size = data.draw(st.sampled_from([1, 4, 7, 128]))
    chosen = {"window": window, "global_mask": global_mask, "padding_mask": real, "dilation": dilation}
    chosen["scale"] = 0.7
    tensors = six(Case("any", b=3, g=1, t=t, s=t, d=3, e=2), torch.float64, device)
    exact = dense(*tensors, **chosen)
    with mock.patch.object(sliding_window, "BLOCK_SIZE", block_size):
        assert_close(ours(*tensors, **chosen), exact, exact)


def test_gradcheck() -> None:
    tensors = six(Case("small", b=1, g=1, r=2, t=7, s=7, d=2, e=3))
    chosen = {"padding_mask": padding(1, 7), "dilation": 2, "scale": 0.7}
    with mock.patch.object(sliding_window, "BLOCK_SIZE", 2):
        proof.assert_gradcheck(partial(ours, window=2, global_mask=global_places(1, 7), **chosen), tensors)


@pytest.mark.parametrize("dim", [0, 1], ids=["batch", "heads"])
def test_neighbours_move_nothing(dim: int, device: str) -> None:
    inputs = replace(TEXT, r=1).inputs(torch.float32, device)
    chosen = {"window": 4, "global_mask": global_places(2, 23, device)}
    before = ours(*inputs, **chosen)
    after = ours(*(changed(x, dim, 1, 2) for x in inputs), **chosen)
    moved = (before != after).transpose(0, dim).flatten(1).any(1)
    assert moved.tolist() == [n == 1 for n in range(before.shape[dim])]


def test_padding_moves_nothing(device: str) -> None:
    tensors = six(TEXT, torch.float64, device)
    chosen = options(TEXT, device, "padding_mask", "dilation")
    before = ours(*tensors, **chosen)
    lost = ~chosen["padding_mask"][:, None, :, None]
    assert torch.equal(ours(*(x.masked_fill(lost, 9.0) for x in tensors), **chosen), before)
    # A padded token that is called global is not.
    chosen["global_mask"] = chosen["global_mask"] | lost[:, 0, :, 0]
    assert torch.equal(ours(*tensors, **chosen), before)
    # A text that ends early is what it would be alone.
    ends = torch.arange(23, device=device).expand(2, 23) < 17
    places = global_places(2, 23, device)
    padded = ours(*tensors, window=4, global_mask=places, padding_mask=ends)
    alone = dense(*(x[:, :, :17] for x in tensors), window=4, global_mask=places[:, :17])
    assert_close(padded[:, :, :17], alone, alone)


@proof.each_dtype
def test_padding_returns_zero(dtype: torch.dtype, device: str) -> None:
    tensors = [x.requires_grad_() for x in six(TEXT, dtype, device)]
    real = padding(2, 23, device)
    real[1] = False
    output = ours(*tensors, window=4, global_mask=global_places(2, 23, device), padding_mask=real)
    assert (output.transpose(1, 2)[~real] == 0).all()
    assert (output.transpose(1, 2)[real] != 0).any(-1).all()
    for gradient in torch.autograd.grad(output.sum(), tensors):
        assert (gradient.transpose(1, 2)[~real] == 0).all()
        assert gradient.isfinite().all()


def moves(function: Callable[[Tensor], Tensor], t: int, m: int) -> Tensor:
    """Row `i`, column `j`: whether the input at `j` moves the output at `i`; and the Jacobian, `t m t m`."""
    x = normal("text", t, m)
    return torch.autograd.functional.jacobian(lambda x: function(x[None])[0], x)  # type: ignore


def stack(n_layers: int, window: int, m: int = 6) -> Callable[..., Tensor]:
    torch.manual_seed(0)
    layers = [LongformerSelfAttention(m, 2, window).double() for _ in range(n_layers)]

    def run(x: Tensor, global_mask: Tensor | None = None) -> Tensor:
        for layer in layers:
            x = layer(x, global_mask)
        return x

    return run


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_windows_alone_do_not_reach(n_layers: int) -> None:
    i = torch.arange(23)
    reached = (moves(stack(n_layers, 3), 23, 6) != 0).any(3).any(1)
    assert torch.equal(reached, (i[:, None] - i).abs() <= n_layers * 2)
    assert receptive_field(12, 257, is_causal=False) == 2 * 3072 + 1
    assert 257 == 512 // 2 + 1


def test_two_hops_connect_every_pair() -> None:
    places = torch.arange(23)[None] == 11
    once, twice = (moves(partial(stack(n, 3), global_mask=places), 23, 6) for n in (1, 2))
    assert not (once != 0).any(3).any(1)[0, 22]
    assert (twice != 0).any(3).any(1).all()


@pytest.mark.parametrize("n_global", [1, 2])
def test_the_bridge_is_narrow(n_global: int) -> None:
    places = torch.zeros(1, 29, dtype=torch.bool)
    places[0, 13 : 13 + n_global] = True
    jacobian = moves(partial(stack(2, 2), global_mask=places), 29, 6)
    across = jacobian[17:, :, :11].reshape(12 * 6, 11 * 6)
    assert torch.linalg.matrix_rank(across, rtol=1e-10) == n_global * 6


def test_copies_change_nothing_at_first(device: str) -> None:
    layer = LongformerSelfAttention(6, 2, 3).double().to(device)
    x, places = normal("x", 2, 23, 6, device=device), global_places(2, 23, device)
    heads = [split_heads(w(x), 2) for w in (layer.w_q, layer.w_k, layer.w_v)]
    ordinary = layer.w_o(merge_heads(longformer_attention(*heads, 3, places)))
    assert_close(layer(x, places), ordinary, ordinary)
    assert_close(layer(x), layer(x, torch.zeros_like(places)), layer(x, torch.zeros_like(places)))
    real = padding(2, 23, device)
    assert torch.equal((layer(x, places, real) != 0).any(-1), real)
    # Copies, not the same parameters: each is trained by itself.
    layer(x, places).sum().backward()
    assert len({w.data_ptr() for w in layer.parameters()}) == 7
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in layer.parameters())


@pytest.mark.parametrize("name", ["w_qg", "w_kg", "w_vg"])
def test_global_projections_move_global_rows_only(name: str, device: str) -> None:
    layer = LongformerSelfAttention(6, 2, 3).to(device)
    x, places = normal("x", 2, 23, 6, dtype=torch.float32, device=device), global_places(2, 23, device)
    before = layer(x, places)
    getattr(layer, name).weight.data.mul_(-1.5)
    assert torch.equal((layer(x, places) != before).any(-1), places)


def test_dilation_is_a_window_on_each_strand(device: str) -> None:
    inputs = TEXT.inputs(device=device)
    nowhere = torch.zeros(2, 23, dtype=torch.bool, device=device)
    whole = longformer_attention(*inputs, 3, nowhere, dilation=4)
    for c in range(4):
        strand = [x[:, :, c::4] for x in inputs]
        plain = longformer_attention(*strand, 3, nowhere[:, c::4])
        exact = dense(*strand, window=3, global_mask=nowhere[:, c::4])
        assert_close(whole[:, :, c::4], plain, exact)


@pytest.mark.parametrize("n_layers", [1, 4])
def test_strands_never_meet(n_layers: int) -> None:
    nowhere = torch.zeros(1, 43, dtype=torch.bool)

    def run(x: Tensor) -> Tensor:
        for _ in range(n_layers):
            x = longformer_attention(x[None], x[None], x[None], 3, nowhere, dilation=3)[0]
        return x

    i = torch.arange(43)
    back = i[:, None] - i
    reached = (moves(run, 43, 2) != 0).any(3).any(1)
    assert torch.equal(reached, (back % 3 == 0) & (back.abs() <= n_layers * 2 * 3))


@pytest.mark.parametrize("attention_window", [2, 8, 34])
def test_transformers_window(attention_window: int, device: str) -> None:
    x, nowhere = normal("x", 1, 1, 71, 2, device=device), torch.zeros(1, 71, dtype=torch.bool, device=device)
    one_hot = torch.eye(71, dtype=torch.float64, device=device)[None, None]
    weights = longformer_attention(x, x, one_hot, attention_window // 2 + 1, nowhere)
    seen = weights[0, 0, 35].nonzero()[:, 0] - 35
    half = attention_window // 2
    assert seen.tolist() == list(range(-half, half + 1))


def test_global_tokens_leak_the_future(device: str) -> None:
    x = normal("x", 1, 1, 23, 4, device=device)
    first = torch.arange(23, device=device)[None] == 0

    def twice(x: Tensor, places: Tensor) -> Tensor:
        y = longformer_attention(x, x, x, 3, places)
        return longformer_attention(y, y, y, 3, places)[0, 0, 5]

    after = changed(x, 2, 20)
    assert (twice(x, first) != twice(after, first)).all()
    assert torch.equal(twice(x, first & False), twice(after, first & False))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("dilation", [1, 3])
def test_flex_attention_agrees(dilation: int, device: str) -> None:
    inputs = TEXT.inputs(torch.float32, device)
    chosen = options(TEXT, device, "padding_mask") | {"dilation": dilation}
    mask_mod = proof.bare(longformer_mask_mod)(**chosen)
    block_mask = create_block_mask(proof.bare(mask_mod), 2, None, 23, 23, device=device)
    flex = flex_attention(*inputs, block_mask=block_mask, enable_gqa=True)
    assert isinstance(flex, Tensor)
    assert_close(flex, ours(*inputs, **chosen), dense(*(x.double() for x in inputs), **chosen))


def test_a_mask_saves_nothing(device: str) -> None:
    x = normal("x", 1, 1, 256, 4, device=device)
    i = torch.arange(256, device=device)
    mask_mod = longformer_mask_mod(4, global_places(1, 256, device))
    mask = mask_mod(i.new_zeros(()), i.new_zeros(()), i[:, None], i)

    def flops(call: Callable[[], Tensor]) -> int:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    masked, full = (flops(partial(F.scaled_dot_product_attention, x, x, x, m)) for m in (mask, None))
    sparse = flops(partial(longformer_attention, x, x, x, 4, global_places(1, 256, device)))
    assert mask.float().mean() < 0.06
    assert masked == full == 2 * 256 * 256 * (4 + 4)
    assert sparse < 0.6 * full


REFUSED = [
    ({"window": 0}, "window is 0: at least 1 is wanted"),
    ({"dilation": 0}, "dilation is 0: at least 1 is wanted"),
    ({"global_mask": torch.zeros(2, 22).bool()}, r"global_mask is torch.bool of shape \(2, 22\)"),
    ({"global_mask": torch.zeros(2, 23)}, "global_mask is torch.float32"),
    ({"padding_mask": torch.zeros(23).bool()}, r"padding_mask is torch.bool of shape \(23,\)"),
    ({"key": normal("k", 2, 4, 23, 11), "value": normal("v", 2, 4, 23, 13)}, "a multiple of key heads"),
    ({"key": normal("k", 2, 3, 22, 11), "value": normal("v", 2, 3, 22, 13)}, r"\(2, 6, 23, 22, 13\): "),
    ({"global_qkv": six(replace(TEXT, e=7))[3:]}, r"\(2, 6, 23, 23, 7\): \(2, 6, 23, 23, 13\) is wanted"),
    ({"global_qkv": six(replace(TEXT, r=1))[3:]}, r"\(2, 3, 23, 23, 13\): \(2, 6, 23, 23, 13\) is wanted"),
]


@pytest.mark.parametrize(("wrong", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_wrong_input_is_refused(wrong: dict, message: str) -> None:
    right = dict(zip(("query", "key", "value"), TEXT.inputs(), strict=True))
    right |= {"window": 4, "global_mask": global_places(2, 23)}
    with pytest.raises(ValueError, match=message):
        proof.bare(longformer_attention)(**(right | wrong))
    with pytest.raises(ValueError, match="d_model is 7, n_heads is 2"):
        LongformerSelfAttention(7, 2, 3)
    layer, x = LongformerSelfAttention(6, 2, 3), normal("x", 2, 23, 6, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"global_mask is torch.bool of shape \(1, 23\)"):
        proof.bare(LongformerSelfAttention.forward)(layer, x, torch.zeros(1, 23).bool())
