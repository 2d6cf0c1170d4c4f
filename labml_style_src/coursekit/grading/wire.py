"""Messages between the grader and the student's process: a JSON header, then the raw bytes of the arrays.

    4 bytes header length | 8 bytes body length | header (UTF-8 JSON) | body

In the header an array is `{"array": [dtype, shape, order]}` and stands for the next bytes of the body;
`order` lists its axes from the slowest in memory to the fastest. Nothing is ever unpickled: a dtype that is
not in `values.DTYPES`, a length beyond the limit or bytes left over make a `WireError`.

Towards the student's process (`inputs=True` where it reads) there are tensors and dtypes too. What comes back
is read by the grader, so it may hold plain values and arrays only, and whatever the bytes are, reading them
takes time and memory in proportion to their number.
"""

import json
import math
import struct
from collections.abc import Iterator
from typing import IO, Any, Protocol

import numpy as np

from coursekit.grading import values
from coursekit.grading.values import BFLOAT16, DTYPES, Other, Reference, dtype_name, is_tensor

PREFIX = struct.Struct("<IQ")
HEADER_LIMIT = 1 << 20
# The longest answer of a lesson's solution has 25 KB, the longest input 110 KB. A check keeps its answers until
# the next one begins, and it is the grader's memory that they take.
BODY_LIMIT = 1 << 22
AXES_LIMIT = 16
# Larger whole numbers could be chosen so that all have one hash: a dict of them takes seconds to fill.
KEY_LIMIT = 1 << 60


class Source(Protocol):
    """Where bytes come from: at most so many at a time, none at the end."""

    def read(self, length: int, /) -> bytes: ...


class WireError(Exception):
    """The bytes are not a message of this format."""


def send(stream: IO[bytes], message: dict[str, Any]) -> None:
    """Write one message. Raises `WireError` if it is longer than the format allows."""
    stream.write(encode(message))
    stream.flush()


def receive(stream: Source, *, inputs: bool = False) -> dict[str, Any]:
    """Read one message. Raises `EOFError` if the stream ends first, `WireError` if it is malformed."""
    header_length, body_length = PREFIX.unpack(_exactly(stream, PREFIX.size))
    _check_lengths(header_length, body_length)
    return decode(_exactly(stream, header_length), _exactly(stream, body_length), inputs=inputs)


def encode(message: dict[str, Any]) -> bytes:
    buffers: list[bytes] = []
    header = json.dumps(_described(message, buffers)).encode()
    body = b"".join(buffers)
    _check_lengths(len(header), len(body))
    return PREFIX.pack(len(header), len(body)) + header + body


def decode(header: bytes | bytearray, body: bytes | bytearray, *, inputs: bool = False) -> dict[str, Any]:
    view = _Body(body, _KINDS | _INPUT_KINDS if inputs else _KINDS)
    try:
        message = _restored(json.loads(header), view, 0)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise WireError(f"malformed message: {type(error).__name__}") from None
    if view.rest or not isinstance(message, dict):
        raise WireError("malformed message: bytes left over" if view.rest else "malformed message")
    return message


def _check_lengths(header: int, body: int) -> None:
    if header > HEADER_LIMIT or body > BODY_LIMIT:
        raise WireError(f"the message is too long: {header} + {body} bytes")


def _exactly(stream: Source, length: int) -> bytearray:
    """So many bytes. Room is made as they come: a length that was only claimed costs nothing."""
    found = bytearray()
    while len(found) < length:
        part = stream.read(min(length - len(found), 1 << 20))
        if not part:
            raise EOFError
        found += part
    return found


def _described(value: Any, buffers: list[bytes], depth: int = 0) -> Any:
    """The JSON form of a value; the bytes of its arrays go to `buffers` in order."""
    if depth > values.DEPTH_LIMIT + 5:
        raise WireError("nested too deeply")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_described(part, buffers, depth + 1) for part in value]}
    if isinstance(value, dict):
        pairs = [[_key(key), _described(part, buffers, depth + 1)] for key, part in value.items()]
        return {"dict": pairs}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, Reference):
        return {"reference": value.number}
    if isinstance(value, Other):
        return {"other": value.kind}
    if is_tensor(value):
        import torch

        name = str(value.dtype).removeprefix("torch.")
        bits = value.detach().cpu()
        bits = bits.view(torch.uint16) if name == "bfloat16" else bits
        kind = "leaf" if value.requires_grad else "tensor"
        return {kind: _array(bits.resolve_conj().resolve_neg().numpy(), name, buffers)}
    if isinstance(value, np.ndarray):
        name = dtype_name(value)
        bits = (value.view(np.uint32) >> 16).astype(np.uint16) if name == "bfloat16" else value
        return {"array": _array(bits, name, buffers)}
    text = str(value)
    if text.startswith("torch.") and text.removeprefix("torch.") in {*DTYPES, "bfloat16"}:
        return {"dtype": text.removeprefix("torch.")}
    raise WireError(f"a {type(value).__name__} cannot be sent")


