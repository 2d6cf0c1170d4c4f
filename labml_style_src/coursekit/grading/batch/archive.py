"""What a class has handed in: a folder or a zip that holds, for each student, a file (.py or .ipynb), a folder or
a zip. It may stand in one more folder, as zips often do. `names.py` says whose an entry is.

    with Submissions(Path("downloads.zip"), lesson) as found:
        for handed in found: ...        one a student, by name; each is read when its turn comes

Of a student's files one is taken: that named after the lesson (`alibi.py`, or `alibi-2.py` as Canvas numbers
attempts), or the only .py or .ipynb there is. Where two are left none is guessed at, unless all but one are the
stub as it was given out. Whatever cannot be read becomes that student's `problem`.

When something was handed in says `times.csv`, in the folder or beside the zip, with the columns `student` (as in
`grades.csv`) and `handed_in` (`2026-12-01T23:59:00+01:00`; without a zone the grader's own). Without a line there
it is the time of the student's file, or that in the zip; but a download from Canvas or Moodle has the time of the
download: there nobody knows, and where being late costs points nobody is graded before somebody says (`undated`).
"""

import contextlib
import csv
import functools
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from coursekit.course import Lesson
from coursekit.grading.batch import containers
from coursekit.grading.batch.containers import File, Unreadable
from coursekit.grading.batch.names import Named, named, printable
from coursekit.grading.stub import make_stub, stub_notebook
from coursekit.grading.submission import (
    SIZE_LIMIT,
    ExerciseError,
    Submission,
    read_notebook,
    syntax_tree,
    text_of,
    within_limit,
)
from coursekit.imports import code_text

SOURCES = (".py", ".ipynb")
ZIP_LIMIT = 20_000_000
TIMES = "times.csv"
# An instructor's own files among the submissions.
NOT_HANDED_IN = {TIMES, "assignment.toml"}
SHOWN = 3


@dataclass(frozen=True)
class HandedIn:
    """What one student handed in: the file's name and bytes, or the problem that there is with it; the entries as
    they are called in the download; when it came (None: unknown) and whether the download's own system calls it
    late. It is plain data and can be sent to another process."""

    student: str
    entries: tuple[str, ...] = ()
    name: str = ""
    data: bytes = b""
    problem: str = ""
    when: datetime | None = None
    late: bool = False

    def submission(self) -> Submission:
        """The file as text. Raises `ExerciseError` if it cannot be read as a submission."""
        if self.problem:
            raise ExerciseError(self.problem)
        return submission_of(self.name, self.data)


@dataclass(frozen=True)
class Entry:
    """A file or folder at the top; how to list its files, as seen from above it, and what a folder has in it."""

    name: str
    is_folder: bool
    files: Callable[[], list[File]]
    inside: Callable[[], list["Entry"]] = list

    @property
    def named(self) -> Named:
        return named(self.name, self.is_folder)


