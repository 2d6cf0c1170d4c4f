"""The proof of `rotary`: each test is a claim that its page makes."""

import torch
from tests.proof import Case, assert_close, normal, plain_attention
from torch import Tensor

from annotated_attention.rotary import (
    apply_rotary,
    half_split_order,
    rotary_angles,
    rotary_attention,
    rotary_frequencies,
)


def turned(x: Tensor, positions: Tensor, *, base: float = 10000.0) -> Tensor:
    """Interleaved pairs as complex numbers, in float64."""
    d = x.shape[-1]
    theta = torch.tensor([base ** (-2 * k / d) for k in range(d // 2)], dtype=torch.float64, device=x.device)
    turn = torch.exp(1j * positions.double()[:, None] * theta)
    return torch.view_as_real(torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * turn).flatten(-2)


def test_interleaved_is_complex_multiplication(device: str) -> None:
    x, positions = normal("x", 2, 3, 7, 22, device=device), torch.arange(4, 11, device=device)
    exact = turned(x, positions)
    assert_close(apply_rotary(x, rotary_angles(positions, 22), interleaved=True), exact, exact)


def test_half_split_is_a_permutation(device: str) -> None:
    x, order = normal("x", 2, 3, 7, 22, device=device), half_split_order(22, device=device)
    angles = rotary_angles(torch.arange(7, device=device), 22)
    split = apply_rotary(x[..., order], angles)
    assert torch.equal(split, apply_rotary(x, angles, interleaved=True)[..., order])


def test_attention(device: str) -> None:
    query, key, value = Case("t<s", d=22).inputs(device=device)
    i, j = torch.arange(2, 7, device=device), torch.arange(7, device=device)
    order = half_split_order(22, device=device).argsort()
    mask = j[None] <= i[:, None]
    exact = plain_attention(turned(query[..., order], i), turned(key[..., order], j), value, mask)
    assert_close(rotary_attention(query, key, value, i, j), exact, exact)


def test_frequencies() -> None:
    assert rotary_frequencies(4).tolist() == [1.0, 0.01]
