"""Whether another user can read the modules that a submission imports, and how that is brought about.

A Python in `/root` or in a closed home works for its owner alone: the child, another user, could import nothing
more. Where the mounts are our own, an empty folder is laid over the closed one, and in it are shown, in their
places, the folders of modules and nothing else.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from coursekit.grading.sandbox import kernel, uid
from coursekit.grading.sandbox.landlock import folders


def hidden(paths: Iterable[Path] | None = None) -> str:
    """Why nobody (a user without rights) cannot read the folders of modules, or the given ones; "" if they can.
    Raises OSError where this process cannot become another user."""
    asked = list(paths or folders())
    reading, writing = os.pipe()
    if not (child := os.fork()):
        reason = b"its user cannot be changed"
        try:
            uid.become(uid.NOBODY)
            reason = next(filter(None, map(_refusal, asked)), "")[:1000].encode()
        finally:
            os.write(writing, reason)
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as told:
        reason = told.read().decode()
    os.waitpid(child, 0)
    return reason


def _refusal(folder: Path) -> str:
    """Why this process cannot read a folder and its first module."""
    try:
        for module in sorted(folder.glob("*.py"))[:1]:
            module.read_bytes()
        os.listdir(folder)
    except OSError:
        return f"{closed(folder) or folder} is closed to other users, and Python's modules lie in it"
    return ""


def closed(folder: Path) -> Path | None:
    """The outermost folder on the way that others cannot enter."""
    for path in [*reversed(folder.parents), folder]:
        try:
            if not path.stat().st_mode & 0o001:
                return path
        except PermissionError:
            return path.parent
    return None


def shown(own_mounts: bool) -> str:
    """Make the modules readable for another user, who then finds nothing else in a closed home; "" if they are,
    else why not. `own_mounts`: this process's mounts are nobody else's already; they are from here on."""
    if not (reason := hidden()):
        return ""
    try:
        if not own_mounts:
            kernel.unshare(kernel.CLONE_NEWNS)
            kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE, "")
        show()
    except OSError as error:
        return f"{reason}; mounts of its own: {error}"
    return hidden()


def show(paths: Iterable[Path] | None = None) -> None:
    """Lay an empty folder over each closed one that has folders of modules in it, and show those there. For a
    process in mounts of its own, once everything else is loaded. Raises OSError."""
    asked = list(paths or folders())
    while found := [path for path in asked if closed(path) not in {None, path}]:
        over = closed(found[0])
        assert over is not None
        within = [path for path in found if path.is_relative_to(over)]
        # Held open: once covered they have no other name.
        held = [os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in within]
        kernel.mount("tmpfs", over, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755,size=64k")
        for path, descriptor in zip(within, held, strict=True):
            path.mkdir(0o755, parents=True, exist_ok=True)
            kernel.mount(f"/proc/self/fd/{descriptor}", path, "", kernel.MS_BIND | kernel.MS_REC, "")
            os.close(descriptor)
