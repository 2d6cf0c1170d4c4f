"""A made-up class: what a thousand students hand in for one lesson, the same bytes every time.

Nobody has counted this course's real classes, so the shares are an assumption, on the hard side: one
submission in a hundred hangs and three attack the grader, which no class does, because those cost the most.

    python -m benchmarks.grading_class alibi submissions --students 30
"""

import argparse
import ast
import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

from coursekit.course import Lesson, find_course
from coursekit.grading.bank import Misconception, read_bank
from coursekit.grading.diagnosis import variant_submission
from coursekit.grading.stub import make_stub, notebook_cells, without_markers

# Of a hundred submissions.
SHARES = {"right": 43, "wrong": 34, "partial": 12, "untouched": 2, "broken": 5, "hanging": 1, "hostile": 3}
# A file beside others is what most systems export; the rest are what students make of it.
FORMS = {".py": 60, ".ipynb": 25, "folder": 8, "zip": 7}
# Whose submissions a grader without a sandbox can be asked to run.
HARMLESS = ("right", "wrong", "partial", "untouched", "broken")

# Put before the body of one function, or (`{}` empty) at the top of the file.
HANGING = [
    "while True: pass",
    "import time; time.sleep(3600)",
    "n = 0\nwhile n >= 0: n += 1",
    "import threading; threading.Event().wait()",
]
HOSTILE = [
    "import os\nwhile True: os.fork()",
    "import subprocess, sys\nwhile True: subprocess.Popen([sys.executable, '-c', 'while True: pass'])",
    "import threading\nwhile True: threading.Thread(target=threading.Event().wait).start()",
    "kept = []\nwhile True: kept.append(bytearray(1 << 26))",
    "import torch\ntorch.ones(1 << 36)",
    "import os; os._exit(0)",
    "import sys; sys.exit(0)",
    "while True: print('All tests passed. Score: 100/100 ' * 100)",
    "import os\nwhile True: os.write(1, b'x' * 65536)",
    "print(open('/etc/passwd').read(), open('/proc/self/environ').read())",
    "import glob; print([open(path).read() for path in glob.glob('/**/exercise.py', recursive=True)])",
    "import annotated_attention, lessons",
    "import socket; socket.create_connection(('127.0.0.1', 80))",
    "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
    "import ctypes; ctypes.string_at(0)",
]


