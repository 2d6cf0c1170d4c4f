"""A submission as text: a Python file, or a notebook whose code cells are joined into one.

Line numbers of the joined text are told as the student sees them: `line 12`, or `code cell 3, line 2`.
"""

import ast
import json
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from coursekit.course import CourseError

# A notebook's pictures count in the file, not in its text. A lesson's solution has some 20,000 characters; to
# parse what is much longer takes the grader's own time and memory (4 MB of `a=1`: 17 s, 2.4 GB).
SIZE_LIMIT = 4_000_000
TEXT_LIMIT = 200_000
MAGIC = re.compile(r"^(\s*)([%!?].*|[\w.]+\?{1,2}\s*)$")
# These cell magics run the rest of the cell as Python; any other hands it to something else.
PYTHON_CELL_MAGICS = ("%%time", "%%timeit", "%%capture", "%%prun")


class ExerciseError(CourseError):
    """Something about an exercise or a submission cannot be done; the message is for the student."""


@dataclass(frozen=True)
class Submission:
    """Text to run. `name` is what messages call it, `filename` what tracebacks and debuggers open; `cells`
    has, for a notebook, the first line of each code cell in `text` (from 1)."""

    text: str
    name: str
    filename: str
    cells: list[int] = field(default_factory=list)

    def where(self, line: int) -> str:
        """A line of `text` as the student counts it."""
        starts = [start for start in self.cells if start <= line]
        return f"{self.part(line)}, line {line - starts[-1] + 1}" if starts else f"line {line}"

    def part(self, line: int) -> str:
        """The code cell of a line of `text`; empty if this is no notebook."""
        starts = [start for start in self.cells if start <= line]
        return f"code cell {len(starts)}" if starts else ""

    def line(self, number: int) -> str:
        """The source of a line as it stands; empty if there is none."""
        lines = self.text.splitlines()
        return lines[number - 1].rstrip() if 0 < number <= len(lines) else ""


def newest(folder: Path, slug: str) -> Path | None:
    """The student's file in a folder; of a `.py` and an `.ipynb` the one that was saved last."""
    found = [path for suffix in (".py", ".ipynb") if (path := folder / f"{slug}{suffix}").exists()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def other_half(path: Path) -> Path:
    """The `.ipynb` beside a `.py`, and the other way round."""
    return path.with_suffix({".py": ".ipynb"}.get(path.suffix, ".py"))


def read_submission(path: Path) -> Submission:
    """The submission in a `.py` or `.ipynb` file. Raises `ExerciseError` if it cannot be read as one."""
    if path.suffix not in (".py", ".ipynb"):
        raise ExerciseError(f"{path} is not a submission: a .py or .ipynb file is wanted")
    if not path.is_file():
        raise ExerciseError(f"there is no file {path}")
    if path.stat().st_size > SIZE_LIMIT:
        raise ExerciseError(f"{path} is larger than {SIZE_LIMIT // 1_000_000} MB: is it the right file?")
    text = text_of(path.read_bytes(), str(path))
    if path.suffix == ".py":
        return within_limit(Submission(text, path.name, str(path.resolve())))
    return read_notebook(text, path.name)


def text_of(data: bytes, name: str) -> str:
    """The text of a file, whatever ends its lines. Raises `ExerciseError` if it is not UTF-8."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ExerciseError(f"{name} is not UTF-8 text: byte {error.start} cannot be read") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_notebook(text: str, name: str) -> Submission:
    """The code cells of a notebook, joined, with what only Jupyter understands commented out."""
    try:
        cells = json.loads(text)["cells"]
        sources = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
        sources = [source if isinstance(source, str) else "".join(source) for source in sources]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExerciseError(f"{name} is not a notebook: {type(error).__name__} {error}"[:300]) from None
    within_limit(Submission("".join(sources), name, name))
    joined: list[str] = []
    starts = []
    for source in sources:
        starts.append(len(joined) + 1)
        joined += [*without_magics(source).splitlines(), ""]
    return Submission("\n".join(joined), name, f"<{name}>", starts)


def within_limit(submission: Submission) -> Submission:
    """The submission. Raises `ExerciseError` if its text is too long to be an answer to an exercise."""
    if len(submission.text) > TEXT_LIMIT:
        found = f"{len(submission.text):,} characters of code, at most {TEXT_LIMIT:,} are read"
        raise ExerciseError(f"{submission.name} has {found}: is it the right file?")
    return submission


def syntax_tree(text: str) -> ast.Module | None:
    """The syntax tree of a student's text; None if it is not valid Python, or nested beyond what the parser
    can bear (`-` 100,000 times is a MemoryError)."""
    try:
        with warnings.catch_warnings():
            # Of a student's `"\d"`: nothing of theirs is to reach the grader's terminal so.
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def without_magics(cell: str) -> str:
    """A code cell as plain Python, line for line: magics and shell lines become comments.

    A cell that is Python already stays as it is, since a line of a formula may begin with `%` too.
    """
    lines = cell.splitlines()
    done = 0
    # A cell may have several cell magics, one after another.
    for place, line in enumerate(lines):
        if line.strip():
            if not line.lstrip().startswith("%%"):
                break
            if not line.split()[0].startswith(PYTHON_CELL_MAGICS):
                return "\n".join(f"# {line}" for line in lines)
            done = place + 1
    code = "\n".join(lines[done:]) if done else cell
    if syntax_tree(code) is None:
        # `pass` keeps a block whole whose only line was a magic.
        code = "\n".join(MAGIC.sub(r"\1pass  # \2", line) for line in lines[done:])
    return "\n".join([*(f"# {line}" for line in lines[:done]), code]) if done else code
