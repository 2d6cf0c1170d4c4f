"""A small course for each test that needs one: a single lesson, as `attn new` makes it, in the real theme."""

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from coursekit.course import Course

REPOSITORY = Path(__file__).parents[2]
SHARED = ["mkdocs.yml", "pyproject.toml", "docs/theme", "docs/assets", "tests/conftest.py", "tests/proof.py"]


def make_course(root: Path) -> Course:
    """A course with the lesson `gated` and a home page."""
    from coursekit import scaffold

    for name in SHARED:
        source, target = REPOSITORY / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    (root / "docs" / "index.md").write_text("# Home\n\n[Gated](mechanisms/gated/index.md)\n", "utf-8")
    package = root / "labml_style_src" / "annotated_attention"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (root / "lessons").mkdir()
    scaffold.new(Course(root), "gated")
    return Course(root)


@pytest.fixture(scope="session")
def built_course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    """The small course with its site, for tests that leave it as they found it. It is built once a run,
    whichever of pytest's processes comes first."""
    from coursekit.pages import site

    run = tmp_path_factory.getbasetemp()
    # Each process has a folder of its own in that of the run.
    run = run.parent if "PYTEST_XDIST_WORKER" in os.environ else run
    with FileLock(run / "built.lock"):
        if not (run / "built").exists():
            site.build(make_course(run / "building"))
            (run / "building").rename(run / "built")
    return Course(run / "built")


@pytest.fixture
def small_course(tmp_path: Path) -> Course:
    """The small course, not built."""
    return make_course(tmp_path)


@pytest.fixture
def warm_course(built_course: Course, tmp_path: Path) -> Course:
    """A copy of the built course that a test may change; what is expensive is in its cache."""
    root = tmp_path / "course"
    shutil.copytree(built_course.root, root)
    return Course(root)
