"""What stands at the top of the submissions: an entry a student, or several where a system hands out each file."""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coursekit.grading.batch import containers
from coursekit.grading.batch.containers import File, Unreadable
from coursekit.grading.batch.names import Named, named

SOURCES = (".py", ".ipynb")


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
            entries.append(Entry(name, True, below(place), functools.partial(folder_entries, place)))
        else:
            entries.append(Entry(name, False, alone(place)))
    return entries


def alone(place: Path) -> Callable[[], list[File]]:
    return lambda: [containers.disk_file(place, (place.name,))]


def below(place: Path) -> Callable[[], list[File]]:
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
    return [Entry(name, is_folder, *listing(found)) for (name, is_folder), found in tops.items()]


def listing(files: list[File]) -> tuple[Callable[[], list[File]], Callable[[], list[Entry]]]:
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
