"""The page of an exercise: what is asked, for how many points, how to start, and the mistakes that are known.

What is asked is the text of the stub, so the page and the file that a student opens say the same. Points are
read from `test_exercise.py` as text; nothing is run.
"""

import ast
import html
import re
from dataclasses import dataclass

from coursekit.course import Lesson
from coursekit.grading.bank import read_bank
from coursekit.grading.stub import make_stub, notebook_cells
from coursekit.grading.submission import ExerciseError
from coursekit.pages.code import highlight
from coursekit.pages.front import front_matter
from coursekit.pages.problems import PageError, Problem

# A task begins at a definition whose docstring says so; a class may begin two: `Tasks 3 and 4: ...`.
TASK = re.compile(
    r"\A## `\w+`\s+(?P<which>Tasks? (?P<numbers>\d+(?: and \d+)*)): (?P<title>[^\n]+?)\.?(?=\n|\Z)"
)


@dataclass(frozen=True)
class Task:
    """One class of `test_exercise.py`: how many points, checks and hints it has."""

    points: int
    checks: int
    hints: int


def read_tasks(lesson: Lesson) -> list[Task]:
    """The tasks of an exercise, in order."""
    tree = ast.parse(lesson.checks.read_text("utf-8"), str(lesson.checks))
    return [task for node in tree.body if isinstance(node, ast.ClassDef) and (task := _task(node))]


def _task(node: ast.ClassDef) -> Task | None:
    mark = _mark(node, "task")
    if mark is None:
        return None
    methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    checks = [method for method in methods if method.name.startswith("test")]
    hints = next((keyword.value for keyword in mark.keywords if keyword.arg == "hints"), None)
    return Task(
        points=sum(_points(check) for check in checks),
        checks=len(checks),
        hints=len(ast.literal_eval(hints)) if hints else 0,
    )


def _points(check: ast.FunctionDef) -> int:
    mark = _mark(check, "points")
    return ast.literal_eval(mark.args[0]) if mark else 1


def _mark(node: ast.ClassDef | ast.FunctionDef, name: str) -> ast.Call | None:
    """The call of `@pytest.mark.<name>(...)` on a class or function."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == f"pytest.mark.{name}":
            return decorator
    return None


def render_exercise(lesson: Lesson) -> str:
    """The Markdown page of an exercise. Links on it are relative to `exercises/<slug>/`.

    Raises `PageError` if the tasks of the exercise are not those of its checks.
    """
    tasks, text = read_tasks(lesson), lesson.exercise.read_text("utf-8")
    cells = notebook_cells(make_stub(text, lesson.exercise.name))
    numbers = [number for _, source in cells if (match := TASK.match(source)) for number in _numbers(match)]
    if numbers != list(range(1, len(tasks) + 1)):
        wanted = f"{lesson.checks.name} has {len(tasks)} tasks, and each wants a docstring 'Task N: title'"
        message = f"{wanted}; found: {', '.join(map(str, numbers)) or 'none'}"
        raise PageError([Problem(lesson.exercise.relative_to(lesson.root).as_posix(), 1, message)])
    title = re.match(r"# (.+)", cells[0][1])
    first = next(place for place, (_, source) in enumerate(cells) if TASK.match(source))
    intro = [source for kind, source in cells[:first] if kind == "markdown"]
    parts = [*intro, _start(lesson), *(_cell(kind, source, tasks) for kind, source in cells[first:])]
    head = front_matter(
        title=title[1] if title else lesson.title, template="chapter.html", hide=["navigation", "toc"]
    )
    body = "\n\n".join([f'<p class="eyebrow">{_eyebrow(lesson, tasks)}</p>', *parts, *_mistakes(lesson)])
    return f'{head}<div class="exercise" markdown="1">\n\n{body}\n\n</div>\n'


def _eyebrow(lesson: Lesson, tasks: list[Task]) -> str:
    links = [] if lesson.is_companion else [f'<a href="../../mechanisms/{lesson.slug}/">mechanism</a>']
    links.append(f'<a href="../../notebooks/{lesson.slug}/">notebook</a>')
    return " · ".join([f"Exercise {lesson.number}", in_numbers(tasks), *links])


def in_numbers(tasks: list[Task]) -> str:
    """How long an exercise is: `6 tasks, 28 points`."""
    return f"{_count(len(tasks), 'task')}, {_count(sum(task.points for task in tasks), 'point')}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _cell(kind: str, source: str, tasks: list[Task]) -> str:
    if kind != "markdown":
        return f'<div class="code stub"><pre><code>{highlight(source)}</code></pre></div>'

    def heading(match: re.Match[str]) -> str:
        asked = [tasks[number - 1] for number in _numbers(match)]
        counts = [
            (sum(task.points for task in asked), "point"),
            (sum(task.checks for task in asked), "check"),
            (sum(task.hints for task in asked), "hint"),
        ]
        said = " · ".join(_count(count, word) for count, word in counts if count)
        return f'## {match["which"]}: {match["title"]}\n\n<p class="points">{said}</p>'

    return TASK.sub(heading, source)


def _numbers(match: re.Match[str]) -> list[int]:
    """The tasks that a matched heading begins."""
    return [int(number) for number in match["numbers"].split(" and ")]


def _start(lesson: Lesson) -> str:
    commands = [
        (f"attn start {lesson.slug}", f"makes work/{lesson.slug}.py"),
        (f"attn check {lesson.slug}", "points, and what is wrong"),
        (f"attn check {lesson.slug} --hint", "one hint more"),
        (f"attn solution {lesson.slug}", "ours, after a first attempt"),
    ]
    width = max(len(command) for command, _ in commands)
    lines = "\n".join(f"{command:<{width}}  # {says}" for command, says in commands)
    return (
        f"## How to start\n\n```sh\n{lines}\n```\n\nA notebook instead of a file: `attn start {lesson.slug} "
        f"--notebook`. Who knows pytest can run the same checks with `pytest lessons/{lesson.folder.name} "
        f"--submission work/{lesson.slug}.py`."
    )


def _mistakes(lesson: Lesson) -> list[str]:
    try:
        bank = read_bank(lesson)
    except ExerciseError as error:
        file = lesson.misconceptions.relative_to(lesson.root).as_posix()
        raise PageError([Problem(file, 1, str(error))]) from None
    if not bank:
        return []
    items = [f"-   <code>{html.escape(each.target)}</code>: {each.sentence}" for each in bank]
    intro = "If what you return equals one of these, `attn check` says so."
    return ["## Mistakes we have met", intro, "\n\n".join(items)]
