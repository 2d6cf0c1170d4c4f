"""A report in words: for the terminal (Rich), as plain text, and as plain data. What there is to say, and in which
order, is decided once, in `sections`: the terminal and the HTML pages only give it a look.

Rich is imported only where it is used, so that pytest's own output does not need it.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from coursekit.grading.report import NOT_DONE, PASSED, Case, Check, Mistake, Report, Task
from coursekit.grading.verbs import clean
from coursekit.words import count, of

if TYPE_CHECKING:
    from rich.console import Group

PRINTED_SHOWN = 1000
PRINTED_LINES = 5
SIGNS = {"passed": "✓", "failed": "✗", "not done": "·", "not checked here": "·"}
# `line 12, in f: ...` under a sentence, and what is indented: source with a caret below it.
QUOTE = re.compile(r"(code cell \d+, )?line \d+(, in \S+)?: |  ")
# What is told of a task, by its kind, and how the terminal shows it.
STYLES = {
    "waits": "dim", "check": "bold", "message": "", "mistake": "yellow", "printed": "dim", "hint": "cyan"
}  # fmt: skip


@dataclass(frozen=True)
class Section:
    """What is told of one task: `texts` are pairs of a kind of `STYLES` and a text."""

    task: Task
    title: str
    state: str
    line: str
    texts: list[tuple[str, str]]


def sections(report: Report) -> list[Section]:
    """The tasks in order, each error and each mistake told once."""
    told: set[str] = set()
    found = []
    for place, task in enumerate(report.tasks, start=1):
        texts = task_texts(task, told)
        texts += [("hint", hint_line(task, level)) for level in shown_hints(report, task)]
        found.append(Section(task, f"{place}. {task.title}", state(task), task_line(task), texts))
    return found


def printed(text: str, more: int = 0) -> str:
    """The first lines of what the student's code printed, safe to show; `more` lines were not even kept."""
    lines = text.strip("\n").split("\n")
    shown = clean("\n".join(lines[:PRINTED_LINES]), PRINTED_SHOWN)
    left = (text.count("\n") + more if more else len(lines)) - PRINTED_LINES
    return shown + (f"\n... {count(left, 'more line')}" if left > 0 else "")


def state(task: Task) -> str:
    if not task.checks:
        return "not checked here"
    return "passed" if task.passed else "not done" if task.not_done else "failed"


def task_line(task: Task) -> str:
    """`0 of 3 points, 1 of 2 checks`, or that nothing was begun."""
    if not task.checks:
        return state(task)
    passed = sum(check.outcome == PASSED for check in task.checks)
    line = f"{of(task.earned, task.points, 'point')}, {of(passed, len(task.checks), 'check')}"
    return line + (", not done yet" if task.not_done and not task.waits else "")


def total_line(report: Report) -> str:
    passed = sum(check.outcome == PASSED for check in report.checks)
    return f"{of(report.earned, report.points, 'point')}, {of(passed, len(report.checks), 'check')}"


def shown_path(path: str) -> str:
    """A path as it is typed here."""
    try:
        return Path(path).resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path


def first_line(report: Report) -> str:
    """Which file it is about, and the points."""
    path = shown_path(report.submission)
    if report.problem:
        return f"{report.slug}: {path} could not be run, so nothing was checked"
    return f"{report.slug} ({path}): {total_line(report)}"


def mistake_lines(mistakes: list[Mistake]) -> list[str]:
    """What a tutor says. Several mistakes that give the same answer here are told as such."""
    if len(mistakes) < 2:
        return [mistake.sentence for mistake in mistakes]
    return ["One of these, which give the same answer here:", *(f"- {each.sentence}" for each in mistakes)]


def check_title(check: Check, case: Case) -> str:
    if not case.name:
        return check.title
    return f"{check.title} {case.name}" if case.name.startswith("(") else f"{check.title} ({case.name})"


def shown_hints(report: Report, task: Task) -> list[int]:
    """The hints to show, by number: all so far where one was asked for now, else the last one."""
    if task.passed or report.problem:
        return []
    every = report.asked and task is report.next_task
    return list(range(1 if every else max(task.shown, 1), task.shown + 1))


class Commands(NamedTuple):
    """What a student types to check, and to see a solution (empty where there is none)."""

    check: str
    solution: str = ""


def commands_of(report: Report) -> Commands:
    return Commands(f"attn check {report.slug}", f"attn solution {report.slug}")


