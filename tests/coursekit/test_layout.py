"""This repository keeps its own conventions: every piece is there, and imports run one way."""

import ast
import re
import sys
import tomllib

import pytest
from tests.coursekit.conftest import REPOSITORY

from coursekit.course import CONTENT_PACKAGE, SOURCE_ROOT, Course
from coursekit.imports import imported_modules
from coursekit.pages import notebooks

COURSE = Course(REPOSITORY)
CONTENT = REPOSITORY / SOURCE_ROOT / CONTENT_PACKAGE
ENGINE = REPOSITORY / SOURCE_ROOT / "coursekit"
ALLOWED = {"torch", "numpy", "einops", "jaxtyping", CONTENT_PACKAGE}
KERNELS = [path for path in CONTENT.glob("*.py") if "@triton.jit" in path.read_text("utf-8")]
LESSONS = [pytest.param(lesson, id=lesson.slug) for lesson in COURSE.lessons]


def imports(path, package=""):
    return imported_modules(path.read_text("utf-8"), package)


def test_no_piece_is_missing_and_none_is_left_over():
    assert COURSE.problems() == []


def test_the_two_packages_never_import_each_other():
    for path in CONTENT.rglob("*.py"):
        assert not any(name.split(".")[0] == "coursekit" for name in imports(path, CONTENT_PACKAGE)), path
    for path in ENGINE.rglob("*.py"):
        assert not any(name.split(".")[0] == CONTENT_PACKAGE for name in imports(path, "coursekit")), path


def test_a_mechanism_imports_only_mechanisms_of_earlier_lessons():
    for path in CONTENT.glob("[a-z]*.py"):
        mine = COURSE.owner(path.stem)
        for name in imports(path, CONTENT_PACKAGE):
            parts = name.split(".")
            if parts[0] == CONTENT_PACKAGE and len(parts) > 1 and (CONTENT / f"{parts[1]}.py").exists():
                theirs = COURSE.owner(parts[1])
                assert theirs == mine or theirs.number < mine.number, f"{path.name} imports {name}"


def test_the_tests_of_one_mechanism_have_names_of_their_own():
    """A page names a test without its file, and its record has one entry for each name."""
    for mechanism in COURSE.mechanisms:
        text = "\n".join(path.read_text("utf-8") for path in mechanism.proofs if path.exists())
        names = re.findall(r"^def (test_\w+)", text, re.MULTILINE)
        assert len(set(names)) == len(names), mechanism.slug


def test_only_files_with_a_suffix_import_an_extra_and_only_lazily():
    """Kernels cannot be written without Triton: their file imports it at its top, and is itself imported lazily."""
    slugs = {lesson.slug for lesson in COURSE.lessons}
    for path in CONTENT.glob("*.py"):
        names = {name.split(".")[0] for name in imports(path, CONTENT_PACKAGE) if name}
        extra = names - ALLOWED - sys.stdlib_module_names
        if extra:
            assert path.stem not in slugs, f"{path.name} imports {extra}"
            tree = ast.parse(path.read_text("utf-8"))
            top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
            extra -= {"triton"} if path in KERNELS else set()
            assert not any(set(re.findall(r"\w+", ast.unparse(node))) & extra for node in top), path.name


def test_files_of_kernels_are_imported_by_each_other_and_lazily():
    stems = {path.stem for path in KERNELS}
    for path in CONTENT.glob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {name for node in top for name in re.findall(r"\w+", ast.unparse(node))}
        assert path in KERNELS or not stems & names, path.name


def test_nothing_unix_only_is_imported_at_import_time():
    unix_only = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix"}
    for path in (REPOSITORY / SOURCE_ROOT).rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        for node in tree.body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not unix_only & {name.split(".")[0] for name in names}, path


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_and_its_notebook_say_the_same(lesson):
    assert notebooks.difference(lesson) is None, f"run `attn sync {lesson.slug}`"


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_imports_only_what_its_first_cell_installs(lesson):
    names = {name.split(".")[0] for name in imports(lesson.notebook)}
    # The engine comes with the course: a lesson may read the results of its experiments with it.
    installed = {"torch", "numpy", "matplotlib", CONTENT_PACKAGE, "coursekit"}
    # Only the lesson about Transformers needs it, and says how to come by it.
    if "annotated-attention[models]" in lesson.notebook.read_text("utf-8"):
        installed.add("transformers")
    assert names - sys.stdlib_module_names <= installed


def test_every_lesson_begins_with_the_same_two_cells_and_installs_from_the_one_setting():
    setting = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["tool"]["coursekit"][
        "install"
    ]
    begins = []
    for lesson in COURSE.lessons:
        code = [cell.source for cell in notebooks.read_lesson(lesson).cells if cell.cell_type == "code"]
        assert f'INSTALL = "{setting}"' in code[0], lesson.slug
        begins.append(code[0])
    assert len(set(begins)) == 1
