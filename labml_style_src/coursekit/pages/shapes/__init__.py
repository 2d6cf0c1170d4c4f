"""Shapes that were seen when `example(axes)` of a mechanism ran with three assignments of primes.

`python -m coursekit.pages.shapes annotated_attention.alibi` prints the record of a module as JSON.
"""

import ast
import contextlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from coursekit.pages.problems import Problem
from coursekit.pages.shapes.axes import ASSIGNMENTS
from coursekit.pages.shapes.functions import read_functions
from coursekit.pages.shapes.recording import EXAMPLE, Call, ShapeRecord, Watch, merge
from coursekit.pages.shapes.stated import check_stated

__all__ = ["ShapeRecord", "check_stated", "record_shapes"]


# Triton's interpreter, watched line by line, would take minutes. Without it an example takes PyTorch's way.
INTERPRETER = "TRITON_INTERPRET"


class _Axes(dict[str, int]):
    """The sizes given to `example`, which notes the letters that it asks for."""

    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__(sizes)
        self.asked: list[str] = []

    def __getitem__(self, letter: str) -> int:
        if letter not in self:
            raise KeyError(f"no axis is called {letter!r}: they are the letters a to z")
        self.asked += [letter] if letter not in self.asked else []
        return super().__getitem__(letter)


def record_shapes(path: Path, module: str) -> ShapeRecord:
    """Import `module`, which lies at `path`, anew and run its `example` once for each assignment of primes.

    A fault of the mechanism raises nothing: it is in `problems`, with the innermost line of the mechanism's
    package that led to it, and the record has what was seen before. In a file of Triton kernels nothing is seen:
    what runs on the device has no frames here, and not every machine can import it.
    """
    if "@triton.jit" in path.read_text("utf-8"):
        return ShapeRecord({}, (), ())
    with _fresh(path, module), _without(INTERPRETER):
        try:
            return _record(path, importlib.import_module(module))
        except Exception as error:
            return ShapeRecord({}, (), (_problem(error, path),))


@contextlib.contextmanager
def _without(variable: str) -> Iterator[None]:
    """The environment without a variable."""
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value


def _record(path: Path, module: ModuleType) -> ShapeRecord:
    example = getattr(module, EXAMPLE, None)
    if example is None:
        message = "there is no function 'example(axes)': the shapes beside the code are read off it"
        return ShapeRecord({}, (), (Problem(str(path), 1, message),))
    functions = read_functions(ast.parse(path.read_text("utf-8")))
    runs: list[list[Call]] = []
    asked: list[str] = []
    for sizes in ASSIGNMENTS:
        axes, watch = _Axes(sizes), Watch(example.__code__.co_filename, functions)
        watch.run(example, axes)
        runs.append(watch.calls)
        asked = axes.asked
    letters = {letter: tuple(sizes[letter] for sizes in ASSIGNMENTS) for letter in asked}
    frames = merge(runs, letters)
    # The first call of a function is the one that is shown.
    lines = {line: text for frame in reversed(frames) for line, text in frame.lines.items()}
    return ShapeRecord(lines, tuple(frames), ())


@contextlib.contextmanager
def _fresh(path: Path, module: str) -> Iterator[None]:
    """Importing the module's package reads its files anew; afterwards the old modules are back."""
    package = module.split(".")[0]
    root = str(path.resolve().parents[module.count(".")])
    before = {name: item for name, item in sys.modules.items() if name.split(".")[0] == package}
    for name in before:
        del sys.modules[name]
    importlib.invalidate_caches()
    sys.path.insert(0, root)
    try:
        yield
    finally:
        sys.path.remove(root)
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            del sys.modules[name]
        sys.modules.update(before)


def _problem(error: Exception, path: Path) -> Problem:
    """What was raised, at the innermost line of the mechanism's folder."""
    file, line = path, 1
    if isinstance(error, SyntaxError) and error.filename:
        file, line = Path(error.filename), error.lineno or 1
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename).parent == path.resolve().parent:
            file, line = Path(frame.filename), frame.lineno or 1
    file = path if file == path.resolve() else file
    return Problem(str(file), line, f"while the example ran: {type(error).__name__}: {error}")
