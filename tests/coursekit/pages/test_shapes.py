"""Shapes recorded from runs of small mechanisms."""

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from coursekit.pages.shapes import ShapeRecord, record_shapes

HEAD = """\
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny_course"
    folder.mkdir()
    (folder / "__init__.py").write_text("", encoding="utf-8")
    return folder


def record(package: Path, text: str, name: str = "lesson") -> tuple[dict[str, str], ShapeRecord]:
    """The record of a source, and what it shows by the text of the line."""
    path = package / f"{name}.py"
    path.write_text(HEAD + dedent(text), encoding="utf-8")
    found = record_shapes(path, f"tiny_course.{name}")
    source = path.read_text("utf-8").split("\n")
    return {source[line - 1].strip(): shape for line, shape in found.lines.items()}, found


def shown(package: Path, text: str) -> dict[str, str]:
    lines, found = record(package, text)
    assert found.problems == ()
    return lines


def test_targets_parameters_and_results(package: Path) -> None:
    lines = shown(
        package,
        '''
        def attend(
            query: Float[Tensor, "b h t d"],
            key: Float[Tensor, "b h s d"],
            *,
            scale: float = 1.0,
        ) -> tuple[Float[Tensor, "b h t d"], Float[Tensor, "b h t s"]]:
            """The prose."""
            scores = torch.einsum(
                "b h t d, b h s d -> b h t s",
                query,
                key,
            )
            scores *= scale
            a, (c, rest) = scores, (key, 3)
            total = scores.sum()
            twice = again = torch.cat([query, query], dim=-1)
            array: np.ndarray = key.numpy().reshape(-1, key.shape[-1])
            merged = query.transpose(1, 2).flatten(2)
            with torch.no_grad():
                row = scores[:, :, :1]
            return (
                query,
                scores,
            )


        def example(axes):
            b, h, t, s, d = (axes[letter] for letter in "bhtsd")
            attend(torch.randn(b, h, t, d), torch.randn(b, h, s, d))
        ''',
    )
    assert lines == {
        'query: Float[Tensor, "b h t d"],': "b h t d",
        'key: Float[Tensor, "b h s d"],': "b h s d",
        "scores = torch.einsum(": "b h t s",
        "scores *= scale": "b h t s",
        "a, (c, rest) = scores, (key, 3)": "b h t s, b h s d",
        "twice = again = torch.cat([query, query], dim=-1)": "b h t 2d",
        "array: np.ndarray = key.numpy().reshape(-1, key.shape[-1])": "b·h·s d",
        "merged = query.transpose(1, 2).flatten(2)": "b t h·d",
        "row = scores[:, :, :1]": "b h 1 s",
        "return (": "b h t d, b h t s",
    }


def test_letters_bind_in_the_frame(package: Path) -> None:
    lines = shown(
        package,
        """
        def annotated(x: Float[Tensor, "s t"]):
            y = x.T
            return y

        def starred(x: Float[Tensor, "*batch d"]):
            y = x + 1

        def integers(n: int, flag: bool, window: int):
            z = torch.zeros(n, window, 1)

        def local(x):
            message: Float[Tensor, "numbers"] = x.flatten()
            both = torch.cat([x, x]).flatten()[: x.numel()]

        def example(axes):
            t, s, d = axes["t"], axes["s"], axes["d"]
            annotated(torch.randn(t, s))
            starred(torch.randn(t, 2 * d))
            integers(axes["h"] * 2, True, d * d + 1)
            local(torch.randn(t, s, d, axes["e"]))
        """,
    )
    assert lines["y = x.T"] == "t s"
    assert lines["y = x + 1"] == "t d"
    assert lines["z = torch.zeros(n, window, 1)"] == "n window 1"
    assert lines["both = torch.cat([x, x]).flatten()[: x.numel()]"] == "numbers"


def test_modules_are_seen_through_torch_and_properties_are_left_alone(package: Path) -> None:
    lines = shown(
        package,
        """
        class Layer(nn.Module):
            def __init__(self, m: int) -> None:
                super().__init__()
                self.w_q = nn.Linear(m, 2 * m)
                self.gain = nn.Parameter(torch.ones(m))
                self.register_buffer("steps", torch.ones(m))
                self.steps = torch.zeros(m, m)
                self.trap = 1

            @property
            def trap(self):
                raise RuntimeError("looked at")

            @trap.setter
            def trap(self, value):
                pass

            def forward(self, x: Float[Tensor, "t m"]):
                y = self.w_q(x)
                return self.helper(y)

            def helper(self, y):
                z = y + 1
                return z

        def example(axes):
            Layer(axes["m"])(torch.randn(axes["t"], axes["m"]))
        """,
    )
    assert lines == {
        "self.gain = nn.Parameter(torch.ones(m))": "m",
        "self.steps = torch.zeros(m, m)": "m m",
        "y = self.w_q(x)": "t 2m",
        "return self.helper(y)": "t 2m",
    }


def test_the_first_call_is_shown_and_all_are_kept(package: Path) -> None:
    lines, found = record(
        package,
        """
        def f(x: Float[Tensor, "t"]):
            y = x[None]

        def example(axes):
            f(torch.randn(axes["t"]))
            [f(torch.randn(1)) for _ in range(2)]
        """,
    )
    assert lines == {"y = x[None]": "1 t"}
    assert [frame.seen["y"] for frame in found.frames] == [
        ((1,) * 3, (23, 29, 19)),
        ((1,) * 3,) * 2,
        ((1,) * 3,) * 2,
    ]


def test_loops_branches_and_exceptions(package: Path) -> None:
    lines = shown(
        package,
        """
        def f(x: Float[Tensor, "t d"]):
            for row in x:
                doubled = row + row
            for n in range(1, 3):
                part = x[:n]
            for n in range(2): same = x.T
            try:
                y = x
                y = int("no")
            except ValueError:
                caught = x
            while True:
                z = x
                break
            for k in (1, 2):
                rank = x if k == 1 else x[0]
            if x is None:
                never = x
            late = [a for a in x][0]
            try:
                return late
            finally:
                done = x

        def example(axes):
            f(torch.randn(axes["t"], axes["d"]))
        """,
    )
    assert lines == {
        "for row in x:": "d",
        "doubled = row + row": "d",
        "part = x[:n]": "_ d",
        "for n in range(2): same = x.T": "d t",
        "y = x": "t d",
        "caught = x": "t d",
        "z = x": "t d",
        "late = [a for a in x][0]": "d",
        "return late": "d",
        "done = x": "t d",
    }


def test_generators_and_other_files_are_not_followed(package: Path) -> None:
    (package / "earlier.py").write_text(HEAD + "def g(x):\n    y = x.T\n    return y\n", encoding="utf-8")
    lines = shown(
        package,
        """
        from tiny_course.earlier import g

        def pieces(x):
            half = x[:1]
            yield half

        def f(x: Float[Tensor, "t d"]):
            turned = g(x)

        def example(axes):
            x = torch.randn(axes["t"], axes["d"])
            list(pieces(x))
            g(x)
            f(x)
        """,
    )
    assert lines == {"turned = g(x)": "d t"}


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("def f(x):\n    return x + [1]\n\ndef example(axes):\n    f(1)\n", 6, "TypeError"),
        ("def example(axes):\n    axes['no']\n", 6, "no axis is called 'no'"),
        ("import nothing_of_this_name\n", 5, "ModuleNotFoundError"),
        ("x = (\n", 5, "SyntaxError"),
        ("x = 1\n", 1, "no function 'example(axes)'"),
    ],
)
def test_problems(package: Path, text: str, line: int, message: str) -> None:
    _, found = record(package, text)
    (problem,) = found.problems
    assert problem.file == str(package / "lesson.py")
    # A fault in `axes` itself is at the line that asked.
    assert problem.line == line
    assert message in problem.message


def test_edits_are_seen_and_the_process_is_left_as_it_was(package: Path) -> None:
    before = (sys.gettrace(), list(sys.path), set(sys.modules))
    text = "def f(x):\n    y = x\n\ndef example(axes):\n    f(torch.randn(axes['{}']))\n"
    assert record(package, text.format("t"))[0] == {"y = x": "t"}
    assert record(package, text.format("s") + "\n# longer\n")[0] == {"y = x": "s"}
    assert (sys.gettrace(), list(sys.path)) == before[:2]
    assert not {name for name in sys.modules if name.startswith("tiny_course")}


def test_json_keeps_everything(package: Path) -> None:
    _, found = record(
        package,
        """
        def f(x: Float[Tensor, "t d"], n: int):
            for k in (1, 2):
                y = x[:k]
            return x, None

        def example(axes):
            f(torch.randn(axes["t"], axes["d"]), 3)
        """,
    )
    assert ShapeRecord.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_the_command_prints_json_only(package: Path) -> None:
    path = package / "lesson.py"
    text = "def f(x):\n    y = x\n\ndef example(axes):\n    print('noise')\n    f(torch.randn(axes['t']))\n"
    path.write_text(HEAD + text, encoding="utf-8")
    command = [sys.executable, "-m", "coursekit.pages.shapes", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    assert json.loads(done.stdout)[str(path)]["lines"] == {"6": "t"}


def test_nothing_is_recorded_of_kernels(package: Path) -> None:
    _, found = record(
        package,
        """
        import triton_that_is_missing as triton

        @triton.jit
        def kernel(x):
            pass
        """,
    )
    assert found == ShapeRecord({}, (), ())


def test_an_example_does_without_triton_s_interpreter(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    lines, _ = record(
        package,
        """
        import os
        import torch

        def attend(t: int):
            x = torch.zeros(t, 2 if "TRITON_INTERPRET" in os.environ else 3)
            return x

        def example(axes):
            attend(axes["t"])
        """,
    )
    assert lines['x = torch.zeros(t, 2 if "TRITON_INTERPRET" in os.environ else 3)'] == "t 3"
    assert os.environ["TRITON_INTERPRET"] == "1"
