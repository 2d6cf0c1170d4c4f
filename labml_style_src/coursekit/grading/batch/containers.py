"""The files in a folder or a zip that a stranger has filled: listed without following anything, read into memory
up to a limit, never extracted.

Everything that is not as it should be is an `Unreadable`, or a `File` that says so when it is read.
"""

import contextlib
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from coursekit.grading.batch.names import printable

# Beside the files whose names begin with a dot.
IGNORED = {"__MACOSX", "__pycache__", "Thumbs.db", "desktop.ini", "venv", "site-packages", "node_modules"}
FILES_LIMIT = 10_000
DEPTH_LIMIT = 16
# What zipfile reads at once to learn a zip's contents: some 10,000 files of a student's, a million of a class's.
DIRECTORY_LIMIT, CLASS_DIRECTORY_LIMIT = 1_000_000, 100_000_000
CHUNK = 1 << 16
# What zipfile and what it calls raise for bytes that are no sound zip.
MALFORMED = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error),
    *(EOFError, OSError, RuntimeError, ValueError, IndexError, OverflowError, MemoryError),
)


class Unreadable(Exception):
    """Something that was handed in cannot be read; the message is for the student and the instructor."""


@dataclass(frozen=True)
class File:
    """One file: its path as parts, when it was changed (with a time zone; None: unknown), and its bytes.
    `load(limit)` raises `Unreadable` if it is larger or no file at all; `leads_out` marks a name such as `../x`. A
    folder in a zip is listed as a file without a name in it."""

    path: tuple[str, ...]
    when: datetime | None
    load: Callable[[int], bytes]
    leads_out: bool = False

    @property
    def name(self) -> str:
        return self.path[-1]

    @property
    def shown(self) -> str:
        return printable("/".join(self.path))

    @property
    def suffix(self) -> str:
        return os.path.splitext(self.name)[1].lower()

    def below(self, depth: int) -> "File":
        """The same file, seen from a folder on its path."""
        return replace(self, path=self.path[depth:])


def ignored(name: str) -> bool:
    return name.startswith(".") or name in IGNORED


def refused(path: tuple[str, ...], why: str, *, leads_out: bool = False) -> File:
    """A file that is there and cannot be read."""

    def load(_limit: int) -> bytes:
        raise Unreadable(f"{printable(path[-1])} {why}")

    return File(path, None, load, leads_out)


def folder_files(folder: Path) -> Iterator[File]:
    """Every file below a folder, links and other things that are no files among them, none followed."""
    waiting: list[tuple[Path, tuple[str, ...]]] = [(folder, ())]
    while waiting:
        place, above = waiting.pop()
        try:
            with os.scandir(place) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            raise Unreadable(f"the folder cannot be read: {error.strerror}") from None
        for entry in entries:
            path = (*above, entry.name)
            if ignored(entry.name):
                continue
            if not entry.is_dir(follow_symlinks=False):
                yield disk_file(Path(entry.path), path)
            elif len(path) < DEPTH_LIMIT:
                waiting.append((Path(entry.path), path))


def disk_file(file: Path, path: tuple[str, ...]) -> File:
    """A file on disk. What is no plain file is not even opened: a pipe would wait, a device may act."""
    try:
        status = file.lstat()
    except OSError as error:
        return refused(path, f"cannot be read: {error.strerror}")
    if stat.S_ISLNK(status.st_mode):
        return refused(path, "is a link: hand in the file itself")
    if not stat.S_ISREG(status.st_mode):
        return refused(path, "is not a plain file")

    def load(limit: int) -> bytes:
        flags = os.O_RDONLY
        for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
            flags |= getattr(os, name, 0)
        try:
            with os.fdopen(os.open(file, flags), "rb") as stream:
                return bounded(stream.read, limit, path[-1])
        except OSError as error:
            raise Unreadable(f"{printable(path[-1])} cannot be read: {error.strerror}") from None

    return File(path, moment(status.st_mtime), load)


def moment(seconds: float) -> datetime | None:
    """A time that a stranger's file claims; None where no calendar has it."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


class Cautious:
    """A file of which no more than so many bytes are read at once: zipfile reads a list of contents whole, as
    long as the zip says that it is."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self.file, self.most = file, most
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size > self.most:
            raise Unreadable("the zip holds too many files")
        return self.file.read(size)


def zip_files(file: BinaryIO, most: int = DIRECTORY_LIMIT) -> list[File]:
    """The files of a zip, which stays open as long as they are there. Raises `Unreadable` if it is none."""
    archive: Any = Cautious(file, most)
    try:
        archive = zipfile.ZipFile(archive)
    except MALFORMED as error:
        raise Unreadable(f"the zip is damaged: {str(error)[:200] or type(error).__name__}") from None
    files = []
    for info in archive.infolist():
        name = name_in_zip(info)
        path = tuple(part for part in name.split("/") if part not in ("", "."))
        if leads_out(name):
            files.append(refused((name,), "leads out of the zip: make it anew", leads_out=True))
        elif path and not any(map(ignored, path)):
            is_folder = info.is_dir() and not is_link(info)
            files.append(zip_file(archive, info, (*path, "") if is_folder else path))
    return files


def name_in_zip(info: zipfile.ZipInfo) -> str:
    """The name of a file in a zip, with `/` between folders."""
    name = info.filename
    if not info.flag_bits & 0x800 and not name.isascii():
        # macOS writes UTF-8 and does not say so.
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def leads_out(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/") or name[1:3] == ":/"


def is_link(info: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(info.external_attr >> 16)


def zip_file(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: tuple[str, ...]) -> File:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if is_link(info):
        return refused(path, "is a link: hand in the file itself")
    if kind not in (0, stat.S_IFREG):
        return refused(path, "is not a plain file")
    if info.flag_bits & 1:
        return refused(path, "is encrypted: hand it in without a password")
    # Of these two, what a few bytes become is made bit by bit and can be stopped.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return refused(path, "is packed in a way that is not read here: use an ordinary zip")

    def load(limit: int) -> bytes:
        if info.file_size > limit:
            raise too_large(path[-1], limit)
        try:
            with archive.open(info) as stream:
                return bounded(stream.read, limit, path[-1])
        except MALFORMED as error:
            raise Unreadable(f"{printable(path[-1])} is damaged in the zip: {str(error)[:200]}") from None

    return File(path, zip_time(info), load)


def zip_time(info: zipfile.ZipInfo) -> datetime | None:
    """When a file in a zip was changed: to the second in UTC if the zip says so, else by the clock of where the
    zip is read; None where the zip's own first day says that nobody knows."""
    extra = info.extra
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == 0x5455 and length >= 5 and len(extra) >= 9 and extra[4] & 1:
            return moment(struct.unpack_from("<i", extra, 5)[0])
        extra = extra[4 + length :]
    if info.date_time <= (1980, 1, 1, 23, 59, 59):
        return None
    try:
        return datetime(*info.date_time).astimezone()
    except (ValueError, OverflowError, OSError):
        return None


def bounded(read: Callable[[int], bytes], limit: int, name: str) -> bytes:
    """All that `read` gives, at most so many bytes."""
    chunks, length = [], 0
    while chunk := read(min(CHUNK, limit + 1 - length)):
        chunks.append(chunk)
        length += len(chunk)
        if length > limit:
            raise too_large(name, limit)
    return b"".join(chunks)


def too_large(name: str, limit: int) -> Unreadable:
    return Unreadable(f"{printable(name)} is larger than {limit // 1_000_000} MB: is it the right file?")
