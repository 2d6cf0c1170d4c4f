"""What the proof of `rotary` is measured by, and the claims that hold for every attention."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from tests import proof
from tests.proof import Case, causal, changed, normal, plain_attention
from torch import Tensor

from annotated_attention.language_model import LanguageModel, LanguageModelConfig, SelfAttention
from annotated_attention.multi_head import split_heads
from annotated_attention.rotary import apply_rotary, rotary_angles, rotary_attention

D = 22  # an even width: 11 pairs
CASES = [replace(case, d=D) for case in proof.CASES]
each_layout = pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "neighbours"])
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def theta(d: int, base: float = 10000.0) -> Tensor:
    return torch.tensor([base ** (-2 * p / d) for p in range(d // 2)], dtype=torch.float64)


def complex_turn(x: Tensor, positions: Tensor, interleaved: bool = False, dtype=torch.complex128) -> Tensor:
    """Every pair times exp(i position theta), with complex numbers."""
    d, real = x.shape[-1], torch.float64 if dtype == torch.complex128 else torch.float32
    angles = positions.double()[..., None, :, None] * theta(d).to(x.device)
    y = x.to(real)
    first, second = (y[..., ::2], y[..., 1::2]) if interleaved else (y[..., : d // 2], y[..., d // 2 :])
    z = torch.complex(first, second) * torch.exp(1j * angles).to(dtype)
    return torch.stack([z.real, z.imag], -1 if interleaved else -2).flatten(-2)


def plain_rotary(query: Tensor, key: Tensor, value: Tensor, offset: int = 0) -> Tensor:
    """The oracle on float64, the peer below: turned in float32 or wider, rounded, plain attention."""
    i = torch.arange(offset, offset + query.shape[2], device=query.device)
    j = torch.arange(key.shape[2], device=query.device)
    kind = torch.complex128 if query.dtype == torch.float64 else torch.complex64
    q, k = (complex_turn(x, at, dtype=kind).to(x.dtype) for x, at in ((query, i), (key, j)))
    return plain_attention(q, k, value, j <= i[:, None])


def ours(query: Tensor, key: Tensor, value: Tensor, offset: int = 0) -> Tensor:
    i = torch.arange(offset, offset + query.shape[2], device=query.device)
    return rotary_attention(query, key, value, i, torch.arange(key.shape[2], device=query.device))


def turn(x: Tensor, position: float, **options: float) -> Tensor:
    """One vector, or rows of them, at one position."""
    angles = rotary_angles(torch.tensor([position], device=x.device), x.shape[-1], **options)
    return apply_rotary(x.reshape(1, -1, 1, x.shape[-1]), angles).reshape(x.shape)


def matrix(position: float, d: int = D) -> Tensor:
    """The matrix of blocks, entry by entry, on neighbouring dimensions."""
    result = torch.zeros(d, d, dtype=torch.float64)
    for p, angle in enumerate(position * theta(d)):
        c, s = angle.cos(), angle.sin()
        result[2 * p : 2 * p + 2, 2 * p : 2 * p + 2] = torch.tensor([[c, -s], [s, c]])
    return result


class GrowingCache:
    """The smallest cache: everything is kept."""

    def __init__(self) -> None:
        self.held: list[tuple[Tensor, Tensor]] = []

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self.held.append((key, value))
        keys, values = zip(*self.held, strict=True)
        return torch.cat(keys, 2), torch.cat(values, 2)

    @property
    def positions(self) -> Tensor:
        return torch.arange(sum(key.shape[2] for key, _ in self.held))

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for pair in self.held for x in pair)


def authors_yarn(d: int, f: float, length: int, base: float, fast: float, slow: float) -> Tensor:
    """Pair by pair: inverse frequencies blended by a mask that is linear in the index."""
    ends = [d * math.log(length / (2 * math.pi * turns)) / (2 * math.log(base)) for turns in (fast, slow)]
    low, high = max(math.floor(ends[0]), 0), min(math.ceil(ends[1]), d - 1)
    result = []
    for p in range(d // 2):
        interpolated = min(max((p - low) / (high - low if high > low else 0.001), 0), 1)
        wavelength = base ** (2 * p / d)
        result.append(interpolated / (f * wavelength) + (1 - interpolated) / wavelength)
    return torch.tensor(result, dtype=torch.float64)


def scores(x: Tensor, w_q: Tensor, w_k: Tensor, interleaved: bool) -> Tensor:
    angles = rotary_angles(torch.arange(x.shape[1]), w_q.shape[0] // 3)
    q, k = (apply_rotary(split_heads(x @ w.T, 3), angles, interleaved=interleaved) for w in (w_q, w_k))
    return q @ k.mT


def rotary_model() -> LanguageModel:
    """Two layers of lesson 3's model, with rotary attention in the slot and no other positions."""
    config = LanguageModelConfig(
        vocab_size=31,
        d_model=24,
        n_layers=2,
        n_heads=3,
        position_embedding="none",
        make_attention=lambda c, layer: SelfAttention(c.d_model, c.n_heads, attend=rotary_attention),
    )
    torch.manual_seed(0)
    return LanguageModel(config).double()


