"""What an experiment found, in words: for a terminal and for a page."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from coursekit.course import CourseError, Experiment
from coursekit.experiments import Claim, Results, load
from coursekit.words import count, of

COLUMNS = ("Claim", "Paper", "Here", "Verdict")


def title(experiment: Experiment) -> str:
    """The H1 of its docstring."""
    match = re.search(r'^r?"""# (.+)$', experiment.path.read_text("utf-8"), re.MULTILINE)
    if match is None:
        raise CourseError(f"{experiment.path}: the docstring needs a first line '# Title'")
    return match[1]


def verdict(claim: Claim) -> str:
    return "holds" if claim.holds else "not here"


def plain(results: Results) -> str:
    """For a terminal: a claim in three lines."""
    lines = []
    for claim in results.claims:
        lines += [f"  {claim.says}", f"    paper: {claim.paper}; here: {claim.ours}: {verdict(claim)}"]
    return "\n".join([*lines, f"  {source(results)}"])


def source(results: Results) -> str:
    """Where the numbers come from."""
    runs, seeds = count(len(results.runs), "run"), count(results.seeds, "seed")
    where = results.machine.get("cuda") or count(int(results.machine["cores"]), "core")
    minutes = round(results.minutes)
    took = count(minutes, "minute") if minutes else "less than a minute"
    return f"{runs}, {seeds}, {took} of runs on {where}, PyTorch {results.versions['torch']}, {results.date}"


def table(results: Results) -> str:
    """For a page: a table in Markdown, and the command that makes it."""
    rows = [f"| {claim.says} | {claim.paper} | {claim.ours} | {verdict(claim)} |" for claim in results.claims]
    option = {"default": "", "full": " --full"}[results.size]
    command = f"`attn experiment {results.experiment}{option}`: {source(results)}."
    anchor = f'<a id="{results.experiment}-claims"></a>'
    return "\n".join([anchor, "", f"| {' | '.join(COLUMNS)} |", "|---|---|---|---|", *rows, "", command])


def overview(experiments: Iterable[Experiment]) -> str:
    """For a page: how many claims of each experiment hold, with links to the tables."""
    rows = []
    for experiment in experiments:
        claims = load(experiment.results("default")).claims
        held = of(sum(claim.holds for claim in claims), len(claims), "claim")
        rows.append(f"| [{title(experiment)}](#{experiment.name}-claims) | {held} |")
    return "\n".join(["| Experiment | Holds here |", "|---|---|", *rows])


@contextmanager
def progress(console: Console, is_plain: bool) -> Iterator[Callable[[float, int], None]]:
    """A bar in a terminal; elsewhere a line whenever a tenth is done."""
    if is_plain:
        tenths = 0

        def line(done: float, of: int) -> None:
            nonlocal tenths
            if int(10 * done / of) > tenths:
                tenths = int(10 * done / of)
                console.print(f"  {done:.0f} of {of} runs", markup=False)

        yield line
        return
    columns = (BarColumn(), TextColumn("{task.completed:.1f} of {task.total} runs"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)
