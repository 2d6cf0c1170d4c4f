"""The rules of one assignment: `assignment.toml`, whose every line may be left out but the slug.

slug = "alibi"
due = 2026-12-01T23:59:00+01:00   # no time zone: the grader's own
fused = "note"                    # or "fail": a task that calls a ready-made attention earns nothing

[late]
grace_minutes = 15                # not late yet
per_day = 0.1                     # of the score, for each day begun
days = 5                          # after so many days nothing is left

[weights]                         # points of a task, by its class; the checks' own where nothing is said
TestSlopes = 2

[limits]
call_seconds = 2                  # of the processor, for one call; four times that by the clock
submission_seconds = 30
memory_mb = 2048
"""

from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True)
class Late:
    grace_minutes: float = 0
    per_day: float = 0.0
    days: int = 0


@dataclass(frozen=True)
class Limits:
    """What one submission may use: seconds for a call, seconds in all, memory."""

    call_seconds: float = 2.0
    submission_seconds: float = 30.0
    memory_mb: int = 2048


@dataclass(frozen=True)
class Assignment:
    slug: str
    due: datetime | None = None
    fused: str = "note"
    late: Late = field(default_factory=Late)
    weights: dict[str, float] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