@each_layout
def test_gradcheck(interleaved: bool) -> None:
    angles = rotary_angles(torch.arange(3), 4)
    x = normal("x", 2, 1, 3, 6)
    proof.assert_gradcheck(partial(apply_rotary, interleaved=interleaved), [x, angles])
    proof.assert_gradcheck(partial(ours, offset=2), Case("small", b=1, g=2, t=3, s=5, d=4, e=3).inputs())


def test_options_are_passed_on() -> None:
    query, key, value = Case("square", t=7, s=7, d=D, e=D).inputs()
    at, frequencies = torch.arange(7), theta(D, 500.0)
    q, k = (apply_rotary(x, at[:, None] * frequencies) for x in (query, key))
    exact = plain_attention(q, k, value, causal(7, 7))
    for options in ({"base": 500.0}, {"frequencies": frequencies}):
        result = rotary_attention(query, key, value, at, at, **options)
        proof.assert_close(result, exact, exact)
    seen = rotary_attention(query, key, value, at, at, base=500.0, attend=lambda *inputs: inputs[0])
    proof.assert_close(seen, q, q)


@pytest.mark.parametrize("start", range(1, 7))
def test_future_moves_nothing(start: int, device: str) -> None:
    query, key, value = Case("square", t=7, s=7, d=D).inputs(torch.float32, device)
    after = ours(query, changed(key, 2, start), changed(value, 2, start))
    moved = (ours(query, key, value) != after).any(-1)
    assert (moved == (torch.arange(7, device=device) >= start)).all()


@pytest.mark.parametrize("dim", [0, 1], ids=["batch", "heads"])
def test_neighbours_move_nothing(dim: int, device: str) -> None:
    inputs = Case("square", t=7, s=7, d=D).inputs(torch.float32, device)
    after = ours(*(changed(x, dim, 1, 2) for x in inputs))
    moved = (ours(*inputs) != after).transpose(0, dim).flatten(1).any(1)
    assert moved.tolist() == [n == 1 for n in range(inputs[0].shape[dim])]


def test_turns_add_up(device: str) -> None:
    # By any angles: other positions, or other frequencies.
    x = normal("x", 2, 3, 7, D, device=device)
    old, new = (normal(name, 7, D // 2, device=device) for name in ("old", "new"))
    exact = apply_rotary(x, new)
    proof.assert_close(apply_rotary(apply_rotary(x, old), new - old), exact, exact)


def test_small_turns_are_lost(device: str) -> None:
    x, at = normal("x", 1, 3, 70, 128, device=device).bfloat16(), torch.ones(70, device=device)
    turned = x
    for _ in range(400):
        turned = apply_rotary(turned, rotary_angles(at, 128))
    at_once, exact = (apply_rotary(y, rotary_angles(400 * at, 128)) for y in (x, x.double()))
    errors = [(y.double() - exact).norm() for y in (turned, at_once)]
    assert float(errors[0] / errors[1]) == pytest.approx(120, rel=0.1)
    # The slow pairs come less than half the way.
    before, after = (torch.complex(*y.double().unflatten(-1, (2, 64)).unbind(-2)) for y in (x, turned))
    way = (after * before.conj()).sum((0, 1, 2)).angle().cpu()
    slow = theta(128) < 2**-9
    assert (way < 400 * theta(128) / 2)[slow].all()


@proof.each_dtype
def test_places_in_memory_do_not_matter(dtype: torch.dtype, device: str) -> None:
    """A cache that overwrites its oldest keys, beside one with empty places; the latter's first query stands
    before every key."""
    inputs = Case("caches", t=5, s=11, d=D).inputs(dtype, device)
    i = torch.tensor([range(20, 25), range(-1, 4)], device=device)
    j = torch.tensor([[*range(22, 25), *range(14, 22)], [*range(4), *[-1] * 7]], device=device)
    allowed = ((j[:, None] >= 0) & (j[:, None] <= i[..., None]))[:, None]

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        kind = torch.complex128 if query.dtype == torch.float64 else torch.complex64
        q, k = (complex_turn(x, at, dtype=kind).to(x.dtype) for x, at in ((query, i), (key, j)))
        return plain_attention(q, k, value, allowed)

    attend = partial(rotary_attention, i=i, j=j)
    proof.assert_agrees(attend, plain, inputs)
    assert (attend(*inputs)[1, :, 0] == 0).all()
    # Whatever stands in the empty places.
    others = [torch.cat([x[:1], changed(x[1:], 2, 4)]) for x in inputs[1:]]
    assert torch.equal(attend(inputs[0], *others), attend(*inputs))
