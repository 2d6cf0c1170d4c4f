"""Exercises: stubs, checks that speak to the student's code through three verbs, and feedback.

A lesson's `test_exercise.py` is ordinary pytest and imports nothing of this package; the plugin brings the
fixtures:

    @pytest.mark.task("Slopes for any head count", hints=["a first hint", "a plainer one"])
    class TestSlopes:                                        # one class, one task
        @pytest.mark.points(2)                               # 1 if nothing is said
        @pytest.mark.parametrize("n_heads", [8, 12])         # all cases or no points
        def test_slopes(self, student, expect, draw, n_heads):
            slopes = student.call("alibi_slopes", n_heads)
            expect.close(slopes, alibi_slopes(n_heads), axes="head", what="slopes")

`verbs.py` says what `student` offers, `expect.py` what can be demanded, `compare.py` how close is close
enough, `notes.py` what is noted beside the points, `bank.py` how `misconceptions.py` is written,
`diagnosis.py` how a mistake is named by it, `stub.py` how a lesson's `exercise.py` marks the solution.
`exercise.py` here is the student's way (start, check, solution), `validate.py` the gate for an author.

`checking.py` runs a lesson's checks, which `cases.py` collects, on a submission: `attempt.py` tries one case,
`failure.py` says how it failed, `report.py` sums up and `feedback.py` puts it into words.

Where the student's code runs is known to `backends.py` alone: in this process, or in a second one (`child.py`,
behind the walls of `sandbox/`, asked in the messages of `wire.py`). `batch/` grades a class, `public/` makes the
checks that students get as data, `cli.py` has the commands for those who teach.
"""
