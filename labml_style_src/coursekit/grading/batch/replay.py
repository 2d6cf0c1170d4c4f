"""One student's submission run again on the same inputs, in this process, with the debugger where a check fails.

Nothing protects this machine from the student's code here: neither limits nor walls. Read it first.
"""

import difflib
import pdb as debugger
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from coursekit.course import Course, Lesson
from coursekit.grading.attempt import Attempt, Bench, quiet
from coursekit.grading.backends import InProcess
from coursekit.grading.batch.archive import Submissions
from coursekit.grading.batch.result import Result
from coursekit.grading.batch.results import Results
from coursekit.grading.batch.seeds import read_secret, seed_of_bank
from coursekit.grading.checking import Bank, Checks
from coursekit.grading.failure import LOST, UNDONE, Failure
from coursekit.grading.report import FAILED, PASSED, Report, build
from coursekit.grading.submission import ExerciseError, Submission
from coursekit.grading.verbs import clean

WARNING = "This runs {student}'s code in this process, with your rights and without any protection."
SAME = "as when it was graded"
Debug = Callable[[types.TracebackType], None]


def replay(
    course: Course,
    student: str,
    out: Path,
    submissions: Path | None = None,
    *,
    pdb: bool = True,
    say: Callable[[str], None],
) -> bool:
    """Run the checks that `student` was graded by in `out` again, and say of each whether it passes; with `pdb` open
    the debugger at each failure, where the student's code failed or else in the check. Returns whether any failed.

    Raises `ExerciseError` if nothing of the student's was graded, or if it is not where it was.
    """
    folder = Results(out)
    batch = folder.graded()
    result = folder.get(student) or unknown(folder, student)
    lesson = course.lesson(batch.slug)
    submission = found_again(lesson, submissions or out / batch.submissions, result)
    say(WARNING.format(student=clean(student, 120)))
    secret = out / batch.secret
    bank = Bank(lesson, seed_of_bank(read_secret(secret), lesson.slug)) if secret.is_file() else None
    debug = debugger.post_mortem if pdb else None
    report = Replay(lesson, submission, int(result.seed), bank, debug, say).report()
    for line in compared(result, report):
        say(line)
    return not report.passed


def unknown(folder: Results, student: str) -> Result:
    known = [result.student for result in folder.all()]
    near = difflib.get_close_matches(student, known, n=1, cutoff=0.4)
    hint = f": did you mean '{clean(near[0], 120)}'?" if near else ""
    raise ExerciseError(f"no student in {folder.folder} is called '{clean(student, 120)}'{hint}")


def found_again(lesson: Lesson, path: Path, result: Result) -> Submission:
    """The submission that a result is about."""
    if not path.exists():
        raise ExerciseError(
            f"the submissions are not in {path} any more: say with --submissions where they are"
        )
    with Submissions(path, lesson) as found:
        if result.student not in found.students:
            raise ExerciseError(f"{path} has nothing of '{clean(result.student, 120)}'")
        return found.read(result.student).submission()


class Held(Attempt):
    """An attempt that keeps hold of what it failed with."""

    error: BaseException | None = None

    def failed(self, error: BaseException) -> None:
        super().failed(error)
        self.error = error


@dataclass
class Replay:
    """The checks on one submission, tried in this process one by one. Mistakes are named from `bank`: where the
    student's code remembers what it was asked, it is asked the same as when it was graded."""

    lesson: Lesson
    submission: Submission
    seed: int
    bank: Bank | None
    debug: Debug | None
    say: Callable[[str], None]
    shown: set[str] = field(default_factory=set)

    def report(self) -> Report:
        backend = InProcess(self.submission, keep_printed=self.debug is None)
        bench = Bench(self.lesson.slug, self.submission, backend, self.bank)
        records = []
        try:
            with quiet():
                for case in Checks(self.lesson).cases:
                    attempt = Held(case, backend, self.seed)
                    records.append(bench.record(attempt, self._tried(attempt)))
        finally:
            backend.close()
        return build(records)

    def _tried(self, attempt: Held) -> str:
        try:
            outcome = attempt.run()
        except KeyboardInterrupt as stop:
            # What hangs is stopped by hand, to see where it is.
            outcome, attempt.error = FAILED, stop
            attempt.failure = Failure(LOST, 0, None, "stopped by you")
        if outcome == FAILED and attempt.failure and attempt.error:
            case, trace = attempt.case, attempt.error.__traceback__
            check = f"{case.task['key']}.{case.name}"
            self.say(f"{check}{f'[{case.case}]' if case.case else ''}: {clean(attempt.failure.message)}")
            # One case of a check is enough to look into.
            if self.debug and trace and attempt.failure.kind != UNDONE and check not in self.shown:
                self.shown.add(check)
                self.debug(ending_at(trace, self.submission.filename, str(self.lesson.checks)))
        return outcome


def ending_at(trace: types.TracebackType, *filenames: str) -> types.TracebackType:
    """The traceback up to the last frame in the first of these files that it passes through."""
    links: list[types.TracebackType] = []
    link: types.TracebackType | None = trace
    while link is not None:
        links.append(link)
        link = link.tb_next
    for filename in filenames:
        places = [place for place, link in enumerate(links) if link.tb_frame.f_code.co_filename == filename]
        if places:
            links = links[: places[-1] + 1]
            break
    ended: types.TracebackType | None = None
    for link in reversed(links):
        ended = types.TracebackType(ended, link.tb_frame, link.tb_lasti, link.tb_lineno)
    return ended or trace


def compared(result: Result, report: Report) -> list[str]:
    """How a replay differs from what was graded."""
    then = outcomes(result.report) if result.report else {}
    now = outcomes(report)
    lines = [
        f"{name}: {told(then.get(name))} when it was graded, now {told(now.get(name))}"
        for name in dict.fromkeys([*then, *now])
        if then.get(name) != now.get(name)
    ]
    failed = sum(outcome != PASSED for outcome, _ in now.values())
    same = f"not all {SAME} (the walls and the clock are missing here)" if lines else SAME
    return [*lines, f"{failed} of {len(now)} checks fail, {same}"]


def outcomes(report: Report) -> dict[str, tuple[str, str]]:
    """The outcome and message of each check."""
    return {
        f"{task.key}.{check.name}": (check.outcome, check.message)
        for task in report.tasks
        for check in task.checks
    }


def told(outcome: tuple[str, str] | None) -> str:
    if outcome is None:
        return "not there"
    return (
        outcome[0]
        if outcome[0] == PASSED
        else f"{outcome[0]} ({clean(outcome[1].partition(chr(10))[0], 200)})"
    )
