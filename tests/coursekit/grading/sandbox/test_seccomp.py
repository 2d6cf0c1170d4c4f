"""What the child may ask the kernel for."""

import os
import re
from pathlib import Path

import pytest

from coursekit.grading.sandbox import seccomp

HEADERS = {
    0: Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    1: Path("/usr/include/asm-generic/unistd.h"),
}
# Everything that would reach beyond the process; each works where no wall stands.
ESCAPES = {
    "fork": "os.fork() or os._exit(0)",
    "spawn": "os.posix_spawn('/bin/true', ['true'], {})",
    "exec": "os.execv('/bin/true', ['true'])",
    "socket": "import socket\nsocket.socket()",
    "udp": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "unix": "import socket\nsocket.socket(socket.AF_UNIX)",
    "socketpair": "import socket\nsocket.socketpair()",
    "kill": "os.kill(os.getppid(), 0)",
    "kill all": "os.kill(-1, 0)",
    "priority": "os.nice(1)",
    "affinity": "os.sched_setaffinity(0, {0})",
    "limits of another": "import resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU)",
    "session": "os.setsid()",
    "user": "os.setuid(os.getuid())",
    "chdir": "os.chdir('/')",
    "chmod": "os.chmod('/tmp', os.stat('/tmp').st_mode)",
    "utime": "os.utime('/tmp')",
    "pipe": "os.pipe()",
    "raise": "import signal\nsignal.raise_signal(0)",
}
CALL = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    answer = libc.syscall(*[ctypes.c_long(each) for each in arguments])
    return errno.errorcode[ctypes.get_errno()] if answer == -1 else 0
"""
HONEST = """
import threading, time, random, dataclasses, math, io, contextlib
x = torch.randn(2, 4, 16, 8, requires_grad=True)
y = (x @ x.mT).softmax(-1) @ x
y.sum().backward()
torch.autograd.grad(torch.fft.fft(x.double()).abs().sum(), x)
torch.set_num_threads(4)
torch.randn(600, 600) @ torch.randn(600, 600)
einops.rearrange(x, "b h t d -> b t (h d)")
torch.nn.Linear(8, 8).bfloat16()(x.bfloat16())
np.linalg.svd(np.random.default_rng(0).normal(size=(64, 64)))
torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True).sum().backward()
@dataclasses.dataclass
class Cache:
    keys: list
