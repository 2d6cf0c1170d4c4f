"""`check.pyz`: the engine's own modules that a student's check needs, and the checks as data, in one archive that
Python runs. The same course gives the same bytes.
"""

import io
import zipfile
from pathlib import Path

from coursekit.grading.public.student import DATA
from coursekit.imports import closure, code_text

# Runs before anything that could be missing is imported, on any Python.
MAIN = '''\
"""Checks an exercise: `python check.pyz --help`."""
import sys

if sys.version_info < (3, 11):
    sys.stderr.write("check.pyz needs Python 3.11 or later, and this is " + sys.version.split()[0] + "\\n")
    sys.exit(3)


def main():
    from pathlib import Path

    try:
        from coursekit.grading.public.student import main as student
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] == "coursekit":
            raise
        print(
            "check.pyz: the package '" + error.name + "' is missing: python -m pip install -r requirements.txt",
            file=sys.stderr,
        )
        sys.exit(3)
    sys.exit(student(Path(sys.argv[0]).resolve()))


if __name__ == "__main__":
    main()
'''
# No file in the archive tells when it was made: the first moment that a zip can hold.
MADE = (1980, 1, 1, 0, 0, 0)
READABLE = 0o644 << 16
ZYGOTE = "coursekit.grading.sandbox.zygote"


def is_needed(module: str) -> bool:
    """Whether a module of ours that another imports belongs into the archive: no zygote runs on a student's
    machine."""
    return module.partition(".")[0] == "coursekit" and not module.startswith(ZYGOTE)


def needed_text(path: Path) -> str:
    """A module as it is; of one that only describes its package, whose examples may be a lesson's, nothing."""
    text = path.read_text("utf-8")
    return text if code_text(text).strip() else ""


def archive(checks: bytes) -> bytes:
    """The archive with these checks (`PublicChecks.encoded`)."""
    source = Path(__file__).parents[3]
    student = Path(__file__).with_name("student.py")
    modules = closure(source, [student], follow=is_needed)
    content = {path.relative_to(source).as_posix(): needed_text(path).encode() for path in modules}
    content |= {"__main__.py": MAIN.encode(), f"coursekit/grading/public/{DATA}": checks}
    made = io.BytesIO()
    made.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(made, "a", zipfile.ZIP_DEFLATED, compresslevel=9) as zipped:
        for name, data in sorted(content.items()):
            entry = zipfile.ZipInfo(name, MADE)
            entry.compress_type, entry.external_attr, entry.create_system = zipfile.ZIP_DEFLATED, READABLE, 3
            zipped.writestr(entry, data)
    return made.getvalue()
