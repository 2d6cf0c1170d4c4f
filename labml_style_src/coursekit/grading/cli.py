"""The commands for those who teach. As in `coursekit/cli.py`, each is thin: it finds the course, calls the part
that does the work and prints.
"""

from contextlib import closing, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from coursekit.cli import CHECK_FAILED, Slug, Slugs, app, chosen, out, say
from coursekit.course import find_course

INTERRUPTED = 130

Out = Annotated[Path, typer.Option("--out", help="Where the results are and go.")]
Rules = Annotated[Path | None, typer.Option("--assignment", help="An assignment.toml with the rules.")]
Submissions = Annotated[Path, typer.Argument(help="A folder or zip: a file, folder or zip a student.")]
Jobs = Annotated[int, typer.Option(help="Submissions at a time; a core each by default.", min=0)]
Shard = Annotated[str, typer.Option(help="i/n: only the i-th of n parts, for array jobs.")]
Cluster = Annotated[str, typer.Option(metavar="ADDRESS", help="Grade on a Dask cluster.")]
Fenced = Annotated[bool, typer.Option("--require-sandbox", help="Refuse a machine that lacks a layer.")]
Secret = Annotated[Path | None, typer.Option(help="The file with the batch's secret; OUT/secret by default.")]


@app.command()
def validate(
    slugs: Slugs = None,
    seeds: Annotated[int, typer.Option(help="On how many seeds the checks must hold.", min=1)] = 50,
) -> None:
    """Say whether a lesson's checks deserve trust: what is right earns all, each known mistake is named."""
    from coursekit.grading.validate import validate_all

    course, lessons = find_course(), chosen(slugs)
    rewrites = {lesson.slug: course.rewrites(lesson) for lesson in lessons}
    unsound = 0
    try:
        with closing(validate_all(lessons, rewrites, seeds)) as looked_at:
            for lesson, problems in looked_at:
                solutions = 1 + len(rewrites[lesson.slug])
                unsound += bool(problems)
                sound = f"sound, {solutions} solutions on {seeds} seeds"
                say(f"{lesson.slug}: {'to mend' if problems else sound}")
                for problem in problems:
                    say(f"  {problem}")
    except KeyboardInterrupt:
        say("stopped")
        raise typer.Exit(INTERRUPTED) from None
    raise typer.Exit(CHECK_FAILED if unsound else 0)


@app.command()
def release(
    slug: Slug, folder: Annotated[Path, typer.Argument(help="A new folder.")], rules: Rules = None
) -> None:
    """Make the students' bundle: the stub as .py and .ipynb, the public checks, instructions."""
    from coursekit.grading.batch import release as bundle
    from coursekit.grading.batch.assignment import read_assignment

    course = find_course()
    lesson = course.lesson(slug)
    assignment = read_assignment(rules, lesson)
    with out.status("writing the checks down ...") if out.is_terminal else nullcontext():
        made = bundle.release(lesson, folder, assignment, course.rewrites(lesson))
    say(f"made {folder}: {bundle.share(made.checks)}")
    for check, why in made.left_out.items():
        say(f"  not public: {check}: {why}")


@app.command()
def grade(
    slug: Slug,
    submissions: Submissions,
    to: Out,
    rules: Rules = None,
    jobs: Jobs = 0,
    shard: Shard = "1/1",
    dask: Cluster = "",
    require_sandbox: Fenced = False,
    secret: Secret = None,
) -> None:
    """Grade a class: results, feedback, grades.csv and a report. Run it again to go on where it stopped."""
    from coursekit.grading.batch import told
    from coursekit.grading.batch.result import ERROR
    from coursekit.grading.batch.run import Run, graders

    lesson = find_course().lesson(slug)
    run = Run(lesson, submissions, to, rules, shard, secret, require_sandbox)
    try:
        with told.progress(out, say) as run.tell:
            run(graders(jobs, dask))
    except KeyboardInterrupt:
        say(f"stopped; what was graded is in {to}. Run the same command again to go on")
        raise typer.Exit(INTERRUPTED) from None
    for line in told.summary(run):
        say(line)
    raise typer.Exit(CHECK_FAILED if any(result.status == ERROR for result in run.results) else 0)