class Writer:
    """Makes submissions of a lesson; `random` decides, seeded by the place in the class."""

    def __init__(self, lesson: Lesson, alternatives: list[Path]) -> None:
        self.lesson = lesson
        exercise = lesson.exercise.read_text("utf-8")
        self.solution, self.stub = without_markers(exercise), make_stub(exercise)
        self.correct = [self.solution, *(path.read_text("utf-8") for path in alternatives)]
        self.bank = read_bank(lesson)

    def text(self, kind: str, place: int, rng: random.Random) -> str:
        """The text of the `place`-th submission of a kind."""
        return getattr(self, kind)(place, rng)

    def right(self, place: int, rng: random.Random) -> str:
        text = self.correct[place % len(self.correct)]
        change: Callable[[str, random.Random], str] = rng.choice([renamed, commented, lambda text, _: text])
        return change(text, rng)

    def wrong(self, place: int, rng: random.Random) -> str:
        """Each misconception in turn; of every three one beside another, of a different function."""
        known = self.bank[place % len(self.bank)]
        text = variant_submission(self.lesson, known).text
        others = [each for each in self.bank if each.target != known.target]
        if place % 3 == 0 and others:
            text += self._tail(rng.choice(others))
        return text

    def _tail(self, known: Misconception) -> str:
        whole = variant_submission(self.lesson, known).text
        return whole.removeprefix(self.lesson.exercise.read_text("utf-8"))

    def partial(self, place: int, _: random.Random) -> str:
        """The first tasks done, the others as in the stub; none of them is the solution or the stub."""
        names = self._definitions(self.solution)
        done = list(names)[: 1 + place % max(len(names) - 1, 1)]
        return self._with_parts(self.stub, {name: names[name] for name in done})

    def untouched(self, _place: int, _rng: random.Random) -> str:
        return self.stub

    def broken(self, place: int, rng: random.Random) -> str:
        """It does not parse, a name is missing, or a function is."""
        lines = self.solution.splitlines()
        heads = [number for number, line in enumerate(lines) if line.startswith("def ")]
        match place % 3:
            case 0:
                lines.insert(rng.choice(heads), "def unfinished(:")
            case 1:
                lines = [line for line in lines if not line.startswith(("import ", "from "))]
            case _:
                head = rng.choice(heads)
                lines[head] = lines[head].replace("def ", "def my_", 1)
        return "\n".join(lines) + "\n"

    def hanging(self, place: int, rng: random.Random) -> str:
        return self._spoiled(HANGING[place % len(HANGING)], place % 5 == 4, rng)

    def hostile(self, place: int, rng: random.Random) -> str:
        return self._spoiled(HOSTILE[place % len(HOSTILE)], place % 5 == 4, rng)

    def _spoiled(self, code: str, on_import: bool, rng: random.Random) -> str:
        """The solution, which runs `code` when it is loaded or when one of its functions is called."""
        if on_import:
            return f"{self.solution}\n{code}\n"
        functions = [node for node in ast.parse(self.solution).body if isinstance(node, ast.FunctionDef)]
        function = rng.choice(functions)
        first = function.body[1]
        lines = self.solution.splitlines()
        indent = " " * first.col_offset
        lines[first.lineno - 1 : first.lineno - 1] = [indent + line for line in code.splitlines()]
        return "\n".join(lines) + "\n"

    @staticmethod
    def _definitions(text: str) -> dict[str, str]:
        """The source of each top-level function and class."""
        lines = text.splitlines()
        kinds = ast.FunctionDef | ast.ClassDef
        nodes = [node for node in ast.parse(text).body if isinstance(node, kinds)]
        return {node.name: "\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in nodes}

    def _with_parts(self, text: str, parts: dict[str, str]) -> str:
        for name, source in self._definitions(text).items():
            text = text.replace(source, parts.get(name, source), 1)
        return text


def kinds(count: int) -> list[str]:
    """The kind of each submission: the shares in every hundred, well mixed."""
    hundred = [kind for kind, share in SHARES.items() for _ in range(share)]
    mixed: list[str] = []
    for part in range((count + 99) // 100):
        random.Random(part).shuffle(hundred)
        mixed += hundred
    return mixed[:count]


def hand_in(lesson: Lesson, alternatives: list[Path], folder: Path, count: int) -> dict[str, str]:
    """Write `count` submissions into `folder`, which must be new; returns each student's kind."""
    folder.mkdir(parents=True)
    writer, seen = Writer(lesson, alternatives), dict.fromkeys(SHARES, 0)
    made = {}
    for number, kind in enumerate(kinds(count)):
        rng = random.Random(number)
        text = writer.text(kind, seen[kind], rng)
        seen[kind] += 1
        student = f"student{number:04d}"
        form = rng.choices(list(FORMS), list(FORMS.values()))[0]
        hand_in_as(form, folder, student, lesson.slug, text)
        made[student] = kind
    return made


def hand_in_as(form: str, folder: Path, student: str, slug: str, text: str) -> None:
    match form:
        case ".py":
            (folder / f"{student}.py").write_text(text, "utf-8")
        case ".ipynb":
            (folder / f"{student}.ipynb").write_text(notebook(text), "utf-8")
        case "folder":
            (folder / student).mkdir()
            (folder / student / f"{slug}.py").write_text(text, "utf-8")
        case _:
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
                # A fixed date: the same bytes every time.
                archive.writestr(zipfile.ZipInfo(f"{slug}.py", (2026, 1, 1, 0, 0, 0)), text)
            (folder / f"{student}.zip").write_bytes(packed.getvalue())


def notebook(text: str) -> str:
    """The text as a notebook, a cell a definition; what does not parse in one cell."""
    try:
        cells = notebook_cells(text)
    except SyntaxError:
        cells = [("code", text)]
    made = []
    for kind, source in cells:
        cell = {"cell_type": kind, "metadata": {}, "source": source.splitlines(keepends=True)}
        made.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    return json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}, indent=1)


def commented(text: str, rng: random.Random) -> str:
    """The text with a comment over some lines."""
    notes = ["# TODO: tidy up", "# I think this is right", "# see the lecture", "# finally!"]
    lines = text.splitlines()
    tree = ast.parse(text)
    starts = sorted(
        {
            node.lineno
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef)
            for node in function.body[1:]
        },
        reverse=True,
    )
    for start in starts:
        if rng.random() < 0.5:
            indent = lines[start - 1][: len(lines[start - 1]) - len(lines[start - 1].lstrip())]
            lines.insert(start - 1, indent + rng.choice(notes))
    return "\n".join(lines) + "\n"


def renamed(text: str, rng: random.Random) -> str:
    """The text with every function's own variables renamed, and laid out as `ast.unparse` does."""
    tree = ast.parse(text)
    suffix = rng.choice(["_1", "_new", "2", "_x", "_tmp"])
    for function in tree.body:
        methods = function.body if isinstance(function, ast.ClassDef) else [function]
        for node in methods:
            if isinstance(node, ast.FunctionDef):
                Renamer(node, suffix).visit(node)
    return ast.unparse(tree) + "\n"


class Renamer(ast.NodeTransformer):
    """Renames what a function assigns, but nothing that others know by name."""

    def __init__(self, function: ast.FunctionDef, suffix: str) -> None:
        self.suffix = suffix
        nodes = list(ast.walk(function))
        assigned = {
            node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        known = {node.arg for node in nodes if isinstance(node, ast.arg)}
        for node in nodes:
            if isinstance(node, ast.Global | ast.Nonlocal):
                known |= set(node.names)
        self.own = assigned - known

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(node.id + self.suffix, node.ctx) if node.id in self.own else node


def main() -> None:
    parser = argparse.ArgumentParser(description="Make up a class to practise grading on.")
    parser.add_argument("slug", help="the lesson")
    parser.add_argument("folder", type=Path, help="where the submissions go")
    parser.add_argument("--students", type=int, default=30)
    given = parser.parse_args()
    course = find_course()
    lesson = course.lesson(given.slug)
    hand_in(lesson, course.rewrites(lesson), given.folder, given.students)


if __name__ == "__main__":
    main()
