"""The result of checking a submission: tasks, checks, points, and which mistakes were recognised."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

PASSED, FAILED, NOT_DONE, SKIPPED = "passed", "failed", "not done", "skipped"


@dataclass
class Mistake:
    """A misconception that was recognised, and what a tutor says to it."""

    name: str
    sentence: str


@dataclass
class Check:
    """One check: all its parametrised cases pass, or it earns nothing. The message is that of the first case
    that failed; several mistakes mean that they cannot be told apart here."""

    name: str
    points: float
    outcome: str = PASSED
    message: str = ""
    case: str = ""
    printed: str = ""
    mistakes: list[Mistake] = field(default_factory=list)

    @property
    def title(self) -> str:
        return self.name.removeprefix("test_").replace("_", " ")

    @property
    def earned(self) -> float:
        return self.points if self.outcome == PASSED else 0


@dataclass
class Task:
    """One task: the checks of one class. `shown` of its hints have been asked for."""

    key: str
    title: str
    hints: list[str]
    checks: list[Check] = field(default_factory=list)
    shown: int = 0

    @property
    def points(self) -> float:
        return sum(check.points for check in self.checks)

    @property
    def earned(self) -> float:
        return sum(check.earned for check in self.checks)

    @property
    def passed(self) -> bool:
        return all(check.outcome == PASSED for check in self.checks)

    @property
    def not_done(self) -> bool:
        """Whether the student has not begun: nothing but the stub's own exception was met."""
        outcomes = {check.outcome for check in self.checks}
        return NOT_DONE in outcomes and FAILED not in outcomes


@dataclass
class Report:
    """A checked submission. `problem` is set, and nothing earned, when its file could not be run at all."""

    slug: str
    tasks: list[Task]
    problem: str = ""
    submission: str = ""
    seed: int = 0
    attempts: int = 0

    @property
    def points(self) -> float:
        return sum(task.points for task in self.tasks)

    @property
    def earned(self) -> float:
        return sum(task.earned for task in self.tasks)

    @property
    def checks(self) -> list[Check]:
        return [check for task in self.tasks for check in task.checks]

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(task.passed for task in self.tasks)

    @property
    def attempted(self) -> bool:
        """Whether any check met more than the untouched stub."""
        return any(check.outcome != NOT_DONE for check in self.checks)

    @property
    def next_task(self) -> Task | None:
        """The first task that is not yet solved."""
        return next((task for task in self.tasks if not task.passed), None)

    @property
    def mistakes(self) -> list[Mistake]:
        """Every mistake that was recognised, once, in order."""
        found = {mistake.name: mistake for check in self.checks for mistake in check.mistakes}
        return list(found.values())


def build(records: list[dict[str, Any]]) -> Report:
    """The report of one lesson's run, from the plugin's records: one a case, in the order of the file."""
    records = [record for record in records if record["outcome"] != SKIPPED]
    named = explained([[name for name, _ in record["mistakes"]] for record in records])
    tasks: dict[str, Task] = {}
    checks: dict[tuple[str, str], Check] = {}
    for record, names in zip(records, named, strict=True):
        key = record["key"]
        task = tasks.setdefault(key, Task(key, record["title"], record["hints"]))
        if (key, record["check"]) not in checks:
            checks[key, record["check"]] = Check(record["check"], record["points"])
            task.checks.append(checks[key, record["check"]])
        check = checks[key, record["check"]]
        if record["outcome"] != PASSED and check.outcome == PASSED:
            check.outcome, check.message = record["outcome"], record["message"]
            check.case, check.printed = record["case"], record["printed"]
        known = {mistake.name for mistake in check.mistakes}
        check.mistakes += [
            Mistake(*pair) for pair in record["mistakes"] if pair[0] in names and pair[0] not in known
        ]
    problem = next((record["message"] for record in records if record["broken"]), "")
    return Report(records[0]["lesson"] if records else "", list(tasks.values()), problem)


def explained(candidates: list[list[str]]) -> list[list[str]]:
    """For each failing case the candidates that explain the most cases: what ties in one case is often told
    apart by another. Candidates that explain the same cases stay tied."""
    kept: list[list[str]] = [[] for _ in candidates]
    open_cases = {index for index, names in enumerate(candidates) if names}
    while open_cases:
        counts = Counter(name for index in open_cases for name in candidates[index])
        most = max(counts.values())
        best = {name for name, count in counts.items() if count == most}
        # One of the best, with those that explain exactly the same cases.
        first = next(name for index in sorted(open_cases) for name in candidates[index] if name in best)
        cases = {index for index in open_cases if first in candidates[index]}
        equal = [name for name in best if {i for i in open_cases if name in candidates[i]} == cases]
        for index in cases:
            kept[index] = [name for name in candidates[index] if name in equal]
        open_cases -= cases
    return kept
