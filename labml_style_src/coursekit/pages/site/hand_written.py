"""The pages that lie in `docs/` as Markdown: they may show figures and what experiments found, and make claims that
tests of mechanisms prove.

`![caption](figure:name)` is what `name()` in `docs/figures.py` returns, and `figure:slug.name` a figure of that
lesson; `[check:slug.test_name]` is the record of a test in the proof of that mechanism; a line `[results:name]` the
table of that experiment, `[results:name.full]` that of its run on a GPU, and `[results]` how many claims of each hold.
`[measured:name]`, also inside a sentence, is the Markdown that `name()` in `docs/measured.py` makes of what was
measured.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from coursekit.course import Course, CourseError
from coursekit.experiments import load, told
from coursekit.pages import formulas
from coursekit.pages.inserts import CODE, Figures
from coursekit.pages.problems import PageError, Problem
from coursekit.pages.proofs.checks import Checks
from coursekit.pages.proofs.records import Record, Records, known_tests

RESULTS = re.compile(r"^\[results(?::(?P<name>\w+)(?:\.(?P<size>\w+))?)?\]$", re.MULTILINE)
MEASURED = re.compile(rf"{CODE} | \[measured:(?P<name>[^\]]*)\]", re.DOTALL | re.MULTILINE | re.VERBOSE)

Made = Mapping[str, str] | PageError


def render(course: Course, path: Path, drawings: Made, measured: Made, proofs: Records) -> str:
    """The page's Markdown. Raises `PageError` with every fault of its formulas, figures and claims."""
    name, text = path.relative_to(course.root).as_posix(), path.read_text("utf-8")
    problems = formulas.faults(text, name, 1)
    if isinstance(drawings, PageError):
        problems += drawings.problems
        drawings = {}
    if isinstance(measured, PageError):
        problems += measured.problems
        measured = {}
    figures = Figures(name, drawings)
    figures.check(text, 1)
    checks = claims(course, name, text, proofs, "" if path.stem == "index" else "../")
    text, faults = with_results(course, name, checks.replace(text, 1))
    text, unknown = with_measured(name, text, measured)
    markdown = figures.replace(text)
    problems += figures.problems + checks.problems + faults + unknown
    if problems:
        raise PageError(problems)
    return markdown


def with_results(course: Course, name: str, text: str) -> tuple[str, list[Problem]]:
    """The text with the table of each experiment that it names, and the faults."""
    there, faults = {each.name: each for each in course.experiments}, []

    def table(match: re.Match[str]) -> str:
        try:
            if match["name"] is None:
                return told.overview(course.experiments)
            if match["name"] not in there:
                raise CourseError(
                    f"unknown experiment '{match['name']}': there are {', '.join(there) or 'none'}"
                )
            return told.table(load(there[match["name"]].results(match["size"] or "default")))
        except CourseError as error:
            faults.append(Problem(name, text.count("\n", 0, match.start()) + 1, str(error)))
            return ""

    return RESULTS.sub(table, text), faults


def with_measured(name: str, text: str, measured: Mapping[str, str]) -> tuple[str, list[Problem]]:
    """The text with what was measured in its places, and a problem for each name that `docs/measured.py` lacks."""
    faults = []

    def words(match: re.Match[str]) -> str:
        if match["code"]:
            return match["code"]
        if match["name"] not in measured:
            message = f"unknown '{match['name']}': docs/measured.py has {', '.join(measured) or 'none'}"
            faults.append(Problem(name, text.count("\n", 0, match.start()) + 1, message))
            return ""
        return measured[match["name"]].strip()

    return MEASURED.sub(words, text), faults


def claims(course: Course, name: str, text: str, proofs: Records, up: str) -> Checks:
    """The tests of every mechanism that the page names, as `slug.test_name`; `up` leads to the site's top."""
    mechanisms = {each.slug: each for each in course.mechanisms if f"[check:{each.slug}." in text}
    tests = {
        f"{slug}.{test}": f"{up}source/tests/{file.stem.removeprefix('test_')}/#L{line}"
        for slug, mechanism in mechanisms.items()
        for test, (file, line) in known_tests(mechanism).items()
    }

    def lookup(test: str) -> list[Record]:
        slug, _, short = test.partition(".")
        return proofs.lookup(mechanisms[slug], short)

    return Checks(name, tests, lookup)
