"""The proof of `multi_head`: each test is a claim that its page makes."""

from copy import deepcopy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests import proof
from tests.proof import SQUARE, Case, assert_agrees, assert_close, causal, changed, normal, plain_attention
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from annotated_attention.multi_head import MultiHeadAttention, merge_heads, multi_head_cost, split_heads


def tokens(case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu") -> tuple[Tensor, ...]:
    """Query `b t m`, key and value `b s m`."""
    lengths, m = {"query": case.t, "key": case.s, "value": case.s}, case.h * case.d
    drawn = (normal(name, case.b, n, m, dtype=dtype, device=device) for name, n in lengths.items())
    return tuple(proof.apart(x[:, None])[:, 0] if case.strided else x for x in drawn)


def layer(case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu") -> MultiHeadAttention:
    """Random numbers in every weight and every bias."""
    m = case.h * case.d
    module = MultiHeadAttention(m, case.h).double()
    for name, parameter in module.named_parameters():
        parameter.data = normal(name, *parameter.shape) * m**-0.5
    if case.largest_score is not None:
        query, key, _ = tokens(case)
        q, k = split_heads(module.w_q(query), case.h), split_heads(module.w_k(key), case.h)
        factor = case.largest_score / (q @ k.mT * case.d**-0.5).abs().max().detach()
        module.w_q.weight.data *= factor
        module.w_q.bias.data *= factor
    return module.to(device, dtype)


def plain_layer(module, query, key, value, mask=None, attend=plain_attention) -> tuple[Tensor, Tensor]:
    """The layer one head at a time: no reshape, each head with its own slices of the weights."""
    n, m, found, weights = module.n_heads, module.d_model, [], []
    for h in range(n):
        own = slice(h * m // n, (h + 1) * m // n)
        pairs = (query, module.w_q), (key, module.w_k), (value, module.w_v)
        q, k, v = (F.linear(x, w.weight[own], w.bias[own])[:, None] for x, w in pairs)
        mine = mask if mask is None or mask.ndim == 2 else mask[..., h : h + 1, :, :]
        identity = torch.eye(k.shape[2], dtype=k.dtype, device=k.device).expand(len(k), 1, -1, -1)
        weights.append(attend(q, k, identity, mine))
        found.append(attend(q, k, v, mine)[:, 0])
    return F.linear(torch.cat(found, -1), module.w_o.weight, module.w_o.bias), torch.cat(weights, 1)


@pytest.mark.parametrize("is_causal", [False, True], ids=["all", "causal"])
@proof.each_case
@proof.each_dtype
def test_agrees_with_the_plain_formula(case: Case, dtype: torch.dtype, is_causal: bool, device: str) -> None:
    module = layer(case, dtype, device)
    mask = causal(case.t, case.s, device) if is_causal else None
    peer = partial(plain_layer, module, mask=mask, attend=F.scaled_dot_product_attention)
    oracle = partial(plain_layer, deepcopy(module).double(), mask=mask)
    assert_agrees(partial(module, is_causal=is_causal), peer, tokens(case, dtype, device), oracle=oracle)


@proof.each_mask
@proof.each_dtype
def test_masks_agree_with_the_plain_formula(mask_kind: str, dtype: torch.dtype, device: str) -> None:
    case, module = Case("t<s"), layer(Case("t<s"), dtype, device)
    mask = proof.draw_mask(mask_kind, case, dtype, device)
    peer = proof.masked(partial(plain_layer, module, attend=F.scaled_dot_product_attention), mask)
    oracle = proof.masked(partial(plain_layer, deepcopy(module).double()), mask)
    assert_agrees(proof.masked(module, mask), peer, tokens(case, dtype, device), oracle=oracle)


def test_gradcheck() -> None:
    case = Case("small", t=2, s=3, d=2)
    module = layer(case)

    def ours(query: Tensor, key: Tensor, value: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(dict(module.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(module, named, (query, key, value))

    proof.assert_gradcheck(ours, [*tokens(case), *module.parameters()])


@given(b=st.integers(0, 3), t=st.integers(1, 7), h=st.integers(1, 5), d=st.integers(1, 5))
def test_merge_undoes_split(b: int, t: int, h: int, d: int) -> None:
    x = normal("x", b, t, h * d)
    heads = split_heads(x, h)
    assert heads.shape == (b, h, t, d)
    assert torch.equal(merge_heads(heads), x)
    assert all(torch.equal(heads[:, n], x[:, :, n * d : (n + 1) * d]) for n in range(h))


def test_view_mixes_tokens() -> None:
    x = torch.arange(5).repeat_interleave(6).reshape(1, 5, 6).double()  # every number is its token's index
    assert (split_heads(x, 3) == torch.arange(5)[:, None]).all()
    assert x.view(1, 3, 5, 2)[0, 0].unique().tolist() == [0.0, 1.0]


def test_heads_are_slices_of_the_weights(device: str) -> None:
    module, query = layer(SQUARE, device=device), tokens(SQUARE, device=device)[0]
    together = split_heads(module.w_q(query), 3)
    alone = [F.linear(query, module.w_q.weight[n : n + 11], module.w_q.bias[n : n + 11]) for n in (0, 11, 22)]
    assert_close(together, torch.stack(alone, 1), torch.stack(alone, 1))


def test_two_heads_take_from_two_places() -> None:
    # Width 2, identity projections, values (1, 1) and (0, 0). Two heads of width 1 look at different words.
    def outcome(n_heads: int) -> list[float]:
        module = MultiHeadAttention(2, n_heads, bias=False).double()
        for weight in module.parameters():
            weight.data = torch.eye(2, dtype=torch.float64)
        query = torch.tensor([[[1.0, 1.0]]]).double()
        key = torch.tensor([[[999.0, -999.0], [-999.0, 999.0]]]).double()
        value = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]).double()
        return module(query, key, value)[0].flatten().tolist()

    assert outcome(2) == [1, 0]
    assert outcome(1)[0] == outcome(1)[1]


def test_output_is_a_sum_over_heads(device: str) -> None:
    module, inputs = layer(SQUARE, device=device), tokens(SQUARE, device=device)
    total, _ = module(*inputs)
    parts = module.w_o.bias.detach().clone()
    for n in (0, 11, 22):
        one = deepcopy(module)
        one.w_o.weight.data[:, :n] = 0
        one.w_o.weight.data[:, n + 11 :] = 0
        parts = parts + one(*inputs)[0] - one.w_o.bias
    exact, _ = plain_layer(module, *inputs)
    assert_close(parts, total, exact)


@given(order=st.permutations(range(3)))
def test_order_of_heads_is_a_name(order: list[int]) -> None:
    module, inputs = layer(SQUARE), tokens(SQUARE)
    rows = torch.arange(33).reshape(3, 11)[order].flatten()
    renamed = deepcopy(module)
    for projection in (renamed.w_q, renamed.w_k, renamed.w_v):
        projection.weight.data = projection.weight.data[rows]
        projection.bias.data = projection.bias.data[rows]
    renamed.w_o.weight.data = renamed.w_o.weight.data[:, rows]
    (output, weights), (other, other_weights) = module(*inputs), renamed(*inputs)
    assert_close(other, output, plain_layer(module, *inputs)[0])
    assert_close(other_weights, weights[:, order], plain_layer(module, *inputs)[1][:, order])


def test_scores_of_a_head_have_rank_d() -> None:
    module = layer(Case("long", t=13, s=13, d=2))
    nn.init.zeros_(module.w_q.bias)
    query, key, value = tokens(Case("long", t=13, s=13, d=2))
    scores = module(query, key, value)[1].log()
    # The logarithm is the score less a constant of the row: take out the row's mean.
    assert (torch.linalg.matrix_rank(scores - scores.mean(-1, keepdim=True), rtol=1e-9) == 2).all()
    read = module.w_v.weight[:2].T @ module.w_o.weight[:, :2].T
    assert torch.linalg.matrix_rank(read) == 2 < module.d_model


def test_only_the_products_matter(device: str) -> None:
    module, inputs = layer(SQUARE, device=device), tokens(SQUARE, device=device)
    a = torch.eye(11).double() + 0.2 * normal("change of basis", 11, 11)
    a, a_inverse = a.to(device), a.inverse().to(device)
    turned = deepcopy(module)
    for name, change in {"w_q": a.T, "w_k": a_inverse}.items():
        projection = getattr(turned, name)
        projection.weight.data[:11] = change @ projection.weight.data[:11]
        projection.bias.data[:11] = change @ projection.bias.data[:11]
    assert (turned.w_q(inputs[0]) - module.w_q(inputs[0])).abs().max() > 0.1
    exact = plain_layer(module, *inputs)
    assert_close(turned(*inputs)[0], module(*inputs)[0], exact[0])
    assert_close(turned(*inputs)[1], module(*inputs)[1], exact[1])


def test_key_bias_does_nothing(device: str) -> None:
    module, inputs = layer(SQUARE, device=device), tokens(SQUARE, device=device)
    other = deepcopy(module)
    other.w_k.bias.data = normal("another bias", 33, device=device)
    assert_close(other(*inputs)[0], module(*inputs)[0], plain_layer(module, *inputs)[0])
    module(*inputs)[0].sum().backward()
    assert module.w_k.bias.grad.abs().max() < 1e-14 < 1e-3 < module.w_q.bias.grad.abs().max()


def test_value_bias_is_an_output_bias(device: str) -> None:
    module, inputs = layer(SQUARE, device=device), tokens(SQUARE, device=device)
    other = deepcopy(module)
    other.w_o.bias.data += other.w_o.weight.data @ other.w_v.bias.data
    other.w_v.bias.data.zero_()
    assert_close(other(*inputs)[0], module(*inputs)[0], plain_layer(module, *inputs)[0])
    # They differ where weights do not sum to one: in a row without a key, and after dropout.
    mask = causal(7, 7, device).tril(-1)
    moved = (other(*inputs, mask)[0] - module(*inputs, mask)[0]).abs().amax((0, 2)) > 1e-3
    assert moved.tolist() == [True] + [False] * 6
    assert (dropped(other, inputs)[0] - dropped(module, inputs)[0]).abs().max() > 1e-3


@proof.each_dtype
def test_empty_rows_give_the_output_bias(dtype: torch.dtype, device: str) -> None:
    module, inputs = layer(SQUARE, dtype, device), [x.requires_grad_() for x in tokens(SQUARE, dtype, device)]
    mask = torch.arange(7, device=device)[:, None].expand(7, 7) != 3
    output, weights = module(*inputs, mask)
    assert torch.equal(output[:, 3], module.w_o.bias.expand(2, 33))
    assert (weights[:, :, 3] == 0).all()
    assert all((x == 0).all() for x in torch.autograd.grad(output[:, 3].sum(), inputs))


def dropped(module: MultiHeadAttention, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    module.dropout.p = 0.4
    return module(*inputs)


def test_dropout_acts_on_weights(device: str) -> None:
    module, inputs = layer(SQUARE, device=device), tokens(SQUARE, device=device)
    output, weights = dropped(module, inputs)
    torch.manual_seed(0)
    kept = F.dropout(weights, 0.4)
    again = module.w_o(merge_heads(kept @ split_heads(module.w_v(inputs[2]), 3)))
    assert_close(output, again, again)
    assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), torch.ones_like(weights[..., 0]))
    assert (kept == 0).any()
    assert torch.equal(module.eval()(*inputs)[0], module(*inputs)[0])


@pytest.mark.parametrize("start", range(1, 7))
def test_future_moves_nothing(start: int, device: str) -> None:
    module, (query, key, value) = layer(SQUARE, device=device), tokens(SQUARE, device=device)
    before, _ = module(query, key, value, is_causal=True)
    after, _ = module(query, changed(key, 1, start), changed(value, 1, start), is_causal=True)
    assert torch.equal(before[:, :start], after[:, :start])
    assert (before[:, start:] != after[:, start:]).any(-1).all()


def test_texts_and_heads_are_independent(device: str) -> None:
    module, inputs = layer(SQUARE, device=device), tokens(SQUARE, device=device)
    output, weights = module(*inputs)
    other_output, _ = module(*(changed(x, 0, 1) for x in inputs))
    assert torch.equal(output[0], other_output[0])
    assert (output[1] != other_output[1]).all()
    # With the unit matrix for W_O, the output shows the heads one beside the other.
    module.w_o.weight.data = torch.eye(33, dtype=torch.float64, device=device)
    heads = split_heads(module(*inputs)[0], 3)
    for name in ("w_q", "w_k", "w_v"):
        other = deepcopy(module)
        getattr(other, name).weight.data[11:22] += normal("change", 11, 33, device=device)
        found, other_weights = other(*inputs)
        assert (split_heads(found, 3) != heads).flatten(2).any(-1).tolist() == [[False, True, False]] * 2
        assert torch.equal(other_weights[:, ::2], weights[:, ::2])


def test_wrong_input_is_refused() -> None:
    module, (query, key, value) = layer(SQUARE), tokens(SQUARE)
    forward = partial(proof.bare(MultiHeadAttention.forward), module)
    for d_model, n_heads in [(10, 3), (0, 1), (4, 0)]:
        with pytest.raises(ValueError, match=f"d_model is {d_model}, n_heads is {n_heads}"):
            MultiHeadAttention(d_model, n_heads)
    with pytest.raises(ValueError, match="dropout is 2"):
        MultiHeadAttention(4, 2, dropout=2.0)
    with pytest.raises(ValueError, match=r"x has shape \(2, 7, 33\).*n_heads = 5"):
        split_heads(query, 5)
    for name, inputs in {"query": (query[0], key, value), "value": (query, key, value[..., :32])}.items():
        with pytest.raises(ValueError, match=f"{name} has shape"):
            forward(*inputs)
    with pytest.raises(ValueError, match="value has shape"):
        forward(query, key, value[:, :5])
    with pytest.raises(ValueError, match="attn_mask"):
        forward(query, key, value, causal(7, 7), is_causal=True)
    for odd in ({"kdim": 5}, {"add_bias_kv": True}, {"add_zero_attn": True}):
        with pytest.raises(ValueError, match="source has"):
            MultiHeadAttention.from_torch(nn.MultiheadAttention(6, 3, **odd))


def twin(dtype: torch.dtype, device: str, bias: bool = True) -> nn.MultiheadAttention:
    """PyTorch's layer with random numbers in every parameter, also where it begins with zeros."""
    theirs = nn.MultiheadAttention(33, 3, bias=bias, batch_first=True)
    for name, parameter in theirs.named_parameters():
        parameter.data = normal(name, *parameter.shape) * 33**-0.5
    return theirs.to(device, dtype)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("dtype", proof.DTYPES[:2], ids=str)
def test_agrees_with_torch_multihead_attention(dtype: torch.dtype, bias: bool, device: str) -> None:
    theirs, case = twin(dtype, device, bias), Case("t<s")
    ours = MultiHeadAttention.from_torch(theirs)
    mask = proof.draw_mask("bool-rank-2", case, device=device)
    their_call = partial(theirs, attn_mask=~mask, average_attn_weights=False)
    oracle = partial(deepcopy(theirs).double(), attn_mask=~mask, average_attn_weights=False)
    assert_agrees(partial(ours, attn_mask=mask), their_call, tokens(case, dtype, device), oracle=oracle)


def test_from_torch_keeps_dropout_and_mode() -> None:
    ours = MultiHeadAttention.from_torch(nn.MultiheadAttention(6, 3, dropout=0.25).eval())
    assert (ours.dropout.p, ours.training) == (0.25, False)


def test_torch_mask_means_the_opposite(device: str) -> None:
    theirs, (x, _, _) = twin(torch.float64, device), tokens(SQUARE, device=device)
    ours, mask = MultiHeadAttention.from_torch(theirs), causal(7, 7, device)
    forbidden = theirs(x, x, x, attn_mask=~mask)[0]
    assert_close(ours(x, x, x, mask)[0], forbidden, forbidden)
    assert (ours(x, x, x, ~mask)[0] - forbidden).abs().max() > 0.1


def test_torch_is_causal_is_a_hint(device: str) -> None:
    theirs, (x, _, _) = twin(torch.float64, device), tokens(SQUARE, device=device)
    with pytest.raises(RuntimeError, match="attn_mask"):
        theirs(x, x, x, is_causal=True)


@pytest.mark.parametrize("n_heads", [2, 3])
def test_torch_empty_rows_depend_on_the_path(n_heads: int) -> None:
    theirs, nothing = nn.MultiheadAttention(12, n_heads, batch_first=True), torch.ones(7, 7, dtype=torch.bool)
    x, bias = normal("x", 2, 7, 12, dtype=torch.float32), nn.init.normal_(theirs.out_proj.bias)
    for training in (True, False):
        call = partial(theirs.train(training), x, x, x, attn_mask=nothing)
        assert call()[0].isnan().all()
        assert torch.equal(call(need_weights=False)[0], bias.expand(2, 7, 12))
    with torch.no_grad():
        assert call(need_weights=False)[0].isnan().all() == (n_heads == 2)


def test_torch_returns_weights_after_dropout(device: str) -> None:
    theirs, inputs = twin(torch.float64, device), tokens(SQUARE, device=device)
    theirs.dropout = 0.4
    weights = theirs(*inputs, average_attn_weights=False)[1]
    _, before = MultiHeadAttention.from_torch(theirs)(*inputs)
    survivors = (weights != 0) * before / 0.6
    assert_close(weights, survivors, survivors)
    assert ((weights.sum(-1) - 1).abs() > 1e-3).all()


def test_torch_begins_elsewhere() -> None:
    theirs, ours = nn.MultiheadAttention(256, 4), MultiHeadAttention(256, 4)
    xavier, linear = (6 / (4 * 256)) ** 0.5, (1 / 256) ** 0.5
    assert 0.99 * xavier < theirs.in_proj_weight.abs().max() <= xavier
    assert not any(bias.any() for bias in (theirs.in_proj_bias, theirs.out_proj.bias))
    for parameter in ours.parameters():
        assert 0.9 * linear < parameter.abs().max() <= linear


def test_cost_counts_the_products() -> None:
    module, (query, key, value) = layer(Case("t<s")), tokens(Case("t<s"))
    with FlopCounterMode(display=False) as counter:
        module(query, key, value)
    assert counter.get_total_flops() == sum(multi_head_cost(2, 5, 7, 33))
    projections, attention = multi_head_cost(1, 8192, 8192, 4096)
    assert projections == attention
