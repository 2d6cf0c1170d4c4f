"""Seccomp: the child may ask the kernel for what calculating needs, and for nothing else.

An allow-list, not a deny-list: what Python and PyTorch need to calculate is short and old (memory, threads,
reading, the time), while the ways out grow with every kernel. A call that is not on it answers EPERM, which
Python raises as PermissionError; those that came after 2019 answer ENOSYS, as an older kernel would, so that
the C library falls back to what it used before. Where an argument decides, the argument is looked at: `clone`
makes threads but no processes, `prlimit64` reads the process's own limits.

So there is no fork and no exec, no socket of any kind, no signal to anyone, no look into other processes, no
change to files, no shared memory, no other user, no priority. A program for another machine's calls (32 bits)
is killed; on x86-64 those of x32 have numbers beyond the list.

The numbers are those of arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

import ctypes
import errno
import platform
import struct
from collections.abc import Iterator

from coursekit.grading.sandbox import kernel

# Column by column: x86-64, arm64 (None: it never had this one).
ALLOWED: dict[str, tuple[int, int | None]] = {
    # Reading, and writing to what is open; Landlock says which files can be opened.
    **{"read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67)},
    **{"pwrite64": (18, 68), "lseek": (8, 62), "close": (3, 57), "open": (2, None), "openat": (257, 56)},
    **{"stat": (4, None), "fstat": (5, 80), "lstat": (6, None), "newfstatat": (262, 79)},
    **{"statx": (332, 291), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439)},
    **{"readlink": (89, None), "readlinkat": (267, 78), "getcwd": (79, 17), "getdents": (78, None)},
    **{"getdents64": (217, 61), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24)},
    **{"poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72)},
    # Memory.
    **{"brk": (12, 214), "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226)},
    **{"mremap": (25, 216), "madvise": (28, 233), "mincore": (27, 232), "membarrier": (324, 283)},
    # Threads, and the end.
    **{"futex": (202, 98), "set_robust_list": (273, 99), "get_robust_list": (274, 100), "rseq": (334, 293)},
    **{"set_tid_address": (218, 96), "gettid": (186, 178), "exit": (60, 93), "exit_group": (231, 94)},
    **{"sched_yield": (24, 124), "sched_getaffinity": (204, 123), "sched_getparam": (143, 121)},
    **{"sched_getscheduler": (145, 120), "sched_get_priority_max": (146, 125)},
    **{"sched_get_priority_min": (147, 126), "getcpu": (309, 168)},
    # Handlers of signals to itself.
    **{"rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139)},
    **{"sigaltstack": (131, 132), "restart_syscall": (219, 128)},
    # The time, chance, and who and where one is.
    **{"nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113)},
    **{"clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153)},
    **{"getrusage": (98, 165), "getrandom": (318, 278), "uname": (63, 160), "sysinfo": (99, 179)},
    **{"getpid": (39, 172), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175)},
    **{"getgid": (104, 176), "getegid": (108, 177), "getresuid": (118, 148), "getresgid": (120, 150)},
    **{"getgroups": (115, 158), "getrlimit": (97, 163)},
}
# Where an argument decides.
CLONE, PRCTL, PRLIMIT64 = (56, 220), (157, 167), (302, 261)
CHOSEN: dict[str, tuple[tuple[int, int], int, tuple[int, ...]]] = {
    # The call, the argument, and the values that it may have.
    # With the last the C library names its memory.
    "prctl": (PRCTL, 0, (kernel.PR_SET_NAME, kernel.PR_GET_NAME, kernel.PR_SET_VMA)),
    # TCGETS and TIOCGWINSZ (is this a terminal?), FIONREAD, FIOCLEX, FIONCLEX.
    "ioctl": ((16, 29), 1, (0x5401, 0x5413, 0x541B, 0x5451, 0x5450)),
    # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC.
    "fcntl": ((72, 25), 1, (0, 1, 2, 3, 4, 1030)),
}
# From here on every architecture counts alike, and a C library knows how to do without.
YOUNG = 424

SET_MODE_FILTER, ALL_THREADS = 1, 1
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

# (AUDIT_ARCH_*, the column above, the number of seccomp itself)
MACHINES = {"x86_64": (0xC000003E, 0, 317), "aarch64": (0xC00000B7, 1, 277)}

# Of the classic BPF: load a word of `struct seccomp_data`, compare, return.
LOAD, EQUAL, NOT_LESS, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE = 0, 4


def argument(place: int, high: bool = False) -> int:
    """Where an argument's lower (or upper) 32 bits are in `struct seccomp_data`."""
    return 16 + 8 * place + 4 * high


class Seccomp:
    """The program for this machine, ready to be entered. Raises OSError on a machine without a list."""

    def __init__(self) -> None:
        machine = platform.machine()
        if machine not in MACHINES:
            raise OSError(errno.ENOTSUP, f"no list of system calls for {machine}")
        architecture, column, self._number = MACHINES[machine]
        self.program = b"".join(struct.pack("<HBBI", *step) for step in instructions(architecture, column))
        self._buffer = ctypes.create_string_buffer(self.program)
        # struct sock_fprog: the number of instructions, and a pointer to them.
        address = ctypes.addressof(self._buffer)
        self._description = struct.pack("@HP", len(self.program) // 8, address)

    def enter(self) -> None:
        """From now on only what is allowed. `no_new_privs` must be set. Raises OSError."""
        if thread := kernel.syscall(self._number, SET_MODE_FILTER, ALL_THREADS, self._description):
            raise OSError(errno.EBUSY, f"thread {thread} has a filter of its own")


def instructions(architecture: int, column: int) -> Iterator[tuple[int, int, int, int]]:
    """The program: (code, steps to jump if true, if false, operand) each. Every part ends by returning or goes
    on with the number of the call still loaded."""
    refused, unknown = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
    yield LOAD, 0, 0, ARCHITECTURE
    yield EQUAL, 1, 0, architecture
    yield RETURN, 0, 0, KILL
    yield LOAD, 0, 0, NUMBER
    for numbers in ALLOWED.values():
        if (number := numbers[column]) is not None:
            yield EQUAL, 0, 1, number
            yield RETURN, 0, 0, ALLOW
    for numbers, place, values in CHOSEN.values():
        yield EQUAL, 0, 2 + 2 * len(values), numbers[column]
        yield LOAD, 0, 0, argument(place)
        for value in values:
            yield EQUAL, 0, 1, value
            yield RETURN, 0, 0, ALLOW
        yield RETURN, 0, 0, refused
    yield EQUAL, 0, 4, CLONE[column]
    yield LOAD, 0, 0, argument(0)
    yield ANY_BIT, 0, 1, kernel.CLONE_THREAD
    yield RETURN, 0, 0, ALLOW
    yield RETURN, 0, 0, refused
    # Of process 0, which is the caller, and without new limits.
    yield EQUAL, 0, 8, PRLIMIT64[column]
    yield LOAD, 0, 0, argument(0)
    yield EQUAL, 0, 5, 0
    yield LOAD, 0, 0, argument(2)
    yield EQUAL, 0, 3, 0
    yield LOAD, 0, 0, argument(2, high=True)
    yield EQUAL, 0, 1, 0
    yield RETURN, 0, 0, ALLOW
    yield RETURN, 0, 0, refused
    yield NOT_LESS, 0, 1, YOUNG
    yield RETURN, 0, 0, unknown
    yield RETURN, 0, 0, refused
