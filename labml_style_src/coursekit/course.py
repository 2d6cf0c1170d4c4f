"""The naming convention, and the only file that knows it: from a slug to every path that belongs to it.

A course is a folder with `labml_style_src/` and `lessons/`. A lesson is a folder `lessons/NN_slug/`; the
number gives the order and the slug is the key under which every other piece is found:

    labml_style_src/annotated_attention/slug.py     the mechanism (none for a companion lesson)
    tests/annotated_attention/test_slug.py          its proof
    lessons/NN_slug/lesson.py, lesson.ipynb         its notebook
    lessons/NN_slug/exercise.py, test_exercise.py, misconceptions.py
    lessons/NN_slug/figures.py                      its figures, as functions that return SVG; further ones go on
                                                    in figures_suffix.py
    lessons/NN_slug/experiment.py, results/         a paper's claim, reproduced; further ones go on in
                                                    experiment_suffix.py

A lesson may go on in further files, its parts. Like the mechanism, each has a page and a proof of its own:

    labml_style_src/annotated_attention/slug_suffix.py, tests/annotated_attention/test_slug_suffix.py

What is measured beside the peers belongs to the whole course:

    benchmarks/bench_NAME.py, benchmarks/results/NAME.json

A test file whose suffix no source has is further proof of the mechanism with the longest name that fits, as a
source belongs to the lesson with the longest slug that fits. Nothing is registered anywhere: a lesson exists
when its folder does, a part when its file does.
"""

import ast
import difflib
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

SOURCE_ROOT = "labml_style_src"
CONTENT_PACKAGE = "annotated_attention"
LESSON_FOLDER = re.compile(r"(?P<number>\d\d)_(?P<slug>[a-z][a-z0-9_]*)")


class CourseError(Exception):
    """Something about the course's files is not as the convention says; the message is for the user."""


class EnvironmentFault(CourseError):
    """This machine lacks something that was asked for; the message names the remedy."""


class UnknownSlug(CourseError):
    """No lesson has this slug; the message names the nearest one."""


