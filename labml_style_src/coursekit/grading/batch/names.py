r"""Names in a class: of the student to whom an entry belongs, and of the file that a student's result is kept in.

An entry's name is the student's, without its suffix: `jane.py`, `jane.zip` and the folder `jane` belong to `jane`.
The downloads of two systems are known, and a student of theirs keeps the number by which their roster knows them:

    Canvas   doejane_LATE_123_4567_alibi.py               the file 4567 of the user 123, handed in late
             anon_1aB2c_4567_alibi.py                     where the students are anonymous
    Moodle   Jane Doe_123_assignsubmission_file_          a folder for the participant 123 ...
             Jane Doe_123_assignsubmission_file_alibi.py  ... or, on request, a file

A name comes from a stranger: what cannot be printed is written as `\u000a`, and what is long is cut.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass

# lib/content_zipper.rb of Canvas: the name in lower case without what is no letter, digit or underscore.
CANVAS = re.compile(
    r"(?P<student>(?:(?P<name>\w+?)_)?(?P<late>LATE_)?(?P<id>\d+|anon_[A-Za-z0-9]+))"
    r"_(?:\d{3,}_(?P<file>.+)|(?P<typed>text|link)\.html)",
    re.DOTALL,
)
# mod/assign/classes/downloader.php of Moodle.
MOODLE = re.compile(
    r"(?P<name>.+)_(?P<id>\d+)_assignsubmission_(?P<kind>file|onlinetext)(?:_(?P<file>.*))?", re.DOTALL
)
SUFFIXES = (".py", ".ipynb", ".zip", ".tar.gz", ".tar.bz2", ".tar.xz")
NAME_LIMIT = 90
# What a file may be called on every system, whatever the case of its letters.
PLAIN = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,63}(?<!\.)")
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


@dataclass(frozen=True)
class Named:
    """What an entry's name says: whose it is, what the file was called, the system whose download it is (empty:
    none), whether that system calls it late."""

    student: str
    file: str
    system: str = ""
    late: bool = False


def named(entry: str, is_folder: bool) -> Named:
    """Read the name of an entry."""
    if match := MOODLE.fullmatch(entry):
        return Named(printable(f"{match['name']}_{match['id']}"), printable(match["file"] or entry), "Moodle")
    match = CANVAS.fullmatch(entry)
    if match and not is_folder and (match["name"] or match["id"].startswith("anon_")):
        name = f"{match['name']}_" if match["name"] else ""
        if name == name.lower():
            file = match["file"] or entry
            return Named(printable(f"{name}{match['id']}"), printable(file), "Canvas", bool(match["late"]))
    return Named(printable(entry if is_folder else without_suffix(entry)), printable(entry))


def without_suffix(entry: str) -> str:
    for suffix in SUFFIXES:
        if entry.lower().endswith(suffix):
            return entry[: -len(suffix)]
    stem, dot, suffix = entry.rpartition(".")
    return stem if dot and stem and len(suffix) <= 5 else entry


def printable(name: str) -> str:
    """A stranger's name, safe to show and to keep: one line, composed, of bounded length."""
    composed = unicodedata.normalize("NFC", name).strip()
    shown = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in composed)
    if shown and len(shown) <= NAME_LIMIT:
        return shown
    return f"{shown[:NAME_LIMIT]}~{digest(name)}"


def file_stem(student: str) -> str:
    """What a student's files are called: the name itself if every system takes it; else what is plain of it and
    a hash. No two students share one, also where `Jane` and `jane` would be the same file."""
    if PLAIN.fullmatch(student) and not RESERVED.fullmatch(student):
        return student
    letters = unicodedata.normalize("NFKD", student).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", letters).strip("_-")[:40]
    return f"{plain}~{digest(student)}"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]
