"""What the student's commands print beside the report, and what a new exercise begins with."""

import sys

import pytest
from tests.coursekit.grading.test_plugin import run
from tests.coursekit.grading.tiny import CHECKS, EXERCISE, MISCONCEPTIONS

from coursekit import __main__, scaffold
from coursekit.grading import progress


@pytest.fixture
def attn(small_course, monkeypatch, capsys):
    """Run `attn` in the small course and return what it prints."""
    monkeypatch.chdir(small_course.root)

    def printed(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["attn", *arguments])
        with pytest.raises(SystemExit):
            __main__.main()
        return capsys.readouterr().out

    return printed


def test_a_second_start_says_that_the_other_file_exists(attn):
    assert "exists too" not in attn("start", "gated")
    assert "gated.py exists too: `attn check gated` checks the one that was saved last" in attn(
        "start", "gated", "--notebook"
    )


def test_the_list_has_points_and_attempts(attn, small_course):
    progress.save(small_course.root / "work", "gated", progress.Progress(1, 2, {}, 2))
    assert attn("list") == "01  gated  Gated  (2 of 2 points, 1 attempt)\n"


def test_help_has_the_students_commands_first(attn):
    commands = attn("--help").partition("Commands:")[2].split("\n\n")[0]
    names = [line.split()[0] for line in commands.splitlines() if line.strip()]
    assert names[:4] == ["list", "start", "check", "solution"]


def test_a_slug_that_ends_in_attention_is_the_functions_name(small_course):
    scaffold.new(small_course, "my_attention")
    lesson = type(small_course)(small_course.root).lesson("my_attention")
    text = lesson.exercise.read_text("utf-8")
    assert "def my_attention(" in text
    assert "`attn check my_attention` says what is wrong and where" in text
    assert "channel" not in lesson.checks.read_text("utf-8")


def test_checks_run_on_one_thread_and_others_as_before(lesson, tmp_path):
    head = "    def test_one_row(self, student, expect, draw):\n"
    checks = lesson.checks.read_text("utf-8")
    assert head in checks
    checks = checks.replace(head, f"{head}        assert torch.get_num_threads() == 1\n")
    lesson.checks.write_text(checks, "utf-8")
    (tmp_path / "test_other.py").write_text(
        "import torch\n\ndef test_other():\n    assert torch.get_num_threads() == 3\n", "utf-8"
    )
    (tmp_path / "conftest.py").write_text("import torch\n\ntorch.set_num_threads(3)\n", "utf-8")
    done = run(tmp_path, "lessons", "test_other.py")
    assert done.returncode == 0, done.stdout


def test_validate_says_what_is_to_mend(attn, small_course):
    scaffold.new(small_course, "other")
    folder = small_course.root / "tests" / "lessons" / "alternatives"
    folder.mkdir(parents=True)
    for lesson in type(small_course)(small_course.root).lessons:
        texts = {lesson.exercise: EXERCISE, lesson.checks: CHECKS, lesson.misconceptions: MISCONCEPTIONS}
        texts |= {folder / f"{lesson.slug}_{hand}.py": EXERCISE for hand in ("one", "two")}
        for path, text in texts.items():
            path.write_text(text, "utf-8")
    (folder / "other_two.py").unlink()
    assert attn("validate", "--seeds", "2").splitlines() == [
        "gated: sound, 3 solutions on 2 seeds",
        "other: to mend",
        "  1 other solutions, 2 wanted: checks may be too narrow",
    ]
