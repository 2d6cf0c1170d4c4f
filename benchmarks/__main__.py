"""Run the benchmarks: every `bench_<name>.py` here has `run() -> list[dict]`, one entry a case, and so has
`grading.py`.

python -m benchmarks                 all of them
python -m benchmarks alibi site      those

Each writes `results/<name>.json`: its cases, and the versions and the machine that they were measured with.
"""

import importlib
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent


def machine() -> dict[str, str | int]:
    import torch

    found: dict[str, str | int] = {"python": platform.python_version(), "torch": version("torch")}
    found |= {"machine": f"{platform.system()} {platform.machine()}", "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_device_name()
    return found


def main() -> int:
    known = {path.stem.removeprefix("bench_"): path.stem for path in sorted(HERE.glob("bench_*.py"))}
    known["grading"] = "grading"
    chosen = sys.argv[1:] or list(known)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        print(f"no benchmark is called '{unknown[0]}': there are {', '.join(known)}", file=sys.stderr)
        return 2
    for name in chosen:
        print(f"{name}")
        cases = importlib.import_module(f"benchmarks.{known[name]}").run()
        for case in cases:
            print("  " + ", ".join(f"{key} {_short(value)}" for key, value in case.items()), flush=True)
        result = {**machine(), "cases": cases}
        path = HERE / "results" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8", newline="\n")
    return 0


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(part)}" for key, part in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
