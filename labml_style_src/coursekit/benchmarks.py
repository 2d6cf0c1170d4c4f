"""Benchmarks: what `benchmarks/bench_NAME.py` measures, and its last result, `benchmarks/results/NAME.json`.

Such a file has a function `run()` that gives one case after another, each a dict for JSON. It may say `LONG = True`:
then it runs only when it is named. Each has a process of its own, so that none inherits threads, memory or
settings of another: `python -m coursekit.benchmarks MODULE` writes the machine and then each case, a line each.
"""

import ast
import datetime
import importlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from coursekit.course import Benchmark, environment_of
from coursekit.files import write_text
from coursekit.machine import machine, versions
from coursekit.words import count

Case = dict[str, Any]


class Failed(Exception):
    """A benchmark ended with an error, which it has printed."""


def about(benchmark: Benchmark) -> str:
    """How its docstring begins, up to the first stop."""
    prose = ast.get_docstring(ast.parse(benchmark.path.read_text("utf-8"))) or ""
    return re.split(r"[.:;](?:\s|$)", " ".join(prose.split()), maxsplit=1)[0]


def is_long(benchmark: Benchmark) -> bool:
    """Whether it runs only when it is named."""
    tree = ast.parse(benchmark.path.read_text("utf-8"))
    return any(isinstance(node, ast.Assign) and ast.unparse(node) == "LONG = True" for node in tree.body)


def last(benchmark: Benchmark) -> dict[str, Any] | None:
    """Its last result."""
    return json.loads(benchmark.result.read_text("utf-8")) if benchmark.result.exists() else None


def age(benchmark: Benchmark) -> str:
    """How old that is, in words."""
    result = last(benchmark)
    if result is None:
        return "never run"
    days = (datetime.date.today() - datetime.date.fromisoformat(result["date"])).days
    return f"{count(days, 'day')} old" if days > 0 else "of today"


def measure(benchmark: Benchmark, seen: Callable[[Case], None] = lambda case: None) -> dict[str, Any]:
    """Run it, and keep the result once all cases are there; `seen` is given each of them as it comes.

    Raises `Failed` if it does not end well; the last result stays as it was.
    """
    began, cases, where = time.monotonic(), [], None
    process = subprocess.Popen(
        [sys.executable, "-m", "coursekit.benchmarks", benchmark.module],
        cwd=benchmark.root,
        env=environment_of(benchmark),
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if where is None:
                where = json.loads(line)
                continue
            cases.append(json.loads(line))
            seen(cases[-1])
        code = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    if code or where is None:
        raise Failed(f"{benchmark.name} ended with an error")
    seconds, date = round(time.monotonic() - began, 1), datetime.date.today().isoformat()
    result = {"benchmark": benchmark.name, "date": date, "seconds": seconds, **where, "cases": cases}
    write_text(benchmark.result, json.dumps(result, indent=1) + "\n")
    return result


@contextmanager
def progress(
    console: Console, is_plain: bool, before: dict[str, Any] | None
) -> Iterator[Callable[[Case], None]]:
    """Each case as it comes; in a terminal a bar below them, which expects as many cases as last time."""
    if is_plain:
        yield lambda case: console.print(f"  {line(case)}", markup=False)
        return
    columns = (BarColumn(), TextColumn("{task.completed:.0f} cases"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(before["cases"]) if before else None)

        def seen(case: Case) -> None:
            bar.console.print(f"  {line(case)}", markup=False)
            bar.advance(task)

        yield seen


def line(case: Case) -> str:
    """A case for a terminal."""
    return ", ".join(f"{key} {_short(value)}" for key, value in case.items())


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(part)}" for key, part in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    # What a benchmark prints must not mix with its cases.
    sys.stdout, out = sys.stderr, sys.stdout
    print(json.dumps({"machine": machine(), "versions": versions()}), file=out, flush=True)
    for case in importlib.import_module(sys.argv[1]).run():
        print(json.dumps(case), file=out, flush=True)


if __name__ == "__main__":
    main()