def footer(report: Report, commands: Commands | None = None) -> str:
    """What to do next."""
    commands = commands or commands_of(report)
    if report.passed:
        if not commands.solution:
            return "All that is checked here is right."
        return f"All of it is right. `{commands.solution}` shows how the course writes it."
    task = report.next_task
    if report.problem or task is None or not task.hints:
        return ""
    if task.shown >= len(task.hints):
        when = "" if report.attempts else "After a first attempt "
        shows = f" {when}`{commands.solution}` shows an answer." if commands.solution else ""
        return f"All hints for '{task.title}' are shown.{shows}"
    which = "the next hint" if task.shown else "a hint"
    return f"`{commands.check} --hint` gives {which} for '{task.title}'."


def task_texts(task: Task, told: set[str]) -> list[tuple[str, str]]:
    """What there is to say of a task, each with its kind. `told` has the errors, mistakes and messages
    that were told before, and grows."""
    texts = [("waits", f"waits for {wait}") for wait in task.waits]
    failing = [
        check for check in task.checks if check.outcome not in (PASSED, NOT_DONE) and not check.first.waits
    ]
    for check in failing:
        for case in check.cases:
            fresh = [mistake for mistake in case.mistakes if mistake.name not in told]
            if case is not check.first and not fresh:
                continue
            title = check_title(check, case)
            if case.error and case.error in told:
                texts.append(("check", f"{title}: the same error as above"))
                continue
            if case.mistakes and not fresh:
                texts.append(("check", f"{title}: the same mistake as above"))
                continue
            if case.message in told and not fresh:
                texts.append(("check", f"{title}: the same as above"))
                continue
            texts += [("check", title), ("message", case.message)]
            texts += [("mistake", line) for line in mistake_lines(fresh)]
            if case.printed and check is failing[0]:
                texts.append(("printed", f"printed: {case.printed}"))
            told |= {mistake.name for mistake in fresh} | {case.error, case.message}
    return texts


def render(report: Report, commands: Commands | None = None) -> "Group":
    """The report for `rich.print`; `commands` are those of `attn` if nothing is said."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from coursekit.grading.quoted import message

    styles = {"passed": "green", "failed": "red"}
    parts: list[Any] = [Text(first_line(report), style="bold")]
    parts += [message(note, "yellow") for note in report.notes]
    if report.problem:
        return Group(*parts, Text(""), message(report.problem, "red"))
    for section in sections(report):
        row = Table.grid(expand=True, padding=(0, 1))
        row.add_column(width=1)
        row.add_column(ratio=1)
        row.add_column(justify="right")
        style = styles.get(section.state, "dim")
        row.add_row(
            Text(SIGNS[section.state], style=style), Text(section.title), Text(section.line, style=style)
        )
        parts.append(row)
        parts += [Padding(message(text, STYLES[kind]), (0, 0, 0, 3)) for kind, text in section.texts]
    if last := footer(report, commands):
        parts += [Text(""), Text(last, style="dim")]
    return Group(*parts)


def hint_line(task: Task, level: int) -> str:
    return f"hint {level} of {len(task.hints)}: {task.hints[level - 1]}"


def plain(report: Report, width: int = 100, commands: Commands | None = None) -> str:
    """The report as text without colours."""
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, no_color=True, highlight=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(render(report, commands))
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
        "notes": report.notes,
        "tasks": [
            {
                "title": task.title,
                "points": task.earned,
                "max_points": task.points,
                "state": state(task),
                "hints": [] if task.passed or report.problem else task.hints[: task.shown],
                "hints_left": len(task.hints) - task.shown,
                "checks": [
                    {
                        "name": check.name,
                        "points": check.earned,
                        "max_points": check.points,
                        "outcome": check.outcome,
                        **case_json(check.first),
                        "other_cases": [case_json(case) for case in check.cases[1:]],
                    }
                    for check in task.checks
                ],
            }
            for task in report.tasks
        ],
    }


def case_json(case: Case) -> dict[str, Any]:
    return {
        "case": case.name,
        "message": case.message,
        "waits": case.waits,
        "printed": case.printed,
        "mistakes": [vars(mistake) for mistake in case.mistakes],
    }


def failure_text(record: dict[str, Any]) -> str:
    """One failing case, as pytest shows it for a submission."""
    mistakes = [Mistake(*pair) for pair in record["mistakes"]]
    printed = [f"printed: {record['printed']}"] if record["printed"] else []
    return "\n".join([record["message"], *mistake_lines(mistakes), *printed])


def points_text(report: Report) -> str:
    """A line for each task and the total, for the end of pytest's output."""
    lines = [f"{SIGNS[state(task)]} {task.title}: {task_line(task)}" for task in report.tasks]
    return "\n".join([*report.notes, *lines, f"{report.slug}: {total_line(report)}"])
