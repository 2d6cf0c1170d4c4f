"""Running a mechanism's `example` and watching the shapes of its values, line by line.

Watched are the frames of the mechanism's file that `example` calls directly: the nearest course frame above
is that of `example` (torch's frames in between, such as those of `Module.__call__`, do not count). Nothing is
asked of a value but the shape of a tensor or array, and attributes are read from an object's dictionaries, so
that looking runs no code of the mechanism.
"""

import inspect
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any

from coursekit.pages.problems import Problem
from coursekit.pages.shapes.axes import RUNS, Axis, Namer, Sizes
from coursekit.pages.shapes.functions import Function, bind

EXAMPLE = "example"
GENERATORS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
Shape = tuple[int | None, ...]
Axes = tuple[Axis, ...]


@dataclass
class Frame:
    """What a call of a function showed, over all runs.

    `seen` has the shape that a parameter came with, or a local or `self.attribute` was given first; `result`
    that of each value returned (None for what is no array); `letters` what the letters of annotations and the
    integer arguments stood for; `lines` what stands at the end of a line.
    """

    qualname: str
    seen: dict[str, Axes] = field(default_factory=dict)
    result: list[Axes | None] = field(default_factory=list)
    letters: dict[str, Sizes] = field(default_factory=dict)
    lines: dict[int, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Frame":
        """A frame from what JSON makes of its fields: lists for tuples, strings for line numbers."""

        def axes(sizes: list[list[int] | None]) -> Axes:
            return tuple(None if axis is None else tuple(axis) for axis in sizes)

        return cls(
            data["qualname"],
            {name: axes(shape) for name, shape in data["seen"].items()},
            [None if shape is None else axes(shape) for shape in data["result"]],
            {letter: tuple(sizes) for letter, sizes in data["letters"].items()},
            {int(line): text for line, text in data["lines"].items()},
        )


@dataclass(frozen=True)
class ShapeRecord:
    """What the runs showed: `lines` maps a line of the file to what stands at its end (`b h t d`), `frames`
    has every call, `problems` what stopped the example."""

    lines: dict[int, str]
    frames: tuple[Frame, ...]
    problems: tuple[Problem, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ShapeRecord":
        return cls(
            {int(line): text for line, text in data["lines"].items()},
            tuple(Frame.from_json(frame) for frame in data["frames"]),
            tuple(Problem(**problem) for problem in data["problems"]),
        )


class Watch:
    """The trace of one run of `example`; `calls` has the watched frames in order."""

    def __init__(self, file: str, functions: dict[str, Function]) -> None:
        self.file = file
        self.package = os.path.join(os.path.dirname(file), "")
        self.functions = functions
        self.calls: list[Call] = []

    def run(self, example: Callable[[Any], Any], axes: dict[str, int]) -> None:
        before = sys.gettrace()
        sys.settrace(self.trace)
        try:
            example(axes)
        finally:
            sys.settrace(before)

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        function = self.functions.get(code.co_qualname) if code.co_filename == self.file else None
        if function is None or code.co_flags & GENERATORS or not self.is_called_by_example(frame):
            return None
        number = sum(call.function is function for call in self.calls)
        self.calls.append(Call(function, number, frame))
        return self.calls[-1].trace

    def is_called_by_example(self, frame: FrameType) -> bool:
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(self.package):
            caller = caller.f_back
        # A comprehension in `example` is a frame of its own, `example.<locals>.<listcomp>`.
        return caller is not None and caller.f_code.co_qualname.split(".")[0] == EXAMPLE


class Call:
    """The `number`-th call of a function in one run. `seen` maps a line and a name to the shapes that it had
    after that line's statement, one a pass; line 0 is the call itself."""

    def __init__(self, function: Function, number: int, frame: FrameType) -> None:
        self.function = function
        self.number = number
        self.seen: dict[tuple[int, str], list[Shape]] = {}
        self.integers: dict[str, int] = {}
        self.result: list[Shape | None] = []
        self.statement = 0
        self.returning = 0
        self.failed = False
        for name in function.parameters:
            value = frame.f_locals.get(name)
            self.note(0, name, shape_of(value))
            if type(value) is int:
                self.integers[name] = value

    def note(self, line: int, name: str, shape: Shape | None) -> None:
        if shape is not None:
            self.seen.setdefault((line, name), []).append(shape)

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        """Follow the frame. A statement has run when another begins or the frame ends, unless it raised."""
        if event == "line":
            line = self.function.statements.get(frame.f_lineno, 0)
            if line != self.statement:
                self.leave(frame)
                self.statement = line
                self.returning = line if line in self.function.returns else self.returning
        elif event == "exception":
            self.failed = True
        elif event == "return":
            self.leave(frame)
            if arg is not None and self.returning:
                values = arg if isinstance(arg, tuple) else (arg,)
                self.result = [shape_of(value) for value in values]
        return self.trace

    def leave(self, frame: FrameType) -> None:
        names = [] if self.failed else self.function.targets.get(self.statement, [])
        for name in names:
            self.note(self.statement, name, shape_of(_value(frame, name)))
        self.failed = False


def _value(frame: FrameType, name: str) -> Any:
    """A local or `self.attribute`, read without running a property."""
    if not name.startswith("self."):
        return frame.f_locals.get(name)
    own = getattr(frame.f_locals.get("self"), "__dict__", {})
    stores = [own, own.get("_parameters") or {}, own.get("_buffers") or {}]
    return next((store[name[5:]] for store in stores if name[5:] in store), None)


def shape_of(value: Any) -> Shape | None:
    """The shape of a tensor or a NumPy array, None of anything else."""
    # The lesson has imported them, if it has any: this module need not.
    kinds = [("torch", "Tensor"), ("numpy", "ndarray")]
    types = tuple(getattr(sys.modules[module], name) for module, name in kinds if module in sys.modules)
    return tuple(int(size) for size in value.shape) if isinstance(value, types) else None


def merge(runs: list[list[Call]], axes: dict[str, Sizes]) -> list[Frame]:
    """One frame for each call that happened in every run. `axes` are the letters that `example` asked for."""
    by_key = [{(call.function.qualname, call.number): call for call in calls} for calls in runs]
    return [
        _frame([calls[key] for calls in by_key], axes)
        for key in by_key[0]
        if all(key in calls for calls in by_key)
    ]


def _frame(calls: list[Call], axes: dict[str, Sizes]) -> Frame:
    function = calls[0].function
    frame = Frame(function.qualname)
    shown: dict[int, list[Axes]] = {}
    for line, name in calls[0].seen:
        shape = _over_runs([_over_passes(call.seen.get((line, name), [])) for call in calls])
        if shape is not None:
            frame.seen.setdefault(name, shape)
            shown.setdefault(line or function.parameter_lines.get(name, 0), []).append(shape)
    if len({len(call.result) for call in calls}) == 1:
        frame.result = [_over_runs(shapes) for shapes in zip(*(call.result for call in calls), strict=True)]
        shown.setdefault(calls[0].returning, []).extend(shape for shape in frame.result if shape)
    frame.letters = _letters(calls, frame)
    namer = Namer(frame.letters | {letter: axes[letter] for letter in axes if letter not in frame.letters})
    frame.lines = {line: text for line, shapes in shown.items() if line and (text := _join(shapes, namer))}
    return frame


def _over_passes(shapes: list[Shape]) -> Shape | None:
    """One shape for those of all passes of a loop; None as the size of an axis that did not keep it."""
    if not shapes or len({len(shape) for shape in shapes}) != 1:
        return None
    return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True))


