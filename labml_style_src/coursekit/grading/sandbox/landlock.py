"""Landlock: the child reads the modules that honest code may still import, and nothing else of the file system.

Open are the standard library and the installed packages, entry by entry without those of the course, and
`/dev/null` and `/dev/urandom`. Everything else can be neither read nor written nor run: the lessons, the
checks, the results, `/etc`, `/proc`, `/tmp`. From version 4 of the kernel's interface on there is no TCP,
from 5 no ioctl on devices, from 6 no abstract Unix sockets and no signals to processes outside.

What it does not cover: names and sizes can be asked for everywhere (`stat`), the names in the open folders can
be listed, and UDP passes; the other layers stop what matters of that. What is open stays open: the child must
have closed it.

The rules are collected once, by the zygote; a child only enters them. Reference: the kernel's
Documentation/userspace-api/landlock.rst and include/uapi/linux/landlock.h.
"""

import contextlib
import os
import stat
import struct
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from coursekit.grading.sandbox import blocked
from coursekit.grading.sandbox.kernel import syscall

# The same on every architecture.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION_FLAG = 1
PATH_BENEATH = 1
# Refused calls are no news for the audit log: a child could fill it.
LOG_OFF = 1
# The newest version whose rights are known here; a newer kernel is asked for no more.
NEWEST = 7

WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3
TCP = 0b11
ABSTRACT_UNIX_AND_SIGNALS = 0b11
DEVICES = {"/dev/null": READ_FILE | WRITE_FILE, "/dev/urandom": READ_FILE}


def version() -> int:
    """The version of the kernel's Landlock. Raises OSError if it has none or it is switched off."""
    return syscall(CREATE_RULESET, None, 0, VERSION_FLAG)


def rights(version: int) -> tuple[int, int, int]:
    """What a version can deny: of files, of the network, of other processes."""
    files = (1 << 13) - 1
    for since, right in ((2, 1 << 13), (3, 1 << 14), (5, 1 << 15)):
        files |= right if version >= since else 0
    return files, TCP if version >= 4 else 0, ABSTRACT_UNIX_AND_SIGNALS if version >= 6 else 0


class Landlock:
    """Rules ready to be entered. `close` gives up the descriptor that holds them."""

    def __init__(self) -> None:
        self.version = min(version(), NEWEST)
        parts = rights(self.version)
        # A kernel refuses a longer description than it knows, unless the rest is zero.
        attributes = struct.pack("<QQQ", *parts)[: 8 * (1 + (self.version >= 4) + (self.version >= 6))]
        self.descriptor = syscall(CREATE_RULESET, attributes, len(attributes), 0)
        os.set_inheritable(self.descriptor, False)
        for path, right in opened():
            self._allow(path, right)

    def enter(self) -> None:
        """Leave everything else behind, for good. `no_new_privs` must be set. Raises OSError."""
        syscall(RESTRICT_SELF, self.descriptor, LOG_OFF if self.version >= 7 else 0)
        self.close()

    def close(self) -> None:
        os.close(self.descriptor)

    def _allow(self, path: str, right: int) -> None:
        # What has gone meanwhile, or cannot be reached, needs no rule: without one it is closed.
        with contextlib.suppress(OSError):
            target = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                if not stat.S_ISDIR(os.fstat(target).st_mode):
                    right &= ~READ_DIR
                syscall(ADD_RULE, self.descriptor, PATH_BENEATH, struct.pack("<Qi", right, target), 0)
            finally:
                os.close(target)


def opened() -> Iterator[tuple[str, int]]:
    """Each path with the rights granted at it and below."""
    yield from DEVICES.items()
    for folder in folders():
        # An importer lists the folder; a right holds for everything below, so the names there can be listed.
        yield str(folder), READ_DIR
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except PermissionError:
            continue
        for entry in entries:
            if entry.name in SITES or blocked.is_courses(entry.name):
                continue
            # A link out of here could lead into a checkout of the course.
            if entry.is_symlink() and Path(entry.path).resolve().parent != folder:
                continue
            yield entry.path, READ_FILE | READ_DIR


# The folders of installed packages lie in that of the standard library; theirs are rules of their own.
SITES = ("site-packages", "dist-packages")


def folders() -> list[Path]:
    """Where the standard library is, and the packages that are installed for this Python."""
    paths = sysconfig.get_paths()
    found = {paths["stdlib"], os.path.dirname(os.__file__), paths["purelib"], paths["platlib"]}
    for name in ("torch", "numpy", "einops"):
        # Installed elsewhere (Debian's dist-packages, a user's own): the folder that it was found in.
        if origin := getattr(sys.modules.get(name), "__file__", None):
            found.add(os.path.dirname(os.path.dirname(origin)))
    return sorted({Path(path).resolve() for path in found if os.path.isdir(path)})
