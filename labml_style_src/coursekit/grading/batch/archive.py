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
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from coursekit.course import Lesson
from coursekit.grading.batch import containers, times
from coursekit.grading.batch.containers import File, Unreadable
from coursekit.grading.batch.entries import SOURCES, Entry, below, folder_entries, unwrapped, zip_entries
from coursekit.grading.batch.names import printable
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
from coursekit.words import listed

ZIP_LIMIT = 20_000_000
# An instructor's own files among the submissions.
NOT_HANDED_IN = {times.NAME, "assignment.toml"}
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
            self._by_student[student] = [Entry("submission", True, below(path))]
            return
        self.times = times.read_times((path if path.is_dir() else path.parent) / times.NAME)
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
                raise Unreadable(f"{len(entries)} entries where one is wanted: {listed(names, SHOWN)}")
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
            shown = listed((file.shown for file in sources), SHOWN)
            raise Unreadable(f"{len(sources)} files where one is wanted: {shown}")
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
        shown = listed((file.shown for file in files), SHOWN)
        raise Unreadable(f"no .py or .ipynb file is in it, only {shown}")

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


def submission_of(name: str, data: bytes) -> Submission:
    """A submission from the bytes of a .py or .ipynb file. Raises `ExerciseError` if it cannot be read so."""
    text = text_of(data, name)
    if not text.strip():
        raise ExerciseError(f"{name} is empty")
    if name.lower().endswith(".ipynb"):
        return read_notebook(text, name)
    return within_limit(Submission(text, name, f"<{name}>"))