@dataclass(frozen=True)
class Lesson:
    """One lesson and the paths of its pieces, whether or not they exist."""

    root: Path
    number: int
    slug: str

    @property
    def folder(self) -> Path:
        return self.root / "lessons" / f"{self.number:02d}_{self.slug}"

    @property
    def mechanism(self) -> "Mechanism":
        """The file that bears the lesson's name."""
        return Mechanism(self, self.slug)

    @property
    def source(self) -> Path:
        return self.mechanism.source

    @property
    def test(self) -> Path:
        return self.mechanism.test

    @cached_property
    def parts(self) -> list["Mechanism"]:
        """The further files of the lesson: first those that the mechanism imports, and none before another that
        it imports itself. What this leaves open, the name decides."""
        folder, slugs = self.source.parent, Course(self.root).slugs
        stems = sorted(path.stem for path in folder.glob(f"{self.slug}_*.py"))
        stems = [stem for stem in stems if longest_fit(stem, slugs) == self.slug]
        text = self.source.read_text("utf-8") if self.source.exists() else ""
        needed = [stem for stem in stems if imports_part(text, stem)]
        waiting, ordered = [*needed, *(stem for stem in stems if stem not in needed)], []
        while waiting:
            texts = {stem: (folder / f"{stem}.py").read_text("utf-8") for stem in waiting}
            free = (
                stem for stem in waiting if not any(imports_part(texts[stem], other) for other in waiting)
            )
            ordered.append(next(free, waiting[0]))
            waiting.remove(ordered[-1])
        return [Mechanism(self, stem) for stem in ordered]

    @property
    def mechanisms(self) -> list["Mechanism"]:
        """Every annotated file of the lesson, in the order in which it is read."""
        return self.parts if self.is_companion else [self.mechanism, *self.parts]

    @property
    def notebook(self) -> Path:
        """The lesson as `py:percent` text, the half of the pair that people edit."""
        return self.folder / "lesson.py"

    @property
    def ipynb(self) -> Path:
        return self.folder / "lesson.ipynb"

    @property
    def exercise(self) -> Path:
        return self.folder / "exercise.py"

    @property
    def checks(self) -> Path:
        return self.folder / "test_exercise.py"

    @property
    def misconceptions(self) -> Path:
        return self.folder / "misconceptions.py"

    @property
    def figures(self) -> Path:
        return self.folder / "figures.py"

    @property
    def drawings(self) -> list[Path]:
        """Every file of figures, `figures.py` first."""
        return sorted(self.folder.glob("figures*.py"))

    @property
    def experiments(self) -> list["Experiment"]:
        """What is reproduced here, `experiment.py` first."""
        return [Experiment(self, path.stem) for path in sorted(self.folder.glob("experiment*.py"))]

    @property
    def results(self) -> list[Path]:
        """What the experiments measured."""
        return sorted((self.folder / "results").glob("*.json"))

    @cached_property
    def is_companion(self) -> bool:
        """Whether the lesson opens with `Companion`, below its title: such a lesson has no mechanism file."""
        return self._opening is not None and self._opening["text"].startswith("Companion ")

    @cached_property
    def title(self) -> str:
        """That of the mechanism, or the H1 of the lesson for a companion."""
        if self.is_companion and self._opening is not None:
            return self._opening["title"].strip()
        return self.mechanism.title

    @property
    def _opening(self) -> re.Match[str] | None:
        """The lesson's title and the line below it. In a lesson the Markdown is commented out."""
        text = self.notebook.read_text("utf-8") if self.notebook.exists() else ""
        return re.search(r"^# # (?P<title>.+)\n#\n# (?P<text>.+)$", text, re.MULTILINE)

    def pieces(self) -> list[Path]:
        """Every file that the convention asks for."""
        mechanism = [] if self.is_companion else self.mechanism.pieces()
        lesson = [self.notebook, self.ipynb, self.exercise, self.checks, self.misconceptions]
        return mechanism + lesson


def imports_part(text: str, stem: str) -> bool:
    """Whether Python text imports the module `stem` of the content package."""
    return bool(re.search(rf"^\s*(?:from|import) {CONTENT_PACKAGE}\.{stem}\b", text, re.MULTILINE))


@dataclass(frozen=True)
class Mechanism:
    """One annotated file and the paths that belong to it: the mechanism of a lesson, whose name is the lesson's
    slug, or a part of it, whose name goes on."""

    lesson: Lesson
    slug: str

    @property
    def root(self) -> Path:
        return self.lesson.root

    @property
    def is_part(self) -> bool:
        return self.slug != self.lesson.slug

    @property
    def source(self) -> Path:
        return self.root / SOURCE_ROOT / CONTENT_PACKAGE / f"{self.slug}.py"

    @property
    def module(self) -> str:
        """Its import name."""
        return f"{CONTENT_PACKAGE}.{self.slug}"

    @property
    def test(self) -> Path:
        return self.root / "tests" / CONTENT_PACKAGE / f"test_{self.slug}.py"

    @property
    def proofs(self) -> list[Path]:
        """Its test file, and every further one that tests no part and no other lesson."""
        names = [*Course(self.root).slugs, *(path.stem for path in self.source.parent.glob("*.py"))]
        further = sorted(self.test.parent.glob(f"test_{self.slug}_*.py"))
        mine = [path for path in further if longest_fit(path.stem.removeprefix("test_"), names) == self.slug]
        return [self.test, *mine]

    @property
    def title(self) -> str:
        """The H1 of its docstring."""
        if not self.source.exists():
            return self.slug.replace("_", " ")
        prose = ast.get_docstring(ast.parse(self.source.read_text("utf-8"))) or ""
        match = re.search(r"^# (.+)$", prose, re.MULTILINE)
        if match is None:
            place = self.source.relative_to(self.root).as_posix()
            raise CourseError(f"{place}:1: the module docstring needs a first line '# Title'")
        return match.group(1).strip()

    def pieces(self) -> list[Path]:
        """What its page cannot be made without."""
        return [self.source, self.test] + ([] if self.lesson.is_companion else [self.lesson.figures])


