"""What students and instructors read after grading: `OUT/feedback/<student>.html` and `OUT/report.html`.

Each page is one file that loads nothing and runs nothing: its policy forbids both, so that text of a student's
which slipped through as markup could still do no harm. Everything a template prints goes through `shown`, which
bounds it and makes control characters visible, and is then escaped. The same results give the same bytes.
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from coursekit.course import Lesson
from coursekit.files import write_text
from coursekit.grading import feedback
from coursekit.grading.batch import overview
from coursekit.grading.batch.assignment import DIGITS, Assignment
from coursekit.grading.batch.names import file_stem
from coursekit.grading.batch.result import Result
from coursekit.grading.batch.similar import Group
from coursekit.grading.report import PASSED, Task
from coursekit.grading.verbs import clean
from coursekit.words import count, few, number

# Characters of one text: more is no use to a reader.
TEXT_LIMIT = 2000
BRIEF_LIMIT = 240
NAME_LIMIT = 80
# A report may show six thousand of these.
MARKS = {"passed": Markup("<i>{}</i>"), "failed": Markup("<b>{}</b>"), "not done": Markup("<i>{}</i>")}


def write_feedback(out: Path, lesson: Lesson, assignment: Assignment, result: Result) -> Path:
    """Write a student's page and return its path."""
    path = out / feedback_path(result.student)
    report = result.report
    sections = feedback.sections(report) if report and not report.problem else []
    weights = assignment.weights_of({section.task.key: section.task.points for section in sections})
    rows = [ScoreRow.of(section, weights) for section in sections]
    text = template("feedback.html").render(
        title=lesson.title,
        result=result,
        fused=assignment.fused,
        rows=rows,
        weighted=any(row.points != row.task.points for row in rows),
        evidence=[told_by_title(line, sections) for line in result.evidence],
        sums=sums(assignment, result, rows),
        sections=sections,
        open=any(section.state != "passed" for section in sections),
        problem=report.problem if report else "",
        notes=[note for note in report.notes if note not in result.evidence] if report else [],
    )
    write_text(path, text)
    return path


def write_report(
    out: Path, lesson: Lesson, assignment: Assignment, results: list[Result], alike: list[Group]
) -> Path:
    """Write the page about the class and return its path."""
    path = out / "report.html"
    page = overview.overview(results)
    text = template("report.html").render(
        title=lesson.title, slug=lesson.slug, fused=assignment.fused, page=page, alike=alike
    )
    write_text(path, text)
    return path


def feedback_path(student: str) -> str:
    """Where a student's page is, below OUT."""
    return f"feedback/{file_stem(student)}.html"


def told_by_title(line: str, sections: list[feedback.Section]) -> str:
    """A sentence about a task of which a student knows the title, not the class."""
    key, colon, rest = line.partition(": ")
    titles = {section.task.key: section.title for section in sections}
    return titles.get(key, key) + colon + rest


@dataclass(frozen=True)
class ScoreRow:
    """What a task brings: the checks' own points, and what they count as in this assignment."""

    task: Task
    title: str
    state: str
    earned: float
    points: float

    @classmethod
    def of(cls, section: feedback.Section, weights: dict[str, Fraction]) -> "ScoreRow":
        task = section.task
        points = float(weights.get(task.key, 0))
        earned = points * task.earned / task.points if task.points else 0.0
        return cls(task, section.title, section.state, earned, points)

    @property
    def checks(self) -> str:
        passed = sum(check.outcome == PASSED for check in self.task.checks)
        return f"{passed} of {len(self.task.checks)}"


@dataclass(frozen=True)
class Sums:
    """What is taken off below the tasks: for what was not built by hand, and for lateness."""

    lost: float
    late: float
    late_rule: str


def sums(assignment: Assignment, result: Result, rows: list[ScoreRow]) -> Sums:
    late, days = assignment.late, result.late_days
    taken = float(1 - late.kept(days))
    over = late.days and days > late.days
    rule = f"after {count(late.days, 'day')} nothing is kept" if over else f"{number(100 * taken)} % less"
    lost = sum(row.earned for row in rows) - result.earned if assignment.fused == "fail" else 0.0
    # What is kept is rounded.
    return Sums(lost if lost > 0.5 * 10**-DIGITS else 0.0, result.earned - result.score, rule)


@cache
def template(name: str) -> Any:
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates", encoding="utf-8"),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (number, count, code, blocks, few, named, brief, percent)
    pages.filters |= {each.__name__: each for each in filters}
    pages.globals |= {"page_of": page_of, "signs": signs, "SIGNS": feedback.SIGNS}
    return pages.get_template(name)


def shown(value: Any) -> Any:
    """What a template prints: text bounded and without control characters; markup and numbers as they are."""
    if value is None or isinstance(value, Markup) or not isinstance(value, str):
        return value
    return clean(value, TEXT_LIMIT)


def named(student: str) -> Markup:
    """A student's name, which keeps its direction of writing to itself."""
    return Markup("<bdi>{}</bdi>").format(clean(student.replace("\n", " "), NAME_LIMIT))


def page_of(student: str) -> str:
    """The address of a student's page as the report links to it."""
    return quote(feedback_path(student))


def code(text: str) -> Markup:
    """A sentence of the course's own, whose `backticks` become code."""
    parts = re.split(r"`([^`\n]+)`", clean(text, TEXT_LIMIT))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else escape(part)
        for place, part in enumerate(parts)
    )


def blocks(text: str) -> list[tuple[str, str]]:
    """The lines of a message in blocks: `p` for sentences, `pre` for quoted source."""
    found: list[tuple[str, str]] = []
    for place, line in enumerate(clean(text, TEXT_LIMIT).split("\n")):
        kind = "pre" if place and feedback.QUOTE.match(line) else "p"
        if found and found[-1][0] == kind:
            found[-1] = (kind, f"{found[-1][1]}\n{line}")
        else:
            found.append((kind, line))
    return [(kind, dedent(text) if kind == "pre" else text) for kind, text in found]


def brief(text: str) -> str:
    """The first line of a text, for a table."""
    return clean(text.strip().partition("\n")[0], BRIEF_LIMIT)


def percent(share: float) -> str:
    """Whole percents; what is not all is never called 100 %."""
    return f"{math.floor(100 * share + 1e-9)} %"


def signs(result: Result) -> Markup:
    """A sign for each task, told as a number to those who do not see it."""
    states = [feedback.state(task) for task in result.report.tasks] if result.report else []
    text = f"{states.count('passed')} of {count(len(states), 'task')}"
    marks = Markup("").join(MARKS[state].format(feedback.SIGNS[state]) for state in states)
    return Markup('<span role="img" aria-label="{}">{}</span>').format(text, marks)
