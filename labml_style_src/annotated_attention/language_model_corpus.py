r"""# Text that every machine has

A model needs something to read. A course that begins with a download fails in a classroom without a network,
and on the day when the file moves. But whoever runs this has Python, and Python is written in Python: its
library is some eight million bytes of programs and their comments, by hundreds of authors, under a free
licence.

![What a byte of the files held out costs, in bits: one who counts bytes, one who counts pairs, three
compressors and, after five minutes, the model.](figure:bits)

## What came before

Language models were compared on the Penn Treebank, a million words of newspaper; on *text8* and *enwik8*, the
first hundred million bytes of a Wikipedia; on WikiText-103. Tutorials read Shakespeare. All are downloads,
and each has its own rules about what counts as a token. Bytes need none: every file is a sequence of numbers
from 0 to 255, nothing is unknown, and what comes out can be turned back.

## What there is to compare with

In Python 3.11.7, 43 files are held out. A byte of them costs 8 bits to one who knows nothing, 4.47 to one who
has counted how often each occurs, and 3.45 to one who knows the byte before. zlib needs 2.01, lzma 1.71 and
bz2 1.68 [check:test_what_counting_and_compressing_need]. The last two remember most of what they have read of
these files. The model sees at most 255 bytes of the past, and has what it learned from the others.

## By file

Cut a text at random places and a function stands on both sides of the cut: the model is asked for what it has
read. So files are held out whole, about one in ten, and which ones is decided by a hash of the name. No list
is kept, every machine agrees, and a file that is added or dropped moves no other
[check:test_a_new_file_moves_no_other].
"""

import argparse
import hashlib
import importlib.util
import math
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from annotated_attention.language_model import LanguageModel, LanguageModelConfig, generate
from annotated_attention.language_model_training import BEGIN, bits_per_byte, train

__all__ = ["as_text", "as_tokens", "is_held_out", "library_files"]
__all__ += ["main", "manifest", "split"]

CONFIG = LanguageModelConfig()

# Left out: what a distribution may leave out too, and two packages that are no prose, tables of code points
# and one file of 0.7 MB.
LEFT_OUT = {"distutils", "ensurepip", "idlelib", "lib2to3", "tkinter"}
LEFT_OUT |= {"turtledemo", "encodings", "pydoc_data"}


