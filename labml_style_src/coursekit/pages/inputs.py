"""All that the site is made of, as one hash: if it has not changed, there is nothing to build."""

import functools
import hashlib
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from coursekit.course import CONTENT_PACKAGE, SOURCE_ROOT, Course

ENGINE = Path(__file__).parents[1]
PACKAGES = ["mkdocs", "mkdocs-material", "markdown", "pymdown-extensions", "mini-racer", "jupytext"]
PACKAGES += ["nbclient", "ipykernel", "matplotlib", "torch", "numpy", "einops", "jaxtyping"]
IGNORED = {"__pycache__", ".ipynb_checkpoints"}


def watched(course: Course) -> list[Path]:
    """The files and folders that the site is made of, those that exist."""
    root = course.root
    tests = [root / "tests" / name for name in (CONTENT_PACKAGE, "records", "conftest.py", "proof.py")]
    paths = [root / name for name in ("mkdocs.yml", "pyproject.toml", "docs", "lessons", SOURCE_ROOT)]
    paths.append(root / "benchmarks" / "results")
    return [path for path in [*paths, *tests] if path.exists()]


def python_files(course: Course) -> list[Path]:
    """Those of them that are Python and the course's own."""
    found = {file for path in watched(course) for file in ([path] if path.is_file() else path.rglob("*.py"))}
    found = {file for file in found if file.suffix == ".py" and not IGNORED & set(file.parts)}
    return sorted(file for file in found if not file.is_relative_to(ENGINE))


def inputs_hash(course: Course) -> str:
    """A hash of the names and contents of all inputs, of the engine and of the packages that read them."""
    return files_hash(course.root, watched(course), engine(), versions())


def files_hash(root: Path, paths: Iterable[Path], *extra: str) -> str:
    """A hash of the files, and of those inside the folders, by name and content. The engine's are left out:
    see `engine`."""
    found: set[Path] = set()
    for path in paths:
        found |= {path} if path.is_file() else set(path.rglob("*"))
    digest = hashlib.sha256("\0".join(extra).encode())
    for path in sorted(found):
        if IGNORED & set(path.parts) or (root != ENGINE and path.is_relative_to(ENGINE)):
            continue
        try:
            content = path.read_bytes() if path.is_file() else b""
        except FileNotFoundError:  # an editor's temporary file
            continue
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


@functools.cache
def engine() -> str:
    """A hash of the engine as it was when this process first asked, which is the one that it runs."""
    return files_hash(ENGINE, [ENGINE])


def engine_changed() -> bool:
    """Whether the engine was edited since; this process still runs the old one."""
    return engine.__wrapped__() != engine()


@functools.cache
def versions() -> str:
    """The versions of Python and of the packages that take part in a build."""
    found = [f"python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} missing")
    return ", ".join(found)
