"""The student's side of the three verbs: one module, its objects, one request at a time.

The same class serves both backends: in this process, and in the second process that `child.py` runs in. It
imports nothing of the course's but `values`.
"""

import itertools
import linecache
import operator
import random
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from coursekit.grading import values

MESSAGE_LIMIT = 2000


class MissingName(Exception):
    """The submission lacks a name that the checks ask for."""


class Unreached(Exception):
    """The same, but the submission stopped on the way: the name may have come later."""


class NoGradient(Exception):
    """The answer cannot be differentiated with respect to the inputs."""


class Randomness:
    """The states of the global generators of random numbers (`random`, NumPy, PyTorch), kept apart from those
    of the process around: entered, they go on from where they were left.

    Code whose `text` never says `random` draws from PyTorch's alone. The others are then left as they are: to
    exchange NumPy's state takes longer than most calls.
    """

    def __init__(self, text: str = "random") -> None:
        self._all = "random" in text
        self._inside: Any = None

    @contextmanager
    def entered(self) -> Generator[None]:
        outside = self._states()
        if self._inside:
            self._set_states(*self._inside)
        try:
            yield
        finally:
            self._inside = self._states()
            self._set_states(*outside)

    def _states(self) -> tuple[Any, Any, Any]:
        torch = sys.modules.get("torch")
        torchs = torch and torch.get_rng_state()
        # NumPy's and PyTorch's global generators are what student code draws from: not ours to choose.
        return (random.getstate(), np.random.get_state(), torchs) if self._all else (None, None, torchs)  # noqa: NPY002

    def _set_states(self, own: Any, numpys: Any, torchs: Any) -> None:
        if self._all:
            random.setstate(own)
            np.random.set_state(numpys)  # noqa: NPY002
        if torchs is not None:
            sys.modules["torch"].set_rng_state(torchs)


def seed_everything(seed: int) -> None:
    """Let the global generators start anew."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    if torch := sys.modules.get("torch"):
        torch.random.default_generator.manual_seed(seed)


class Session:
    """A student's module, loaded from text, and the objects that the checks have made of it."""

    def __init__(self, name: str = "submission") -> None:
        self.module = ModuleType(name)
        self.filename = name
        self.objects: list[Any] = []
        self.stops: list[dict[str, Any]] = []

    def load(self, text: str, filename: str, cells: Sequence[int] = ()) -> list[dict[str, Any]]:
        """Execute the submission; of a notebook (`cells` has each cell's first line) the cells one by one,
        whether those before went well or not.

        Returns what went wrong on the way. If nothing was defined at all, the exception comes through.
        """
        self.filename = self.module.__file__ = filename
        # Dataclasses and type hints look their module up by name.
        sys.modules[self.module.__name__] = self.module
        linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
        errors = []
        for part in pieces(text, cells):
            try:
                exec(compile(part, filename, "exec", dont_inherit=True), self.module.__dict__)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                errors.append(error)
        if errors and not self._defined():
            raise errors[0]
        self.stops = [describe_error(error, filename) for error in errors]
        return self.stops

    def _defined(self) -> bool:
        """Whether the submission has made a function or a class."""
        return any(
            getattr(value, "__module__", None) == self.module.__name__
            for value in self.module.__dict__.values()
        )

    def close(self) -> None:
        self.objects.clear()
        sys.modules.pop(self.module.__name__, None)

    def run(self, request: dict[str, Any]) -> Any:
        """Answer one request with plain values. Whatever the student's code raises comes through."""
        verb = request["verb"]
        if verb == "begin":
            return self._begin(request["seed"])
        target = self._target(request["target"], request.get("name"))
        if verb == "get":
            return values.plain(target)
        if not callable(target):
            raise TypeError(f"{request.get('name')} is {type(target).__name__}, not something to call")
        args, kwargs = self._resolved(request["args"]), self._resolved(request["kwargs"])
        if verb == "vjp":
            return values.plain(_vjp(target, args, self._resolved(request["grad"]), kwargs))
        answer = target(*args, **kwargs)
        if verb == "call":
            return values.plain(answer)
        self.objects.append(answer)
        return values.Reference(len(self.objects) - 1)

    def _begin(self, seed: int) -> None:
        """A new check: forget its predecessor's objects, and let every check draw the same random numbers."""
        self.objects.clear()
        seed_everything(seed)

    def _target(self, owner: Any, name: str | None) -> Any:
        if isinstance(owner, values.Reference):
            found = self.objects[owner.number]
            return operator.attrgetter(name)(found) if name else found
        if not hasattr(self.module, name or ""):
            raise (Unreached if self.stops else MissingName)(name)
        return getattr(self.module, name or "")

    def _resolved(self, value: Any) -> Any:
        """`value` with references replaced by the objects they name."""
        return values.walk(
            value, lambda part: self.objects[part.number] if isinstance(part, values.Reference) else part
        )


