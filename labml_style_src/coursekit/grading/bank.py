"""The bank of misconceptions: `misconceptions.py` of a lesson, read as text.

A function or class `target__mistake` is a wrong variant of `target`, and its docstring is the tutor's sentence.
Beside imports its body may use every name of `exercise.py`, `target` too: there these are the correct ones,
while the exercise's own calls of `target` reach the variant.
"""

import ast
import inspect
from dataclasses import dataclass

from coursekit.course import Lesson
from coursekit.grading.submission import ExerciseError


@dataclass(frozen=True)
class Misconception:
    """A wrong variant of one name of the exercise, and what a tutor says to who wrote it."""

    name: str
    target: str
    sentence: str


def read_bank(lesson: Lesson) -> list[Misconception]:
    """The misconceptions of a lesson, in file order; none if it has no such file.

    Raises `ExerciseError` if one has no docstring or varies a name that the exercise does not have.
    """
    if not lesson.misconceptions.exists():
        return []
    definitions = (ast.FunctionDef, ast.ClassDef)
    exercise = ast.parse(lesson.exercise.read_text("utf-8"))
    known = {node.name for node in exercise.body if isinstance(node, definitions)}
    bank = []
    for node in ast.parse(lesson.misconceptions.read_text("utf-8")).body:
        target, _, mistake = getattr(node, "name", "").partition("__")
        if not isinstance(node, definitions) or not (target and mistake):
            continue
        place = f"{lesson.misconceptions}:{node.lineno}: {node.name}"
        if target not in known:
            raise ExerciseError(f"{place}: {lesson.exercise.name} has no {target}")
        sentence = inspect.cleandoc(ast.get_docstring(node) or "")
        if not sentence:
            raise ExerciseError(f"{place} has no docstring: it is what the tutor says")
        bank.append(Misconception(node.name, target, " ".join(sentence.split())))
    return bank