Cache([1])
done = []
threads = [threading.Thread(target=lambda: done.append(time.perf_counter())) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
time.sleep(0.001)
random.random(), os.urandom(4), os.getpid(), os.cpu_count(), os.getcwd(), time.time()
with contextlib.redirect_stdout(io.StringIO()):
    print(x)
answer = len(done)
"""


def column() -> int:
    import platform

    return seccomp.MACHINES[platform.machine()][1]


@pytest.mark.parametrize("name", ESCAPES)
def test_what_reaches_beyond_the_process_is_refused(walled, name):
    assert walled.run(ESCAPES[name], "seccomp")[0] == "PermissionError"


@pytest.mark.parametrize("name", [name for name in ESCAPES if name != "exec"])
def test_without_seccomp_the_same_is_possible(walled, name):
    """The control: it is this layer that refuses."""
    if name in {"chmod", "utime"} and os.geteuid():
        pytest.skip("only root may change /tmp")
    assert walled.run(ESCAPES[name])[0] == "done"


@pytest.mark.parametrize("active", [("seccomp",), ("uid", "rlimits", "landlock", "seccomp")], ids=" ".join)
def test_calculating_goes_on_undisturbed(walled, active):
    assert walled.run(HONEST, *active) == ("done", 4)


@pytest.mark.parametrize(
    ("name", "numbers", "told"),
    [
        ("clone3", (435, 435), "ENOSYS"),
        ("io_uring_setup", (425, 425), "ENOSYS"),
        ("pidfd_open", (434, 434), "ENOSYS"),
        ("landlock_create_ruleset", (444, 444), "ENOSYS"),
        ("not yet invented", (900, 900), "ENOSYS"),
        ("ptrace", (101, 117), "EPERM"),
        ("process_vm_readv", (310, 270), "EPERM"),
        ("mount", (165, 40), "EPERM"),
        ("unshare", (272, 97), "EPERM"),
        ("setns", (308, 268), "EPERM"),
        ("chroot", (161, 51), "EPERM"),
        ("pivot_root", (155, 41), "EPERM"),
        ("bpf", (321, 280), "EPERM"),
        ("keyctl", (250, 219), "EPERM"),
        ("perf_event_open", (298, 241), "EPERM"),
        ("userfaultfd", (323, 282), "EPERM"),
        ("memfd_create", (319, 279), "EPERM"),
        ("shmget", (29, 194), "EPERM"),
        ("msgget", (68, 186), "EPERM"),
        ("semget", (64, 190), "EPERM"),
        ("mq_open", (240, 180), "EPERM"),
        ("inotify_init1", (294, 26), "EPERM"),
        ("fanotify_init", (300, 262), "EPERM"),
        ("personality", (135, 92), "EPERM"),
        ("init_module", (175, 105), "EPERM"),
        ("name_to_handle_at", (303, 264), "EPERM"),
        ("open_by_handle_at", (304, 265), "EPERM"),
        ("quotactl", (179, 60), "EPERM"),
        ("reboot", (169, 142), "EPERM"),
        ("tgkill", (234, 131), "EPERM"),
        ("seccomp", (317, 277), "EPERM"),
        ("setgroups", (116, 159), "EPERM"),
    ],
)
def test_calls_that_python_has_no_name_for_are_refused(walled, name, numbers, told):
    assert walled.run(f"{CALL}answer = call({numbers[column()]}, 0, 0, 0, 0, 0)", "seccomp") == ("done", told)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        # A process that shares nothing, one that shares its memory (vfork), one with new namespaces.
        ("CLONE, 17", "EPERM"),
        ("CLONE, 0x4111", "EPERM"),
        ("CLONE, 0x40000000 | 17", "EPERM"),
        ("PRCTL, 4, 1", "EPERM"),
        ("PRCTL, 38, 1, 0, 0, 0", "EPERM"),
        ("PRLIMIT, 0, 7, 0, 0", 0),
        ("PRLIMIT, 1, 7, 0, 0", "EPERM"),
        ("PRLIMIT, 0, 7, 1, 0", "EPERM"),
        # Only the upper half of the pointer is set.
        ("PRLIMIT, 0, 7, 1 << 32, 0", "EPERM"),
        # TIOCSTI puts characters into a terminal; F_SETOWN sends signals.
        ("IOCTL, 0, 0x5412, 0", "EPERM"),
        ("FCNTL, 0, 8, 1", "EPERM"),
        ("FCNTL, 1, 1, 0", 0),
    ],
)
def test_where_an_argument_decides(walled, call, told):
    columns = {"CLONE": seccomp.CLONE, "PRCTL": seccomp.PRCTL, "PRLIMIT": seccomp.PRLIMIT64}
    columns |= {"IOCTL": (16, 29), "FCNTL": (72, 25)}
    name, comma, rest = call.partition(",")
    code = f"{CALL}answer = call({columns[name][column()]}{comma}{rest})"
    assert walled.run(code, "seccomp") == ("done", told)


@pytest.mark.skipif("column()", reason="only x86-64 has a second and a third set of calls")
def test_the_other_sets_of_calls_of_this_machine_are_closed(walled):
    # x32's getpid, and 32 bits' getpid by its own instruction: mov eax, 20; int 0x80; ret.
    assert walled.run(f"{CALL}answer = call(0x40000000 + 39)", "seccomp") == ("done", "ENOSYS")
    code = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes.fromhex("b814000000cd80c3"))
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
answer = ctypes.CFUNCTYPE(ctypes.c_int)(address)() > 0
"""
    assert walled.run(code, "seccomp") == ("ended", -31)


def test_the_filter_holds_for_threads_and_cannot_be_taken_off(walled):
    code = """
import threading
told = []
def attempt():
    try:
        os.fork() or os._exit(0)
    except PermissionError:
        told.append("refused")
thread = threading.Thread(target=attempt)
thread.start()
thread.join()
answer = told
"""
    assert walled.run(code, "seccomp") == ("done", ["refused"])


@pytest.mark.parametrize("column", HEADERS)
def test_the_numbers_are_those_of_the_kernels_headers(column):
    if not HEADERS[column].exists():
        pytest.skip("the kernel's headers are not installed")
    pattern = r"#define __NR(?:3264)?_(\w+)\s+(\d+)"
    listed = {name: int(number) for name, number in re.findall(pattern, HEADERS[column].read_text())}
    listed.setdefault("newfstatat", listed.get("fstatat", 0))
    ours = {name: numbers[column] for name, numbers in seccomp.ALLOWED.items()}
    ours |= {name: numbers[column] for name, (numbers, _, _) in seccomp.CHOSEN.items()}
    ours |= {
        "clone": seccomp.CLONE[column],
        "prctl": seccomp.PRCTL[column],
        "prlimit64": seccomp.PRLIMIT64[column],
    }
    assert {name: listed.get(name) for name in ours} == ours


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_both_programs_end_on_every_path(machine, column):
    """No jump leaves the program, and nothing falls off its end."""
    steps = list(seccomp.instructions(seccomp.MACHINES[machine][0], column))
    assert steps[-1][0] == seccomp.RETURN
    for place, (code, yes, no, _) in enumerate(steps):
        if code in (seccomp.EQUAL, seccomp.NOT_LESS, seccomp.ANY_BIT):
            assert place + 1 + max(yes, no) < len(steps)
    assert len(steps) < 4096


def test_a_machine_without_a_list_has_no_such_layer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(seccomp.platform, "machine", lambda: "riscv64")
    with pytest.raises(OSError, match="no list of system calls for riscv64"):
        seccomp.Seccomp()
