"""What is wrong with a source file, said with its file and line."""

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that a writer has to mend; `str()` gives the line that an editor can jump to."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


class PageError(Exception):
    """A page cannot be made; `problems` has every reason, not only the first."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = sorted(set(problems))
        super().__init__("\n".join(map(str, self.problems)))
