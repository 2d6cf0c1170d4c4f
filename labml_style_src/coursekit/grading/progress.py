"""What is remembered of a student's work on a lesson: `work/.progress/<slug>.json`."""

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from coursekit.grading.report import Report
from coursekit.words import count, number, of


@dataclass
class Progress:
    """How often the submission was checked, its best points, of how many (0 if unknown), and how many hints
    of each task were shown."""

    attempts: int = 0
    best: float = 0
    hints: dict[str, int] = field(default_factory=dict)
    points: float = 0

    @property
    def line(self) -> str:
        """`35 of 35 points, 1 attempt`; empty if nothing was checked."""
        if not self.attempts:
            return ""
        points = of(self.best, self.points, "point") if self.points else f"{number(self.best)} points"
        return f"{points}, {count(self.attempts, 'attempt')}"


def progress_path(work_dir: Path, slug: str) -> Path:
    return work_dir / ".progress" / f"{slug}.json"


def load(work_dir: Path, slug: str) -> Progress:
    """What was remembered; nothing if there is no file or it cannot be read."""
    try:
        found = json.loads(progress_path(work_dir, slug).read_text("utf-8"))
        known = int(found["attempts"]), float(found["best"]), dict(found["hints"])
        return Progress(*known, float(found.get("points", 0)))
    except (OSError, ValueError, KeyError, TypeError):
        return Progress()


def save(work_dir: Path, slug: str, progress: Progress) -> None:
    write_text(progress_path(work_dir, slug), json.dumps(asdict(progress), indent=2) + "\n")


def remember(report: Report, work_dir: Path, slug: str) -> None:
    """Count an attempt, reveal one hint more of the first task that is not solved if the report was `asked` for
    one, and tell the report what was shown before."""
    known = load(work_dir, slug)
    # An untouched stub is no attempt.
    known.attempts += report.attempted
    known.best, known.points = max(known.best, report.earned), report.points
    task = report.next_task
    if report.asked and task is not None and not report.problem:
        known.hints[task.key] = min(known.hints.get(task.key, 0) + 1, len(task.hints))
    for task in report.tasks:
        task.shown = min(known.hints.get(task.key, 0), len(task.hints))
    report.attempts = known.attempts
    save(work_dir, slug, known)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
