"""The three verbs through which a check speaks to a student's code: `call`, `new` and `vjp`.

slopes = student.call("alibi_slopes", 8)                     arrays in, arrays out
cache = student.new("KVCache", window=4)                     a handle for an object with state
cache.call("update", key, value), cache(x), cache.get("positions"), cache.vjp("forward", (x,), grad)
dq, dk = student.vjp("attention", (query, key), grad)        a vector-Jacobian product
"""

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from coursekit.grading.submission import Submission
from coursekit.grading.values import Reference, walk

if TYPE_CHECKING:
    from coursekit.grading.backends import Backend

NOT_DONE = "not done yet"
# Of numbers that come from the student's process: no file has more lines.
LINE_LIMIT = 10_000_000
# The dtypes of floating point from float32 on, and how coarse each is.
COARSENESS = {"float64": 0, "float32": 0, "float16": 1, "bfloat16": 2}
# Python's and NumPy's; PyTorch raises a RuntimeError.
MEMORY_ERRORS = ("MemoryError", "_ArrayMemoryError")
OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"
ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,16}")
SYNTAX_ERRORS = ("SyntaxError", "IndentationError", "TabError")


class StudentError(Exception):
    """The student's code raised an exception, or could not answer.

    `type` and `bases` are names of exception classes, `message` is the exception's own, `where` has the
    student's own lines, innermost last, in words, `function` the outermost name of the innermost one's
    function: that of a class for a method. Two errors with the same `identity` are one and the same.
    """

    def __init__(self, told: Any, submission: Submission, *, loading: bool = False) -> None:
        told = told if isinstance(told, dict) else {}
        self.submission = submission
        self.loading = loading
        self.type = _clean(told.get("type"), 100) or "Exception"
        self.bases = [_clean(base, 100) for base in _items(told.get("bases"))]
        self.message = _clean(told.get("message"), 2000)
        self.name = _clean(told.get("name"), 100)
        self.lines = [
            (line, _clean(function, 100))
            for pair in _items(told.get("lines"))
            if isinstance(pair, tuple) and len(pair) == 2
            for line, function in [pair]
            if isinstance(line, int) and 0 <= line <= LINE_LIMIT
        ]
        self.column = told.get("column")
        self.where = [self._place(*pair) for pair in self.lines]
        self.function = self.lines[-1][1].partition(".")[0] if self.lines else ""
        place = self.lines[-1][0] if self.lines else self.name or self.message
        self.identity = self.type if self.type == "Unreached" else f"{self.type} {place}"
        # Only the stub's own line says "not done yet"; PyTorch raises the same type for other reasons.
        self.not_done = self.type == "NotImplementedError" and told.get("raised") is True
        super().__init__(self.sentence)

    @property
    def sentence(self) -> str:
        """What happened, for the student."""
        name, file = self.name or self.message, clean(self.submission.name, 100)
        match self.type:
            case _ if self.not_done:
                return NOT_DONE
            case "Unreached":
                return f"{file} stopped before {name} was defined, as told above"
            case "MissingName":
                return f"{file} has no {name}: keep the names that the stub has"
            case "NoGradient":
                return f"no gradient can be taken: {self.message}"
            case "SystemExit":
                return "the code ends the program (sys.exit or quit): return a value instead"
            case "RecursionError":
                return "a function calls itself without end (RecursionError)"
            case _ if self.type in MEMORY_ERRORS or OUT_OF_MEMORY in self.message:
                return f"there is not enough memory for what is made here ({self.type}): is an array far too large?"
            case "Timeout":
                what = f"{name} took" if self.name else "the file took"
                return f"{what} longer than {self.message}: does a loop never end?"
            case "OutOfTime":
                return f"the time for the whole submission ({self.message}) is used up"
            case "Ended":
                return f"the process that ran the code ended by itself ({self.message})"
            case "WireError":
                return f"the answer cannot be read: {self.message}"
            case _ if self.loading and self.type in SYNTAX_ERRORS:
                return f"{file} is not valid Python: {self.message}"
            case _:
                return f"{self.type}: {self.message}" if self.message else self.type

    @property
    def text(self) -> str:
        """The sentence, and under it the student's own lines."""
        if self.not_done:
            return NOT_DONE
        where = self._pointed() if self.loading else self.where
        return "\n".join([self.sentence, *where])

    @property
    def stop(self) -> str:
        """Where the file or one of its cells stopped while it was loaded, and what became of the rest."""
        line = self.lines[0][0] if self.lines else 0
        cell = self.submission.part(line)
        rest = "the cells after it were still run" if cell else "what stands above it was still checked"
        if self.not_done:
            source = clean(self.submission.line(line).strip(), 200)
            place = self.submission.where(line)
            return f"{place}: `{source}` calls a task that is not done yet; {rest}"
        what = f"stops with {self.sentence}"
        if self.type in SYNTAX_ERRORS:
            what = f"is not valid Python: {self.message}"
        told = f"{cell or self.submission.where(line)} {what}; {rest}"
        return "\n".join([told, *self._pointed()])

    def _place(self, line: int, function: str, quote: bool = True) -> str:
        inside = "" if function == "<module>" else f", in {function.replace('<locals>.', '')}"
        source = clean(self.submission.line(line).strip(), 500) if quote else ""
        return f"{self.submission.where(line)}{inside}" + (f": {source}" if source else "")

    def _pointed(self) -> list[str]:
        """The lines, the innermost as it stands in the file with a caret under the place."""
        if not self.lines:
            return []
        line, function = self.lines[-1]
        source = self.submission.line(line)
        shown = [*self.where[:-1], f"{self._place(line, function, quote=False)}:", f"  {clean(source, 500)}"]
        if isinstance(self.column, int):
            shown.append("  " + " " * len(clean(source[: max(self.column, 0)], 500)) + "^")
        return shown


