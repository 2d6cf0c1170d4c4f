"""The pages that lie in `docs/` as Markdown: they may show figures, and make claims that tests of mechanisms prove.

`![caption](figure:name)` is what `name()` in `docs/figures.py` returns; `[check:slug.test_name]` the record of
a test in the proof of that mechanism.
"""

from collections.abc import Mapping
from pathlib import Path

from coursekit.course import Course
from coursekit.pages import formulas
from coursekit.pages.inserts import Figures
from coursekit.pages.problems import PageError
from coursekit.pages.proofs.checks import Checks
from coursekit.pages.proofs.records import Record, Records, known_tests


def render(course: Course, path: Path, drawings: Mapping[str, str] | PageError, proofs: Records) -> str:
    """The page's Markdown. Raises `PageError` with every fault of its formulas, figures and claims."""
    name, text = path.relative_to(course.root).as_posix(), path.read_text("utf-8")
    problems = formulas.faults(text, name, 1)
    if isinstance(drawings, PageError):
        problems += drawings.problems
        drawings = {}
    figures = Figures(name, drawings)
    figures.check(text, 1)
    checks = claims(course, name, text, proofs, "" if path.stem == "index" else "../")
    markdown = figures.replace(checks.replace(text, 1))
    problems += figures.problems + checks.problems
    if problems:
        raise PageError(problems)
    return markdown


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
