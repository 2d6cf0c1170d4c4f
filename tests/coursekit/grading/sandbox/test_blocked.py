"""The course cannot be imported in a child."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[4]
HEAD = """
import os, sys
os.chdir({root!r})
sys.path[:0] = ["", {root!r}]
import annotated_attention
from coursekit.grading import session
from coursekit.grading.sandbox import blocked
blocked.block()
blocked.block()
"""


@pytest.fixture(scope="module")
def attempts() -> dict[str, str]:
    """Every attempt in one process: what became of each."""
    script = HEAD.format(root=str(REPOSITORY)) + f"attempts = {ATTEMPTS!r}" + TAIL
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return dict(line.split(" -> ") for line in done.stdout.splitlines())


TAIL = """
for attempt in attempts:
    try:
        exec(attempt, {"sys": sys, "session": session})
        print(attempt, "-> in")
    except ImportError as error:
        print(attempt, "->", error)
    except KeyError as error:
        print(attempt, "-> not loaded")
left = [path for path in sys.path if "labml_style_src" in path or path in ("", os.getcwd())]
print("path ->", left)
"""
ATTEMPTS = [
    "import annotated_attention",
    "from annotated_attention.alibi import alibi_slopes",
    "import coursekit",
    "from coursekit.grading.exercise import run",
    "import coursekit.course",
    "__import__('lessons')",
    "import tests.proof",
    "import conftest",
    "import importlib; importlib.import_module('annotated_attention.alibi')",
    "import importlib.util; importlib.util.find_spec('annotated_attention')",
    "import runpy; runpy.run_module('coursekit')",
    "import pkgutil; pkgutil.resolve_name('coursekit.doctor:examine')",
    "import statistics, sched, einops; session.Session('s').objects",
    "sys.modules['annotated_attention']",
    "sys.modules['coursekit.grading.session']",
]


@pytest.mark.parametrize("attempt", [attempt for attempt in ATTEMPTS if "statistics" not in attempt])
def test_the_course_is_refused(attempts: dict[str, str], attempt: str):
    told = attempts[attempt]
    assert "cannot be imported here: the course is not there" in told or told == "not loaded"


def test_everything_else_is_imported(attempts: dict[str, str]):
    assert attempts["import statistics, sched, einops; session.Session('s').objects"] == "in"


def test_no_folder_of_the_course_is_left_on_the_path(attempts: dict[str, str]):
    assert attempts["path"] == "[]"
