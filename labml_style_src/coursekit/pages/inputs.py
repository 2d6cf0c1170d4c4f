"""All that the site is made of, as one hash: if it has not changed, there is nothing to build."""

import hashlib
import platform
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
    engine = [] if ENGINE.is_relative_to(root) else [ENGINE]
    return [path for path in [*paths, *tests, *engine] if path.exists()]


def files(course: Course) -> list[Path]:
    """Every file among them."""
    found: set[Path] = set()
    for path in watched(course):
        found |= {path} if path.is_file() else {file for file in path.rglob("*") if file.is_file()}
    return sorted(file for file in found if not IGNORED & set(file.parts))


def inputs_hash(course: Course) -> str:
    """A hash of the names and contents of all inputs, and of the versions of the packages that read them."""
    digest = hashlib.sha256(f"{platform.python_version()} {versions()}".encode())
    for path in files(course):
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # an editor's temporary file
            continue
        top = course.root if path.is_relative_to(course.root) else ENGINE
        digest.update(f"{path.relative_to(top).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def versions() -> str:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} missing")
    return ", ".join(found)
