"""Another user: the child may signal nobody, owns nothing and is in no group."""

import os
from pathlib import Path

# Beyond what systems give out to people, services and containers. Each zygote has a user of its own, told by
# its process number: no submission shares one with that of another grader on the machine.
FIRST = 1_900_000_000
NOBODY = 65534


def stranger() -> int:
    """The user that children of this process become: its own, or nobody where users are numbered anew."""
    number = FIRST + os.getpid()
    return number if is_known(number) else NOBODY


def is_known(number: int, table: str = "") -> bool:
    """Whether a user of this number can exist here (in `/proc/self/uid_map`, or the given text)."""
    lines = (table or Path("/proc/self/uid_map").read_text("ascii")).splitlines()
    ranges = [tuple(map(int, line.split())) for line in lines]
    return any(first <= number < first + count for first, _, count in ranges)


def become(number: int) -> None:
    """Become that user, for good. Raises OSError unless this process is root's."""
    os.setgroups([])
    os.setresgid(number, number, number)
    os.setresuid(number, number, number)
