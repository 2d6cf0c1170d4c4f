"""The rules of one assignment: `assignment.toml`, whose every line may be left out but the slug.

slug = "alibi"
due = 2026-12-01T23:59:00+01:00   # no time zone: the grader's own
fused = "note"                    # or "fail": a task that calls a ready-made attention earns nothing

[late]
grace_minutes = 15                # not late yet
per_day = 0.1                     # of the score, for each day begun
days = 5                          # after so many days nothing is left; 0: there is no such day

[weights]                         # points of a task, by its class; the checks' own where nothing is said
TestSlopes = 2

[limits]
call_seconds = 2                  # for one call; what others take of the processor does not count
submission_seconds = 30           # for all calls together
memory_mb = 2048

With these rules what comes in at 00:10 on the 2nd of December is on time, what comes in at 00:15 is one day late
and keeps 90 %, as does what comes in at 23:59 that night; a minute later it is two days and 80 %. Five days keep
50 %, the sixth day keeps nothing. The grace decides only whether it is late: the days are counted from `due`.

A task whose checks give 3 of 4 points and whose weight is 2 earns 1.5 of 2. All this is computed in fractions,
from the numbers as they are written, and rounded once, to `DIGITS` decimals.
"""

import ast
import math
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

from coursekit.course import Lesson
from coursekit.grading.report import Report
from coursekit.grading.sandbox.limits import Limits
from coursekit.grading.submission import ExerciseError

DIGITS = 4
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Late:
    grace_minutes: float = 0
    per_day: float = 0.0
    days: int = 0

    @property
    def costs(self) -> bool:
        """Whether being late takes anything off."""
        return bool(self.per_day or self.days)

    def kept(self, late_days: int) -> Fraction:
        """Which part of the score is kept so many days late: from 1 down to 0."""
        if self.days and late_days > self.days:
            return Fraction(0)
        return max(Fraction(0), 1 - exact(self.per_day) * late_days)


