"""A report in words: for the terminal (Rich), as plain text, and as plain data.

Rich is imported only where it is used, so that pytest's own output does not need it.
"""

from typing import TYPE_CHECKING, Any

from coursekit.grading.report import NOT_DONE, PASSED, Check, Mistake, Report, Task
from coursekit.grading.verbs import clean

if TYPE_CHECKING:
    from rich.console import Group

PRINTED_SHOWN = 1000
SIGNS = {"passed": "✓", "failed": "✗", "not done": "·"}


def printed(text: str) -> str:
    """What the student's code printed, safe to show."""
    return clean(text.strip("\n"), PRINTED_SHOWN)


def number(points: float) -> str:
    return f"{points:g}"


def of(earned: float, total: float, noun: str) -> str:
    """`3 of 4 points`, `1 of 1 point`."""
    return f"{number(earned)} of {number(total)} {noun}{'' if total == 1 else 's'}"


def state(task: Task) -> str:
    return "passed" if task.passed else "not done" if task.not_done else "failed"


def task_line(task: Task) -> str:
    """`0 of 3 points, 1 of 2 checks`, or that nothing was begun."""
    passed = sum(check.outcome == PASSED for check in task.checks)
    line = f"{of(task.earned, task.points, 'point')}, {of(passed, len(task.checks), 'check')}"
    return line + (", not done yet" if task.not_done else "")


def total_line(report: Report) -> str:
    passed = sum(check.outcome == PASSED for check in report.checks)
    return f"{of(report.earned, report.points, 'point')}, {of(passed, len(report.checks), 'check')}"


def mistake_lines(mistakes: list[Mistake]) -> list[str]:
    """What a tutor says. Several mistakes that give the same answer here are told as such."""
    if len(mistakes) < 2:
        return [mistake.sentence for mistake in mistakes]
    return ["One of these, which give the same answer here:", *(f"- {each.sentence}" for each in mistakes)]


def check_title(check: Check) -> str:
    return check.title + (f" ({check.case})" if check.case else "")


def hint_lines(task: Task) -> list[str]:
    """The hints that were asked for."""
    return [
        f"hint {level} of {len(task.hints)}: {task.hints[level - 1]}" for level in range(1, task.shown + 1)
    ]


def footer(report: Report) -> str:
    """What to do next."""
    if report.passed:
        return f"All of it is right. `attn solution {report.slug}` shows how the course writes it."
    task = report.next_task
    if report.problem or task is None or not task.hints:
        return ""
    if task.shown >= len(task.hints):
        return f"All hints for '{task.title}' are shown; `attn solution {report.slug}` shows an answer."
    which = "the next hint" if task.shown else "a hint"
    return f"`attn check {report.slug} --hint` gives {which} for '{task.title}'."


def failing(task: Task, told: set[str]) -> list[tuple[Check, list[Mistake]]]:
    """The checks of a task to talk about, each with the mistakes that were not told before."""
    pairs = []
    for check in task.checks:
        if check.outcome in (PASSED, NOT_DONE):
            continue
        fresh = [mistake for mistake in check.mistakes if mistake.name not in told]
        told |= {mistake.name for mistake in fresh}
        pairs.append((check, fresh))
    return pairs


def render(report: Report) -> "Group":
    """The report for `rich.print`."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    styles = {"passed": "green", "failed": "red", "not done": "dim"}
    parts: list[Any] = [Text(f"{report.slug}: {total_line(report)}", style="bold")]
    if report.problem:
        parts += [Text(""), Text(report.problem, style="red")]
    told: set[str] = set()
    for place, task in enumerate(report.tasks, start=1):
        row = Table.grid(expand=True, padding=(0, 1))
        row.add_column(width=1)
        row.add_column(ratio=1)
        row.add_column(justify="right")
        style = styles[state(task)]
        title = Text(f"{place}. {task.title}")
        row.add_row(Text(SIGNS[state(task)], style=style), title, Text(task_line(task), style=style))
        parts.append(row)
        for check, mistakes in [] if report.problem else failing(task, told):
            text = Text(check_title(check), style="bold")
            again = check.mistakes and not mistakes
            text.append(": the same mistake as above" if again else f"\n{check.message}", style="not bold")
            parts.append(Padding(text, (0, 0, 0, 3)))
            for line in mistake_lines(mistakes):
                parts.append(Padding(Text(line, style="yellow"), (0, 0, 0, 3)))
            if check.printed:
                parts.append(Padding(Text(f"printed: {check.printed}", style="dim"), (0, 0, 0, 3)))
        parts += [Padding(Text(line, style="cyan"), (0, 0, 0, 3)) for line in hint_lines(task)]
    if footer(report):
        parts += [Text(""), Text(footer(report), style="dim")]
    return Group(*parts)


def plain(report: Report, width: int = 100) -> str:
    """The report as text without colours."""
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, no_color=True, highlight=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(render(report))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain data. Of the hints only those that were asked for are in it."""
    return {
        "slug": report.slug,
        "submission": report.submission,
        "seed": report.seed,
        "attempts": report.attempts,
        "points": report.earned,
        "max_points": report.points,
        "passed": report.passed,
        "problem": report.problem,
        "tasks": [
            {
                "title": task.title,
                "points": task.earned,
                "max_points": task.points,
                "state": state(task),
                "hints": task.hints[: task.shown],
                "hints_left": len(task.hints) - task.shown,
                "checks": [
                    {
                        "name": check.name,
                        "points": check.earned,
                        "max_points": check.points,
                        "outcome": check.outcome,
                        "case": check.case,
                        "message": check.message,
                        "printed": check.printed,
                        "mistakes": [vars(mistake) for mistake in check.mistakes],
                    }
                    for check in task.checks
                ],
            }
            for task in report.tasks
        ],
    }


def failure_text(record: dict[str, Any]) -> str:
    """One failing case, as pytest shows it for a submission."""
    mistakes = [Mistake(*pair) for pair in record["mistakes"]]
    printed = [f"printed: {record['printed']}"] if record["printed"] else []
    return "\n".join([record["message"], *mistake_lines(mistakes), *printed])


def points_text(report: Report) -> str:
    """A line for each task and the total, for the end of pytest's output."""
    lines = [f"{SIGNS[state(task)]} {task.title}: {task_line(task)}" for task in report.tasks]
    return "\n".join([*lines, f"{report.slug}: {total_line(report)}"])
