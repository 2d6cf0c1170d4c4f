"""The proof of `linear_triton_kernels`, each kernel by itself."""

import sys

import pytest
import torch
from tests.proof import Case, assert_close, normal
from torch import Tensor

from annotated_attention.linear import elu_plus_one, state_of

triton = pytest.importorskip("triton", reason="needs Triton")

SIZES = {"T": 37, "H": 3, "F": 19, "E": 21, "U": 16, "BLOCK": 16, "KIND": "ieee"}
TEXT = Case("text", b=2, g=3, t=37, s=37, d=19, e=21)


def texts(device: str) -> tuple[Tensor, Tensor, Tensor]:
    """In the memory of the kernels, `b t h d`."""
    query, key, value = (x.transpose(1, 2).contiguous() for x in TEXT.inputs(torch.float32, device))
    return query, key, value


def walk(key: Tensor, value: Tensor, *more: Tensor | None, elu: bool = True) -> tuple[Tensor, Tensor]:
    from annotated_attention.linear_triton_kernels import state_kernel

    matrices, normalisers = (key.new_full((2, 3, 3, 19, *e), torch.nan) for e in ((21,), ()))
    given = (key, value, *(more or (None, None)), matrices, normalisers)
    state_kernel[6, 2, 2](*given, BACKWARDS=bool(more), ELU=elu, **SIZES)
    return matrices, normalisers


@pytest.mark.parametrize("elu", [True, False], ids=["elu", "features"])
def test_states_are_sums_before_each_chunk(elu: bool, device: str) -> None:
    _, key, value = texts(device)
    found = walk(key, value, elu=elu)
    _, k, v = TEXT.inputs(device=device)
    k = elu_plus_one(k) if elu else k
    for chunk in range(3):
        exact = state_of(k[:, :, : 16 * chunk], v[:, :, : 16 * chunk])
        peer = state_of(k[:, :, : 16 * chunk].float(), v[:, :, : 16 * chunk].float())
        for ours, *sums in zip(found, peer, exact, strict=True):
            assert_close(ours[:, :, chunk], *sums)


def test_states_from_the_other_end(device: str) -> None:
    query, _, grad = texts(device)
    total, shift = (normal(name, 2, 37, 3, device=device).float() for name in ("total", "shift"))
    total = total.abs() + 1
    found = walk(query, grad, total, shift)
    q, _, do = TEXT.inputs(device=device)
    q = elu_plus_one(q) / total.transpose(1, 2)[..., None].double()
    weighed = shift.transpose(1, 2)[..., None].double() * q
    for chunk in range(3):
        after = slice(16 * (chunk + 1), None)
        exact = state_of(q[:, :, after], do[:, :, after]).matrix, weighed[:, :, after].sum(2)
        peer = (
            state_of(q[:, :, after].float(), do[:, :, after].float()).matrix,
            weighed[:, :, after].float().sum(2),
        )
        for ours, *sums in zip(found, peer, exact, strict=True):
            assert_close(ours[:, :, chunk], *sums)


def test_what_is_not_there_adds_nothing(device: str) -> None:
    """A text is part of a longer one, of NaN, and each head of more: whoever looks beyond finds it."""
    _, key, value = texts(device)
    exact = walk(key, value)
    around = [torch.cat([x, torch.full_like(x, torch.nan)]).contiguous() for x in (key, value)]
    key, value = (x[:2] for x in around)
    for ours, same in zip(walk(key, value), exact, strict=True):
        assert torch.equal(ours, same)
        assert ours.isfinite().all()
    assert elu_plus_one(torch.tensor([-torch.inf, 0.0])).tolist() == [0, 1]


def test_without_triton_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for stem in ("linear_triton_kernels", "linear_triton_kernels_backward"):
        monkeypatch.delitem(sys.modules, f"annotated_attention.{stem}", raising=False)
        monkeypatch.setitem(sys.modules, "triton", None)
        with pytest.raises(ImportError, match=r'pip install "annotated-attention\[triton\]"'):
            __import__(f"annotated_attention.{stem}")
