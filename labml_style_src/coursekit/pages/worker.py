"""A process that imports mechanisms and figures, so that the one that builds stays free of them.

It reads requests and writes answers, one JSON object a line. Between two requests it forgets the course's
modules, but keeps torch: importing that takes seconds, which `attn serve` then pays once.
"""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from coursekit.course import CONTENT_PACKAGE, SOURCE_ROOT
from coursekit.pages.problems import PageError, Problem


class Worker:
    """The process, seen from the one that builds. It starts with the first request, or with `start`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "coursekit.pages.worker", str(self.root)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
            )
        return self.process

    def ask(self, job: str, path: Path, module: str = "") -> Any:
        """The answer to one request. Raises `PageError` if the file fails while it runs."""
        process = self.start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"job": job, "path": str(path), "module": module}) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise PageError([Problem(_relative(path, self.root), 1, "the process that ran this file died")])
        answer = json.loads(line)
        if "problem" in answer:
            raise PageError([Problem(**answer["problem"])])
        return answer["result"]

    def close(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.wait(timeout=10)
        self.process = None


def shapes(path: Path, module: str) -> Any:
    """The shapes seen in a run of the mechanism's `example`."""
    from coursekit.pages.shapes import record_shapes

    return record_shapes(path, module).to_json()


def figures(path: Path, module: str) -> dict[str, str]:
    """What every public function of a `figures.py` returns, by name."""
    spec = importlib.util.spec_from_file_location(module, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return {name: function() for name, function in _drawings(loaded).items()}


def _drawings(module: ModuleType) -> dict[str, Any]:
    """The module's own public functions that can be called without arguments."""
    return {
        name: item
        for name, item in vars(module).items()
        if callable(item)
        and not name.startswith("_")
        and getattr(item, "__module__", None) == module.__name__
        and not isinstance(item, type)
        and item.__code__.co_argcount == 0
    }


JOBS = {"shapes": shapes, "figures": figures}


def answer(request: dict[str, str], root: Path) -> dict[str, Any]:
    """The result of a request, or the problem at the innermost line of the course that raised."""
    for name in [name for name in sys.modules if name.split(".")[0] == CONTENT_PACKAGE]:
        del sys.modules[name]
    importlib.invalidate_caches()
    path = Path(request["path"])
    try:
        return {"result": JOBS[request["job"]](path, request["module"])}
    except Exception as error:
        file, line = path, 1
        if isinstance(error, SyntaxError) and error.filename:
            file, line = Path(error.filename), error.lineno or 1
        for frame in traceback.extract_tb(error.__traceback__):
            if Path(frame.filename).is_relative_to(root) and "coursekit" not in Path(frame.filename).parts:
                file, line = Path(frame.filename), frame.lineno or 1
        message = f"{type(error).__name__}: {error}"
        return {"problem": {"file": _relative(file, root), "line": line, "message": message}}


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def main() -> None:
    root = Path(sys.argv[1])
    sys.path.insert(0, str(root / SOURCE_ROOT))
    sys.dont_write_bytecode = True
    # What a lesson prints must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    import torch  # noqa: F401  the slow import, before the first request needs it

    for line in sys.stdin:
        answers.write(json.dumps(answer(json.loads(line), root)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
