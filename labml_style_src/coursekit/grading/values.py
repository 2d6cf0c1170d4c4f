"""What may cross between a check and a student's code, in either direction.

Towards the student: PyTorch tensors and NumPy arrays (each keeps its kind), numbers, strings, booleans, None,
torch dtypes, and tuples, lists and dicts of those. Back come plain NumPy arrays and Python values only, so
that nothing of the student's takes part in a comparison. NumPy has no bfloat16: such an answer comes back as
float32 whose dtype remembers it (`BFLOAT16`, see `dtype_name`).
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

DTYPES = {
    name: np.dtype(name)
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
}
BFLOAT16 = np.dtype(np.float32, metadata={"dtype": "bfloat16"})
DEPTH_LIMIT = 20
# Python's own values, most of what a request holds, are the same on both sides.
PLAIN = frozenset({type(None), bool, int, float, complex, str})


@dataclass(frozen=True)
class Reference:
    """An object that lives on the student's side, named by its number."""

    number: int


@dataclass(frozen=True)
class Other:
    """An answer that is none of the values above; only what it was is told, in a few printable letters."""

    kind: str

    def __post_init__(self) -> None:
        letters = self.kind[:80]
        object.__setattr__(self, "kind", "".join(c if c.isprintable() else "?" for c in letters))


def dtype_name(array: np.ndarray) -> str:
    """The dtype in which the student answered: `bfloat16` too, which NumPy cannot hold."""
    return (array.dtype.metadata or {}).get("dtype", array.dtype.name)


def walk(value: Any, leaf: Callable[[Any], Any], depth: int = 0) -> Any:
    """`value` with `leaf` applied to every part that is not a tuple, a list, a dict or a value of Python's own."""
    if type(value) in PLAIN:
        return value
    if depth > DEPTH_LIMIT:
        return Other("nested value without end")
    if isinstance(value, tuple):
        return tuple(walk(part, leaf, depth + 1) for part in value)
    if isinstance(value, list):
        return [walk(part, leaf, depth + 1) for part in value]
    if isinstance(value, dict):
        return {key: walk(part, leaf, depth + 1) for key, part in value.items()}
    return leaf(value)


def copied(value: Any) -> Any:
    """A copy of an input: what the student does to it in place stays on their side.

    The order of the axes in memory is kept, so that a transposed input stays non-contiguous.
    """

    def leaf(part: Any) -> Any:
        if is_tensor(part):
            return part.detach().clone().requires_grad_(part.requires_grad)
        return part.copy(order="K") if isinstance(part, np.ndarray) else part

    return walk(value, leaf)


def plain(value: Any) -> Any:
    """An answer as plain NumPy arrays and Python values."""
    return walk(value, _plain_leaf)


def is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _plain_leaf(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, np.generic) and value.dtype.name in DTYPES:
        return value.item()
    # An exact number or text, whatever class of the student's derives from it.
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, complex):
        return complex(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, np.ndarray):
        known = value.dtype.name in DTYPES
        return np.array(value, subok=False) if known else Other(f"array of {value.dtype.name[:40]}")
    if is_tensor(value):
        return _plain_tensor(value)
    if isinstance(value, Reference | Other):
        return value
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return Other(type(value).__name__[:40])


def _plain_tensor(tensor: Any) -> Any:
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.float().numpy().astype(BFLOAT16)
    try:
        return np.array(tensor.resolve_conj().resolve_neg().numpy(), subok=False)
    except (TypeError, RuntimeError):
        return Other(f"tensor of {str(tensor.dtype).removeprefix('torch.')}, {tensor.layout}")


def in_words(value: Any) -> str:
    """What an answer is, for a sentence: `an array of shape (2, 3)`, `None`, `a list`."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    if isinstance(value, Other | list | dict):
        kind = value.kind if isinstance(value, Other) else type(value).__name__
        return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"
    # -0.0 + 0.0 is 0.0: nobody should have to wonder about the sign.
    if isinstance(value, float):
        return repr(value + 0.0)
    return f"the text {value[:80]!r}" if isinstance(value, str) else repr(value)
