"""The command line. Each command is thin: it finds the course, calls the part that does the work and prints.

What is slow to import (torch, MkDocs, pytest) is imported inside the command that needs it, so that
`attn --help` answers at once.
"""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from coursekit.course import CourseError, Lesson, find_course

# Boxes and colours are for people at a terminal.
PLAIN = not sys.stdout.isatty() or "NO_COLOR" in os.environ
CHECK_FAILED, ENVIRONMENT = 1, 3

EXAMPLES = """
Examples:

\b
  attn list                 the lessons
  attn start alibi          an exercise to fill in: work/alibi.py
  attn check alibi          points, and what is wrong in words
  attn check alibi --hint   the same, and one hint more
  attn solution alibi       an answer, after your first attempt
  attn experiment alibi     what a paper claims, measured on this machine
  attn bench sliding_window speed beside the peers, measured on this machine
  attn serve                read the course in the browser, rebuilt on every edit
  attn new gated            a new mechanism with all its pieces
  attn doctor               what this machine has and lacks

Exit codes: 0 pass, 1 a check failed, 2 usage, 3 environment.
"""

app = typer.Typer(
    name="attn",
    help="Annotated Attention: read, run, exercise and prove every attention mechanism.",
    epilog=EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(no_color=PLAIN, highlight=False, soft_wrap=PLAIN)

Slug = Annotated[str, typer.Argument(help="A lesson, by its slug: see `attn list`.")]
Slugs = Annotated[list[str] | None, typer.Argument(help="Lessons, by their slugs; all if none is given.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def say(message: str) -> None:
    out.print(message, markup=False)


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False))


def chosen(slugs: list[str] | None) -> list[Lesson]:
    course = find_course()
    return [course.lesson(slug) for slug in slugs] if slugs else course.lessons


@app.command("list")
def list_lessons(as_json: AsJson = False) -> None:
    """List the lessons."""
    from coursekit.grading import progress

    course = find_course()
    entries = [
        {"number": lesson.number, "slug": lesson.slug, "title": lesson.title, "folder": str(lesson.folder)}
        for lesson in course.lessons
    ]
    if as_json:
        print_json(entries)
        return
    width = max((len(lesson.slug) for lesson in course.lessons), default=0)
    for lesson in course.lessons:
        mine = progress.load(course.root / "work", lesson.slug).line
        say(f"{lesson.number:02d}  {lesson.slug:<{width}}  {lesson.title}{mine and f'  ({mine})'}")


@app.command()
def start(
    slug: Slug,
    notebook: Annotated[bool, typer.Option("--notebook", help="As .ipynb, for Jupyter.")] = False,
) -> None:
    """Put an exercise into work/ for you to fill in. What is there already is never overwritten."""
    from coursekit.grading import exercise

    path = exercise.start(find_course().lesson(slug), notebook=notebook)
    say(f"{path}\nfill it in, then: attn check {slug}")
    other = exercise.other_half(path)
    if other.exists():
        say(f"{other} exists too: `attn check {slug}` checks the one that was saved last")


@app.command()
def check(
    slug: Slug,
    file: Annotated[Path | None, typer.Argument(help="Your .py or .ipynb; else the one in work/.")] = None,
    hint: Annotated[bool, typer.Option("--hint", help="One hint more for the first unsolved task.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check your exercise: points, the first wrong number in words, the mistake if it is a known one."""
    lesson = find_course().lesson(slug)
    with out.status("checking ...") if out.is_terminal and not (PLAIN or as_json) else nullcontext():
        from coursekit.grading import exercise, feedback

        report = exercise.check(lesson, file, hint=hint)
    if as_json:
        print_json(feedback.as_json(report))
    elif PLAIN:
        print(feedback.plain(report), end="")
    else:
        out.print(feedback.render(report))
    raise typer.Exit(0 if report.passed else CHECK_FAILED)


@app.command()
def solution(slug: Slug) -> None:
    """Show the course's own solution of an exercise, after your first attempt."""
    from coursekit.grading import exercise

    print(exercise.solution(find_course().lesson(slug)), end="")


@app.command()
def serve(
    port: Annotated[int, typer.Option(help="The port at 127.0.0.1.")] = 8000,
) -> None:
    """Build the site, serve it at 127.0.0.1 and build again on every edit."""
    from coursekit.pages.site import serve as server

    server.serve(find_course(), port, say)


@app.command()
def build() -> None:
    """Build the site into build/site. Every fault is named with its file and line."""
    from coursekit.pages import site

    course = find_course()
    try:
        if out.is_terminal and not PLAIN:
            with out.status("reading the course") as status:
                built = site.build(course, status.update)
        else:
            built = site.build(course, say)
    except site.BuildError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        print(f"attn: {len(error.problems)} to mend; nothing was built", file=sys.stderr)
        raise typer.Exit(CHECK_FAILED) from None
    index = course.root / "build" / "site" / "index.html"
    done = f"built {built.pages} pages" if built.changed else "nothing has changed"
    say(f"{done} in {built.seconds:.1f} s: {index}")


@app.command()
def new(
    slug: Annotated[str, typer.Argument(help="The key of the mechanism: lower-case letters, digits and _.")],
    number: Annotated[int | None, typer.Option(help="Its place; after the last lesson by default.")] = None,
) -> None:
    """Make every piece of a new mechanism, with a little content that already builds."""
    from coursekit import scaffold

    course = find_course()
    for path in scaffold.new(course, slug, number):
        say(f"made {path.relative_to(course.root).as_posix()}")
    say(f"next: fill them, then `attn verify {slug}` and `attn serve`")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has and lacks, and what to do about it."""
    from coursekit import doctor as physician

    findings = physician.examine()
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        for finding in findings:
            say(str(finding))
    raise typer.Exit(ENVIRONMENT if any(finding.state == "problem" for finding in findings) else 0)


@app.command()
def verify(
    slugs: Slugs = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    check: Annotated[bool, typer.Option("--check", help="Run nothing; fail if a record is stale.")] = False,
) -> None:
    """Run the proofs and write tests/records/<device>.json, which the pages show."""
    from coursekit.pages.proofs import records, verify

    if device not in verify.DEVICES:
        raise typer.BadParameter(
            f"'{device}' is neither of: {', '.join(verify.DEVICES)}", param_hint="--device"
        )
    course = find_course()
    if check:
        stale = records.load(course).stale(device)
        for slug in stale:
            lesson = course.owner(slug)
            assert lesson is not None
            say(f"the record of '{slug}' on {device} is older than its code: attn verify {lesson.slug}")
        raise typer.Exit(CHECK_FAILED if stale else 0)
    mechanisms = [mechanism for lesson in chosen(slugs) for mechanism in lesson.mechanisms]
    results = verify.verify(course, mechanisms, device)
    for slug, result in results.items():
        outcomes = [test["outcome"] for test in result["tests"].values()]
        say(f"{slug}: {outcomes.count('passed')} passed, {outcomes.count('failed')} failed")
        for name, test in result["tests"].items():
            if test["outcome"] == "failed":
                say(f"  {name} failed")
    failed = any(
        test["outcome"] == "failed" for result in results.values() for test in result["tests"].values()
    )
    raise typer.Exit(CHECK_FAILED if failed else 0)


@app.command()
def experiment(
    name: Annotated[
        str | None, typer.Argument(help="A lesson, or one experiment of it; without it, the list of them.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="In seconds: does it run? Nothing is kept.")] = False,
    full: Annotated[bool, typer.Option("--full", help="As large as a GPU allows.")] = False,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many; 3 by default, 1 with --quick.")] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Runs at a time; 0 is one a core.")] = 0,
    again: Annotated[bool, typer.Option("--again", help="Measure anew what is there already.")] = False,
) -> None:
    """Measure here what a paper claims, and say what holds. Ctrl-C stops it; the same command goes on."""
    from coursekit.experiments import running, told

    if quick and full:
        raise typer.BadParameter("--quick and --full are two sizes: choose one")
    if name is None:
        for each in find_course().experiments:
            say(f"{each.name}: {told.title(each)}")
        return
    size = "quick" if quick else "full" if full else "default"
    for each in find_course().experiments_of(name):
        say(f"{each.name}: {told.title(each)}")
        with told.progress(out, PLAIN) as progress:
            results = running.perform(each, size, seeds=seeds, jobs=jobs, again=again, progress=progress)
        say(told.plain(results))
        say(f"{each.results(size).relative_to(each.lesson.root).as_posix()}")


@app.command()
def bench(
    names: Annotated[
        list[str] | None, typer.Argument(help="Benchmarks; without any, the list of them.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All but the long ones.")] = False,
) -> None:
    """Measure speed and memory beside the peers; results go to benchmarks/results/."""
    from coursekit import benchmarks

    course = find_course()
    if not names and not everything:
        width = max((len(each.name) for each in course.benchmarks), default=0)
        for each in course.benchmarks:
            alone = ", runs only by name" if benchmarks.is_long(each) else ""
            say(f"{each.name:<{width}}  {benchmarks.about(each)} ({benchmarks.age(each)}{alone})")
        return
    wanted = [course.benchmark(name) for name in names or []]
    wanted += [each for each in course.benchmarks if everything and not benchmarks.is_long(each)]
    failed = []
    for each in dict.fromkeys(wanted):
        say(f"{each.name}: {benchmarks.about(each)}")
        try:
            with benchmarks.progress(out, PLAIN, benchmarks.last(each)) as seen:
                result = benchmarks.measure(each, seen)
        except benchmarks.Failed as error:
            print(f"attn: {error}; its last result stays", file=sys.stderr)
            failed.append(each)
            continue
        say(f"{each.result.relative_to(course.root).as_posix()}: {result['seconds']:.0f} s")
    raise typer.Exit(CHECK_FAILED if failed else 0)


@app.command()
def sync(
    slugs: Slugs = None,
    from_notebook: Annotated[
        bool, typer.Option("--from-notebook", help="The other way: lesson.py from an edited lesson.ipynb.")
    ] = False,
) -> None:
    """Write each lesson.ipynb from its lesson.py, without outputs.

    lesson.py is the source of truth, whichever file is newer. A notebook that was edited in Jupyter is not
    overwritten: take its edit over with --from-notebook, or delete it.
    """
    from coursekit.pages import notebooks

    if from_notebook and not slugs:
        raise CourseError("--from-notebook overwrites lesson.py: say of which lesson")
    for lesson in chosen(slugs):
        changed = notebooks.sync_back(lesson) if from_notebook else notebooks.sync(lesson)
        half = lesson.notebook if from_notebook else lesson.ipynb
        say(f"{'wrote' if changed else 'unchanged'} {half.relative_to(lesson.root).as_posix()}")


# The commands for those who teach join the same `app`.
from coursekit.grading import cli as _grading  # noqa: E402, F401
