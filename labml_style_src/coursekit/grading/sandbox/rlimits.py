"""Limits of the process: memory, processor time, threads, files; and the first victim when memory runs out.

`memory_mb` is what the child may add to what it was born with: PyTorch alone maps some gigabytes of address
space before the student's first line, so the limit on the address space is set above the size at the fork.
Python answers with MemoryError, PyTorch with a RuntimeError that names the bytes.

Linux has all of them. macOS accepts a limit on the address space and does not keep it; elsewhere there is no
such module. Both run a fresh process a submission, without this layer, and say so.
"""

import contextlib
import math
import os
import sys

from coursekit.grading.sandbox.limits import Limits

# Honest code makes a handful of each: autograd's thread, an imported module's file.
TASKS = 64
OPEN_FILES = 64
# Beyond the seconds that the grader's clock allows, in case that clock is late.
SPARE_SECONDS = 5


def enter(limits: Limits, own_user: bool) -> None:
    """Set the limits of this process, for good. `own_user`: nobody else's threads are counted with its own;
    if they are, their number cannot be limited without harm to others. Raises OSError or ValueError."""
    import resource

    # When memory runs out, this process is to go before the grader. No wall: where /proc cannot be written, the
    # kernel chooses for itself.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    seconds = math.ceil(limits.submission_seconds) + SPARE_SECONDS
    wanted = {
        resource.RLIMIT_AS: address_space() + (limits.memory_mb << 20),
        resource.RLIMIT_CPU: seconds,
        # Pipes and /dev/null are no files in this sense.
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if own_user:
        wanted[resource.RLIMIT_NPROC] = TASKS
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    # A stack that grows without end would be taken from the memory of all.
    soft = resource.getrlimit(resource.RLIMIT_STACK)[0]
    resource.setrlimit(resource.RLIMIT_STACK, (soft, soft))


def address_space() -> int:
    """The bytes that this process has mapped."""
    import resource

    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def missing() -> str:
    """Why this system has no such limits, "" if it has."""
    if sys.platform == "linux":
        return "" if os.path.exists("/proc/self/statm") else "/proc is not mounted"
    return "the limits of macOS do not bind" if sys.platform == "darwin" else "this system has no such limits"