@app.command()
def regrade(
    slug: Slug,
    submissions: Submissions,
    to: Out,
    jobs: Jobs = 0,
    dask: Cluster = "",
    require_sandbox: Fenced = False,
    secret: Secret = None,
) -> None:
    """Grade everything again with the same seeds, and say whose score differs and why."""
    from coursekit.grading.batch import told
    from coursekit.grading.batch.regrade import regrade
    from coursekit.grading.batch.results import Results
    from coursekit.grading.batch.run import graders

    options = {"secret": secret, "required": require_sandbox, "grade_all": graders(jobs, dask)}
    try:
        with told.progress(out, say) as tell:
            changes = regrade(find_course().lesson(slug), submissions, to, tell=tell, **options)
    except KeyboardInterrupt:
        say(f"stopped; nothing in {to} has changed. Run the same command again to go on")
        raise typer.Exit(INTERRUPTED) from None
    for line in told.changes(changes, len(Results(to).all())):
        say(line)


@app.command()
def merge(to: Out, parts: Annotated[list[Path], typer.Argument(help="Results of the shards.")]) -> None:
    """Make one results folder of those of several shards."""
    from coursekit.grading.batch.run import merged

    results = merged(find_course(), to, parts)
    say(f"{len(results)} students are in {to / 'grades.csv'}")


@app.command()
def export(
    results: Annotated[Path, typer.Argument(help="A results folder.")],
    kind: Annotated[str, typer.Option("--format", help="csv, canvas, moodle, junit or gradescope.")],
    to: Annotated[Path, typer.Option("--to", help="The file to write (gradescope: a folder).")],
    roster: Annotated[Path | None, typer.Option(help="The roster that Canvas or Moodle exported.")] = None,
    column: Annotated[
        str, typer.Option(help="The assignment's column there; found by the slug if not.")
    ] = "",
    match: Annotated[list[str] | None, typer.Option(help="A column there that names a student.")] = None,
    scale: Annotated[
        bool, typer.Option("--scale", help="Convert to the points that the roster has.")
    ] = False,
) -> None:
    """Write the scores for another system; into its own exported roster where it wants that."""
    from coursekit.grading.batch import export as exporter
    from coursekit.grading.batch.results import Results

    graded = Results(results)
    weights = graded.graded().assignment.weights
    options = {"roster": roster, "column": column, "match": match or (), "scale": scale, "weights": weights}
    told = exporter.write(graded.all(), kind, to, **options)
    for line in told:
        say(line)
    say(f"wrote {to}")


@app.command()
def replay(
    student: Annotated[str, typer.Argument(help="As in grades.csv.")],
    results: Out,
    submissions: Annotated[Path | None, typer.Option(help="Where they are now, if they were moved.")] = None,
    pdb: Annotated[
        bool, typer.Option("--pdb/--no-pdb", help="Open the debugger where a check fails.")
    ] = True,
) -> None:
    """Run one student's submission again on the same inputs, in this process, under the debugger."""
    from coursekit.grading.batch.replay import replay

    failed = replay(find_course(), student, results, submissions, pdb=pdb, say=say)
    raise typer.Exit(CHECK_FAILED if failed else 0)


@app.command()
def gradescope(
    slug: Slug,
    to: Annotated[Path, typer.Argument(help="The .zip to write.")],
    rules: Rules = None,
    wheels: Annotated[
        Path | None, typer.Option(help="A folder of wheels to put in: no network at all.")
    ] = None,
    secret: Annotated[Path | None, typer.Option(help="A batch's secret; drawn anew by default.")] = None,
) -> None:
    """Make a Gradescope autograder that needs no network while it grades."""
    from coursekit.grading.batch import autograder
    from coursekit.grading.batch.seeds import read_secret

    known = read_secret(secret) if secret else b""
    for line in autograder.make(find_course().lesson(slug), to, rules=rules, wheels=wheels, secret=known):
        say(line)
    say(f"wrote {to}")


@app.command()
def classroom(
    slug: Slug,
    folder: Annotated[Path, typer.Argument(help="Where the files go.")],
    source: Annotated[str, typer.Option("--course", help="OWNER/NAME@COMMIT of the course on GitHub.")],
    shards: Annotated[int, typer.Option(help="In how many parts a class is graded at a time.")] = 4,
    rules: Annotated[str, typer.Option("--assignment", help="The rules, as a path in that repository.")] = "",
) -> None:
    """Make what GitHub needs to grade: workflows for a student's repository and a class, Classroom 50's script."""
    from coursekit.grading.batch import classroom as github

    for path in github.write(find_course().lesson(slug), folder, source, shards=shards, rules=rules):
        say(f"wrote {path}")
