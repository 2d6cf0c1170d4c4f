"""The course cannot be imported in a child: no mechanism, no lesson, no check, no other part of this package.

`block()` is called when everything that the child itself needs is loaded. It stops `import`, in every form
that Python's own machinery serves, on every system. It does not stop code that opens the files by their path
and executes them, or takes the finder away and puts a path back: only Landlock stops that (`landlock.py`), or
a machine where the course is not installed.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from coursekit.course import CONTENT_PACKAGE

# Top-level modules of a checkout and of an installation.
NAMES = (CONTENT_PACKAGE, "coursekit", "lessons", "tests", "conftest")
# In a folder of packages: what leads an import elsewhere.
LEADING = ("__editable__", "_editable_impl", "sitecustomize", "usercustomize")


class Refusal:
    """The first finder: refuses the course's names."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] in NAMES:
            raise ModuleNotFoundError(f"{name} cannot be imported here: the course is not there", name=name)
        return None


def block() -> None:
    """From now on nothing of the course can be imported, and what was loaded of it is found by those alone who
    hold it. Calling it twice does no harm."""
    for name in [name for name in sys.modules if name.partition(".")[0] in NAMES]:
        del sys.modules[name]
    sys.path[:] = [path for path in sys.path if not leads_to_the_course(path)]
    sys.path_importer_cache.clear()
    others = [finder for finder in sys.meta_path if type(finder).__name__ != Refusal.__name__]
    sys.meta_path[:] = [Refusal(), *others]


def leads_to_the_course(folder: str) -> bool:
    """Whether a folder of the path holds the course and, unlike one of installed packages, nothing else that
    honest code imports. The folder one stands in is no place for modules at all."""
    if folder in {"", ".", os.getcwd()}:
        return True
    holds = any(os.path.exists(os.path.join(folder, name)) for name in NAMES)
    return holds and not os.path.isdir(os.path.join(folder, "torch"))


def is_courses(entry: str) -> bool:
    """Whether an entry of a folder of packages is the course's, or leads an import to it."""
    name = entry.lower().replace("-", "_")
    if name.startswith((CONTENT_PACKAGE, "coursekit", *LEADING)) or name.endswith((".pth", ".egg_link")):
        return True
    return name.partition(".")[0] in NAMES
