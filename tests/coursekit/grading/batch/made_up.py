"""Results as a batch leaves them, for the tests of what is made from results."""

from coursekit.grading.batch.result import Result
from coursekit.grading.report import FAILED, NOT_DONE, Case, Check, Mistake, Report, Task

NASTY = '=HYPERLINK("http://x")\x1b[31m\x00\ud800 <b>&amp;</b> ]]> \ufffe'


def report(*, message: str = "query 7 attends to key 8, which lies in its future") -> Report:
    mistake = Mistake("alibi__positive", "Your slopes are positive.")
    failed = Case("(8)", message, "hello\nworld", [mistake])
    tasks = [
        Task("TestSlopes", "Slopes", ["a hint that nobody asked for"], [Check("test_slopes", 2.0)]),
        Task("TestBias", "Bias", [], [Check("test_bias", 3.0, FAILED, [failed])]),
        Task("TestCache", "Cache", [], [Check("test_cache", 1.0, NOT_DONE, [Case()])]),
    ]
    return Report("alibi", tasks, submission="alibi.py", notes=["the file calls exit()"])


def result(student: str, score: float = 2.0, *, max_score: float = 6.0, **known) -> Result:
    known.setdefault("report", report())
    known.setdefault("sandbox", ["clock", "uid"])
    known.setdefault("earned", score)
    return Result(student, "alibi", score=score, max_score=max_score, **known)