@dataclass(frozen=True)
class Assignment:
    slug: str
    due: datetime | None = None
    fused: str = "note"
    late: Late = field(default_factory=Late)
    weights: dict[str, float] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)

    def late_days(self, when: datetime | None) -> int:
        """How many days after `due` have begun at `when` (with a time zone; None counts as on time)."""
        if self.due is None or when is None:
            return 0
        late = when - self.due
        if late <= timedelta(minutes=self.late.grace_minutes):
            return 0
        return max(1, -(-late // DAY))

    def weights_of(self, points: Mapping[str, float]) -> dict[str, Fraction]:
        """What each task is worth, from the points that its checks give."""
        return {task: exact(self.weights.get(task, most)) for task, most in points.items() if most}

    def points(self, points: Mapping[str, float]) -> Fraction:
        """The most that can be earned."""
        return sum(self.weights_of(points).values(), Fraction(0))

    def earned(self, report: Report, points: Mapping[str, float], lost: Collection[str] = ()) -> Fraction:
        """The points of a report after the weights. `points` has what each task's checks give; the tasks in `lost`
        earn nothing."""
        found = {task.key: task.earned for task in report.tasks if task.key not in lost}
        weights = self.weights_of(points)
        shares = (weights[key] * exact(found.get(key, 0)) / exact(points[key]) for key in weights)
        return sum(shares, Fraction(0))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"due": self.due and self.due.isoformat()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Assignment":
        due = data["due"] and datetime.fromisoformat(data["due"])
        return cls(**{**data, "due": due, "late": Late(**data["late"]), "limits": Limits(**data["limits"])})


def exact(number: float) -> Fraction:
    """The number as it is written: 0.1 is a tenth."""
    return Fraction(repr(number))


def rounded(number: Fraction) -> float:
    return float(round(number, DIGITS))


def read_assignment(path: Path | None, lesson: Lesson) -> Assignment:
    """The rules in a file; without one those of the lesson itself: no date, the checks' own points.

    Raises `ExerciseError`, naming file, key, what was wanted and what came, for whatever is not as shown above.
    """
    if path is None:
        return Assignment(lesson.slug)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExerciseError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ExerciseError(f"{path} is not TOML: {error}") from None
    return Reader(path, lesson).assignment(data)


class Reader:
    """Takes the tables of one file apart, key by key."""

    def __init__(self, path: Path, lesson: Lesson) -> None:
        self.path = path
        self.lesson = lesson

    def assignment(self, data: dict[str, Any]) -> Assignment:
        self.keys(data, [each.name for each in fields(Assignment)], "")
        if data.get("slug") != self.lesson.slug:
            self.fail("slug", f'"{self.lesson.slug}", the lesson that is graded', data.get("slug", "nothing"))
        fused = data.get("fused", "note")
        if fused not in ("note", "fail"):
            self.fail("fused", '"note" or "fail"', fused)
        late, limits = self.table(data, "late"), self.table(data, "limits")
        self.keys(late, [each.name for each in fields(Late)], "late.")
        self.keys(limits, [each.name for each in fields(Limits)], "limits.")
        weights = self.table(data, "weights")
        self.keys(weights, task_classes(self.lesson), "weights.")
        return Assignment(
            self.lesson.slug,
            self.due(data.get("due")),
            fused,
            Late(
                self.number(late, "late.grace_minutes", Late.grace_minutes),
                self.number(late, "late.per_day", Late.per_day, most=1),
                int(self.number(late, "late.days", Late.days, whole=True)),
            ),
            {name: self.number(weights, f"weights.{name}", 0) for name in weights},
            Limits(
                self.number(limits, "limits.call_seconds", Limits.call_seconds, positive=True),
                self.number(limits, "limits.submission_seconds", Limits.submission_seconds, positive=True),
                int(self.number(limits, "limits.memory_mb", Limits.memory_mb, whole=True, positive=True)),
            ),
        )

    def due(self, came: Any) -> datetime | None:
        if came is None:
            return None
        if not isinstance(came, datetime):
            self.fail("due", "a date and a time, as in 2026-12-01T23:59:00+01:00", came)
        return came if came.tzinfo else came.astimezone()

    def table(self, data: dict[str, Any], key: str) -> dict[str, Any]:
        came = data.get(key, {})
        if not isinstance(came, dict):
            self.fail(key, f"a table [{key}]", came)
        return came

    def keys(self, data: dict[str, Any], known: list[str], where: str) -> None:
        for key in data:
            if key not in known:
                self.fail(f"{where}{key}", f"one of {', '.join(known)}", "a key that is not known")

    def number(
        self,
        table: dict[str, Any],
        key: str,
        default: float,
        *,
        most: float = math.inf,
        whole: bool = False,
        positive: bool = False,
    ) -> float:
        came = table.get(key.partition(".")[2], default)
        kinds = int if whole else int | float
        if isinstance(came, bool) or not isinstance(came, kinds) or not math.isfinite(came):
            self.fail(key, "a whole number" if whole else "a number", came)
        if came > most or came < 0 or (positive and not came):
            least = "more than 0" if positive else "at least 0"
            self.fail(key, least if most == math.inf else f"{least} and at most {most:g}", came)
        return came

    def fail(self, key: str, wanted: str, came: Any) -> NoReturn:
        shown = f"{came:%Y-%m-%d}" if type(came).__name__ == "date" else repr(came)[:100]
        shown = came if came in ("nothing", "a key that is not known") else shown
        raise ExerciseError(f"{self.path}: {key}: wanted {wanted}; came {shown}")


def task_classes(lesson: Lesson) -> list[str]:
    """The classes of a lesson's checks that are marked as a task, in order."""

    def is_task(node: ast.expr) -> bool:
        called = node.func if isinstance(node, ast.Call) else node
        return isinstance(called, ast.Attribute) and called.attr == "task"

    tree = ast.parse(lesson.checks.read_text("utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return [node.name for node in classes if any(map(is_task, node.decorator_list))]