class Submissions:
    """All that was handed in, by student; where a `student` is named, the whole folder is theirs. Raises
    `ExerciseError` if there is nothing of the kind."""

    def __init__(self, path: Path, lesson: Lesson, student: str = "") -> None:
        self.path, self.lesson = path, lesson
        self._stub: set[str] | None = None
        self._file: BinaryIO | None = None
        self._by_student: dict[str, list[Entry]] = {}
        self.times: dict[str, datetime] = {}
        if student:
            # A file with times in it would be the student's own.
            self._by_student[student] = [Entry("submission", True, _below(path))]
            return
        self.times = read_times(path / TIMES if path.is_dir() else path.parent / TIMES)
        try:
            entries = self._entries()
        except Unreadable as error:
            self.close()
            raise ExerciseError(f"{path}: {error}") from None
        for entry in unwrapped(entries, lesson.slug):
            if entry.name not in NOT_HANDED_IN:
                self._by_student.setdefault(entry.named.student, []).append(entry)
        if not self._by_student:
            raise ExerciseError(f"{path} holds no submissions: a file, folder or zip a student is wanted")

    @property
    def students(self) -> list[str]:
        return sorted(self._by_student)

    def __len__(self) -> int:
        return len(self._by_student)

    def __iter__(self) -> Iterator[HandedIn]:
        return map(self.read, self.students)

    def __enter__(self) -> "Submissions":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, student: str) -> HandedIn:
        """What this student handed in. Raises `KeyError` if nobody is called so."""
        entries = sorted(self._by_student[student], key=lambda entry: entry.name)
        names = tuple(printable(entry.name) for entry in entries)
        late = any(entry.named.late for entry in entries)
        when = self.times.get(student)
        try:
            if len(entries) > 1 and not all(entry.named.system for entry in entries):
                raise Unreadable(f"{len(entries)} entries where one is wanted: {', '.join(names[:SHOWN])}")
            file = self._chosen(entries)
            data = file.load(SIZE_LIMIT)
        except Unreadable as error:
            return HandedIn(student, names, problem=str(error), when=when, late=late)
        if when is None and not any(entry.named.system for entry in entries):
            when = file.when
        return HandedIn(student, names, printable(file.name), data, when=when, late=late)

    def undated(self) -> list[str]:
        """The students of whom nobody knows when they handed in. A system that calls nothing of a student's late
        is believed."""
        return [student for student in self.students if self._is_undated(student)]

    def _is_undated(self, student: str) -> bool:
        if student in self.times:
            return False
        entries = self._by_student[student]
        if all(entry.named.system == "Canvas" for entry in entries):
            return any(entry.named.late for entry in entries)
        handed = self.read(student)
        return not handed.problem and handed.when is None

    def _entries(self) -> list[Entry]:
        if self.path.is_dir():
            return folder_entries(self.path)
        if not self.path.is_file():
            raise Unreadable("there is no such folder or zip")
        if self.path.suffix.lower() != ".zip":
            raise Unreadable("it is neither a folder nor a zip")
        self._file = self.path.open("rb")
        return zip_entries(containers.zip_files(self._file, containers.CLASS_DIRECTORY_LIMIT))

    def _chosen(self, entries: list[Entry]) -> File:
        """The one file among a student's entries that is graded."""
        files: list[File] = []
        for entry in entries:
            found = entry.files()
            if entry.is_folder:
                files += [file.below(1) for file in found]
            else:
                # Of a single file the name before the download is the one that counts.
                files += [File((entry.named.file,), file.when, file.load, file.leads_out) for file in found]
        return self._choose(files, nested=False)

    def _choose(self, files: list[File], nested: bool) -> File:
        files = [file for file in files if file.name]
        for file in files:
            if file.leads_out:
                file.load(0)
        after = re.compile(rf"{re.escape(self.lesson.slug)}(-\d+)?\.(py|ipynb)", re.IGNORECASE)
        sources = [file for file in files if file.suffix in SOURCES]
        sources = [file for file in sources if after.fullmatch(file.name)] or sources
        if len(sources) > 1:
            sources = [file for file in sources if not self._is_stub(file)] or sources
        if len(sources) == 1:
            return sources[0]
        if sources:
            shown = ", ".join(file.shown for file in sources[:SHOWN])
            more = f" and {len(sources) - SHOWN} more" if len(sources) > SHOWN else ""
            raise Unreadable(f"{len(sources)} files where one is wanted: {shown}{more}")
        zips = [file for file in files if file.suffix == ".zip"]
        if len(zips) == 1 and not nested:
            inside = containers.zip_files(io.BytesIO(zips[0].load(ZIP_LIMIT)))
            chosen = self._choose(inside, nested=True)
            # What is inside was dated by the student.
            return File(chosen.path, zips[0].when, chosen.load)
        if not files:
            raise Unreadable("nothing is in it")
        if len(files) == 1 and not nested and len(files[0].path) == 1:
            files[0].load(SIZE_LIMIT)
            raise Unreadable(f"{files[0].shown} is no .py, .ipynb or .zip file")
        shown = ", ".join(file.shown for file in files[:SHOWN])
        raise Unreadable(f"no .py or .ipynb file is in it, only {shown}{' ...' if files[SHOWN:] else ''}")

    def _is_stub(self, file: File) -> bool:
        """Whether this is the lesson's stub as it is given out, whatever its docstrings and comments say."""
        if self._stub is None:
            stub = make_stub(self.lesson.exercise.read_text("utf-8"), str(self.lesson.exercise))
            notebook = read_notebook(stub_notebook(stub, "check"), "stub")
            self._stub = {code_text(stub), code_text(notebook.text)}
        with contextlib.suppress(Unreadable, ExerciseError):
            text = submission_of(file.name, file.load(SIZE_LIMIT)).text
            return syntax_tree(text) is not None and code_text(text) in self._stub
        return False


