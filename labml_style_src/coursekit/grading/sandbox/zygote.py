"""The zygote: a process that has everything loaded that a submission may need, and forks a child for each.

It never sees a submission, a check or a lesson. Requests come over a Unix socket, its standard input: the first
says what walls to make ready, each of the others brings a folder and the descriptors of one child (its
requests, its answers, and the line on which the zygote tells what became of it). When the grader is gone, so is
the zygote, and with it every child.
"""

import contextlib
import gc
import itertools
import json
import os
import select
import signal
import site
import socket
import sys
import tempfile

from coursekit.grading.child import serve
from coursekit.grading.sandbox import blocked, kernel, layers, namespaces, reach, trail, uid, watch
from coursekit.grading.sandbox.limits import Limits
from coursekit.grading.sandbox.process import PROBLEM

MESSAGE_BYTES = 1 << 16
# A child's children may go on to fork while theirs are ended.
SWEEPS = 100


def main() -> None:
    control = socket.socket(fileno=os.dup(0))
    del sys.argv[1:]
    silence(0, 1)
    data, [grader], *_ = socket.recv_fds(control, MESSAGE_BYTES, 1)
    order = json.loads(data)
    missing = {}
    if "namespaces" in order["layers"] and (reason := namespaces.probe()):
        missing["namespaces"] = reason
    active = [name for name in order["layers"] if name not in missing]
    # By the number that the machine knows this process by.
    stranger = uid.stranger() if "uid" in active else None
    # Before the packages are loaded: the process that stays behind and waits is a small one.
    world = namespaces.Namespaces() if "namespaces" in active else None
    warm_up()
    if stranger is not None and (reason := reach.shown(own_mounts=world is not None)):
        missing["uid"] = reason
        active.remove("uid")
        stranger = None
    zygote = Zygote(control, grader, active, Limits(**order["limits"]), world, stranger)
    control.send(json.dumps({"layers": active, "missing": missing}).encode())
    silence(2)
    zygote.serve()


