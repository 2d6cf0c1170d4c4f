"""The proof of `linear_features`: each test is a claim that its page makes."""

import math

import pytest
import torch
import torch.nn.functional as F
from tests import proof
from tests.proof import assert_close, normal
from torch import Tensor

from annotated_attention.linear_features import (
    elu_plus_one,
    positive_random_features,
    relu_features,
    taylor_features,
)


def luck(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(proof.SEED + seed)


def products(query: Tensor, key: Tensor, n: int, *, at_right_angles: bool = True) -> Tensor:
    """Of one query and one key: `n` maps of five features, drawn together, or each feature for itself."""
    if at_right_angles:
        # Every five rows of a large map are a small one, but for the root that all features are divided by.
        phi = positive_random_features(5, 5 * n, generator=luck())
        return n * (phi(query) * phi(key)).view(n, 5).sum(-1)
    w = torch.randn(n, 5, 5, generator=luck(), dtype=torch.float64)
    return (w @ (query + key) - (query @ query + key @ key) / 2).exp().mean(-1)


def pair(length: float) -> tuple[Tensor, Tensor]:
    """A query and a key of five numbers, whose sum has this length."""
    query, key = normal("query", 5), normal("key", 5)
    factor = length / (query + key).norm()
    return factor * query, factor * key


def test_the_exponential_has_no_finite_map() -> None:
    assert round(math.exp(5)) == 148
    for n in range(2, 8):
        x = torch.linspace(-2, 2, n, dtype=torch.float64)
        # Not merely more than 0: above what float64 could lose in n steps.
        assert torch.linalg.svdvals(torch.outer(x, x).exp())[-1] > 1e-9
        assert torch.linalg.matrix_rank(taylor_features(x[:, None]) @ taylor_features(x[:, None]).mT) <= 3


def test_small_features_are_not_rounded_away() -> None:
    x = torch.tensor([-20.0, -17.4, -1.0, 0.0, 1.0])
    written = F.elu(x) + 1
    assert (written == 0).tolist() == [True, True, False, False, False]
    exact = torch.where(x > 0, x.double() + 1, x.double().exp())
    assert ((elu_plus_one(x) - exact) / exact).abs().max() < 2**-23
    assert F.elu(torch.tensor(-17.3)) + 1 > 0


def test_the_slope_needs_only_the_features() -> None:
    def kept(phi) -> int:
        seen: dict[int, int] = {}

        def pack(y):
            seen[y.data_ptr()] = y.nbytes
            return y

        x = torch.randn(5, 7, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda y: seen.update({y.data_ptr(): y.nbytes}) or y, lambda y: y
        ):
            features = phi(x)
        torch.autograd.grad((features**2).sum(), x)
        return sum(size for place, size in seen.items() if place not in (x.data_ptr(), features.data_ptr()))

    assert kept(elu_plus_one) == 0
    assert kept(lambda x: x.clamp(max=0).exp() + x.relu()) == 2 * 5 * 7 * 4
    x = torch.linspace(-3, 3, 12).double().requires_grad_()
    assert torch.autograd.gradcheck(elu_plus_one, x)
    assert torch.autograd.gradgradcheck(elu_plus_one, x)


@proof.each_dtype
def test_the_slope_of_elu_has_no_step(dtype: torch.dtype, device: str) -> None:
    x = torch.tensor([-2.0, 0.0, 2.0, -1e4, 1e4], dtype=dtype, device=device, requires_grad=True)
    (slope,) = torch.autograd.grad(elu_plus_one(x).sum(), x)
    exact = torch.tensor([math.exp(-2), 1, 1, 0, 1], dtype=torch.float64, device=device)
    assert_close(slope, exact.to(dtype), exact)
    assert torch.autograd.gradcheck(elu_plus_one, normal("x", 3, 5).requires_grad_())


def test_relu_does_not_feel_a_scale() -> None:
    query, keys = normal("query", 5), normal("keys", 7, 5)
    weights = [relu_features(keys) @ relu_features(c * query) for c in (1, 10)]
    shares = [x / x.sum() for x in weights]
    assert_close(shares[1], shares[0], shares[0])
    weights = [elu_plus_one(keys) @ elu_plus_one(c * query) for c in (1, 10)]
    shares = [x / x.sum() for x in weights]
    assert (shares[1] - shares[0]).abs().max() > 0.01


@proof.each_dtype
def test_taylor_is_the_series(dtype: torch.dtype, device: str) -> None:
    query, key = normal("query", 3, 7, dtype=dtype, device=device), normal("key", 3, 7, device=device)
    key = key.to(dtype)
    score = (query.double() * key.double()).sum(-1)
    exact = 1 + score + score**2 / 2
    ours = (taylor_features(query.double()) * taylor_features(key.double())).sum(-1)
    assert_close(ours, exact, exact)
    assert taylor_features(query).shape == (3, 1 + 7 + 49)
    assert taylor_features(query).dtype == dtype
    assert (1 + 64 + 64**2, 1 + 16 + 16**2) == (4161, 273)


def test_taylor_is_at_least_a_half() -> None:
    x = torch.linspace(-9, 9, 181, dtype=torch.float64)[:, None]
    weights = taylor_features(x) @ taylor_features(torch.ones(1).double())
    assert_close(weights.min(), torch.tensor(0.5), torch.tensor(0.5).double())
    assert x[weights.argmin()].item() == pytest.approx(-1)


def test_taylor_turns_back() -> None:
    at = taylor_features(torch.tensor([[-4.0], [2.0], [-1.0]])) @ taylor_features(torch.ones(1))
    assert at.tolist() == pytest.approx([5, 5, 0.5])


def test_random_features_are_unbiased() -> None:
    query, key = pair(1.0)
    found = products(query, key, 100_000) / math.exp(query @ key)
    # Four of its own standard deviations, and those are small enough to mean something.
    off = found.std().item() / math.sqrt(len(found))
    assert off < 0.005
    assert abs(found.mean().item() - 1) < 4 * off


def test_the_error_is_as_derived() -> None:
    for length in (0.5, 1.0):
        query, key = pair(length)
        found = products(query, key, 100_000, at_right_angles=False) / math.exp(query @ key)
        for many in (1, 4, 16):  # and so 5, 20 and 80 features
            means = found[: len(found) // many * many].view(-1, many)
            derived = math.sqrt((math.exp(length**2) - 1) / (5 * many))
            assert means.mean(-1).std().item() == pytest.approx(derived, rel=0.05)


def test_right_angles_are_better() -> None:
    query, key = pair(1.0)
    together, alone = (products(query, key, 100_000, at_right_angles=right).std() for right in (True, False))
    assert 0.8 < together / alone < 0.95


def test_directions_are_normal_and_at_right_angles(device: str) -> None:
    # A map of unit vectors shows its directions: the logarithm is linear in them.
    phi = positive_random_features(4, 4000, generator=luck())
    eye = torch.eye(4, dtype=torch.float64, device=device)
    w = ((phi(eye) * 4000**0.5).log() + 0.5).mT
    assert w.mean(0).abs().max() < 0.1
    assert (w.mT @ w / 4000 - eye).abs().max() < 0.1
    blocks = w.view(1000, 4, 4)
    angles = blocks @ blocks.mT
    assert (angles - torch.diag_embed(angles.diagonal(dim1=1, dim2=2))).abs().max() < 1e-9
    # The fourth moment of a normal number is 3; of a coordinate of fixed length it is less.
    assert (w**4).mean().item() == pytest.approx(3, rel=0.1)


def test_millions_of_features() -> None:
    x = normal("many", 2, 10_000, 64) * 64**-0.25
    assert x.sum(0).square().sum(-1).mean().item() == pytest.approx(16, rel=0.01)
    assert (x[0] * x[1]).sum(-1).std().item() == pytest.approx(1, rel=0.02)
    assert round((math.exp(16) - 1) / 1e6, 1) == 8.9


def test_long_vectors_vanish() -> None:
    phi = positive_random_features(4, 64, generator=luck())
    long = torch.full((1, 4), 10.0)
    assert long.norm() == 20
    assert not phi(long).any()
    assert (phi(long.double()) > 0).all()


def test_a_map_is_drawn_once(device: str) -> None:
    maps = [positive_random_features(3, 7, generator=luck(n)) for n in (0, 0, 1)]
    x = normal("x", 2, 5, 3, device=device)
    first, again, other = (phi(x) for phi in maps)
    assert torch.equal(first, again)
    assert torch.equal(first, maps[0](x))
    assert not torch.equal(first, other)
    assert (first > 0).all()
    assert first.shape == (2, 5, 7)


def test_wrong_input_is_refused() -> None:
    for d, f in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match=f"d is {d}, n_features is {f}: at least 1 is wanted"):
            positive_random_features(d, f)
