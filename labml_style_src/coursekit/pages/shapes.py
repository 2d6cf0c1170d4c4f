"""API first, code follows within minutes (PAGES2)."""

from dataclasses import dataclass
from pathlib import Path

from coursekit.pages.problems import Problem
from coursekit.pages.symbols import Notation


@dataclass(frozen=True)
class ShapeRecord:
    """What one run of `example` showed. `lines` maps a file line to what is shown at its end (`b h t d`)."""

    lines: dict[int, str]
    frames: tuple[object, ...]
    problems: tuple[Problem, ...]

    def to_json(self) -> dict: ...

    @classmethod
    def from_json(cls, data: dict) -> "ShapeRecord": ...


def record_shapes(path: Path, module: str) -> ShapeRecord:
    """Import `module` anew, run its `example(axes)` under three prime assignments. Never raises for a fault of the lesson:
    it is in `problems`."""
    ...


def check_stated(text: str, path: str, notation: Notation, record: ShapeRecord) -> list[Problem]:
    """Shapes stated in **Shapes.** paragraphs and Notation tables that disagree with what was seen."""
    ...
