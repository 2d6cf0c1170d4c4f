"""The proof of `flash_backward`: each test is a claim that its page makes."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tests import proof
from tests.annotated_attention.test_flash_details import (
    GROUPED,
    Products,
    attention,
    causal_tiles,
    is_causal_or_not,
    plain_lse,
)
from tests.annotated_attention.test_grouped_query import inputs_of
from tests.proof import GRADIENT_FACTOR, Case, assert_close, causal, normal, plain_attention
from torch import Tensor

from annotated_attention.flash import flash_attention, flash_forward
from annotated_attention.flash_backward import flash_backward, flash_backward_cost


def test_weights_from_one_number(device: str) -> None:
    query, key, value = Case("text").inputs(device=device)
    _, lse = flash_attention(query, key, value, block_q=2, block_k=3)
    scores = query @ key.mT * 11**-0.5
    exact = scores.softmax(-1)
    assert_close(torch.exp(scores - lse[..., None]), exact, exact)


def test_row_sum_needs_no_weights(device: str) -> None:
    query, key, value = Case("text").inputs(device=device)
    output, _ = flash_attention(query, key, value)
    grad = normal("grad", *output.shape, device=device)
    weights = (query @ key.mT * 11**-0.5).softmax(-1)
    exact = (weights * (grad @ value.mT)).sum(-1)
    assert_close((grad * output).sum(-1), exact, exact)


@is_causal_or_not
@proof.each_dtype
def test_gradient_through_the_logarithm(is_causal: bool, dtype: torch.dtype, device: str) -> None:
    case = Case("text", r=2)
    mask = causal(case.t, case.s, device) if is_causal else None
    query, key, value = case.inputs(dtype, device)

    def ours(query: Tensor, key: Tensor) -> Tensor:
        return flash_attention(query, key, value, is_causal=is_causal, block_q=2, block_k=3)[1]

    def formula(query: Tensor, key: Tensor) -> Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)
        return plain_lse(query.to(wide), key.to(wide), mask)

    found, peer = (proof.with_gradients(f, (query, key))[1] for f in (ours, formula))
    exact = proof.with_gradients(formula, (query.double(), key.double()))[1]
    for triple in zip(found, peer, exact, strict=True):
        assert_close(*triple, factor=GRADIENT_FACTOR)
    leaves = [x.clone().requires_grad_() for x in (query, key, value)]
    lse = flash_attention(*leaves, is_causal=is_causal)[1]
    assert not torch.autograd.grad(lse.sum(), leaves)[2].any()


def test_pieces_of_keys_add_up(device: str) -> None:
    case, options = Case("text", r=2, t=7, s=7), (0.3, 2, 3)
    query, key, value = case.inputs(device=device)
    output, lse = flash_forward(query, key, value, True, *options)
    grads = normal("o", *output.shape, device=device), normal("lse", *lse.shape, device=device)
    whole = flash_backward(*grads, query, key, value, output, lse, True, *options)
    # Two ranks with their queries and keys: each sees its own causally, and the second all of the first.
    dq, dks, dvs = torch.zeros_like(query), [], []
    for first, last in ((0, 4), (4, 7)):
        piece = key[:, :, first:last], value[:, :, first:last]
        sums = [torch.zeros_like(x) for x in piece]
        for start, stop in ((0, 4), (4, 7)):
            if start < first:
                continue
            at = slice(start, stop)
            of_queries = [x[:, :, at] for x in (*grads, query, output, lse)]
            inputs = (*of_queries[:3], *piece, *of_queries[3:])
            found = flash_backward(*inputs, start == first, *options)
            dq[:, :, at] += found[0]
            sums = [x + y for x, y in zip(sums, found[1:], strict=True)]
        dks.append(sums[0])
        dvs.append(sums[1])
    for found, exact in zip((dq, torch.cat(dks, 2), torch.cat(dvs, 2)), whole, strict=True):
        assert_close(found, exact, exact)


@is_causal_or_not
def test_gradcheck(is_causal: bool) -> None:
    case = Case("small", b=1, g=1, r=2, t=4, s=3, d=2, e=3)
    proof.assert_gradcheck(partial(flash_attention, is_causal=is_causal, block_q=3, block_k=2), case.inputs())


@pytest.mark.parametrize(("t", "s"), [(24, 24), (22, 24), (10, 24), (22, 13)])
def test_skipped_tiles_cost_nothing(t: int, s: int) -> None:
    case, tiles = Case("text", b=1, g=1, r=2, t=t, s=s, d=3, e=5), causal_tiles(t, s)
    inputs = [x.requires_grad_() for x in case.inputs()]
    output, lse = flash_attention(*inputs, is_causal=True, block_q=4, block_k=6)
    with Products() as seen:
        (output.sum() + lse.sum()).backward()
    scores = 2 * sum(tile.queries * tile.keys for tile in tiles)
    assert seen.operations == 2 * scores * (3 * 3 + 2 * 5)
    assert seen.masks == sum(tile.is_crossed for tile in tiles)


@is_causal_or_not
@proof.each_dtype
@pytest.mark.parametrize("largest", [1e1, 1e2, 1e3])
def test_as_exact_as_the_fused_kernel(
    is_causal: bool, dtype: torch.dtype, largest: float, device: str
) -> None:
    case = Case("text", r=2, t=17, s=17, d=16, e=16, largest_score=largest)
    inputs = inputs_of(case, dtype, device)
    mask = causal(case.t, case.s, device) if is_causal else None
    ours = attention(is_causal=is_causal, block_q=4, block_k=5)
    peer = partial(F.scaled_dot_product_attention, is_causal=is_causal, enable_gqa=True)
    found, fused = (proof.with_gradients(f, inputs)[1] for f in (ours, peer))
    exact = proof.with_gradients(partial(plain_attention, mask=mask), [x.double() for x in inputs])[1]
    for triple in zip(found, fused, exact, strict=True):
        assert_close(*triple, factor=GRADIENT_FACTOR)


def test_five_products_instead_of_four() -> None:
    case = Case("text", t=13, s=17, d=8, e=8)
    inputs = [x.requires_grad_() for x in case.inputs()]
    kept: list[Tensor] = []
    keep = torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x)
    with keep, Products() as forward:
        output, _ = flash_attention(*inputs, block_q=4, block_k=5)
    with Products() as backward:
        output.sum().backward()
    operations, numbers = flash_backward_cost(2, 3, 13, 17, 8, 8)
    assert backward.operations == operations
    assert sum(x.numel() for x in kept) == sum(x.numel() for x in inputs) + numbers
    with Products() as plain:
        plain_attention(*inputs).sum().backward()
    assert forward.operations / 2 == backward.operations / 5 == plain.operations / 6
    assert (forward.operations + backward.operations) / plain.operations == pytest.approx(1 + 1 / 6)


def test_one_number_is_rounded() -> None:
    assert torch.nextafter(torch.tensor(1e4), torch.tensor(2e4)) - 1e4 == 1 / 1024
    # Scores that float32 holds exactly, in many rows.
    scores = 1e4 + (normal("scores", 1000, 8) * 64).round() / 64
    exact = scores.softmax(-1)
    m = scores.amax(-1, keepdim=True)
    l = torch.exp(scores - m).sum(-1, keepdim=True)
    lse = (m + l.log()).float()
    one = torch.exp(scores.float() - lse).double()
    two = (torch.exp(scores.float() - m.float()) / l.float()).double()
    off = [((found - exact) / exact).abs().max().item() for found in (one, two)]
    assert 4e-4 < off[0] < 5e-4
    assert off[1] < 1e-6


def test_a_row_with_one_key(device: str) -> None:
    sizes = []
    for dtype in (torch.float64, torch.float32):
        inputs = [x.requires_grad_() for x in Case("one", t=33, s=1).inputs(dtype, device)]
        output, _ = flash_attention(*inputs)
        grad = normal("grad", *output.shape, dtype=dtype, device=device)
        sizes.append(torch.autograd.grad(output, inputs, grad)[0].abs().max().item())
    assert 0 < sizes[0] < 1e-14
    assert 1e-14 < sizes[1] < 1e-5


def test_a_rounded_output_enters_the_gradient(device: str) -> None:
    case = Case("text", t=17, s=17, d=16, e=16, largest_score=30.0)
    inputs = case.inputs(torch.bfloat16, device)
    options = False, 0.25, 8, 8
    wide = [x.float() for x in inputs]
    output, lse = flash_forward(*wide, *options)
    grad = normal("grad", *output.shape, dtype=torch.bfloat16, device=device)
    exact = flash_backward(grad.double(), torch.zeros_like(lse).double(), *(x.double() for x in inputs),
                           *flash_forward(*(x.double() for x in inputs), *options), *options)  # fmt: skip
    off = []
    for kept in (output.bfloat16(), output):
        found = flash_backward(grad.float(), torch.zeros_like(lse), *wide, kept, lse, *options)
        off.append((found[1].double() - exact[1]).abs().max())
    assert off[0] > 100 * off[1]


def test_not_twice_differentiable(device: str) -> None:
    inputs = [x.requires_grad_() for x in GROUPED.inputs(device=device)]
    output, _ = flash_attention(*inputs)
    with pytest.raises(RuntimeError, match="create_graph=True asks for a gradient of the gradient"):
        torch.autograd.grad(output.sum(), inputs[0], create_graph=True)


def test_the_same_bits_every_time(device: str) -> None:
    def gradients() -> tuple[Tensor, ...]:
        inputs = Case("text", r=2, t=65, s=65).inputs(torch.float32, device)
        return proof.with_gradients(partial(flash_attention, is_causal=True, block_q=16, block_k=8), inputs)[
            1
        ]

    assert all(torch.equal(x, y) for x, y in zip(gradients(), gradients(), strict=True))
