r"""All that a GPU is needed for, in one command of ten minutes at most: checks, then measurements, then the aims.

    PYTHONPATH=labml_style_src python -m benchmarks.gpu                everything; writes benchmarks/results/gpu.json
    PYTHONPATH=labml_style_src python -m benchmarks.gpu --out FILE     writes there
    PYTHONPATH=labml_style_src python -m benchmarks.gpu dense tiles    these phases only, into build/gpu.json
    PYTHONPATH=labml_style_src python -m benchmarks.gpu --rehearse     does it run? Tiny, on a CPU, in build/

Each phase has a budget of its own, and every case is written when it is there: a command that is cut off has lost
nothing that it had measured. A case that fails says why and the next one follows.

It runs in the course's root and needs PyTorch for CUDA, Triton, NumPy, einops and jaxtyping; the checks also pytest,
hypothesis, beartype, pytest-xdist. What is missing is said first. Without a network, fetch what is missing elsewhere
(pure Python: any machine will do) and put it beside the course:

    python -m pip download --no-deps --only-binary=:all: -d wheels beartype
    python -m pip install --no-index --no-deps --target site wheels/*.whl
    PYTHONPATH=labml_style_src:site python -m benchmarks.gpu
"""

import argparse
import datetime
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
MINUTES = 9.7
NEEDED = ("torch", "triton", "numpy", "einops", "jaxtyping")
FOR_CHECKS = ("pytest", "hypothesis", "beartype", "xdist")

KERNELS = ("flash_triton", "flash_paged", "linear_triton")
SANITIZER = ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer")

Cases = Iterator[dict[str, Any]]


class Phase(NamedTuple):
    """A part of the run: its name, its seconds, and what gives its cases until a moment of `time.monotonic()`."""

    name: str
    seconds: float
    cases: Callable[[float], Cases]


def missing(modules: tuple[str, ...]) -> list[str]:
    return [name for name in modules if importlib.util.find_spec(name) is None]


def phases(rehearse: bool) -> list[Phase]:
    """In this order: first whether the kernels are right, then what the aims ask for, then the rest."""
    from benchmarks.gpu_measures import REHEARSAL, WHOLE, Measures

    measures = Measures(REHEARSAL if rehearse else WHOLE)
    return [
        Phase("checks of the kernels", 150, lambda end: tests(end, kernels=True)),
        Phase("roof", 10, measures.roof),
        Phase("dense", 110, measures.dense),
        Phase("variants", 130, measures.variants),
        Phase("decoding", 35, measures.decoding),
        Phase("growth", 45, measures.growth),
        Phase("linear", 20, measures.linear),
        Phase("sanitizer", 80, sanitizer),
        Phase("tiles", 60, measures.tiles),
        Phase("other checks", 600, lambda end: tests(end, kernels=False)),
    ]


def run(chosen: list[str], path: Path, rehearse: bool, minutes: float) -> dict[str, Any]:
    """Every phase that is wanted, as far as the time goes. The file is written again after each case."""
    from benchmarks import peers
    from benchmarks.gpu_aims import aims
    from coursekit.files import write_text
    from coursekit.machine import machine, versions

    began = time.monotonic()
    installed = {**versions(), **peers.versions()}
    if not missing(("triton",)):
        import triton

        installed["triton"] = triton.__version__
    result: dict[str, Any] = {
        "benchmark": "gpu",
        "date": datetime.date.today().isoformat(),
        "rehearsal": rehearse,
        "seconds": 0.0,
        "machine": machine(),
        "versions": installed,
        "missing": missing(FOR_CHECKS),
        "aims": [],
        "phases": [],
        "cases": [],
    }

    def keep() -> None:
        result["seconds"] = round(time.monotonic() - began, 1)
        result["aims"] = aims(result["cases"])
        write_text(path, json.dumps(result, indent=1) + "\n")

    for phase in phases(rehearse):
        if chosen and phase.name.replace(" ", "-") not in chosen:
            continue
        start = time.monotonic()
        end = min(start + phase.seconds, began + 60 * minutes)
        told = {"phase": phase.name, "budget_s": phase.seconds, "state": "done"}
        result["phases"].append(told)
        print(f"{phase.name}: {max(0, end - start):.0f} s at most", flush=True)
        try:
            for case in phase.cases(end) if end > start else [{"skipped": "the time was up"}]:
                print(f"  {short(case)}", flush=True)
                result["cases"].append({"phase": phase.name, **case})
                keep()
        except Exception as error:
            told["state"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            print(f"  {told['state']}", flush=True)
        told["seconds"] = round(time.monotonic() - start, 1)
        keep()
    return result


def short(case: dict[str, Any]) -> str:
    shown = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in case.items()}
    return ", ".join(f"{key} {value}" for key, value in shown.items() if key != "output")


