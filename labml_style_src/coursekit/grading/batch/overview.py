"""A class at a glance: what `OUT/report.html` tells, counted from the results."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import mean, median

from coursekit.grading.batch.result import ERROR, GRADED, NOT_RUN, UNREADABLE, Result
from coursekit.grading.report import NOT_DONE, PASSED, Report
from coursekit.grading.sandbox import LAYERS

# Scores in tenths of what can be had, the best first; all of it is a band of its own.
BANDS = ["100 %", *(f"{10 * tenth} to {10 * tenth + 9} %" for tenth in reversed(range(10)))]

WORDS = {
    GRADED: "graded",
    ERROR: "to be graded again",
    UNREADABLE: "could not be read",
    NOT_RUN: "could not be run",
}


@dataclass
class Band:
    """The students whose scores lie together."""

    title: str
    results: list[Result] = field(default_factory=list)


@dataclass
class Tally:
    """How a task or a check went: of `all` students, how many solved it and how many had not begun."""

    title: str
    points: float
    solved: int = 0
    not_done: int = 0
    all: int = 0
    checks: list["Tally"] = field(default_factory=list)

    def add(self, passed: bool, not_done: bool) -> None:
        self.all += 1
        self.solved += passed
        self.not_done += not_done


@dataclass
class Misconception:
    """A mistake of the bank and whom it struck. In `maybe` are those in whose answers it cannot be told apart
    from another."""

    name: str
    sentence: str
    students: list[str] = field(default_factory=list)
    maybe: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        words = self.name.partition("__")[2].replace("_", " ")
        return words[:1].upper() + words[1:]

    @property
    def target(self) -> str:
        """The function or class in which it was made."""
        return self.name.partition("__")[0]


@dataclass
class Walls:
    """The layers of the sandbox that stood for some students, and those that did not."""

    layers: list[str]
    students: list[str] = field(default_factory=list)

    @property
    def missing(self) -> list[str]:
        return [layer for layer in LAYERS if layer not in self.layers]


@dataclass
class Overview:
    counts: dict[str, int]
    bands: list[Band]
    average: float
    middle: float
    max_score: float
    tasks: list[Tally]
    misconceptions: list[Misconception]
    walls: list[Walls]
    unfinished: list[Result]
    evidence: list[Result]
    events: list[Result]
    late: list[Result]

    words = WORDS

    @property
    def graded(self) -> int:
        return self.counts[GRADED]

    @property
    def tallest(self) -> int:
        """The most students in a band."""
        return max(len(band.results) for band in self.bands)

    @property
    def summary(self) -> list[str]:
        """The class in sentences."""
        handed_in = sum(self.counts.values())
        counts = [f"{many:,} {WORDS[status]}" for status, many in self.counts.items() if many]
        lines = [f"{handed_in:,} handed in: {', '.join(counts) or 'nothing to grade'}."]
        if self.graded:
            full = len(self.bands[0].results)
            lines.append(
                f"Of {self.max_score:g} points the graded have {self.average:.1f} on average and {self.middle:.1f} in "
                f"the middle (the median); {full:,} {'has' if full == 1 else 'have'} all."
            )
        return lines

    def contents(self, alike: Sequence[object]) -> list[tuple[str, str]]:
        """The sections that there are: anchor and text, with how many are in it."""
        sections = [
            ("unfinished", "Not graded", len(self.unfinished)),
            ("evidence", "Ready-made attention", len(self.evidence)),
            ("events", "Beside answering", len(self.events)),
            ("alike", "Nearly the same", len(alike)),
            ("scores", "Scores", self.graded),
            ("tasks", "Tasks", len(self.tasks)),
            ("misconceptions", "Misconceptions", len(self.misconceptions)),
            ("late", "Late", len(self.late)),
            ("walls", "Sandbox", len(self.walls)),
            ("students", "Students", self.graded),
        ]
        return [(anchor, f"{text} ({many:,})") for anchor, text, many in sections if many]


def overview(results: Iterable[Result]) -> Overview:
    """Count a class. The order of `results` does not matter."""
    results = sorted(results, key=lambda result: result.student)
    graded = [result for result in results if result.status == GRADED]
    scores = [result.score for result in graded] or [0.0]
    order = (ERROR, UNREADABLE, NOT_RUN)
    return Overview(
        counts={status: sum(result.status == status for result in results) for status in (GRADED, *order)},
        bands=bands(graded),
        average=mean(scores),
        middle=median(scores),
        max_score=max((result.max_score for result in results), default=0.0),
        tasks=tallies(result.report for result in graded if result.report),
        misconceptions=misconceptions(graded),
        walls=walls(results),
        unfinished=sorted(
            (result for result in results if result.status in order),
            key=lambda result: order.index(result.status),
        ),
        evidence=[result for result in results if result.evidence],
        events=[result for result in results if result.events],
        late=sorted((result for result in results if result.late_days), key=lambda result: -result.late_days),
    )


def bands(graded: list[Result]) -> list[Band]:
    """Every band, also those without a student; the lowest score first within each."""
    found = [Band(title) for title in BANDS]
    for result in sorted(graded, key=lambda result: (-result.score, result.student)):
        # A hair below a tenth is that tenth: 0.7 * 10 is 7.000000000000001, and 0.29 * 100 is not 29.
        share = result.score / result.max_score if result.max_score else 0.0
        found[10 - min(int(share * 10 + 1e-9), 9) if share < 1 - 1e-9 else 0].results.append(result)
    return found


def tallies(reports: Iterable[Report]) -> list[Tally]:
    """Each task with its checks, in the order of the lesson."""
    tasks: dict[str, Tally] = {}
    checks: dict[tuple[str, str], Tally] = {}
    for report in reports:
        for task in report.tasks:
            tally = tasks.setdefault(task.key, Tally(task.title, task.points))
            tally.add(task.passed, task.not_done)
            for check in task.checks:
                key = task.key, check.name
                if key not in checks:
                    checks[key] = Tally(check.title, check.points)
                    tally.checks.append(checks[key])
                checks[key].add(check.outcome == PASSED, check.outcome == NOT_DONE)
    return list(tasks.values())


def misconceptions(graded: list[Result]) -> list[Misconception]:
    """Those that struck most first."""
    found: dict[str, Misconception] = {}
    for result in graded:
        certain: dict[str, bool] = defaultdict(bool)
        for check in result.report.checks if result.report else []:
            for case in check.cases:
                for mistake in case.mistakes:
                    found.setdefault(mistake.name, Misconception(mistake.name, mistake.sentence))
                    certain[mistake.name] |= len(case.mistakes) == 1
        for name, sure in certain.items():
            (found[name].students if sure else found[name].maybe).append(result.student)
    return sorted(found.values(), key=lambda each: (-len(each.students), -len(each.maybe), each.name))


def walls(results: list[Result]) -> list[Walls]:
    """Each set of layers that stood; the weakest first, since that is what to look at. What never ran needed none."""
    ran = [result for result in results if result.status in (GRADED, NOT_RUN)]
    kinds = Counter(tuple(result.sandbox) for result in ran)
    found = {kind: Walls(list(kind)) for kind in sorted(kinds, key=lambda kind: (len(kind), kind))}
    for result in ran:
        found[tuple(result.sandbox)].students.append(result.student)
    return list(found.values())
