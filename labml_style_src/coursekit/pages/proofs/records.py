"""The committed record of each proof: what ran, how large the error was, on which device and versions.

`attn verify` writes one file a device, `tests/records/<device>.json`. A record carries a key over all code
that it depends on; when that code has changed since, the record is *stale* and its page says so.
"""

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coursekit.course import Course, Mechanism
from coursekit.imports import code_key


@dataclass(frozen=True)
class Record:
    """What one test measured on one device. `error` and `bound` are those of its comparison that came nearest
    to its bound, and None for a test that compares nothing."""

    device: str
    outcome: str
    cases: int
    error: float | None
    bound: float | None
    versions: dict[str, str]
    stale: bool


@dataclass(frozen=True)
class Records:
    """Every committed record of a course, by the stem of its file (`cpu`, `cuda`), and the key that a record
    of each mechanism would have now, by slug."""

    devices: dict[str, dict[str, Any]]
    keys: dict[str, str]

    def lookup(self, mechanism: Mechanism, test: str) -> list[Record]:
        """The records of one test, one for each device on which it ran."""
        found = []
        for device in self.devices.values():
            written = device["mechanisms"].get(mechanism.slug, {})
            measured = written.get("tests", {}).get(test)
            if measured is not None:
                stale = written["key"] != self.keys[mechanism.slug]
                found.append(Record(device["device"], versions=device["versions"], stale=stale, **measured))
        return found

    def stale(self, device: str = "cpu") -> list[str]:
        """The slugs whose record on this device is missing or older than the code."""
        written = self.devices.get(device, {}).get("mechanisms", {})
        return [slug for slug, now in self.keys.items() if written.get(slug, {}).get("key") != now]


def folder(course: Course) -> Path:
    return course.root / "tests" / "records"


def load(course: Course) -> Records:
    """The committed records; none is an empty set, not an error."""
    files = sorted(folder(course).glob("*.json"))
    devices = {file.stem: json.loads(file.read_text("utf-8")) for file in files}
    return Records(devices, {each.slug: key(each) for each in course.mechanisms if each.source.exists()})


def key(mechanism: Mechanism) -> str:
    """The hash of all that a record of this mechanism depends on: its file and its proof, the proof's
    configuration, and every file of the course that one of them imports."""
    conftest = mechanism.root / "tests" / "conftest.py"
    return code_key(mechanism.root, [mechanism.source, *mechanism.proofs, conftest])


def known_tests(mechanism: Mechanism) -> dict[str, tuple[Path, int]]:
    """The name of every test in the mechanism's proof, with its file and line."""
    return {
        node.name: (path, node.lineno)
        for path in mechanism.proofs
        if path.exists()
        for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path)))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }
