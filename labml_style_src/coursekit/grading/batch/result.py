"""What is kept of one graded submission: `OUT/results/<student>.json`."""

from dataclasses import asdict, dataclass, field
from typing import Any

from coursekit.grading.report import Report

# The checks ran; whatever the points are, they are the student's.
GRADED = "graded"
# The file could be read but not run at all: nothing was earned.
NOT_RUN = "not run"
# No submission could be made of what was handed in; `message` says why.
UNREADABLE = "unreadable"
# The grader failed, not the student: the next run grades it again.
ERROR = "error"


@dataclass
class Result:
    """One student's result. `score` is after weights and lateness, `earned` before; `sandbox` names the layers
    that stood; `seed` drew the inputs; `events` says what the submission did beside answering (took too long,
    ended its process, was stopped by a wall), `evidence` where it calls what it was to build itself; `key`
    changes when the submission, the checks or the rules do."""

    student: str
    slug: str
    status: str = GRADED
    score: float = 0.0
    max_score: float = 0.0
    earned: float = 0.0
    late_days: int = 0
    message: str = ""
    sandbox: list[str] = field(default_factory=list)
    seed: str = ""
    submission: str = ""
    events: list[str] = field(default_factory=list)
    evidence: list[str] = field(default_factory=list)
    report: Report | None = None
    key: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Result":
        report = data["report"] and Report.from_dict(data["report"])
        return cls(**{**data, "report": report})
