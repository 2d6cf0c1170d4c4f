"""The proof of `language_model_corpus`: each test is a claim that its page makes."""

import bz2
import lzma
import runpy
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from annotated_attention import language_model_corpus as corpus
from annotated_attention.language_model import LanguageModelConfig
from annotated_attention.language_model_corpus import (
    as_text,
    as_tokens,
    is_held_out,
    library_files,
    main,
    manifest,
    split,
)

SMALL = {f"file_{n}.py": f"def f{n}(x):\n    return x + {n}\n".encode() * 9 for n in range(40)}


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return library_files()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The command on a small library, with a small model; its arguments."""
    monkeypatch.setattr(corpus, "library_files", lambda: SMALL)
    monkeypatch.setattr(
        corpus, "CONFIG", LanguageModelConfig(max_length=16, d_model=8, n_layers=1, n_heads=2)
    )
    return ["--steps", "60", "--checkpoint", str(tmp_path / "model.pt")]


def test_files_are_those_of_the_library(tmp_path: Path, files: dict[str, bytes]) -> None:
    names = ["abc.py", "json/decoder.py", "json/tests/late.py", "test/support.py", "encodings/cp1.py"]
    for name in [*names, "site-packages/torch.py", "asyncio/events.txt", "tkinter/ttk.py"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"pass\r\n")
    assert library_files(tmp_path) == {"abc.py": b"pass\n", "json/decoder.py": b"pass\n"}
    # And those of the Python that runs this.
    assert {"argparse.py", "asyncio/base_events.py", "collections/__init__.py"} <= {*files}
    assert list(files) == sorted(files)
    assert 300 < len(files) < 500
    assert 7e6 < sum(map(len, files.values())) < 10e6
    with pytest.raises(FileNotFoundError, match="no source of Python"):
        library_files(tmp_path / "json")


def test_no_file_has_byte_0(files: dict[str, bytes]) -> None:
    assert not any(b"\0" in content for content in files.values())


def test_one_file_in_ten_is_held_out(files: dict[str, bytes]) -> None:
    assert 0.07 < sum(map(is_held_out, files)) / len(files) < 0.16
    text, held_out = split(files)
    assert len(text) + len(held_out) == sum(map(len, files.values()))
    assert 0.05 < len(held_out) / len(text) < 0.2
    # The same names in another process, on any machine.
    assert [n for n in range(40) if is_held_out(f"file_{n}.py")] == [2, 3, 9, 18, 21, 30]


def test_what_counting_and_compressing_need(files: dict[str, bytes]) -> None:
    text, held_out = (x.long() for x in split(files))
    singles = torch.bincount(text, minlength=256).double() + 1
    pairs = torch.bincount(256 * text[:-1] + text[1:], minlength=65536).double().view(256, 256) + 0.1
    needed = {4.47: -(singles / singles.sum()).log2()[held_out].mean().item()}
    needed[3.45] = -(pairs / pairs.sum(1, keepdim=True)).log2()[held_out[:-1], held_out[1:]].mean().item()
    written = bytes(held_out.tolist())
    for bits, compressor in ((2.01, zlib), (1.68, bz2), (1.71, lzma)):
        needed[bits] = 8 * len(compressor.compress(written)) / len(written)
    # To the digit on Python 3.11.7; the library of other versions is another text.
    assert all(value == pytest.approx(bits, rel=0.06) for bits, value in needed.items()), needed


def test_a_new_file_moves_no_other() -> None:
    more = {**SMALL, "another.py": b"x = 1\n"}
    for before, after in zip(split(SMALL), split(more), strict=True):
        assert set(as_text(before).splitlines()) <= set(as_text(after).splitlines())
    text, held_out = split(SMALL)
    assert not set(as_text(text).splitlines()[::2]) & set(as_text(held_out).splitlines()[::2])


def test_manifest_sees_every_byte() -> None:
    seen = {manifest(SMALL)}
    seen.add(manifest({**SMALL, "file_3.py": SMALL["file_3.py"] + b"\n"}))
    seen.add(manifest({**SMALL, "file_4.py": SMALL["file_3.py"], "file_3.py": SMALL["file_4.py"]}))
    seen.add(manifest({name.replace("e_3", "e_03"): content for name, content in SMALL.items()}))
    assert len(seen) == 4
    assert all(len(digits) == 12 for digits in seen)
    assert manifest(dict(SMALL)) == manifest(SMALL)


def test_text_comes_back() -> None:
    assert as_text(as_tokens("naïve ∑\n".encode())) == "naïve ∑\n"
    assert as_text(torch.tensor([104, 255, 105])) == "h�i"


def test_progress_in_a_file_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with corpus.progress(250) as report:
        for step in range(130, 250):
            report(step, 2.0)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 200 of 250", "step 250 of 250"]
    assert "2.885 bits per byte" in lines[0]
    assert "\x1b" not in "".join(lines)


def test_progress_in_a_terminal_is_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    with corpus.progress(3) as report:
        for step in range(3):
            report(step, 2.0)
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "2.885 bits per byte" in shown


def test_command_trains_stops_and_goes_on(
    small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(small) == 0
    whole = capsys.readouterr()
    assert "40 files" in whole.out
    assert "bits per byte of the files held out\n\ndef " in whole.out
    assert "step 60 of 60" in whole.err
    assert main(small) == 0
    again = capsys.readouterr()
    assert again.out == whole.out
    assert again.err == ""

    Path(small[3]).unlink()
    real = corpus.train

    def stopped(*arguments: object, report: Callable[[int, float], None], **options: object) -> None:
        def press(step: int, loss: float) -> None:
            report(step, loss)
            if step == 54:
                raise KeyboardInterrupt

        real(*arguments, report=press, **options)

    monkeypatch.setattr(corpus, "train", stopped)
    assert main(small) == 130
    assert "goes on from the last checkpoint" in capsys.readouterr().err
    monkeypatch.setattr(corpus, "train", real)
    assert main(small) == 0
    assert capsys.readouterr().out == whole.out

    # Ctrl-C while the model is judged.
    def pressed(*arguments: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(corpus, "bits_per_byte", pressed)
    assert main(small) == 130


def test_command_says_what_is_wrong(
    small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*small, "--steps", "2"]) == 0
    for arguments, message in (
        (["--steps", "0"], "--steps: 0 is less than 1"),
        (["--prompt", "x" * 16], "--prompt: it has more than 15 bytes"),
        (["--steps", "3"], "has steps = 2, this run 3"),
        (["--checkpoint", small[3] + "/none/model.pt"], "--checkpoint: checkpoint"),
        (["--speed"], "unrecognized arguments: --speed"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*small, *arguments])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err

    def missing() -> None:
        raise FileNotFoundError("there is no source")

    monkeypatch.setattr(corpus, "library_files", missing)
    assert main(small) == 3
    assert "there is no source" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_module_is_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["language_model_corpus.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(corpus.__name__, run_name="__main__")
    assert stop.value.code == 0
    assert "python -m annotated_attention.language_model_corpus" in capsys.readouterr().out
