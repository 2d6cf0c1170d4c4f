"""Where the student's code runs: in this process, or in a second one that gets inputs and nothing else.

Both have the same three methods, `ask`, `printed` and `close`; the checks cannot tell them apart.
"""

import contextlib
import itertools
import math
from collections.abc import Generator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from coursekit.grading import wire
from coursekit.grading.child import PRINT_LIMIT, Printed
from coursekit.grading.sandbox import FreshHost, Host, Limits, SandboxError, trail
from coursekit.grading.sandbox.clock import Clock, Expired, later
from coursekit.grading.sandbox.process import ENDING_SECONDS, Lost, Process, in_words
from coursekit.grading.sandbox.watch import known
from coursekit.grading.session import Randomness, Session, describe_error, seed_everything
from coursekit.grading.submission import Submission
from coursekit.grading.values import Reference, copied
from coursekit.grading.verbs import StudentError, stops_in_words

# On a student's own machine, where nobody waits in a queue behind them.
CHECK_LIMITS = Limits(call_seconds=10.0, submission_seconds=math.inf)
# To run the file once; before that, to start a process that imports PyTorch.
LOAD_SECONDS = 10.0
START_SECONDS = 120.0
# What is kept of a submission that never stops doing wrong.
EVENTS_LIMIT = 20
PRINTED_LINES_LIMIT = 10**9

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

    def apart(self) -> AbstractContextManager[None]:
        """Inside, what is asked costs the submission nothing: it is for the grader to know more."""
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

    def apart(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

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
    """The student's module in a process of its own, started at once by a host and asked over pipes.

    A call that takes longer than `seconds`, or ends the process, is a `StudentError`; the next one gets another
    process. After a slow one calls have less time; the function that was too slow, or filled the memory, is not
    called again. When the time of the whole submission is used up, every further question is a `StudentError`.

    `events` says in sentences what the submission did beside answering, the same in every run; `called` has the
    ready-made attention that it called, as far as its own process tells (`sandbox/watch.py`): pairs of the
    function or class that was asked for ("" while the file is loaded) and what it called. Raises `SandboxError`
    if the host can start no process.
    """

    def __init__(
        self, submission: Submission, seconds: float | None = None, host: Host | None = None
    ) -> None:
        self.submission = submission
        self.host = host or FreshHost(CHECK_LIMITS)
        limits = self.host.limits
        self.seconds = limits.call_seconds if seconds is None else seconds
        self.left = self._apart = limits.submission_seconds
        self.slow: dict[str, StudentError] = {}
        self.problem: StudentError | None = None
        # Whether the host's own process died with this one: not by itself the submission's fault.
        self.lost = False
        self.stops: list[str] = []
        self.events: list[str] = []
        self.called: list[tuple[str, str]] = []
        self._makers: dict[int, str] = {}
        self._printed, self._more = "", 0
        self._loaded = False
        self._seed: int | None = None
        self._asked = 0
        self._process: Process | None = self._started()

    def ask(self, request: dict[str, Any]) -> Any:
        if self.problem is None and not self._loaded:
            self._load()
        if self.problem is not None:
            raise self.problem.with_traceback(None)
        if request["verb"] == "begin":
            # It travels with the first question of the check: a third of all messages less.
            self._seed = request["seed"]
            return None
        if slow := self.slow.get(request.get("name") or ""):
            raise slow.with_traceback(None)
        if self._seed is not None:
            request, self._seed = {**request, "begin": self._seed}, None
        hurry = any(error.type == "Timeout" for error in self.slow.values())
        answer = self._exchange(request, later(self.seconds) if hurry else self.seconds)
        if isinstance(answer, Reference):
            self._makers[answer.number] = self._owner(request)
        return answer

    def printed(self) -> tuple[str, int]:
        printed, more = self._printed, self._more
        self._printed, self._more = "", 0
        return printed, more

    @contextlib.contextmanager
    def apart(self) -> Generator[None]:
        # As much time again, and what is slow or goes wrong meanwhile is forgotten.
        kept = self.left, self.problem, self.slow, self.events
        self.left, self.slow, self.events = self._apart, dict(self.slow), list(self.events)
        try:
            yield
        finally:
            self._apart = self.left
            self.left, self.problem, self.slow, self.events = kept

    def close(self) -> None:
        with contextlib.suppress(Lost):
            self._end()

    def _started(self) -> Process:
        try:
            return self.host.start()
        except OSError as error:
            # No descriptor, no room for a folder: told as what it is, not as an answer of the submission's.
            raise SandboxError(f"no process can be started: {error.strerror or error}") from None

    def _load(self) -> None:
        known = {name: getattr(self.submission, name) for name in ("text", "filename", "cells")}
        try:
            # None of the student's time: their code is not there yet.
            self._exchange({"verb": "begin", "seed": LOAD_SEED}, START_SECONDS, free=True)
            stops = self._exchange({"verb": "load", **known}, LOAD_SECONDS)
            self.stops = stops_in_words(stops, self.submission)
        except StudentError as error:
            self.problem = error
        self._loaded = True

    def _exchange(self, request: dict[str, Any], seconds: float, free: bool = False) -> Any:
        """Ask and wait for the answer, at most so many seconds; `free`: they do not count for the whole."""
        if self.left <= 0:
            raise self._out_of_time(request)
        self._asked += 1
        message = wire.encode({**request, "number": self._asked})
        process = self._process = self._process or self._started()
        limited = "clock" in self.host.layers
        clock = Clock(seconds if limited else math.inf, math.inf if free else self.left, process.used)
        try:
            with process.timed(clock):
                process.write(message)
                answer = wire.receive(process)
        except Expired as expired:
            self.close()
            raise self._too_slow(request, seconds, expired.whole) from None
        except (EOFError, OSError):
            raise self._lost(request) from None
        except wire.WireError as error:
            self.close()
            raise self._failure(request, "WireError", str(error)) from None
        finally:
            self.left -= 0 if free else clock.spent
        if answer.get("number") != self._asked:
            self.close()
            raise self._failure(request, "WireError", "it answers another question")
        match answer.get("printed"):
            case (str(printed), int(more)):
                self._keep(printed, min(max(more, 0), PRINTED_LINES_LIMIT))
        called = [(self._owner(request), name) for name in known(answer.get("called"))]
        self.called += [pair for pair in called if pair not in self.called]
        for tried in trail.known(answer.get("tried")):
            self._happened(f"{self._during(request)}: {tried}")
        if "error" in answer:
            error = StudentError(answer["error"], self.submission, loading=request["verb"] == "load")
            if error.type == "MemoryError":
                # To fill the memory takes a second each time: how often that fits into the whole is chance.
                self.slow[request.get("name") or ""] = error
            raise error
        return answer.get("value")

    def _owner(self, request: dict[str, Any]) -> str:
        """The function or class of the submission that a request is about."""
        target = request.get("target")
        return (
            self._makers.get(target.number, "")
            if isinstance(target, Reference)
            else request.get("name") or ""
        )

    def _keep(self, printed: str, more: int) -> None:
        whole = self._printed + printed
        self._printed = whole[:PRINT_LIMIT]
        self._more += whole.count("\n", PRINT_LIMIT) + more

    def _too_slow(self, request: dict[str, Any], seconds: float, whole: bool) -> StudentError:
        """The time is over: of this question, or of the submission."""
        if whole:
            self.left = 0
            return self._out_of_time(request)
        # The limit, not what was measured: a second run says the same.
        slow = self._failure(request, "Timeout", f"{seconds:g} s")
        self.slow[request.get("name") or ""] = slow
        return slow

    def _out_of_time(self, request: dict[str, Any]) -> StudentError:
        """From now on the answer to every question."""
        self.problem = self._failure(request, "OutOfTime", f"{self.host.limits.submission_seconds:g} s")
        return self.problem

    def _lost(self, request: dict[str, Any]) -> StudentError:
        """No answer will come: the process has ended, or has closed its end."""
        try:
            return self._failure(request, "Ended", in_words(self._end(ENDING_SECONDS)))
        except Lost:
            self.lost = True
            return self._failure(request, "Ended", "the grader lost the process that had started it")

    def _failure(self, request: dict[str, Any], kind: str, message: str) -> StudentError:
        told = {"type": kind, "bases": [], "message": message, "lines": [], "raised": False}
        told["name"] = request.get("name")
        error = StudentError(told, self.submission, loading=request["verb"] == "load")
        self._happened(f"{self._during(request)}: {error.sentence}")
        return error

    def _during(self, request: dict[str, Any]) -> str:
        return (
            "while the file was loaded"
            if request["verb"] == "load"
            else f"in {request.get('name') or 'a new check'}"
        )

    def _happened(self, event: str) -> None:
        if event not in self.events and len(self.events) < EVENTS_LIMIT:
            self.events.append(event)

    def _end(self, patience: float = 0.0) -> int | None:
        """End the process if there is one; how it ended by itself within so many seconds, if it did."""
        process, self._process, self._loaded = self._process, None, False
        return process.end(patience) if process else None
