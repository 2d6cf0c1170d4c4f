"""Results for other systems: a table for spreadsheets, JUnit XML for build servers. `lms.py` fills in the rosters
of Canvas and Moodle, `gradescope.py` and `classroom.py` are about grading elsewhere.

    write(results, "csv", Path("scores.csv"))
    lines = write(results, "canvas", Path("upload.csv"), roster=Path("export.csv"))
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from coursekit.files import write_bytes, write_text
from coursekit.grading.batch.result import Result
from coursekit.grading.batch.results import COLUMNS, cell, exact
from coursekit.grading.feedback import check_title, mistake_lines, task_line, task_texts
from coursekit.grading.report import NOT_DONE, PASSED, Check, Task
from coursekit.grading.submission import ExerciseError
from coursekit.grading.verbs import clean
from coursekit.words import count, of

FORMATS = ("csv", "canvas", "moodle", "junit", "gradescope")

# What XML 1.0 has no way to write, not even as a reference.
ILLEGAL_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

MESSAGE_LIMIT = 4000
WORDS_LIMIT = 20_000


def write(
    results: Sequence[Result],
    kind: str,
    to: Path,
    *,
    roster: Path | None = None,
    column: str = "",
    match: Sequence[str] = (),
    scale: bool = False,
    weights: Mapping[str, float] | None = None,
) -> list[str]:
    """Write the results in one of the `FORMATS` and return what there is to tell, a sentence a line.

    `roster` is what Canvas or Moodle exported, `column` the assignment's column in it, `match` the columns that
    name a student, `scale` says that scores may be converted to its points; `weights` are those of the
    assignment's tasks, for Gradescope. Raises `ExerciseError` for a format that is not known, and where a roster
    is needed and missing, cannot be read, or leaves a choice open.
    """
    from coursekit.grading.batch import gradescope, lms

    if kind not in FORMATS:
        raise ExerciseError(f"--format {kind}: known are {', '.join(FORMATS)}")
    if kind not in ("canvas", "moodle"):
        if roster or column or match or scale:
            raise ExerciseError(f"--roster and what belongs to it are for canvas and moodle, not for {kind}")
        if kind == "gradescope":
            return gradescope.write_results(results, to, weights)
        write_text(to, junit(results) if kind == "junit" else table(results))
        return []
    if roster is None:
        raise ExerciseError(f"--format {kind} needs --roster: the file that {kind.title()} exported")
    if not roster.is_file():
        raise ExerciseError(f"there is no roster {roster}")
    system = lms.CANVAS if kind == "canvas" else lms.MOODLE
    merged = lms.merge(roster.read_bytes(), results, system, column=column, match=match, scale=scale)
    write_bytes(to, merged.content)
    return merged.lines()


def task_points(tasks: Sequence[Task], title: str) -> str:
    return next((exact(task.earned) for task in tasks if task.title == title), "")


def table(results: Sequence[Result]) -> str:
    """One row a student: the columns of `grades.csv`, the points of each task (before weights and lateness),
    and what an instructor looks for: mistakes, events, evidence, messages."""
    tasks = [result.report.tasks if result.report else [] for result in results]
    titles = list(dict.fromkeys(task.title for each in tasks for task in each))
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow([*COLUMNS, *map(cell, titles), "mistakes", "events", "evidence", "message"])
    for result, mine in zip(results, tasks, strict=True):
        mistakes = [mistake.name for mistake in result.report.mistakes] if result.report else []
        rows.writerow(
            [
                cell(result.student),
                cell(result.slug),
                exact(result.score),
                exact(result.max_score),
                cell(result.status),
                result.late_days,
                "+".join(result.sandbox) or "none",
                *(task_points(mine, title) for title in titles),
                *(cell("; ".join(texts)) for texts in (mistakes, result.events, result.evidence)),
                cell(result.message),
            ]
        )
    return out.getvalue()


def check_text(check: Check) -> str:
    """What a failed check has to say, as the feedback on the terminal does; empty if it passed."""
    texts = []
    for case in check.cases:
        texts += [check_title(check, case), case.message, *mistake_lines(case.mistakes)]
        texts += [f"printed: {case.printed}"] if case.printed else []
        texts += [f"waits for {case.waits}"] if case.waits else []
    return clean("\n".join(texts), MESSAGE_LIMIT)


def words(result: Result, tasks: bool = True) -> str:
    """What a student is told of a result, as text; without `tasks`, of the result as a whole."""
    lines = [f"{result.slug}: {of(result.score, result.max_score, 'point')}"]
    if result.late_days:
        days = count(result.late_days, "day")
        lines.append(f"{days} late: {exact(result.score)} of the {exact(result.earned)} that were earned")
    report = result.report
    # What could not be run at all is told by the report and by the result.
    lines += [text for text in dict.fromkeys((result.message, report.problem if report else "")) if text]
    if report:
        lines += report.notes
        told: set[str] = set()
        for place, task in enumerate(report.tasks if tasks else (), start=1):
            lines.append(f"{place}. {task.title}: {task_line(task)}")
            lines += [text for _, text in task_texts(task, told)]
    return clean("\n".join(lines), WORDS_LIMIT)


def junit(results: Sequence[Result]) -> str:
    """JUnit XML, one `testsuite` a student and one `testcase` a check, after the schema that Jenkins' xUnit
    plugin publishes (`junit-10.xsd`, which pytest's own files are checked against too): properties belong to
    the suite, so the points of a check stand there, as `points: TASK.CHECK`. Nothing in it is a time: the
    same results give the same file.
    """
    suites = [suite(result) for result in results]
    counts = {name: str(sum(int(each.get(name, "0")) for each in suites)) for name in ("tests", "failures")}
    root = ElementTree.Element("testsuites", {"name": "attn", **counts, "errors": "0"})
    root.extend(suites)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def suite(result: Result) -> ElementTree.Element:
    """One student's checks. What could not be checked at all is one failed case, `submission`."""
    root = ElementTree.Element("testsuite", {"name": xml(result.student)})
    known = {
        "slug": result.slug,
        "status": result.status,
        "score": exact(result.score),
        "max_score": exact(result.max_score),
        "late_days": str(result.late_days),
        "sandbox": "+".join(result.sandbox) or "none",
    }
    cases = []
    for task in result.report.tasks if result.report else []:
        for check in task.checks:
            known[f"points: {task.key}.{check.name}"] = f"{exact(check.earned)} of {exact(check.points)}"
            kind = "not done" if check.outcome == NOT_DONE else "failed"
            problem = None if check.outcome == PASSED else (kind, check_text(check))
            cases.append(case(f"{result.slug}.{task.key}", check.name, problem))
    if not cases or (result.report and result.report.problem):
        told = result.message or (result.report.problem if result.report else "")
        cases.insert(0, case(result.slug, "submission", (result.status, clean(told, MESSAGE_LIMIT))))
    properties = ElementTree.SubElement(root, "properties")
    for name, value in known.items():
        ElementTree.SubElement(properties, "property", {"name": xml(name), "value": xml(value)})
    failed = sum(each.find("failure") is not None for each in cases)
    root.attrib |= {"tests": str(len(cases)), "failures": str(failed), "errors": "0"}
    root.extend(cases)
    return root


def case(classname: str, name: str, problem: tuple[str, str] | None) -> ElementTree.Element:
    """A `testcase`; with a problem, its kind and what is told of it, one that failed."""
    element = ElementTree.Element("testcase", {"classname": xml(classname), "name": xml(name)})
    if problem:
        kind, text = problem
        first = text.partition("\n")[0]
        failure = ElementTree.SubElement(element, "failure", {"type": xml(kind), "message": xml(first)})
        failure.text = xml(text)
    return element


def xml(text: str) -> str:
    """Text without the characters that XML 1.0 cannot hold; ElementTree escapes the rest."""
    return ILLEGAL_IN_XML.sub("", text)
