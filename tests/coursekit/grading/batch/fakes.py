"""Graders that need no sandbox: one that does what a submission's text says, for the pool; one whose student's code
runs in this process, for what happens around the grading."""

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from coursekit.course import EnvironmentFault
from coursekit.grading.batch.archive import HandedIn
from coursekit.grading.batch.assignment import Assignment
from coursekit.grading.batch.result import Result

POINTS = {"TestTask": 4.0}


def handed(student: str, text: str = "") -> HandedIn:
    return HandedIn(student, (f"{student}.py",), f"{student}.py", text.encode())


@dataclass(frozen=True)
class FakePlan:
    """Opens graders that obey; in `folder` they note who they are."""

    folder: Path
    opening: str = ""
    assignment: Assignment = field(default_factory=lambda: Assignment("tiny"))

    def open(self) -> "FakeGrader":
        if self.opening == "refuse":
            raise EnvironmentFault("no walls here")
        if self.opening == "die":
            os._exit(7)
        return FakeGrader(self.folder)

    def blank(self, handed: HandedIn, points: dict[str, float], layers: Iterable[str]) -> Result:
        return Result(handed.student, "tiny", max_score=sum(points.values()), sandbox=list(layers))


class FakeGrader:
    points = POINTS
    layers = ("clock",)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / f"{os.getpid()}.opened").touch()

    def grade(self, handed: HandedIn) -> Result:
        order = handed.data.decode()
        tries = self.folder / f"{handed.student}.tries"
        with tries.open("a") as file:
            file.write(f"{os.getpid()}\n")
        if order == "die" or (order == "die once" and len(tries.read_text().split()) == 1):
            os._exit(9)
        if order == "hang":
            time.sleep(600)
        if order == "wait for another":
            while len(list(self.folder.glob("*.tries"))) < 2:
                time.sleep(0.01)
        return Result(handed.student, "tiny", score=1.0)

    def close(self) -> None:
        (self.folder / f"{os.getpid()}.closed").touch()


def grade_here(plan, work: Iterable[HandedIn]) -> Iterator[Result]:
    """As `pool.grade_all`, with the students' code in this process."""
    from coursekit.grading.backends import InProcess
    from coursekit.grading.batch.grade import Grader

    class NoHost:
        layers: tuple[str, ...] = ()

        def close(self) -> None:
            pass

    class Unfenced(Grader):
        def _opened(self):
            return NoHost()

        def _backend(self, submission):
            backend = InProcess(submission, keep_printed=True)
            backend.events, backend.called, backend.lost = [], [], False
            return backend

    grader = Unfenced(plan)
    for each in work:
        yield grader.grade(each)