@dataclass(frozen=True)
class Experiment:
    """One file that reproduces what a paper claims: `experiment.py`, or `experiment_suffix.py`."""

    lesson: Lesson
    stem: str

    @property
    def name(self) -> str:
        """The lesson's slug, and the suffix."""
        return self.lesson.slug + self.stem.removeprefix("experiment")

    @property
    def path(self) -> Path:
        return self.lesson.folder / f"{self.stem}.py"

    def results(self, size: str) -> Path:
        """Where its results of this size are kept. Quick ones are nothing to keep."""
        kept = self.lesson.folder / "results" / f"{self.stem}.{size}.json"
        return self.unfinished(size) if size == "quick" else kept

    def unfinished(self, size: str) -> Path:
        """Where its runs wait for the others."""
        return self.lesson.root / "build" / "experiments" / f"{self.name}.{size}.json"


@dataclass(frozen=True)
class Benchmark:
    """One file that measures, `benchmarks/bench_NAME.py`, and what it found."""

    root: Path
    name: str

    @property
    def module(self) -> str:
        """Its import name, from the course's root."""
        return f"benchmarks.bench_{self.name}"

    @property
    def path(self) -> Path:
        return self.root / "benchmarks" / f"bench_{self.name}.py"

    @property
    def result(self) -> Path:
        return self.root / "benchmarks" / "results" / f"{self.name}.json"