def tests(end: float, kernels: bool) -> Cases:
    """The cases of the course's proofs that run on a GPU: those of the kernels, or all others."""
    if absent := missing(FOR_CHECKS):
        yield {"what": "tests", "skipped": f"missing: {', '.join(absent)}"}
        return
    folder = ROOT / "tests" / "annotated_attention"
    found = [path for path in sorted(folder.glob("test_*.py")) if "_experiment" not in path.stem]
    ours = [path for path in found if path.stem.startswith(tuple(f"test_{name}" for name in KERNELS))]
    files = ours if kernels else [path for path in found if path not in ours]
    if not files:
        yield {"what": "tests", "skipped": "there are none"}
        return
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "--tb=short",
        "-k",
        "cuda",
        "-n",
        "8",
        "-p",
        "no:cacheprovider",
    ]
    code, output = until(end, [*command, *map(str, files)])
    said = re.findall(
        r"\b(PASSED|FAILED|ERROR|SKIPPED)\b", re.sub(r"(?s)=+ short test summary.*", "", output)
    )
    failed = sorted(set(re.findall(r"\b(?:FAILED|ERROR)\b[^\n]*?(tests/\S+)", output)))
    yield {
        "what": "tests",
        "files": len(files),
        **{word.lower(): said.count(word) for word in ("PASSED", "FAILED", "ERROR", "SKIPPED")},
        "state": "passed" if code == 0 else "the time was up" if code == -signal.SIGKILL else "failed",
        "failures": failed[:40],
        "output": output[-3000:] if code else "",
    }


def sanitizer(end: float) -> Cases:
    """Every kernel once, at small sizes, watched for reads and writes out of bounds and for races."""
    program = [sys.executable, "-m", "benchmarks.gpu_measures"]
    # Once without being watched: then the kernels are compiled.
    code, output = until(end, program)
    yield {"what": "every kernel", "ended": code == 0, "output": "" if code == 0 else output[-3000:]}
    tool = next((found for name in SANITIZER if (found := shutil.which(name))), None)
    if tool is None:
        yield {"what": "compute-sanitizer", "skipped": "it is not installed"}
        return
    # PyTorch's allocator hands out parts of what it holds, and would hide what is out of bounds.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for parts, watch in ((2, "memcheck"), (1, "racecheck")):
        now = time.monotonic()
        command = [tool, "--tool", watch, "--error-exitcode", "9", *program]
        code, output = until(now + (end - now) / parts, command, environment)
        summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: [^\n]*", output)
        yield {
            "what": f"compute-sanitizer {watch}",
            "clean": code == 0,
            "summary": summary[-1] if summary else f"ended with {code}",
            "output": "" if code == 0 else output[-3000:],
        }


def until(end: float, command: list[str], environment: dict[str, str] | None = None) -> tuple[int, str]:
    """The exit code and what was printed; -9 if the time was up, and then all that it started is ended."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=max(1.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return -signal.SIGKILL, f"{output}\nthe time was up"
    return process.returncode, output


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("phases", nargs="*", help="some phases only, e.g. dense; all by default")
    parser.add_argument("--out", type=Path, help="where to write; benchmarks/results/gpu.json by default")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on a CPU; writes to build/")
    options = parser.parse_args()
    if options.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
    if absent := missing(NEEDED):
        print(f"missing: {', '.join(absent)}: see the top of benchmarks/gpu.py", file=sys.stderr)
        return 3
    import torch

    if not options.rehearse and not torch.cuda.is_available():
        print("there is no GPU here: --rehearse shows that the command runs", file=sys.stderr)
        return 3
    kept = ROOT / "build" / ("gpu.rehearsal.json" if options.rehearse else "gpu.json")
    if not options.rehearse and not options.phases:
        kept = ROOT / "benchmarks" / "results" / "gpu.json"
    path = options.out or kept
    result = run(options.phases, path, options.rehearse, options.minutes)
    if options.rehearse:
        print("A rehearsal: it ran, and its times mean nothing.")
    for aim in [] if options.rehearse else result["aims"]:
        verdict = {True: "holds", False: "does not hold", None: "not measured"}[aim["holds"]]
        print(f"{aim['aim']}: {short({'wanted': aim['wanted'], 'measured': aim['measured']})}: {verdict}")
    print(f"{path}: {result['seconds']:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
