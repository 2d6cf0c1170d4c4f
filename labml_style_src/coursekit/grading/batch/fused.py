"""Which tasks were answered by calling a ready-made attention, for the rule `fused = "fail"`: read from the source,
and seen while it ran (`SecondProcess.called`).

A task is answered by the functions and classes that its checks ask for first; an answer uses a ready-made
attention if it says so itself, or if something else of the file that it names does, in turn.
"""

import ast
from collections.abc import Iterator

from coursekit.grading.backends import InProcess
from coursekit.grading.checking import Attempt, Checks
from coursekit.grading.notes import hints, imports, is_fused, readable
from coursekit.grading.submission import Submission, read_submission


def names_using_fused(submission: Submission) -> set[str]:
    """The names at the top of the file behind which a ready-made attention is called or handed on."""
    tree = readable(submission)
    imported = imports(ast.walk(tree))
    uses: set[str] = set()
    mentions: dict[str, set[str]] = {}
    for statement in tree.body:
        names = set(defined(statement))
        if not names or isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        nodes = list(ast.walk(statement))
        types = {id(part) for node in nodes for hint in hints(node) for part in ast.walk(hint)}
        if any(is_fused(node, imported) and id(node) not in types for node in nodes):
            uses |= names
        loaded = {node.id for node in nodes if isinstance(node, ast.Name)}
        for name in names:
            mentions[name] = mentions.get(name, set()) | loaded
    while more := {name for name, loaded in mentions.items() if name not in uses and loaded & uses}:
        uses |= more
    return uses


def defined(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement at the top of a file gives a value."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def tasks_by_name(checks: Checks) -> dict[str, str]:
    """For each function and class of the exercise the task that it answers: the first that asks for it. Found by
    running the checks on the lesson's own solution."""
    backend = InProcess(read_submission(checks.lesson.exercise), keep_printed=True)
    owner: dict[str, str] = {}
    try:
        for case in checks.cases:
            attempt = Attempt(case, backend, 0)
            attempt.run()
            for name in attempt.student.names:
                owner.setdefault(name, case.task["key"])
    finally:
        backend.close()
    return owner