def handed_in(path: Path, lesson: Lesson) -> list[HandedIn]:
    """All that was handed in, at once."""
    with Submissions(path, lesson) as found:
        return list(found)


def folder_entries(folder: Path) -> list[Entry]:
    entries = []
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise Unreadable(f"the folder cannot be read: {error.strerror}") from None
    for name in names:
        place = folder / name
        if containers.ignored(name):
            continue
        if place.is_dir() and not place.is_symlink():
            entries.append(Entry(name, True, _below(place), functools.partial(folder_entries, place)))
        else:
            entries.append(Entry(name, False, _single(place)))
    return entries


def _single(place: Path) -> Callable[[], list[File]]:
    return lambda: [containers.disk_file(place, (place.name,))]


def _below(place: Path) -> Callable[[], list[File]]:
    """All files in a student's folder, seen from above it."""

    def listed() -> list[File]:
        files = []
        for file in containers.folder_files(place):
            files.append(File((place.name, *file.path), file.when, file.load))
            if len(files) > containers.FILES_LIMIT:
                raise Unreadable(f"more than {containers.FILES_LIMIT:,} files are in it")
        return files

    return listed


def zip_entries(files: list[File]) -> list[Entry]:
    tops: dict[tuple[str, bool], list[File]] = {}
    for file in files:
        tops.setdefault((file.path[0], len(file.path) > 1), []).append(file)
    return [Entry(name, is_folder, *_listed(found)) for (name, is_folder), found in tops.items()]


def _listed(files: list[File]) -> tuple[Callable[[], list[File]], Callable[[], list[Entry]]]:
    return lambda: files, lambda: zip_entries([file.below(1) for file in files if file.path[1]])


def unwrapped(entries: list[Entry], slug: str) -> list[Entry]:
    """The students' entries: those inside, where there is one folder at the top and it is not a student's own,
    who would have the lesson's file in it."""
    if len(entries) != 1 or not entries[0].is_folder or entries[0].named.system:
        return entries
    inside = entries[0].inside()
    own = {f"{slug}{suffix}" for suffix in SOURCES}
    candidates = [
        entry for entry in inside if entry.is_folder or entry.name.lower().endswith((*SOURCES, ".zip"))
    ]
    if any(entry.name.lower() in own for entry in inside) or not candidates:
        return entries
    return inside if len(candidates) > 1 or candidates[0].is_folder else entries


def submission_of(name: str, data: bytes) -> Submission:
    """A submission from the bytes of a .py or .ipynb file. Raises `ExerciseError` if it cannot be read so."""
    text = text_of(data, name)
    if not text.strip():
        raise ExerciseError(f"{name} is empty")
    if name.lower().endswith(".ipynb"):
        return read_notebook(text, name)
    return within_limit(Submission(text, name, f"<{name}>"))


def read_times(path: Path) -> dict[str, datetime]:
    """When each student handed in, from `times.csv`; nothing if there is none. Raises `ExerciseError`, naming the
    line, if it cannot be read."""
    if not path.is_file():
        return {}
    try:
        lines = list(csv.reader(path.read_text("utf-8-sig").splitlines(), strict=True)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ExerciseError(f"{path} cannot be read: {error}") from None
    wanted = ["student", "handed_in"]
    if lines[0] != wanted:
        raise ExerciseError(
            f"{path}:1: wanted the columns {','.join(wanted)}; came {','.join(lines[0])[:100]}"
        )
    times: dict[str, datetime] = {}
    for number, cells in enumerate(lines[1:], start=2):
        if not cells:
            continue
        try:
            student, text = cells
            when = datetime.fromisoformat(text.strip())
        except ValueError:
            form = "student,2026-12-01T23:59:00+01:00"
            raise ExerciseError(f"{path}:{number}: wanted {form}; came {','.join(cells)[:100]}") from None
        if student in times:
            raise ExerciseError(f"{path}:{number}: {student} stands in it twice")
        times[student] = (when if when.tzinfo else when.astimezone()).astimezone(UTC)
    return times
