"""Namespaces: the child sees no network, no process but its own, and nothing that it could write to.

The zygote leaves the network, the mounts and the process numbers of the machine behind once and is from then
on process 1 of a world of its own; each child gets process numbers and System V objects of its own within it.
A child is process 1 there: when it ends, the kernel ends whatever it has started.

Root needs nothing else. A plain user needs a namespace of users first, in which they may do all this; the child
gives those powers up before it runs the student's code. Some systems forbid that (AppArmor in recent Ubuntu,
the default of Docker).
"""

import contextlib
import os
import signal
import struct
import sys

from coursekit.grading.sandbox import kernel

# The same on every architecture.
MOUNT_SETATTR = 442
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = -100, 0x8000, 0x1
CAPABILITY_VERSION = 0x20080522


class Namespaces:
    """Entered by the zygote, which then is another process than before; `fork` and `enter` are for a child."""

    def __init__(self) -> None:
        """Leave the machine's namespaces. Returns in a new process, whose parent only waits for it and ends as
        it does. Raises OSError where this is not allowed."""
        self.user = os.geteuid() != 0
        ids = os.getuid(), os.getgid()
        users = kernel.CLONE_NEWUSER if self.user else 0
        kernel.unshare(users | kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWPID)
        if self.user:
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/uid_map", f"{ids[0]} {ids[0]} 1")
            _write("/proc/self/gid_map", f"{ids[1]} {ids[1]} 1")
        kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE, "")
        if first := os.fork():
            # The descriptors are the zygote's: its end must be seen by those who hold the other ends.
            os.closerange(0, 1 << 16)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0xFF)
        die_with_parent()
        self._own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    def fork(self) -> int:
        """`os.fork`, where the child is process 1 of a namespace within this one."""
        # Back to this process's own, without which the second time would be refused.
        kernel.call("setns", self._own, kernel.CLONE_NEWPID)
        kernel.unshare(kernel.CLONE_NEWPID)
        return os.fork()

    def enter(self) -> None:
        """The rest, in the child: nothing shared through System V objects, nothing to write to, and `/proc` with
        its own processes alone."""
        kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC)
        # Older than Linux 5.12, or a /proc that is partly hidden: then the other layers keep the files.
        with contextlib.suppress(OSError):
            attributes = struct.pack("=QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
            kernel.syscall(MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, len(attributes))
        with contextlib.suppress(OSError):
            kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC, "")
        if self.user:
            give_up_powers()


def give_up_powers() -> None:
    """No capability is left, and none can be had again."""
    number = 0
    with contextlib.suppress(OSError):
        while True:
            kernel.prctl(kernel.PR_CAPBSET_DROP, number)
            number += 1
    header = struct.pack("=Ii", CAPABILITY_VERSION, 0)
    kernel.call("capset", header, bytes(24))


def die_with_parent() -> None:
    """Be killed when the process that started this one ends. A change of user undoes it."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)


def probe() -> str:
    """Why this machine has no namespaces for a submission, in words; "" if it has them."""
    if sys.platform != "linux":
        return "needs Linux"
    reading, writing = os.pipe()
    if not (child := os.fork()):
        try:
            os.close(reading)
            namespaces = Namespaces()
            if inner := namespaces.fork():
                os._exit(os.waitpid(inner, 0)[1] != 0)
            namespaces.enter()
            os.write(writing, b"+")
        except OSError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as told:
        answer = told.read().decode()
    os.waitpid(child, 0)
    return "" if answer == "+" else answer or "the trial ended without an answer"


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
