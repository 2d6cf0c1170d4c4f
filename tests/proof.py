"""What every mechanism's proof is made of: named random inputs, the cases, the plain formula, the comparison.

A test reads as a claim. `each_case`, `each_dtype` and `each_mask` spread it over the cases; `assert_agrees`
holds a function and its gradients against a peer in the same dtype and against an oracle in float64.
"""

import inspect
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from coursekit import numerics
from coursekit.numerics import GRADIENT_FACTOR, OUTPUT_FACTOR

SEED = 2108_12409

# Every comparison of the running test, as (error, bound); `conftest.py` hands them to the test's report.
measured: list[tuple[float, float]] = []


def normal(name: str, *shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    """Standard normal numbers. The name chooses the stream, so `query` and `key` of one shape differ, and
    each is the same in every test, dtype and device (up to the rounding of the dtype)."""
    generator = torch.Generator().manual_seed(SEED + zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


@dataclass(frozen=True)
class Case:
    """One set of sizes. Independent axes are distinct primes, so that no axis can stand in for another by
    accident; `g * r` query heads share `g` key heads."""

    name: str
    b: int = 2
    g: int = 3
    r: int = 1
    t: int = 5
    s: int = 7
    d: int = 11
    e: int = 13
    strided: bool = False
    largest_score: float | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def h(self) -> int:
        return self.g * self.r

    def inputs(
        self, dtype: torch.dtype = torch.float64, device: str = "cpu"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query `b h t d`, key `b g s d` and value `b g s e`."""
        query = normal("query", self.b, self.h, self.t, self.d)
        key = normal("key", self.b, self.g, self.s, self.d)
        value = normal("value", self.b, self.g, self.s, self.e)
        if self.largest_score is not None:
            scores = query @ key.repeat_interleave(self.r, 1).mT * self.d**-0.5
            query = query * (self.largest_score / scores.abs().max())
        query, key, value = (x.to(device, dtype) for x in (query, key, value))
        return (apart(query), apart(key), apart(value)) if self.strided else (query, key, value)


def apart(tensor: Tensor) -> Tensor:
    """The same `b h t d` numbers in the memory of a fused projection, `b t h 2*d`, of which every other one
    belongs to us. The rest is NaN: who reads past a stride shows it."""
    b, h, t, d = tensor.shape
    memory = tensor.new_full((b, t, h, 2 * d), float("nan"))
    return memory[..., ::2].transpose(1, 2).copy_(tensor)


CASES = [
    Case("t=s", t=7, s=7),
    Case("t<s"),
    Case("t>s", t=7, s=5),
    Case("t=1", t=1),
    Case("s=1", s=1),
    Case("strided", strided=True),
    Case("empty-batch", b=0),
    Case("large-scores", largest_score=1e4),
]
SQUARE = CASES[0]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
MASKS = [
    *["bool-rank-2", "bool-rank-3", "bool-rank-4", "float-rank-2", "float-rank-3", "float-rank-4"],
    *["bool-empty-rows", "float-empty-rows"],
]

each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
each_mask = pytest.mark.parametrize("mask_kind", MASKS)


def draw_mask(kind: str, case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    """A mask of one of the kinds in `MASKS`. True means attend; a float mask is added to the scores and holds
    both finite numbers and -inf. Of `empty-rows` every other row, from the first, allows no key at all."""
    form, _, what = kind.partition("-")
    shapes = {"rank-2": (), "rank-3": (case.h,), "rank-4": (case.b, case.h), "empty-rows": (case.b, case.h)}
    shape = (*shapes[what], case.t, case.s)
    allowed = normal("mask", *shape) < 0.5
    allowed |= ~allowed.any(-1, keepdim=True)
    if what == "empty-rows":
        allowed[..., ::2, :] = False
    if form == "bool":
        return allowed.to(device)
    return normal("bias", *shape).masked_fill(~allowed, float("-inf")).to(device, dtype)


def masked(function: Callable[..., Any], mask: Tensor) -> Callable[..., Any]:
    """`function(query, key, value, mask)` of three arguments; a float mask takes the dtype of the query."""

    def call(query: Tensor, key: Tensor, value: Tensor) -> Any:
        return function(query, key, value, mask if mask.dtype == torch.bool else mask.to(query.dtype))

    return call


def causal(t: int, s: int, device: str = "cpu") -> Tensor:
    """The boolean mask of `is_causal`, aligned top-left: query `i` sees keys `j <= i`."""
    return torch.ones(t, s, dtype=torch.bool, device=device).tril()


def flex_with_lse(*inputs: Tensor, **options: Any) -> Any:
    """FlexAttention's output and logarithm, asked for as this PyTorch wants it: `AuxRequest` is there since 2.9."""
    from torch.nn.attention import flex_attention as flex

    if hasattr(flex, "AuxRequest"):
        output, aux = flex.flex_attention(*inputs, return_aux=flex.AuxRequest(lse=True), **options)
        return output, aux.lse
    return flex.flex_attention(*inputs, return_lse=True, **options)


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """The formula as on paper, with the whole matrix of scores: the oracle on float64 inputs, and the peer
    where PyTorch has no such mechanism. Below float32 it computes in float32 and rounds once, at the end. A
    float mask is added at the wider precision, so a bias need not be rounded to the dtype of the query."""
    wide = torch.promote_types(query.dtype, torch.float32)
    repeat = query.shape[1] // key.shape[1]
    q, k, v = query.to(wide), key.to(wide), value.to(wide)
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = q @ k.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        scores = scores + mask.to(wide)
    empty = (scores == float("-inf")).all(-1, keepdim=True)
    weights = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    return (weights @ v).to(query.dtype)


def assert_close(
    ours: Any,
    peer: Any,
    oracle: Any,
    *,
    factor: float = OUTPUT_FACTOR,
    dtype: torch.dtype | None = None,
    what: str = "the result",
) -> None:
    """Our error against the float64 oracle is at most `factor` times the peer's, plus two roundings.

    Where float64 itself is under test, the oracle is rounded as often as our answer is, and either may be the
    one that is off: eight units in the last place of its largest value are allowed for that.
    """
    result = numerics.measure(ours, peer, oracle, dtype=dtype, factor=factor)
    if (ours.dtype if dtype is None else dtype) in (torch.float64, np.float64):
        largest = np.abs(numerics.to_float64(oracle)).max(initial=0.0)
        result = replace(result, bound=result.bound + 8 * float(np.spacing(largest)))
    measured.append((result.error, result.bound))
    assert result.passed, (
        f"{what} is off by {result.error:.3g} at {result.index}, "
        f"{result.ratio:.3g} times the bound of {result.bound:.3g} (seed {SEED})"
    )


def bare(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a reader has it, without the shape checks that `conftest.py` puts around it: to see its
    own errors, and for compilers that cannot look through the checks."""
    return inspect.unwrap(function)


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def with_gradients(
    function: Callable[..., Any], inputs: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The outputs of `function`, and the gradients at `inputs` of a random projection of all outputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = as_tuple(function(*leaves))
    upstream = [
        normal(f"upstream {n}", *x.shape, dtype=x.dtype, device=str(x.device)) for n, x in enumerate(outputs)
    ]
    return tuple(x.detach() for x in outputs), torch.autograd.grad(outputs, leaves, upstream)


def assert_agrees(
    ours: Callable[..., Any],
    peer: Callable[..., Any],
    inputs: Sequence[Tensor],
    *,
    oracle: Callable[..., Any] | None = None,
    names: Sequence[str] = ("query", "key", "value"),
) -> None:
    """Outputs within factor 2 and gradients within factor 3 of the peer's error; with gradients switched off,
    the same outputs to the last bit. The oracle is `oracle` (by default the peer) on the same inputs in
    float64. What the functions close over, such as a mask, must suit both dtypes: see `masked`."""
    results, gradients = with_gradients(ours, inputs)
    peer_results, peer_gradients = with_gradients(peer, inputs)
    exact_results, exact_gradients = with_gradients(oracle or peer, [x.double() for x in inputs])
    for n, triple in enumerate(zip(results, peer_results, exact_results, strict=True)):
        assert triple[0].dtype == triple[1].dtype
        assert_close(*triple, what=f"output {n}")
    for name, *triple in zip(names, gradients, peer_gradients, exact_gradients, strict=True):
        assert_close(*triple, factor=GRADIENT_FACTOR, what=f"the gradient at {name}")
    with torch.no_grad():
        quiet = as_tuple(ours(*inputs))
    same = [torch.equal(x, y) for x, y in zip(quiet, results, strict=True)]
    assert all(same), "the output depends on whether gradients are wanted"


def assert_gradcheck(function: Callable[..., Any], inputs: Sequence[Tensor]) -> None:
    """The analytic gradients in float64 equal finite differences."""
    assert torch.autograd.gradcheck(function, [x.detach().double().requires_grad_() for x in inputs])


def changed(tensor: Tensor, dim: int, start: int, stop: int | None = None) -> Tensor:
    """A copy with other numbers at positions `start:stop` of `dim`: what may not see them must not move."""
    copy = tensor.clone()
    part = copy.narrow(dim, start, (tensor.shape[dim] if stop is None else stop) - start)
    part += 1 + normal("change", *part.shape, dtype=tensor.dtype, device=str(tensor.device)).abs()
    return copy