@dataclass(frozen=True)
class Course:
    """The course whose files lie under `root`."""

    root: Path

    @cached_property
    def lessons(self) -> list[Lesson]:
        """Every lesson that has a folder, in order."""
        folders = sorted((self.root / "lessons").iterdir()) if (self.root / "lessons").is_dir() else []
        matches = [LESSON_FOLDER.fullmatch(folder.name) for folder in folders if folder.is_dir()]
        return [Lesson(self.root, int(match["number"]), match["slug"]) for match in matches if match]

    @property
    def slugs(self) -> list[str]:
        return [lesson.slug for lesson in self.lessons]

    @property
    def mechanisms(self) -> list[Mechanism]:
        """Every annotated file, in the order in which the course is read."""
        return [mechanism for lesson in self.lessons for mechanism in lesson.mechanisms]

    def owner(self, name: str) -> Lesson | None:
        """The lesson to which a mechanism file of this name belongs, or would belong."""
        slug = longest_fit(name, self.slugs)
        return self.lesson(slug) if slug else None

    def lesson(self, slug: str) -> Lesson:
        """The lesson with this slug. Raises `UnknownSlug`, naming the nearest slug, if there is none."""
        for lesson in self.lessons:
            if lesson.slug == slug:
                return lesson
        # A lesson is as often asked for by its folder's name or number as by its slug.
        by_folder = {lesson.folder.name: lesson.slug for lesson in self.lessons}
        by_number = {str(lesson.number): lesson.slug for lesson in self.lessons}
        near = by_folder.get(slug) or by_number.get(slug.lstrip("0"))
        near = near or longest_fit(slug, self.slugs)
        near = near or next(iter(difflib.get_close_matches(slug, self.slugs, n=1, cutoff=0.4)), None)
        hint = f"did you mean '{near}'?" if near else f"the lessons are: {', '.join(self.slugs)}"
        raise UnknownSlug(f"no lesson is called '{slug}': {hint}")

    @property
    def experiments(self) -> list[Experiment]:
        return [each for lesson in self.lessons for each in lesson.experiments]

    def experiments_of(self, name: str) -> list[Experiment]:
        """The experiment with this name, or all of the lesson with this slug. Raises `CourseError` if there is none."""
        if name not in self.slugs and (found := [each for each in self.experiments if each.name == name]):
            return found
        if not (found := self.lesson(name).experiments):
            raise CourseError(f"'{name}' has none: try {', '.join(each.name for each in self.experiments)}")
        return found

    @property
    def benchmarks(self) -> list[Benchmark]:
        """Every benchmark, by name."""
        found = sorted((self.root / "benchmarks").glob("bench_*.py"))
        return [Benchmark(self.root, path.stem.removeprefix("bench_")) for path in found]

    def benchmark(self, name: str) -> Benchmark:
        """The benchmark with this name. Raises `CourseError`, naming the nearest, if there is none."""
        names = [each.name for each in self.benchmarks]
        if name in names:
            return Benchmark(self.root, name)
        near = next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.4)), None)
        hint = f"did you mean '{near}'?" if near else f"there are: {', '.join(names) or 'none'}"
        raise CourseError(f"no benchmark is called '{name}': {hint}")

    def rewrites(self, lesson: Lesson) -> list[Path]:
        """Correct solutions of the exercise in another hand: `tests/lessons/alternatives/SLUG_*.py`."""
        found = sorted((self.root / "tests" / "lessons" / "alternatives").glob(f"{lesson.slug}_*.py"))
        return [path for path in found if self.owner(path.stem) == lesson]

    def neighbours(self, lesson: Lesson) -> tuple[Lesson | None, Lesson | None]:
        """The lessons before and after this one."""
        place = self.lessons.index(lesson)
        before = self.lessons[place - 1] if place else None
        after = self.lessons[place + 1] if place + 1 < len(self.lessons) else None
        return before, after

    def problems(self) -> list[str]:
        """Every missing piece and every orphan, one sentence each; an empty list is a sound course."""
        missing = [
            f"lesson '{lesson.slug}' lacks {path.relative_to(self.root).as_posix()}"
            for lesson in self.lessons
            for path in [*lesson.pieces(), *(part.test for part in lesson.parts)]
            if not path.exists()
        ]
        content = self.root / SOURCE_ROOT / CONTENT_PACKAGE
        tests = self.root / "tests" / CONTENT_PACKAGE
        owned = {path: path.stem for path in content.glob("*.py") if path.stem != "__init__"}
        owned |= {path: path.stem.removeprefix("test_") for path in tests.glob("test_*.py")}
        orphans = [
            f"{path.relative_to(self.root).as_posix()} belongs to no lesson: no folder lessons/NN_{stem}/"
            for path, stem in sorted(owned.items())
            if self.owner(stem) is None
        ]
        numbers = [lesson.number for lesson in self.lessons]
        doubled = [
            f"lesson number {number:02d} is taken by {numbers.count(number)} folders"
            for number in sorted(set(numbers))
            if numbers.count(number) > 1
        ]
        return missing + orphans + doubled


def longest_fit(name: str, slugs: Collection[str]) -> str | None:
    """The longest of the slugs that `name` is, or goes on from with `_`."""
    return max((slug for slug in slugs if f"{name}_".startswith(f"{slug}_")), key=len, default=None)


def find_course(start: Path | None = None) -> Course:
    """The course around `start` (the working directory by default), or the one this package was installed
    from. Raises `CourseError` if neither is a course."""
    here = (start or Path.cwd()).resolve()
    installed = Path(__file__).resolve()
    for folder in [here, *here.parents, *installed.parents]:
        if (folder / SOURCE_ROOT).is_dir() and (folder / "lessons").is_dir():
            return Course(folder)
    raise CourseError(f"no course here: neither {here} nor a folder above it has {SOURCE_ROOT}/ and lessons/")


def environment_of(course: Course | Benchmark) -> dict[str, str]:
    """The environment for a Python process that has to see this course's packages, also where another copy of
    them is installed."""
    paths = [str(course.root / SOURCE_ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