def stops_in_words(stops: Any, submission: Submission) -> list[str]:
    """What `Session.load` returned, for the student."""
    return [StudentError(each, submission, loading=True).stop for each in _items(stops)]


class Student:
    """The student's code, as the checks see it. Of this check `trace` keeps every answer, for diagnosis,
    `names` what was asked for, `coarsest` the least exact dtype that was sent (float32 if none was less), and
    `last` is the latest call in words."""

    def __init__(self, backend: "Backend") -> None:
        self._backend = backend
        self.trace: list[Any] = []
        self.names: list[str] = []
        self.coarsest = "float32"
        self.last = ""

    def begin(self, seed: int) -> None:
        """A new check: the objects of the one before are forgotten, random numbers start anew."""
        self._ask(verb="begin", seed=seed)

    def call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """The answer of a function of the submission."""
        return self._ask(verb="call", target=None, name=name, args=args, kwargs=kwargs)

    def new(self, name: str, /, *args: Any, **kwargs: Any) -> "Handle":
        """A handle for the object that a class (or function) of the submission makes."""
        return Handle(self, self._ask(verb="new", target=None, name=name, args=args, kwargs=kwargs), name)

    def vjp(
        self, name: "str | Handle", inputs: tuple[Any, ...], grad: Any, /, **kwargs: Any
    ) -> tuple[Any, ...]:
        """`grad` (one array per output) pulled back to each floating tensor of `inputs`; None for others."""
        if isinstance(name, Handle):
            return name.vjp("__call__", inputs, grad, **kwargs)
        return self._ask(verb="vjp", target=None, name=name, args=inputs, kwargs=kwargs, grad=grad)

    def _ask(self, owner: str = "", **request: Any) -> Any:
        if name := request.get("name"):
            self.names += [] if owner else [name]
            self.last = f"{owner}.{name}" if owner else name
            if request["verb"] != "get":
                self.last = f"{self.last.removesuffix('.__call__')}({_arguments(request)})"
        try:
            answer = self._backend.ask(walk(request, self._sent))
        except StudentError as error:
            self.trace.append(error)
            raise
        self.trace.append(answer)
        return answer

    def _sent(self, value: Any) -> Any:
        """An argument as the backends know it: handles by their number, NumPy's scalars as Python's."""
        if isinstance(value, Handle):
            return value._reference
        name = (
            str(getattr(value, "dtype", value)).removeprefix("torch.") if not isinstance(value, str) else ""
        )
        if name in COARSENESS and COARSENESS[name] > COARSENESS[self.coarsest]:
            self.coarsest = name
        return value.item() if isinstance(value, np.generic) else value


class Handle:
    """An object on the student's side: its methods and attributes are reached, it never comes over."""

    def __init__(self, student: Student, reference: Reference, made_by: str) -> None:
        self._student = student
        self._reference = reference
        self._made_by = made_by

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        return self._ask(verb="call", name=method, args=args, kwargs=kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call("__call__", *args, **kwargs)

    def get(self, attribute: str) -> Any:
        """The value of an attribute; dots reach further (`"w_q.weight"`)."""
        return self._ask(verb="get", name=attribute)

    def vjp(self, method: str, inputs: tuple[Any, ...], grad: Any, /, **kwargs: Any) -> tuple[Any, ...]:
        return self._ask(verb="vjp", name=method, args=inputs, kwargs=kwargs, grad=grad)

    def _ask(self, **request: Any) -> Any:
        return self._student._ask(self._made_by, target=self._reference, **request)


def _arguments(request: dict[str, Any]) -> str:
    """The arguments of a call, where they are short enough to read."""
    args = [_argument(value) for value in request["args"]]
    args += [f"{name}={_argument(value)}" for name, value in request["kwargs"].items()]
    return ", ".join(args) if sum(map(len, args)) < 60 else "..."


def _argument(value: Any) -> str:
    if hasattr(value, "shape"):
        return "tensor"
    return repr(value) if isinstance(value, bool | int | float | str | None) else "..."


def _items(value: Any) -> list[Any]:
    return list(value)[:20] if isinstance(value, list | tuple) else []


def _clean(value: Any, limit: int) -> str:
    return clean(value, limit) if isinstance(value, str) else ""


def clean(text: str, limit: int = 2000) -> str:
    """Text of the student's, safe to print: bounded, with control characters (escape sequences among them)
    made visible. Addresses of objects are left out: they differ from run to run."""
    kept = ADDRESS.sub("0x...", text[:limit])
    shown = "".join(c if c.isprintable() or c == "\n" else "    " if c == "\t" else _escaped(c) for c in kept)
    return shown + (" ... (cut)" if len(text) > limit else "")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
