"""The result of checking a submission: tasks, checks, points, and which mistakes were recognised."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

PASSED, FAILED, NOT_DONE, SKIPPED = "passed", "failed", "not done", "skipped"


@dataclass
class Mistake:
    """A misconception that was recognised, and what a tutor says to it."""

    name: str
    sentence: str


@dataclass
class Case:
    """One case of a check that failed: what is told of it belongs to it alone. Several mistakes mean that
    they cannot be told apart here. `error` is the same wherever the same error shows, `function` is where
    it was raised, and `waits` names that one if it belongs to an earlier task that is not solved."""

    name: str = ""
    message: str = ""
    printed: str = ""
    mistakes: list[Mistake] = field(default_factory=list)
    error: str = ""
    function: str = ""
    waits: str = ""


@dataclass
class Check:
    """One check: all its parametrised cases pass, or it earns nothing. `cases` has the first case that
    failed, and later ones that show other mistakes."""

    name: str
    points: float
    outcome: str = PASSED
    cases: list[Case] = field(default_factory=list)

    @property
    def title(self) -> str:
        return self.name.removeprefix("test_").replace("_", " ")

    @property
    def first(self) -> Case:
        """The first case that failed; an empty one if none did."""
        return self.cases[0] if self.cases else Case()

    @property
    def message(self) -> str:
        return self.first.message

    @property
    def mistakes(self) -> list[Mistake]:
        return self.first.mistakes

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
    def waits(self) -> list[str]:
        """The functions of earlier tasks that checks of this one could not do without, each once."""
        return list(dict.fromkeys(check.first.waits for check in self.checks if check.first.waits))

    @property
    def not_done(self) -> bool:
        """Whether the student has not begun: nothing but the stub's own exception was met."""
        outcomes = {check.outcome for check in self.checks}
        return NOT_DONE in outcomes and FAILED not in outcomes


@dataclass
class Report:
    """A checked submission. `problem` is set, and nothing earned, when its file could not be run at all;
    `notes` are about the file as a whole; `asked` is whether a hint was asked for now."""

    slug: str
    tasks: list[Task]
    problem: str = ""
    submission: str = ""
    seed: int = 0
    attempts: int = 0
    notes: list[str] = field(default_factory=list)
    asked: bool = False

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
        cases = [case for check in self.checks for case in check.cases]
        found = {mistake.name: mistake for case in cases for mistake in case.mistakes}
        return list(found.values())

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Report":
        """The report that `dataclasses.asdict` took apart."""

        def case(data: dict[str, Any]) -> Case:
            return Case(**{**data, "mistakes": [Mistake(**each) for each in data["mistakes"]]})

        def check(data: dict[str, Any]) -> Check:
            return Check(**{**data, "cases": [case(each) for each in data["cases"]]})

        def task(data: dict[str, Any]) -> Task:
            return Task(**{**data, "checks": [check(each) for each in data["checks"]]})

        return cls(**{**data, "tasks": [task(each) for each in data["tasks"]]})


def build(records: list[dict[str, Any]], among: Iterable[dict[str, Any]] = ()) -> Report:
    """The report of one lesson's run, from the records: one a case, in the order of the file. The tasks are
    those of the records, `among` all of the lesson's if some have no record."""
    records = [record for record in records if record["outcome"] != SKIPPED]
    named = explained(believable(records))
    tasks = {task["key"]: Task(**task) for task in among}
    checks: dict[tuple[str, str], Check] = {}
    for record, names in zip(records, named, strict=True):
        key = record["key"]
        task = tasks.setdefault(key, Task(key, record["title"], record["hints"]))
        if (key, record["check"]) not in checks:
            checks[key, record["check"]] = Check(record["check"], record["points"])
            task.checks.append(checks[key, record["check"]])
        add_case(checks[key, record["check"]], record, names)
    problem = next((record["message"] for record in records if record["broken"]), "")
    note_what_waits(list(tasks.values()), records)
    notes = records[-1]["notes"] if records else []
    return Report(records[0]["lesson"] if records else "", list(tasks.values()), problem, notes=notes)


def add_case(check: Check, record: dict[str, Any], names: list[str]) -> None:
    """Take up a case that failed, if it is the first or shows another mistake."""
    if record["outcome"] == PASSED:
        return
    mistakes = [Mistake(*pair) for pair in record["mistakes"] if pair[0] in names]
    known = {mistake.name for case in check.cases for mistake in case.mistakes}
    if check.cases and {mistake.name for mistake in mistakes} <= known:
        return
    if not check.cases:
        check.outcome = record["outcome"]
    error, function = record["error"] or ("", "")
    check.cases.append(Case(record["case"], record["message"], record["printed"], mistakes, error, function))


def note_what_waits(tasks: list[Task], records: list[dict[str, Any]]) -> None:
    """Mark the checks that failed in a function of an earlier task: the first task that asks for it."""
    places = {task.key: place for place, task in enumerate(tasks, start=1)}
    owner: dict[str, int] = {}
    for record in records:
        for name in record["asked"]:
            owner.setdefault(name, places[record["key"]])
    for place, task in enumerate(tasks, start=1):
        for check in task.checks:
            name = check.first.function
            if name in owner and owner[name] < place and not tasks[owner[name] - 1].passed:
                check.first.waits = f"task {owner[name]}: {name}"


def believable(records: list[dict[str, Any]]) -> list[list[str]]:
    """For each case the mistakes that may be named in it. Answers coincide by chance, so a mistake in `f` (its
    name begins with it) must show in the first case that asks for `f` and fails. If all that ask for it pass,
    nothing is wrong with `f`. Only what no case asks for may show anywhere."""
    candidates = [[name for name, _ in record["mistakes"]] for record in records]
    asked = {name for record in records for name in record["asked"]}
    first: dict[str, int] = {}
    for index, record in enumerate(records):
        for name in record["asked"] if record["outcome"] == FAILED else ():
            first.setdefault(name, index)

    def shows(name: str) -> bool:
        function = name.partition("__")[0]
        return function not in asked or (function in first and name in candidates[first[function]])

    return [[name for name in names if shows(name)] for names in candidates]


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
