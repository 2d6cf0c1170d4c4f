"""The few calls of the Linux kernel that Python has no function for."""

import ctypes
import functools
import os

# Of include/uapi/linux/sched.h, mount.h and prctl.h; the same on every architecture.
CLONE_THREAD, CLONE_NEWNS, CLONE_NEWIPC = 0x00010000, 0x00020000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x40000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_CAPBSET_DROP = 1, 4, 15, 16, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_SET_VMA = 36, 38, 0x53564D41


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def syscall(number: int, *arguments: object) -> int:
    """Call the kernel. Each argument is a whole number, None for a null pointer, or bytes to read from or a
    buffer of ctypes. Raises OSError with the kernel's reason."""
    wide = [ctypes.c_long(part) if isinstance(part, int) else part for part in arguments]
    answer = _libc().syscall(ctypes.c_long(number), *wide)
    if answer == -1:
        reason = ctypes.get_errno()
        raise OSError(reason, os.strerror(reason))
    return answer


def call(name: str, *arguments: object) -> int:
    """Call a function of the C library; arguments as for `syscall`. Raises OSError with the reason."""
    wide = [ctypes.c_long(part) if isinstance(part, int) else part for part in arguments]
    answer = getattr(_libc(), name)(*wide)
    if answer == -1:
        reason = ctypes.get_errno()
        raise OSError(reason, f"{name}: {os.strerror(reason)}")
    return answer


def prctl(option: int, value: int) -> None:
    """`prctl(option, value, 0, 0, 0)`. Raises OSError."""
    call("prctl", option, value, 0, 0, 0)


def one_thread() -> bool:
    """Whether this process has a single thread: the walls stand around the thread that puts them up, and
    around those that it makes later."""
    # To leave a thread group of several is refused; to leave one's own alone does nothing.
    return _libc().unshare(CLONE_THREAD) == 0


def unshare(flags: int) -> None:
    """Leave what is shared with other processes. Raises OSError."""
    call("unshare", flags)


def mount(source: str, target: str | os.PathLike[str], kind: str, flags: int, data: str) -> None:
    """Mount a file system. Raises OSError."""
    texts = [os.fsencode(part) or None for part in (source, target, kind, data)]
    call("mount", *texts[:3], flags, texts[3])
