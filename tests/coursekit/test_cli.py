"""The command line: what it prints, and the four exit codes."""

import json
import subprocess
import sys

import pytest

import annotated_attention
from coursekit import __main__, doctor
from coursekit.course import environment_of


@pytest.fixture
def attn(small_course, monkeypatch, capsys):
    """Run `attn` in the small course: (exit code, standard output, standard error)."""
    monkeypatch.chdir(small_course.root)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["attn", *arguments])
        with pytest.raises(SystemExit) as caught:
            __main__.main()
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    return run


def test_help_teaches(attn):
    code, out, _ = attn("--help")
    assert code == 0
    for command in (
        "serve",
        "build",
        "new",
        "start",
        "check",
        "solution",
        "list",
        "doctor",
        "verify",
        "sync",
        "bench",
    ):
        assert f"\n  {command} " in out
    assert "attn check alibi --hint" in out
    assert "Exit codes: 0 pass, 1 a check failed, 2 usage, 3 environment." in out


@pytest.mark.parametrize(
    "command", ["serve", "build", "new", "start", "check", "solution", "verify", "sync", "bench"]
)
def test_every_command_has_help(attn, command):
    code, out, _ = attn(command, "--help")
    assert code == 0
    assert f"Usage: attn {command}" in out


def test_help_is_quick_because_nothing_heavy_is_imported():
    heavy = "{'torch', 'mkdocs', 'pytest', 'jupytext', 'numpy', 'jinja2'}"
    script = f"import sys, coursekit.cli; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("command", ["start", "check", "solution", "verify", "sync"])
def test_an_unknown_slug_is_one_line_with_the_nearest_name(attn, command):
    code, out, err = attn(command, "gate")
    assert (code, out) == (2, "")
    assert err == "attn: no lesson is called 'gate': did you mean 'gated'?\n"


def test_wrong_usage(attn):
    assert attn("nonsense")[0] == 2
    assert attn("verify", "--device", "tpu")[0] == 2
    assert attn("serve", "--port", "x")[0] == 2


def test_outside_a_course(attn, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    monkeypatch.setattr("coursekit.course.__file__", "/nowhere/coursekit/course.py")
    code, _, err = attn("list")
    assert code == 2
    assert err.startswith("attn: no course here")


def test_list(attn):
    assert attn("list") == (0, "01  gated  Gated\n", "")
    _, out, _ = attn("list", "--json")
    (entry,) = json.loads(out)
    assert (entry["number"], entry["slug"], entry["title"]) == (1, "gated", "Gated")


def test_a_student_from_start_to_solution(attn, small_course, monkeypatch):
    # The checks import the mechanism of their own course.
    monkeypatch.setattr(annotated_attention, "__path__", [str(small_course.lesson("gated").source.parent)])
    monkeypatch.setitem(sys.modules, "annotated_attention.gated", None)
    del sys.modules["annotated_attention.gated"]
    assert attn("check", "gated")[0] == 2
    assert attn("solution", "gated")[0] == 2
    code, out, _ = attn("start", "gated")
    assert code == 0
    assert "attn check gated" in out
    code, _, err = attn("start", "gated")
    assert code == 2
    assert err.count("\n") == 1

    work = small_course.root / "work" / "gated.py"
    code, out, _ = attn("check", "gated")
    assert code == 1
    assert "0 of 2 points" in out
    wrong = "return (query @ key.mT).softmax(dim=-1) @ value"
    stub = work.read_text("utf-8")
    done = stub.replace('raise NotImplementedError("gated_attention is not done yet")', wrong)
    assert done != stub
    work.write_text(done, "utf-8")
    # Once as it is run: in a process that nothing but the command has touched.
    outside = subprocess.run(
        [sys.executable, "-m", "coursekit", "check", "gated", "--hint"],
        cwd=small_course.root,
        env=environment_of(small_course),
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert outside.returncode == 1, outside.stderr
    assert "Your scores are not scaled" in " ".join(outside.stdout.split())
    assert "hint 1 of 1" in outside.stdout
    assert "\x1b" not in outside.stdout
    code, out, _ = attn("check", "gated", "--json")
    assert code == 1
    assert json.loads(out)["tasks"][0]["checks"][0]["mistakes"]
    code, out, _ = attn("solution", "gated")
    assert code == 0
    work.write_text(out, "utf-8")
    code, out, _ = attn("check", "gated")
    assert code == 0
    assert "2 of 2 points" in out


def test_verify_check_names_what_is_stale(attn):
    code, out, _ = attn("verify", "--check")
    assert code == 1
    assert out == "the record of 'gated' on cpu is older than its code: attn verify gated\n"


def test_sync_refuses_to_overwrite_every_lesson_from_notebooks(attn):
    assert attn("sync") == (0, "unchanged lessons/01_gated/lesson.ipynb\n", "")
    code, _, err = attn("sync", "--from-notebook")
    assert code == 2
    assert "say of which lesson" in err


def test_build_prints_every_fault_and_no_traceback(attn, small_course):
    small_course.lesson("gated").figures.unlink()
    small_course.lesson("gated").notebook.write_text(
        "# %% [markdown]\n# # T $\\frac{$\n\n# %%\n1 / 0\n", "utf-8"
    )
    code, _, err = attn("build")
    assert code == 1
    assert err.splitlines() == [
        "lesson 'gated' lacks lessons/01_gated/figures.py",
        "lessons/01_gated/lesson.py:5: cell 2 fails: ZeroDivisionError: division by zero",
        "attn: 2 to mend; nothing was built",
    ]


@pytest.mark.parametrize(
    ("module", "extra"), [("typer", "grading"), ("mkdocs", "site"), ("nbclient", "notebooks"), ("odd", None)]
)
def test_a_missing_package_names_its_extra(module, extra):
    said = __main__.missing_extra(f"{module}.part")
    assert said.startswith(f"the package '{module}' is missing")
    assert (f'pip install "annotated-attention[{extra}]"' in said) == (extra is not None)


def test_without_the_extras_the_command_says_so_and_ends_with_3(attn, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "typer" or name == "coursekit.cli"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("coursekit.cli", None, raising=False)
    monkeypatch.setitem(sys.modules, "typer", None)
    code, out, err = attn("list")
    assert (code, out) == (3, "")
    assert 'pip install "annotated-attention[grading]"' in err
    assert err.count("\n") == 1


def test_the_doctor_finds_this_machine_sound(attn):
    code, out, _ = attn("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(out)}
    assert code == 0
    assert findings["parity"]["state"] == "ok"
    assert "float64" in findings["parity"]["detail"]
    for name in ("[cluster]", "clock", "namespaces", "rlimits", "uid", "landlock", "seccomp"):
        assert findings[name]["state"] == "ok" or findings[name]["remedy"]
    assert all(finding["remedy"] for finding in findings.values() if finding["state"] == "problem")


def test_the_doctor_ends_with_3_on_a_problem(attn, monkeypatch):
    monkeypatch.setattr(
        doctor, "examine", lambda: [doctor.Finding("torch", "problem", "is absent", "install it")]
    )
    code, out, _ = attn("doctor")
    assert code == 3
    assert "install it" in out
