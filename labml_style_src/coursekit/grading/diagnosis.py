"""Naming a mistake: the check is run again with each wrong variant of the bank in the student's place, and a
variant that fails at the same demand with the same answer is the mistake.
"""

from coursekit.course import Lesson
from coursekit.grading.backends import InProcess
from coursekit.grading.bank import Misconception
from coursekit.grading.session import Randomness
from coursekit.grading.submission import ExerciseError, Submission, read_submission


class Variant(InProcess):
    """The lesson's solution with one name replaced by its wrong variant."""

    def __init__(self, lesson: Lesson, misconception: Misconception) -> None:
        super().__init__(read_submission(lesson.exercise))
        if self.problem is not None:
            raise ExerciseError(f"{lesson.exercise} cannot be imported: {self.problem.text}")
        bank = read_submission(lesson.misconceptions)
        self.random = Randomness(self.submission.text + bank.text)
        module = self.session.module
        names = dict(module.__dict__)
        exec(compile(bank.text, bank.filename, "exec", dont_inherit=True), names)
        setattr(module, misconception.target, names[misconception.name])


def variant_submission(lesson: Lesson, misconception: Misconception) -> Submission:
    """The variant as text, as a student who makes this mistake would hand it in."""
    exercise = lesson.exercise.read_text("utf-8")
    bank = lesson.misconceptions.read_text("utf-8")
    # The bank runs among copies of the exercise's names, as in `Variant`.
    tail = (
        "\n_names = dict(globals())\n"
        f"exec(compile({bank!r}, 'misconceptions.py', 'exec'), _names)\n"
        f"{misconception.target} = _names[{misconception.name!r}]\n"
    )
    return Submission(exercise + tail, misconception.name, f"<{misconception.name}>")
