"""The student's side of the three verbs: one module, its objects, one request at a time.

The same class serves both backends: in this process, and in the second process that `child.py` runs in. It
imports nothing of the course's but `values`.
"""

import linecache
import operator
import random
import sys
import traceback
from types import ModuleType
from typing import Any

import numpy as np

from coursekit.grading import values

MESSAGE_LIMIT = 2000


class MissingName(Exception):
    """The submission lacks a name that the checks ask for."""


class NoGradient(Exception):
    """The answer cannot be differentiated with respect to the inputs."""


class Session:
    """A student's module, loaded from text, and the objects that the checks have made of it."""

    def __init__(self, name: str = "submission") -> None:
        self.module = ModuleType(name)
        self.filename = name
        self.objects: list[Any] = []

    def load(self, text: str, filename: str) -> None:
        """Execute the submission. Whatever it raises comes through."""
        self.filename = self.module.__file__ = filename
        # Dataclasses and type hints look their module up by name.
        sys.modules[self.module.__name__] = self.module
        linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
        exec(compile(text, filename, "exec", dont_inherit=True), self.module.__dict__)

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
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - what student code draws from is not ours to choose
        if torch := sys.modules.get("torch"):
            torch.random.default_generator.manual_seed(seed)

    def _target(self, owner: Any, name: str | None) -> Any:
        if isinstance(owner, values.Reference):
            found = self.objects[owner.number]
            return operator.attrgetter(name)(found) if name else found
        if not hasattr(self.module, name or ""):
            raise MissingName(name)
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


def describe_error(error: BaseException, filename: str) -> dict[str, Any]:
    """What is told of an exception: its type and the types it derives from, its message, the student's own
    lines (innermost last) and whether the student's code raised it rather than something it called."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [(frame.lineno or 0, frame.name) for frame in frames if frame.filename == filename]
    if isinstance(error, SyntaxError) and error.filename == filename:
        own = [(error.lineno or 0, "<module>")]
    message = error.msg if isinstance(error, SyntaxError) else _text(error)
    return {
        "type": type(error).__name__[:100],
        "bases": [base.__name__[:100] for base in type(error).__mro__[1:20]],
        "message": message[:MESSAGE_LIMIT],
        "lines": own[-3:],
        "raised": bool(frames) and frames[-1].filename == filename,
    }


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(its message cannot be read)"