def silence(*descriptors: int) -> None:
    """Let standard streams lead nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def warm_up() -> None:
    """Load what honest submissions use, and what these packages load only when they are first used: later a
    child may find no file, and would lose time."""
    import einops
    import numpy as np
    import numpy.testing
    import torch
    import torch._dynamo  # optimizers and checkpointing ask for it
    import torch.func
    import torch.utils.checkpoint

    for name in STANDARD:
        __import__(name)
    watch.install()
    # Without the module `site` there are none.
    site.setquit()
    site.sethelper()
    # A notebook draws as well. When it is loaded this package keeps a list of fonts somewhere.
    with contextlib.suppress(ImportError), tempfile.TemporaryDirectory() as folder:
        os.environ["MPLCONFIGDIR"] = folder
        import matplotlib.pyplot  # noqa: F401
    x = torch.ones(2, 3, requires_grad=True)
    torch.autograd.grad(einops.rearrange(x, "a b -> b a").softmax(-1).sum(), x)
    torch.func.jvp(torch.sin, (torch.ones(2),), (torch.ones(2),))
    einops.rearrange(np.ones((2, 3)), "a b -> b a")
    repr(x)
    str(np.ones(2))
    os.environ.clear()
    # `torch.compile` does nothing here but to ask for a folder that is there.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.sep
    torch.compile(x.sum)()


# Of the standard library, what a calculation may use.
STANDARD = (
    *("abc", "array", "bisect", "cmath", "collections.abc", "contextlib", "copy", "dataclasses", "datetime"),
    *("decimal", "enum", "fractions", "functools", "heapq", "inspect", "io", "itertools", "json", "logging"),
    *("math", "numbers", "operator", "pprint", "queue", "random", "re", "statistics", "string", "textwrap"),
    *("time", "timeit", "traceback", "types", "typing", "unittest", "warnings", "weakref"),
)


class Zygote:
    """Forks and buries. `world` has the namespaces and `stranger` is whom children become, if those layers are
    active."""

    def __init__(
        self,
        control: socket.socket,
        grader: int,
        active: list[str],
        limits: Limits,
        world: namespaces.Namespaces | None,
        stranger: int | None,
    ) -> None:
        if len(os.listdir("/proc/self/task")) > 1:
            raise RuntimeError("a process with several threads cannot be forked safely")
        self.control, self.grader, self.world, self.stranger = control, grader, world, stranger
        self.walls = layers.prepare(active, limits)
        if world is None:
            kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        # By the descriptor that stands for a child: its number, and the line to the grader about it.
        self.children: dict[int, tuple[int, socket.socket]] = {}
        self.poll = select.poll()
        for descriptor in (control.fileno(), grader):
            self.poll.register(descriptor, select.POLLIN)
        blocked.block()
        # What is loaded stays for good: no child searches it for garbage, which would copy it.
        gc.collect()
        gc.freeze()

    def serve(self) -> None:
        """Until the grader is gone."""
        while True:
            for descriptor, _ in self.poll.poll():
                if descriptor in self.children:
                    self.bury(descriptor)
                elif descriptor == self.grader or not self.start():
                    self.end()

    def start(self) -> bool:
        """Read a request and fork the child; False if there are no more requests."""
        folder, descriptors, *_ = socket.recv_fds(self.control, MESSAGE_BYTES, 3)
        if not folder:
            return False
        requests, answers, line = descriptors
        number = self.world.fork() if self.world else os.fork()
        if not number:
            self.run(folder.decode(), requests, answers, line)
        status = socket.socket(fileno=line)
        child = os.pidfd_open(number)
        os.close(requests)
        os.close(answers)
        socket.send_fds(status, [b"started"], [child])
        self.children[child] = number, status
        self.poll.register(child, select.POLLIN)
        return True

    def run(self, folder: str, requests: int, answers: int, line: int) -> None:
        """In the child: the walls, then the submission. Never returns."""
        try:
            close_all_but(0, 1, 2, requests, answers, line, *self.walls.descriptors)
            os.setsid()
            os.chdir(folder)
            namespaces.die_with_parent()
            if self.world:
                self.world.enter()
            self.walls.enter(self.become)
            os.close(line)
            trail.install()
            serve(requests, answers)
        except BaseException as error:
            # Nothing of the student's has run: whoever holds the other end of the line wants to know.
            os.write(line, f"{PROBLEM}{type(error).__name__}: {error}".encode()[:1000])
        finally:
            os._exit(1)

    def become(self) -> None:
        if self.stranger is not None:
            uid.become(self.stranger)
            namespaces.die_with_parent()

    def bury(self, child: int) -> None:
        """A child has ended: tell its grader how, and forget it."""
        number, line = self.children.pop(child)
        self.poll.unregister(child)
        os.close(child)
        code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
        with contextlib.suppress(OSError):
            line.send(str(code).encode())
        line.close()
        if not self.world:
            self.sweep()

    def sweep(self) -> None:
        """Without namespaces: end what children have started and left behind. It falls to this process."""
        for _ in range(SWEEPS):
            known = {number for number, _ in self.children.values()}
            left = set(own_children()) - known
            for number in left:
                os.kill(number, signal.SIGKILL)
                os.waitpid(number, 0)
            if not left:
                return

    def end(self) -> None:
        for number, _ in self.children.values():
            os.kill(number, signal.SIGKILL)
        os._exit(0)


def own_children() -> list[int]:
    """The processes whose parent this one is; none where the kernel does not tell."""
    with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(number) for number in file.read().split()]
    return []


def close_all_but(*kept: int) -> None:
    """Close every other descriptor."""
    edges = [-1, *sorted(kept), os.sysconf("SC_OPEN_MAX")]
    for low, high in itertools.pairwise(edges):
        # Of an empty range at 0, Python 3.11 closes all there are.
        if low + 1 < high:
            os.closerange(low + 1, high)


if __name__ == "__main__":
    sys.exit("this module is started by zygote_host.py")