def _key(key: Any) -> str | int:
    if not isinstance(key, str | int):
        raise WireError(f"a dict's keys must be text or whole numbers, not {type(key).__name__}")
    if isinstance(key, int) and abs(key) > KEY_LIMIT:
        raise WireError(f"whole numbers as a dict's keys must lie within {KEY_LIMIT}")
    return key


def _array(array: np.ndarray, name: str, buffers: list[bytes]) -> list[Any]:
    if name not in {*DTYPES, "bfloat16"}:
        raise WireError(f"an array of {name} cannot be sent")
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    buffers.append(np.ascontiguousarray(array.transpose(order)).tobytes())
    return [name, list(array.shape), order]


class _Body:
    """The bytes of the arrays, taken from the front, and the kinds of values that the message may hold."""

    def __init__(self, body: bytes | bytearray, kinds: dict[str, Any]) -> None:
        self.rest = memoryview(body)
        self.kinds = kinds

    def take(self, description: Any) -> tuple[str, np.ndarray]:
        name, shape, order = description
        dtype = np.dtype(np.uint16) if name == "bfloat16" else DTYPES[name]
        sizes = all(type(size) is int and 0 <= size <= BODY_LIMIT for size in shape)
        if not sizes or len(shape) > AXES_LIMIT or sorted(order) != list(range(len(shape))):
            raise ValueError("shape")
        length = math.prod(shape) * dtype.itemsize
        if length > len(self.rest):
            raise ValueError("length")
        flat = np.frombuffer(bytearray(self.rest[:length]), dtype)
        self.rest = self.rest[length:]
        return name, flat.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))


def _restored(value: Any, body: _Body, depth: int) -> Any:
    if depth > 2 * values.DEPTH_LIMIT + 10:
        raise ValueError("depth")
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise TypeError("list")
        return value
    [(kind, content)] = value.items()
    return body.kinds[kind](content, body, depth + 1)


def _parts(content: Any, body: _Body, depth: int) -> Iterator[Any]:
    if not isinstance(content, list):
        raise TypeError("parts")
    return (_restored(part, body, depth) for part in content)


def _restored_dict(content: Any, body: _Body, depth: int) -> dict[str | int, Any]:
    return {_key(key): _restored(part, body, depth) for key, part in content}


def _restored_array(content: Any, body: _Body, _depth: int) -> np.ndarray:
    name, array = body.take(content)
    if name != "bfloat16":
        return array
    bits = array.astype(np.uint32)
    # In place: of an array without axes `<<` would make a plain number, which remembers no dtype.
    bits <<= 16
    return bits.view(np.float32).astype(BFLOAT16)


def _restored_reference(content: Any, _body: _Body, _depth: int) -> Reference:
    if type(content) is not int or not 0 <= content < 1 << 32:
        raise ValueError("reference")
    return Reference(content)


def _restored_complex(content: Any, _body: _Body, _depth: int) -> complex:
    real, imaginary = content
    return complex(float(real), float(imaginary))


def _restored_tensor(content: Any, body: _Body, _depth: int) -> Any:
    import torch

    name, array = body.take(content)
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if name == "bfloat16" else tensor


def _restored_leaf(content: Any, body: _Body, depth: int) -> Any:
    tensor = _restored_tensor(content, body, depth)
    if not (tensor.is_floating_point() or tensor.is_complex()):
        raise ValueError("leaf")
    return tensor.requires_grad_()


def _restored_dtype(content: Any, _body: _Body, _depth: int) -> Any:
    import torch

    if content not in {*DTYPES, "bfloat16"}:
        raise ValueError("dtype")
    return getattr(torch, content)


_KINDS = {
    "list": lambda content, body, depth: list(_parts(content, body, depth)),
    "tuple": lambda content, body, depth: tuple(_parts(content, body, depth)),
    "dict": _restored_dict,
    "complex": _restored_complex,
    "reference": _restored_reference,
    "other": lambda content, _body, _depth: Other(str(content)),
    "array": _restored_array,
}
_INPUT_KINDS = {
    "tensor": _restored_tensor,
    "leaf": _restored_leaf,
    "dtype": _restored_dtype,
}
