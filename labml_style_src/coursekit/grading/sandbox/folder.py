"""A submission's own folder: empty, and gone with it, whatever was left there."""

import contextlib
import itertools
import secrets
import tempfile
from pathlib import Path


def make_folder(within: Path | None = None) -> Path:
    """A new empty folder that others can enter but not list."""
    folder = Path(tempfile.mkdtemp(prefix="submission-", dir=within))
    folder.chmod(0o711)
    return folder


def remove_folder(folder: Path) -> None:
    """Remove a folder. What cannot be removed stays; nothing is raised.

    A nest of folders too deep for a path or for recursion is taken apart from the top: what is inside a folder
    moves up before that folder goes.
    """
    prefix = secrets.token_hex(8)
    names = (folder / f"{prefix}{number}" for number in itertools.count())
    entries = [path for path in _entries(folder) if _opened(path)]
    while entries:
        below: list[Path] = []
        for path in entries:
            with contextlib.suppress(OSError):
                for inner in _entries(path):
                    if _opened(inner):
                        below.append(inner.rename(next(names)))
                path.rmdir()
        entries = below
    with contextlib.suppress(OSError):
        folder.rmdir()


def _entries(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        folder.chmod(0o700)
        return list(folder.iterdir())
    return []


def _opened(path: Path) -> bool:
    """Whether this is a folder, opened for its owner; anything else is removed."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
            return True
        path.unlink()
    return False