def _vjp(target: Any, inputs: tuple[Any, ...], grad: Any, kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The vector-Jacobian product: `grad` pulled back through `target` to each floating tensor of `inputs`
    (None for the others). An output whose entry of `grad` is None takes no part."""
    import torch

    def differentiable(value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.is_floating_point()

    inputs = tuple(part.detach().requires_grad_() if differentiable(part) else part for part in inputs)
    output = target(*inputs, **kwargs)
    outputs, grads = (output, grad) if isinstance(grad, tuple | list) else ((output,), (grad,))
    if not isinstance(outputs, tuple | list) or len(outputs) != len(grads):
        raise NoGradient(
            f"the answer is {values.in_words(values.plain(output))}, wanted {len(grads)} tensors"
        )
    pairs = [(out, up) for out, up in zip(outputs, grads, strict=True) if up is not None]
    for out, up in pairs:
        if not isinstance(out, torch.Tensor):
            raise NoGradient(f"the answer is {values.in_words(values.plain(out))}, not a tensor")
        if not out.requires_grad:
            raise NoGradient("none reaches the inputs. Was .detach(), .item() or NumPy used on the way?")
        if out.shape != torch.as_tensor(up).shape:
            raise NoGradient(f"the answer has shape {tuple(out.shape)}, wanted {tuple(up.shape)}")
    wanted = [part for part in inputs if differentiable(part)]
    found = iter(
        torch.autograd.grad(
            [out for out, _ in pairs],
            wanted,
            [torch.as_tensor(up, dtype=out.dtype) for out, up in pairs],
            allow_unused=True,
            materialize_grads=True,
        )
    )
    return tuple(next(found) if differentiable(part) else None for part in inputs)


def pieces(text: str, cells: Sequence[int]) -> list[str]:
    """The text cell by cell, each under so many empty lines that its lines keep their numbers."""
    if not cells:
        return [text]
    lines = text.splitlines()
    ends = [start - 1 for start in cells[1:]] + [len(lines)]
    return [
        "\n" * (start - 1) + "\n".join(lines[start - 1 : end]) for start, end in zip(cells, ends, strict=True)
    ]


def describe_error(error: BaseException, filename: str) -> dict[str, Any]:
    """What is told of an exception: its type and the types it derives from, its message, the student's own
    lines (the outermost and the innermost two, innermost last), the column in the last of them (from 0, None
    if unknown) and whether the student's code raised it rather than something it called."""
    own: list[tuple[int, str]] = []
    column, inside, trace = None, False, error.__traceback__
    # `traceback` would read the source of every frame, the engine's own too.
    while trace is not None:
        code = trace.tb_frame.f_code
        inside = code.co_filename == filename
        if inside:
            own.append((trace.tb_lineno, code.co_qualname))
            column = next(itertools.islice(code.co_positions(), trace.tb_lasti // 2, None))[2]
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.filename == filename:
        own, column = [(error.lineno or 0, "<module>")], (error.offset or 1) - 1
    message = error.msg if isinstance(error, SyntaxError) else _text(error)
    return {
        "type": type(error).__name__[:100],
        "bases": [base.__name__[:100] for base in type(error).__mro__[1:20]],
        "message": message[:MESSAGE_LIMIT],
        "lines": own[:1] + own[1:][-2:],
        "column": column,
        "raised": inside,
    }


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(its message cannot be read)"
