"""Results as Gradescope shows them. What it reads is described at
https://gradescope-autograders.readthedocs.io/en/latest/specs/ (results.json) and .../submission_metadata/.

    write_results(results, Path("gradescope"))      one results.json a student, for a look or an upload by API
    results_json(result)                            the same as plain data

Everything is plain `text`: of the formats that Gradescope knows only this one renders no HTML, Markdown or ANSI,
and the top-level output would otherwise be `simple_format`, which is HTML.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coursekit.files import write_text
from coursekit.grading.batch.export import check_text, words
from coursekit.grading.batch.names import file_stem
from coursekit.grading.batch.result import ERROR, Result
from coursekit.grading.report import PASSED, Check, Task

VISIBLE, HIDDEN = "visible", "hidden"
FAILED_HERE = (
    "The grader failed, not your code: nothing was graded. Your instructor finds the reason in the output of the "
    "autograder, and can run it again."
)


def results_json(result: Result, weights: Mapping[str, float] | None = None) -> dict[str, Any]:
    """A result as the content of `results.json`. The score is that after weights and lateness; the tests show what
    each check gave towards it before lateness. `weights` are the points of tasks, as in `assignment.toml`."""
    tasks = result.report.tasks if result.report else []
    return {
        "score": 0.0 if result.status == ERROR else result.score,
        "output": FAILED_HERE if result.status == ERROR else words(result, tasks=False),
        "output_format": "text",
        "test_output_format": "text",
        "test_name_format": "text",
        "visibility": VISIBLE,
        "stdout_visibility": HIDDEN,
        "tests": [
            test(task, check, f"{place}.{number}", (weights or {}).get(task.key, task.points))
            for place, task in enumerate(tasks, start=1)
            for number, check in enumerate(task.checks, start=1)
        ],
        # Kept with the submission, and shown to nobody.
        "extra_data": {
            "status": result.status,
            "max_score": result.max_score,
            "late_days": result.late_days,
            "sandbox": list(result.sandbox),
            "events": list(result.events),
            "evidence": list(result.evidence),
        },
    }


def test(task: Task, check: Check, number: str, weight: float) -> dict[str, Any]:
    """One check; a task's weight is spread over its checks as their points are."""
    share = weight / task.points if task.points else 0.0
    passed = check.outcome == PASSED
    return {
        "number": number,
        "name": f"{task.title}: {check.title}",
        "score": round(check.earned * share, 4),
        "max_score": round(check.points * share, 4),
        "status": "passed" if passed else "failed",
        "output": "" if passed else check_text(check),
        "visibility": VISIBLE,
    }


def failure() -> dict[str, Any]:
    """What stands in `results.json` until there is a result, and stays if there is none."""
    return {
        "score": 0.0,
        "output": FAILED_HERE,
        "output_format": "text",
        "visibility": VISIBLE,
        "stdout_visibility": HIDDEN,
        "tests": [],
        "extra_data": {"status": ERROR},
    }


def dumped(data: dict[str, Any]) -> str:
    return f"{json.dumps(data, indent=1)}\n"


def write_results(
    results: Sequence[Result], folder: Path, weights: Mapping[str, float] | None = None
) -> list[str]:
    """One file a student, called as in `results/`. What failed in the grader is left out, and said."""
    told = []
    for result in results:
        if result.status == ERROR:
            told.append(f"not written: {result.student}: the grader failed, grade again")
        else:
            write_text(folder / f"{file_stem(result.student)}.json", dumped(results_json(result, weights)))
    return told
