"""The format between the two processes: everything arrives as it was sent, nothing else is accepted."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coursekit.grading import wire
from coursekit.grading.values import BFLOAT16, DTYPES, Other, Reference, dtype_name, plain


def there_and_back(value):
    return wire.receive(io.BytesIO(wire.encode({"value": value})), inputs=True)["value"]


SIMPLE = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())
NESTED = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(), inner, max_size=3),
    ),
    max_leaves=8,
)


@given(NESTED)
def test_python_values_arrive_as_they_were(value):
    assert there_and_back(value) == value


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (2, 0, 5)])
def test_arrays_of_every_dtype_arrive_bit_for_bit(name: str, shape: tuple[int, ...]):
    array = np.asarray(np.random.default_rng(0).normal(size=shape) * 9).astype(DTYPES[name])
    found = there_and_back(array)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_stay_tensors(dtype: torch.dtype):
    tensor = torch.randn(3, 4).to(dtype)
    found = there_and_back(tensor)
    assert isinstance(found, torch.Tensor)
    assert found.dtype == dtype
    assert torch.equal(found, tensor)


def test_the_order_of_the_axes_and_the_wish_for_a_gradient_are_kept():
    tensor = torch.randn(2, 3, 5).permute(2, 0, 1).requires_grad_()
    found = there_and_back(tensor)
    assert torch.equal(found, tensor)
    assert found.stride() == tensor.stride()
    assert found.requires_grad


def test_bfloat16_answers_remember_their_dtype():
    answer = plain(torch.tensor([1.5, -2.25], dtype=torch.bfloat16))
    found = there_and_back(answer)
    assert dtype_name(found) == dtype_name(answer) == "bfloat16"
    assert found.dtype == BFLOAT16 == np.float32
    assert found.tolist() == [1.5, -2.25]


def test_references_other_things_and_dtypes_arrive():
    for value in (Reference(3), Other("generator"), torch.bfloat16, 1 + 2j, float("-inf")):
        assert there_and_back(value) == value
    assert np.isnan(there_and_back(float("nan")))


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ({"dict": [["a", {"array": ["object", [1], [0]]}]]}, b"12345678"),
        ({"dict": [["a", {"array": ["float64", [2], [0]]}]]}, b"12345678"),
        ({"dict": [["a", {"array": ["float64", [-1], [0]]}]]}, b""),
        ({"dict": [["a", {"array": ["float64", [1 << 62, 1 << 62], [0, 1]]}]]}, b""),
        ({"dict": [["a", {"array": ["float64", [1], [7]]}]]}, b"12345678"),
        ({"dict": [["a", {"array": ["float64", [1.0], [0]]}]]}, b"12345678"),
        ({"dict": [["a", {"pickle": "gASVAAAA"}]]}, b""),
        ({"dict": [[["a"], 1]]}, b""),
        ({"dict": [["a", {"dtype": "__class__"}]]}, b""),
        ({"dict": [["a", 1]]}, b"left over"),
        ({"list": []}, b""),
        (3, b""),
        ([1], b""),
    ],
)
def test_malformed_messages_are_refused(header, body: bytes):
    with pytest.raises(wire.WireError):
        wire.decode(json.dumps(header).encode(), body)


@given(st.binary(max_size=200), st.binary(max_size=64))
def test_no_bytes_do_more_than_raise_a_wire_error(header: bytes, body: bytes):
    with contextlib.suppress(wire.WireError):
        wire.decode(header, body)


def test_deep_and_long_messages_are_refused():
    with pytest.raises(wire.WireError):
        wire.decode(b'{"list": [' * 500 + b"]}" * 500, b"")
    with pytest.raises(wire.WireError, match="too long"):
        wire.receive(io.BytesIO(wire.PREFIX.pack(10, wire.BODY_LIMIT + 1)))
    with pytest.raises(EOFError):
        wire.receive(io.BytesIO(wire.encode({"a": 1})[:-1]))
