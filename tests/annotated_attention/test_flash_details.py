"""What the proofs of `flash` and its parts are made of, and the claims that their pages need not make."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from tests.proof import Case, apart, assert_close, changed, plain_attention, with_gradients
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from annotated_attention.flash import flash_attention

# Six query heads on three of keys and values, more keys than queries, values of another width.
GROUPED = Case("grouped", r=2)
is_causal_or_not = pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])


def attention(**options: Any) -> Callable[..., Tensor]:
    """Flash attention without its logarithm."""
    return lambda *inputs: flash_attention(*inputs, **options)[0]


def plain_lse(query: Tensor, key: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    return (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).logsumexp(-1)


def of_one_vector(function: Callable[..., Any], case: Case, like: tuple[Tensor, ...]) -> Callable[..., Any]:
    """The same as a function of all inputs in one vector, so that their gradients are one vector as well: where a
    query has a single key its gradient is 0, and has no size by which an error could be measured."""

    def call(vector: Tensor) -> Any:
        parts = vector.split([x.numel() for x in like])
        inputs = [part.view(x.shape) for part, x in zip(parts, like, strict=True)]
        return function(*map(apart, inputs) if case.strided else inputs)

    return call


def one_vector(inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [torch.cat([x.flatten() for x in inputs])]


def assert_lse(found: Tensor, peer: Tensor, exact: Tensor, **options: Any) -> None:
    """Close where there are keys, and minus infinity where there are none."""
    here = exact.isfinite()
    assert torch.equal(found[~here].double(), exact[~here].double())
    assert_close(found[here], peer[here], exact[here], **options)


class Tile(NamedTuple):
    """One that a causal pass with tiles of 4 by 6 cannot do without."""

    queries: int
    keys: int
    is_crossed: bool


def causal_tiles(t: int, s: int) -> list[Tile]:
    """A tile is needed if its last query sees its first key, and as far as that one sees. The diagonal crosses it
    if its first query does not see the last of these keys."""
    tiles = []
    for i in range(0, t, 4):
        last = min(i + 4, t) - 1
        for j in range(0, min(s, last + 1), 6):
            end = min(j + 6, s, last + 1)
            tiles.append(Tile(last + 1 - i, end - j, end - 1 > i))
    return tiles


class Products(TorchDispatchMode):
    """Every matrix product of a batch: how many operations, and how large the second factor. And every mask."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.read = self.masks = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("bmm", "baddbmm", "baddbmm_"):
            left, right = args[-2:]
            self.operations += 2 * left.numel() * right.shape[-1]
            self.read += right.numel()
        self.masks += name in ("masked_fill_", "tril_")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dim", [0, 1], ids=["batch", "heads"])
def test_neighbours_move_nothing(dim: int, device: str) -> None:
    inputs = Case("text", t=7, s=7).inputs(torch.float32, device)
    before = flash_attention(*inputs, block_q=2, block_k=3)
    after = flash_attention(*(changed(x, dim, 1, 2) for x in inputs), block_q=2, block_k=3)
    for old, new in zip(before, after, strict=True):
        moved = (old != new).transpose(0, dim).flatten(1).any(1)
        assert moved.tolist() == [n == 1 for n in range(old.shape[dim])]


@pytest.mark.parametrize("scale", [0.0, 0.3, -1.0])
def test_scale_is_that_of_pytorch(scale: float, device: str) -> None:
    inputs = GROUPED.inputs(device=device)
    output, lse = flash_attention(*inputs, scale=scale, block_q=2, block_k=3)
    exact = plain_attention(*inputs, scale=scale)
    assert_close(output, exact, exact)
    exact = plain_lse(*inputs[:2], scale=scale)
    assert_close(lse, exact, exact)
    ways = attention(scale=scale, block_q=2, block_k=3), lambda *x: plain_attention(*x, scale=scale)
    for found, exact in zip(*(with_gradients(f, inputs)[1] for f in ways), strict=True):
        assert_close(found, exact, exact)


def test_inputs_are_left_alone(device: str) -> None:
    inputs = [x.requires_grad_() for x in GROUPED.inputs(device=device)]
    before = [x.detach().clone() for x in inputs]
    output, lse = flash_attention(*inputs, is_causal=True, block_q=2, block_k=3)
    (output.sum() + lse.sum()).backward()
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


@pytest.mark.parametrize("wanted", range(3), ids=["query", "key", "value"])
def test_one_gradient_alone_is_the_same(wanted: int, device: str) -> None:
    def gradients(which: list[int]) -> dict[int, Tensor]:
        inputs = GROUPED.inputs(device=device)
        for n in which:
            inputs[n].requires_grad_()
        output = flash_attention(*inputs, is_causal=True, block_q=2, block_k=3)[0]
        found = torch.autograd.grad(output.square().sum(), [inputs[n] for n in which])
        return dict(zip(which, found, strict=True))

    assert torch.equal(gradients([wanted])[wanted], gradients([0, 1, 2])[wanted])