def _over_runs(shapes: Iterable[Shape | None]) -> Axes | None:
    """The shapes of the runs as one, with the sizes of each axis."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) != RUNS or len({len(shape) for shape in known}) != 1:
        return None
    axes = [tuple(size for size in axis if size is not None) for axis in zip(*known, strict=True)]
    return tuple(axis if len(axis) == RUNS else None for axis in axes)


def _letters(calls: list[Call], frame: Frame) -> dict[str, Sizes]:
    """What the annotations' letters stood for, those of parameters, of locals, of results; then the integer
    arguments."""
    function = calls[0].function
    annotated = [(strings, frame.seen.get(name)) for name, strings in function.annotations.items()]
    annotated += list(zip(function.returned, frame.result, strict=False))
    letters: dict[str, Sizes] = {}
    for strings, axes in annotated:
        known = [axis for axis in axes or () if axis is not None]
        if axes and len(known) == len(axes):
            per_run = [bind(strings, shape) for shape in zip(*known, strict=True)]
            for letter in per_run[0]:
                letters.setdefault(letter, tuple(sizes[letter] for sizes in per_run))
    for name in calls[0].integers:
        if all(name in call.integers for call in calls):
            letters.setdefault(name, tuple(call.integers[name] for call in calls))
    return letters


def _join(shapes: list[Axes], namer: Namer) -> str:
    """Shapes of one line as text: one if they are all the same, nothing for those of scalars."""
    texts = [namer.shape(shape) for shape in shapes if shape]
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)
