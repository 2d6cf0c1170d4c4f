"""The proof of `cross_attention`: each test is a claim that its page makes."""

from copy import deepcopy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tests import proof
from tests.proof import Case, assert_agrees, normal, plain_attention
from torch import Tensor, nn

from annotated_attention.cross_attention import CrossAttention
from annotated_attention.multi_head import split_heads


def tokens(case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """`x`, `b t m`, and `context`, `b s c`: `c` is the case's `e`."""
    shapes = {"x": (case.t, case.h * case.d), "context": (case.s, case.e)}
    drawn = [normal(name, case.b, *shape, dtype=dtype, device=device) for name, shape in shapes.items()]
    x, context = [proof.apart(x[:, None])[:, 0] if case.strided else x for x in drawn]
    return x, context


def layer(case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu") -> CrossAttention:
    module = CrossAttention(case.h * case.d, case.e, case.h).double()
    for name, parameter in module.named_parameters():
        parameter.data = normal(name, *parameter.shape) * parameter.shape[1] ** -0.5
    if case.largest_score is not None:
        x, context = tokens(case)
        q, k = split_heads(module.w_q(x), case.h), split_heads(module.w_k(context), case.h)
        module.w_q.weight.data *= case.largest_score / (q @ k.mT * case.d**-0.5).abs().max().detach()
    return module.to(device, dtype)


def plain_layer(module, x, context, padding=None, attend=plain_attention) -> Tensor:
    """The layer one head at a time, each with its own slices of the weights."""
    n, m, found = module.n_heads, module.d_model, []
    for h in range(n):
        own = slice(h * m // n, (h + 1) * m // n)
        pairs = (x, module.w_q), (context, module.w_k), (context, module.w_v)
        q, k, v = (F.linear(x, w.weight[own])[:, None] for x, w in pairs)
        found.append(attend(q, k, v, None if padding is None else padding[:, None, None])[:, 0])
    return F.linear(torch.cat(found, -1), module.w_o.weight)


@proof.each_case
@proof.each_dtype
def test_agrees_with_the_plain_formula(case: Case, dtype: torch.dtype, device: str) -> None:
    module = layer(case, dtype, device)
    peer = partial(plain_layer, module, attend=F.scaled_dot_product_attention)
    oracle = partial(plain_layer, deepcopy(module).double())
    assert_agrees(module, peer, tokens(case, dtype, device), oracle=oracle, names=("x", "context"))


@pytest.mark.parametrize("dtype", proof.DTYPES, ids=str)
def test_agrees_with_torch_multihead_attention(dtype: torch.dtype, device: str) -> None:
    case, module = Case("t<s"), layer(Case("t<s"), dtype, device)
    theirs = nn.MultiheadAttention(33, 3, bias=False, kdim=13, vdim=13, batch_first=True).to(device, dtype)
    theirs.q_proj_weight, theirs.k_proj_weight = module.w_q.weight, module.w_k.weight
    theirs.v_proj_weight, theirs.out_proj.weight = module.w_v.weight, module.w_o.weight
    padding = torch.arange(7, device=device) < torch.tensor([[7], [4]], device=device)

    def their_call(x: Tensor, context: Tensor, module: nn.Module = theirs) -> Tensor:
        return module(x, context, context, key_padding_mask=~padding, need_weights=False)[0]

    oracle = partial(their_call, module=deepcopy(theirs).double())
    ours = partial(module, padding_mask=padding)
    assert_agrees(ours, their_call, tokens(case, dtype, device), oracle=oracle, names=("x", "context"))
