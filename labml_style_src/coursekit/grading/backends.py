"""Where the student's code runs: in this process, or in a second one that gets inputs and nothing else.

Both have the same three methods, `ask`, `printed` and `close`; the checks cannot tell them apart.
"""

import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator
from typing import Any, Protocol

from coursekit.grading import wire
from coursekit.grading.child import PRINT_LIMIT, Printed
from coursekit.grading.session import Randomness, Session, describe_error, seed_everything
from coursekit.grading.submission import Submission
from coursekit.grading.values import copied
from coursekit.grading.verbs import StudentError, stops_in_words

CALL_SECONDS = 10.0
# After the first call that was too slow.
LATER_SECONDS = 2.0
LOAD_SECONDS = 20.0
# PyTorch is imported before the student's file.
START_SECONDS = 120.0
# What a Python process needs to start, and no more: no token or key of the grader's.
ENVIRONMENT = ("PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")

# Both backends start from the same random numbers.
LOAD_SEED = 0

_names = (f"submission_{number}" for number in itertools.count())


class Backend(Protocol):
    """Answers requests with plain values; `ask` raises `StudentError` for whatever goes wrong over there."""

    def ask(self, request: dict[str, Any]) -> Any: ...

    @property
    def stops(self) -> list[str]:
        """Where the submission stopped while it was loaded, in words. Known after the first question."""
        ...

    def printed(self) -> tuple[str, int]:
        """What the student's code has printed since the last time, as far as this backend keeps it, and how
        many lines came after that."""
        ...

    def close(self) -> None: ...


class InProcess:
    """The student's module in this process: a debugger works, and nothing limits it.

    With `keep_printed` what it prints does not reach the terminal but `printed`.
    """

    def __init__(self, submission: Submission, keep_printed: bool = False) -> None:
        self.submission = submission
        self._kept = Printed() if keep_printed else None
        self.session = Session(next(_names))
        self.random = Randomness(submission.text)
        self.problem: StudentError | None = None
        try:
            with self.random.entered(), self._caught():
                seed_everything(LOAD_SEED)
                self.session.load(submission.text, submission.filename, submission.cells)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.problem = self._told(error, loading=True)

    def ask(self, request: dict[str, Any]) -> Any:
        if self.problem is not None:
            raise self.problem.with_traceback(None)
        try:
            with self.random.entered(), self._caught():
                return self.session.run(copied(request))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # The student's frames stay at the end of the traceback, where a post-mortem debugger opens.
            raise self._told(error).with_traceback(error.__traceback__) from None

    @property
    def stops(self) -> list[str]:
        return stops_in_words(self.session.stops, self.submission)

    def printed(self) -> tuple[str, int]:
        return self._kept.taken() if self._kept else ("", 0)

    def close(self) -> None:
        self.session.close()

    @contextlib.contextmanager
    def _caught(self) -> Generator[None]:
        if self._kept is None:
            yield
            return
        with contextlib.redirect_stdout(self._kept), contextlib.redirect_stderr(self._kept):
            yield

    def _told(self, error: BaseException, loading: bool = False) -> StudentError:
        return StudentError(describe_error(error, self.submission.filename), self.submission, loading=loading)


class SecondProcess:
    """The student's module in a process of its own, started at once and asked over pipes.

    A call that takes longer than `seconds`, or ends the process, is a `StudentError`; the next one gets a
    fresh process. From then on calls have less time, and the function that was too slow is not called again.
    """

    def __init__(self, submission: Submission, seconds: float = CALL_SECONDS) -> None:
        self.submission = submission
        self.seconds = seconds
        self.slow: dict[str, StudentError] = {}
        self.problem: StudentError | None = None
        self.stops: list[str] = []
        self._printed, self._more = "", 0
        self._folder = tempfile.TemporaryDirectory(prefix="submission-", ignore_cleanup_errors=True)
        self._loaded = False
        self._process: subprocess.Popen[bytes] | None = self._start()

    def ask(self, request: dict[str, Any]) -> Any:
        if self.problem is None and not self._loaded:
            self._load()
        if self.problem is not None:
            raise self.problem.with_traceback(None)
        if slow := self.slow.get(request.get("name") or ""):
            raise slow.with_traceback(None)
        return self._exchange(request, min(self.seconds, LATER_SECONDS) if self.slow else self.seconds)

    def printed(self) -> tuple[str, int]:
        printed, more = self._printed, self._more
        self._printed, self._more = "", 0
        return printed, more

    def close(self) -> None:
        self._end()
        self._folder.cleanup()

    def _start(self) -> subprocess.Popen[bytes]:
        """Start the process without waiting for it: it imports while this one goes on."""
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        return subprocess.Popen(
            [sys.executable, "-I", "-m", "coursekit.grading.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment | {"OMP_NUM_THREADS": "1"},
            cwd=self._folder.name,
        )

    def _load(self) -> None:
        self._process = self._process or self._start()
        known = {name: getattr(self.submission, name) for name in ("text", "filename", "cells")}
        try:
            self._exchange({"verb": "begin", "seed": LOAD_SEED}, START_SECONDS)
            stops = self._exchange({"verb": "load", **known}, LOAD_SECONDS)
            self.stops = stops_in_words(stops, self.submission)
        except StudentError as error:
            self.problem = error
        self._loaded = True

    def _exchange(self, request: dict[str, Any], seconds: float) -> Any:
        """Send a request and wait for its answer, at most so many seconds."""
        process, message = self._process, wire.encode(request)
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        expired = threading.Event()

        def stop() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            process.stdin.write(message)
            process.stdin.flush()
            answer = wire.receive(process.stdout)
        except (EOFError, OSError):
            raise self._lost(request, seconds if expired.is_set() else None) from None
        except wire.WireError as error:
            self._end()
            raise self._failure(request, "WireError", str(error)) from None
        finally:
            timer.cancel()
        match answer.get("printed"):
            case (str(printed), int(more)):
                self._keep(printed, more)
        if "error" in answer:
            raise StudentError(answer["error"], self.submission, loading=request["verb"] == "load")
        return answer.get("value")

    def _keep(self, printed: str, more: int) -> None:
        whole = self._printed + printed
        self._printed = whole[:PRINT_LIMIT]
        self._more += whole.count("\n", PRINT_LIMIT) + more

    def _lost(self, request: dict[str, Any], seconds: float | None) -> StudentError:
        """The process is gone: it was too slow (after so many seconds), or it ended by itself."""
        code = self._end()
        if seconds is None:
            return self._failure(request, "Ended", f"exit code {code}")
        slow = self._failure(request, "Timeout", f"{seconds:g} s")
        self.slow[request.get("name") or ""] = slow
        return slow

    def _failure(self, request: dict[str, Any], kind: str, message: str) -> StudentError:
        told = {"type": kind, "bases": [], "message": message, "lines": [], "raised": False}
        told["name"] = request.get("name")
        return StudentError(told, self.submission, loading=request["verb"] == "load")

    def _end(self) -> int | None:
        """End the process if there is one, and return its exit code."""
        process, self._process, self._loaded = self._process, None, False
        if process is None:
            return None
        process.kill()
        code = process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]
        return code
