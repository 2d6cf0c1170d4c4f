r"""Experiments: what a paper claims, predicted, measured at a small size and compared.

`lessons/NN_slug/experiment.py` belongs to a lesson, and so does `experiment_suffix.py`. Its docstring says the
**Claim**, the **Prediction** made before the first run, the **Setting** and the **Outcome**. It has three functions:

    plan(size, seeds)      what to run: a dict of plain settings for each run; `size` is quick, default or full
    run(settings, report)  one run: its measured numbers; `report(share)` says how much of it is done
    claims(runs)           what the runs say of each claim

Settings have a `seed`, and `timed` if the run measures time: such runs have the machine to themselves. The results
lie beside the experiment, in `results/`, and everything that shows them reads that file.
"""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coursekit.course import CourseError

SIZES = ("quick", "default", "full")

Settings = dict[str, Any]
Report = Callable[[float], None]


@dataclass(frozen=True)
class Claim:
    """A sentence, the paper's number, ours, and whether it holds here. A `quick` one must hold at that size too."""

    says: str
    paper: str
    ours: str
    holds: bool
    quick: bool = False


@dataclass(frozen=True)
class Spread:
    """A number over several seeds. `f"{spread:.2f}"` gives `2.02 (2.01 to 2.03)`."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.fmean(values), min(values), max(values))

    def __format__(self, form: str) -> str:
        mean, low, high = (f"{x:{form}}".replace("-", "−") for x in (self.mean, self.low, self.high))
        return mean if self.low == self.high else f"{mean} ({low} to {high})"


@dataclass(frozen=True)
class Run:
    """One run: what was chosen, what came out, and how many seconds it took."""

    settings: Settings
    measured: dict[str, Any]
    seconds: float = 0.0


class Runs(list[Run]):
    """Runs, and what is asked of them."""

    def where(self, **wanted: Any) -> "Runs":
        """Those with these settings. Raises `CourseError` if there is none."""
        found = Runs(run for run in self if wanted.items() <= run.settings.items())
        if not found:
            raise CourseError(f"no run has the settings {wanted}")
        return found

    def values(self, name: str) -> list[Any]:
        """A measured value of each."""
        return [run.measured[name] for run in self]

    def spread(self, name: str) -> Spread:
        return Spread.of(self.values(name))


@dataclass(frozen=True)
class Results:
    """A results file: which runs were made, where and when, and what they say."""

    experiment: str
    size: str
    date: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    claims: list[Claim]
    runs: Runs

    @property
    def seeds(self) -> int:
        return len({run.settings["seed"] for run in self.runs})

    @property
    def minutes(self) -> float:
        """How long the runs took, one after the other."""
        return sum(run.seconds for run in self.runs) / 60


def load(path: Path) -> Results:
    """The results in a file. Raises `CourseError` if it is none."""
    try:
        data = json.loads(path.read_text("utf-8"))
        data["claims"] = [Claim(**claim) for claim in data["claims"]]
        data["runs"] = Runs(Run(**run) for run in data["runs"])
        return Results(**data)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CourseError(f"{path} holds no results of an experiment: {error}") from None


def as_json(results: Results) -> str:
    """The text of a results file: a line for each claim and each run, so that a change shows what it changed."""
    data = asdict(results)
    lists = {name: data.pop(name) for name in ("claims", "runs")}
    head = ",\n".join(f" {json.dumps(name)}: {_line(value)}" for name, value in data.items())
    tail = ",\n".join(f" {json.dumps(name)}: [\n{_lines(values)}\n ]" for name, values in lists.items())
    return f"{{\n{head},\n{tail}\n}}\n"


def _lines(values: Iterable[Any]) -> str:
    return ",\n".join(f"  {_line(value)}" for value in values)


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