def library_files(root: Path | None = None) -> dict[str, bytes]:
    r"""## The files

    Name and content of every `.py` file of the standard library but its tests, in the order of the names
    [check:test_files_are_those_of_the_library]. Line ends are those of Unix, so that Windows has the same
    bytes. None has a byte 0, which Python forbids: that one is free to begin a text
    [check:test_no_file_has_byte_0].

    **Raises.** `FileNotFoundError` if the library's source is not on this machine.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    wanted = sys.stdlib_module_names - LEFT_OUT
    files = {}
    for path in root.rglob("*.py"):
        name = path.relative_to(root)
        is_test = "test" in name.parts or "tests" in name.parts
        if name.parts[0].removesuffix(".py") in wanted and not is_test:
            content = path.read_bytes().replace(b"\r\n", b"\n")
            files[name.as_posix()] = content
    if not files:
        raise FileNotFoundError(f"{root} has no source of Python's library")
    return dict(sorted(files.items()))


def is_held_out(name: str) -> bool:
    """One name in ten [check:test_one_file_in_ten_is_held_out]. Python's own `hash` would not do: it differs
    from one process to the next."""
    return hashlib.sha256(name.encode()).digest()[0] < 26


def split(
    files: dict[str, bytes],
) -> tuple[UInt8[Tensor, "_"], UInt8[Tensor, "_"]]:
    """The text to be trained on, and the text held out: files one behind the other."""
    training = [text for name, text in files.items() if not is_held_out(name)]
    held_out = [text for name, text in files.items() if is_held_out(name)]
    return as_tokens(b"".join(training)), as_tokens(b"".join(held_out))


def as_tokens(text: bytes) -> UInt8[Tensor, "n"]:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def as_text(tokens: Tensor) -> str:
    """The way back. A model may write bytes that are no UTF-8; each fault becomes a �."""
    return bytes(tokens.tolist()).decode(errors="replace")


def manifest(files: dict[str, bytes]) -> str:
    """Twelve digits that change with every name and every byte [check:test_manifest_sees_every_byte]. The
    library differs between versions of Python, so results are told together with these."""
    digest = hashlib.sha256()
    for name, content in files.items():
        of_content = hashlib.sha256(content).hexdigest()
        digest.update(f"{name} {of_content}\n".encode())
    return digest.hexdigest()[:12]


@contextmanager
def progress(steps: int) -> Iterator[Callable[[int, float], None]]:
    r"""## Something to look at

    A `report` for `train`. In a terminal it is a bar, drawn by rich where it is installed; in a file it is a
    line for every hundred steps [check:test_progress_in_a_file_is_lines].
    """
    began, first = time.perf_counter(), -1

    def state(step: int, loss: float) -> str:
        nonlocal first
        first = step if first < 0 else first
        seconds = (time.perf_counter() - began) / (step - first + 1)
        left = round((steps - step - 1) * seconds)
        rate = f"{1 / seconds:.1f} steps a second, {left} s to go"
        return f"{loss / math.log(2):.3f} bits per byte, {rate}"

    def line(step: int, loss: float) -> None:
        words = state(step, loss)
        if (step + 1) % 100 == 0 or step + 1 == steps:
            print(f"step {step + 1} of {steps}: {words}", file=sys.stderr)

    has_rich = importlib.util.find_spec("rich") is not None
    if not sys.stderr.isatty() or not has_rich:
        yield line
        return

    from rich import progress as rich
    from rich.console import Console

    columns = [rich.BarColumn(), rich.MofNCompleteColumn()]
    columns += [rich.TextColumn("{task.description}")]
    with rich.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("the first step", total=steps)

        def draw(step: int, loss: float) -> None:
            words = state(step, loss)
            bar.update(task, completed=step + 1, description=words)

        yield draw


def main(arguments: Sequence[str] | None = None) -> int:
    r"""## Five minutes

    ```sh
    python -m annotated_attention.language_model_corpus
    ```

    trains the default model on this text, on two cores in about five minutes, prints the bits per byte of the
    files held out, and lets the model write. Ctrl-C stops it; the same command goes on from the last
    checkpoint, and reads the finished model if there is one [check:test_command_trains_stops_and_goes_on].

    It returns 0, or 2 if the arguments do not fit, 3 if the machine lacks the library's source, and 130 after
    Ctrl-C [check:test_command_says_what_is_wrong].
    """
    parser = argparse.ArgumentParser(
        prog="python -m annotated_attention.language_model_corpus",
        description="Train a language model on Python's own library.",
    )
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=Path("language_model.pt"),
        help="where the run is kept (default: %(default)s)",
    )
    parser.add_argument("--prompt", default="def ")
    options = parser.parse_args(arguments)
    prompt = torch.tensor([[BEGIN, *options.prompt.encode()]])
    if options.steps < 1:
        parser.error(f"argument --steps: {options.steps} is less than 1")
    if prompt.shape[1] > CONFIG.max_length:
        most = CONFIG.max_length - 1
        parser.error(f"argument --prompt: it has more than {most} bytes")

    try:
        files = library_files()
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 3
    text, held_out = split(files)
    sizes = f"{len(text):,} bytes, and {len(held_out):,} held out"
    print(f"{len(files)} files ({manifest(files)}): {sizes}")

    torch.manual_seed(options.seed)
    model = LanguageModel(CONFIG)
    try:
        with progress(options.steps) as report:
            train(
                model,
                text,
                steps=options.steps,
                seed=options.seed,
                checkpoint=options.checkpoint,
                every=50,
                report=report,
            )
        bits = bits_per_byte(model, held_out)
        print(f"{bits:.3f} bits per byte of the files held out\n")
        written = generate(
            model,
            prompt,
            CONFIG.max_length + 1 - prompt.shape[1],
            temperature=1.0,
            top_p=0.95,
            generator=torch.Generator().manual_seed(options.seed),
        )
    except KeyboardInterrupt:
        later = "the same command goes on from the last checkpoint"
        print(f"stopped: {later}, if there is one", file=sys.stderr)
        return 130
    except ValueError as error:
        parser.error(f"argument --checkpoint: {error}")
    print(as_text(written[0, 1:]))
    return 0


def example(axes: dict[str, int]) -> None:
    """A library of a few files: the shapes beside the code are read off this run."""
    files = {f"{n}.py": b"pass\n" * axes["b"] for n in range(40)}
    split(files)
    manifest(files)


if __name__ == "__main__":
    sys.exit(main())
