"""`attn verify`: run the proofs of some mechanisms with pytest and write what they measured into a record.

Pytest runs in a process of its own and reports through its JUnit file, so that what is recorded is what
pytest saw, also when it spreads the tests over several processes.
"""

import ast
import json
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from coursekit.course import Course, CourseError, EnvironmentFault, Mechanism, environment_of
from coursekit.files import write_text
from coursekit.pages.proofs import records

DEVICES = ("cpu", "cuda")


def verify(course: Course, mechanisms: Sequence[Mechanism], device: str = "cpu") -> dict[str, dict[str, Any]]:
    """Run the proofs of these mechanisms on a device, merge the results into its record, return them by slug.

    A failed test is recorded as failed; a mechanism that is gone has no record any more. Raises `CourseError` if
    the device is missing or pytest cannot run the tests at all; the record is then left as it was.
    """
    name = device_name(device)
    if not mechanisms:
        return {}
    keys = {mechanism.slug: records.key(mechanism) for mechanism in mechanisms}
    # The proofs of one lesson take no longer than starting more processes for them.
    spread = len({mechanism.lesson for mechanism in mechanisms}) > 1
    cases = run_tests(course, [path for each in mechanisms for path in each.proofs], device, spread)
    results = {}
    for mechanism in mechanisms:
        mine = [case for path in mechanism.proofs for case in cases.get(path.stem, [])]
        results[mechanism.slug] = {"key": keys[mechanism.slug], "tests": summarise(mine, device)}
    versions = {"python": platform.python_version(), "torch": version("torch"), "numpy": version("numpy")}
    before = records.load(course)
    merged = {**before.devices.get(device, {}).get("mechanisms", {}), **results}
    content = {
        "device": name,
        "versions": versions,
        "mechanisms": {slug: merged[slug] for slug in sorted(merged) if slug in before.keys},
    }
    write_text(records.folder(course) / f"{device}.json", json.dumps(content, indent=1) + "\n")
    return results


def device_name(device: str) -> str:
    """What the record calls this machine's device. Raises `EnvironmentFault` if there is none."""
    if device == "cpu":
        return f"CPU ({platform.machine()})"
    import torch

    if not torch.cuda.is_available():
        raise EnvironmentFault("--device cuda: PyTorch finds no CUDA device on this machine")
    return torch.cuda.get_device_name()


def run_tests(
    course: Course, files: Sequence[Path], device: str, spread: bool
) -> dict[str, list[ElementTree.Element]]:
    """Run the files, spread over several processes or in one, and return pytest's reports of their cases, by the
    stem of the file."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["-n", "auto"] if spread else []
        command += ["-k", "cuda" if device == "cuda" else "not cuda", "-o", "junit_family=xunit1"]
        command += [f"--junitxml={report}", *(str(file) for file in files)]
        environment = {**environment_of(course), "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}
        done = subprocess.run(
            command, cwd=course.root, env=environment, capture_output=True, text=True, encoding="utf-8"
        )
        # 0: all passed, 1: some failed. Anything else means that they did not run.
        if done.returncode not in (0, 1) or not report.exists():
            raise CourseError(f"pytest could not run the proofs:\n{(done.stdout + done.stderr).strip()}")
        cases: dict[str, list[ElementTree.Element]] = {}
        for case in ElementTree.parse(report).iter("testcase"):
            cases.setdefault(Path(case.get("file", "")).stem, []).append(case)
        broken = [case for group in cases.values() for case in group if case.find("error") is not None]
        if broken:
            raise CourseError(f"pytest could not run the proofs:\n{done.stdout.strip()}")
        return cases


def summarise(cases: Sequence[ElementTree.Element], device: str) -> dict[str, dict[str, Any]]:
    """One entry a test: its outcome over all cases of this device, its comparison nearest to the bound."""
    tests: dict[str, dict[str, Any]] = {}
    worst: dict[str, float] = {}
    for case in cases:
        name, _, parameters = case.get("name", "").partition("[")
        # A case without a device parameter ran on the CPU.
        if (set(parameters.rstrip("]").split("-")) & set(DEVICES) or {"cpu"}) != {device}:
            continue
        test = tests.setdefault(name, {"outcome": "skipped", "cases": 0, "error": None, "bound": None})
        skipped = case.find("skipped") is not None
        if case.find("failure") is not None:
            test["outcome"] = "failed"
        elif test["outcome"] == "skipped" and not skipped:
            test["outcome"] = "passed"
        test["cases"] += not skipped
        for error, bound in _measured(case):
            ratio = error / bound if bound else float(error > 0)
            if ratio >= worst.get(name, -1.0):
                worst[name] = ratio
                test |= {"error": error, "bound": bound}
    return {name: tests[name] for name in sorted(tests)}


def _measured(case: ElementTree.Element) -> list[tuple[float, float]]:
    """The `(error, bound)` pairs of a case; one whose error is infinite or NaN failed and has no number."""
    texts = [item.get("value", "") for item in case.iter("property") if item.get("name") == "measured"]
    pairs = [ast.literal_eval(text) for text in texts if "inf" not in text and "nan" not in text]
    return [(float(error), float(bound)) for error, bound in pairs]
