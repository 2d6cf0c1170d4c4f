r"""# Text that every machine has

To be written.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $n$ | `steps` | scalar | steps of training |
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

__all__ = ["as_text", "as_tokens", "is_held_out", "library_files", "main", "manifest", "split"]

# What a distribution may leave out, and what is no program: tables of code points, one file of 0.7 MB.
OPTIONAL = {"distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtledemo"}
NO_PROGRAM = {"encodings", "pydoc_data"}


def library_files(root: Path | None = None) -> dict[str, bytes]:
    """The files of the standard library by name, in order."""
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    wanted = sys.stdlib_module_names - OPTIONAL - NO_PROGRAM
    files = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if parts[0].removesuffix(".py") in wanted and not {"test", "tests"} & {*parts}:
            files["/".join(parts)] = path.read_bytes().replace(b"\r\n", b"\n")
    if not files:
        raise FileNotFoundError(f"{root} holds no source of the standard library")
    return dict(sorted(files.items()))


def is_held_out(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] < 26


def split(files: dict[str, bytes]) -> tuple[UInt8[Tensor, "n"], UInt8[Tensor, "k"]]:
    """The text to learn from, and the text to be judged by."""
    train_text = b"".join(text for name, text in files.items() if not is_held_out(name))
    held_out = b"".join(text for name, text in files.items() if is_held_out(name))
    return as_tokens(train_text), as_tokens(held_out)


def as_tokens(text: bytes) -> UInt8[Tensor, "n"]:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def as_text(tokens: Tensor) -> str:
    return bytes(tokens.tolist()).decode(errors="replace")


def manifest(files: dict[str, bytes]) -> str:
    """Twelve digits that change with any name or byte."""
    digest = hashlib.sha256()
    for name, text in files.items():
        digest.update(f"{name} {hashlib.sha256(text).hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


@contextmanager
def progress(steps: int) -> Iterator[Callable[[int, float], None]]:
    """A `report` for `train`: a bar in a terminal with rich, else a line now and then."""
    began, first = time.perf_counter(), None

    def state(step: int, loss: float) -> str:
        nonlocal first
        first = step if first is None else first
        seconds = (time.perf_counter() - began) / (step - first + 1)
        left = (steps - step - 1) * seconds
        return f"{loss / math.log(2):.3f} bits, {1 / seconds:.1f} steps/s, {left:.0f} s left"

    if sys.stderr.isatty() and importlib.util.find_spec("rich"):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=steps)
            yield lambda step, loss: bar.update(task, completed=step + 1, description=state(step, loss))
        return

    def line(step: int, loss: float) -> None:
        text = state(step, loss)
        if (step + 1) % 100 == 0 or step + 1 == steps:
            print(f"step {step + 1} of {steps}: {text}", file=sys.stderr, flush=True)

    yield line


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m annotated_attention.language_model_corpus")
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, default=Path("language_model.pt"))
    parser.add_argument("--prompt", default="def ")
    options = parser.parse_args(arguments)
    files = library_files()
    text, held_out = split(files)
    print(f"{len(files)} files, {len(text)} bytes to train on, {len(held_out)} held out")
    torch.manual_seed(options.seed)
    model = LanguageModel(LanguageModelConfig())
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
    print(f"{bits_per_byte(model, held_out):.3f} bits per byte of the files held out")
    prompt = torch.tensor([[BEGIN, *options.prompt.encode()]])
    n_tokens = model.config.max_length + 1 - prompt.shape[1]
    generator = torch.Generator().manual_seed(options.seed)
    sampled = generate(model, prompt, n_tokens, temperature=0.8, top_p=0.95, generator=generator)
    print(as_text(sampled[0, 1:]))
    return 0


def example(axes: dict[str, int]) -> None:
    b = axes["b"]
    files = {f"{n}.py": b"pass\n" * b for n in range(20)}
    split(files)
    manifest(files)


if __name__ == "__main__":
    sys.exit(main())
