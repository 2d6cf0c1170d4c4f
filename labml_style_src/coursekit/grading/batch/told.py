"""What the commands for a class print. Names and messages are strangers' and are made safe first."""

from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from coursekit.grading.batch.regrade import Change
from coursekit.grading.batch.result import ERROR, GRADED, Result
from coursekit.grading.batch.results import exact
from coursekit.grading.batch.run import Run, Tell
from coursekit.grading.sandbox import LAYERS
from coursekit.grading.verbs import clean
from coursekit.words import count, few, listed

LINE_LIMIT = 160


@contextmanager
def progress(console: Console, say: Callable[[str], None]) -> Generator[Tell]:
    """Tell of each result: on a terminal by a bar, with a line for what is not a plain grade; else by a line each.
    What was graded before is only counted."""
    if not console.is_terminal:

        def line(result: Result, kept: bool, total: int) -> None:
            if not kept:
                say(one_line(result))

        yield line
        return
    columns = (TextColumn("grading"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def step(result: Result, kept: bool, total: int) -> None:
            bar.update(task, total=total, advance=1)
            if not kept and result.status != GRADED:
                say(one_line(result))

        yield step


def one_line(result: Result) -> str:
    """`jane: 31.5 of 35`, or what was wrong."""
    score = f"{clean(result.student, 120)}: {exact(result.score)} of {exact(result.max_score)}"
    late = f", {count(result.late_days, 'day')} late" if result.late_days else ""
    if result.status == GRADED:
        return score + late
    why = clean(result.message.partition("\n")[0], LINE_LIMIT)
    return f"{score}{late}, {result.status}: {why}"


def summary(run: Run) -> Generator[str]:
    """What there is to say after a run."""
    mine = [result for result in run.results if result.student in set(run.students)]
    counts = Counter(result.status for result in mine)
    shown = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    yield f"{len(mine)} of {len(run.students)} students: {shown or 'none yet'} ({run.kept} as before)"
    failed = [result.student for result in mine if result.status == ERROR]
    if failed:
        yield f"the grader itself failed on {names(failed)}: run the same command again"
    others = [result.student for result in run.results if result.student not in set(run.students)]
    if others and run.shard == "1/1":
        yield f"kept from before, though nothing of theirs is among the submissions now: {names(others)}"
    lacking = [layer for layer in LAYERS if any(layer not in result.sandbox for result in mine)]
    if lacking:
        yield f"not every result was graded behind {', '.join(lacking)}: `attn doctor` says why"
    yield f"in {run.out}: grades.csv, report.html, feedback/, results/"


def changes(found: list[Change], total: int) -> Generator[str]:
    """What `attn regrade` found, a student a line, the checks below."""
    for change in found:
        before, after = change.before, change.after
        difference = after.score - before.score
        status = f", {before.status} before, now {after.status}" if before.status != after.status else ""
        of = f"{exact(before.score)} of {exact(before.max_score)}, now {exact(after.score)}"
        of += f" of {exact(after.max_score)}" if before.max_score != after.max_score else ""
        yield f"{clean(change.student, 120)}: {of} ({difference:+.4g}){status}"
        yield from (f"  {line}" for line in few(clean(check, LINE_LIMIT) for check in change.checks))
    changed = (
        f"{len(found)} of {total} students have another result"
        if found
        else f"nothing differs for {total} students"
    )
    yield changed


def names(students: Iterable[str]) -> str:
    return listed(clean(student, 120) for student in students)
