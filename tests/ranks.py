"""Several processes for the proofs that need them: ranks on gloo (on NCCL between GPUs) that run functions.

Torch is imported once, by the server that forks them. Every wait has a timeout, and in the end all are killed.
"""

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import torch
import torch.distributed as dist

# A group of each size. In the smaller ones a rank is not what it is in the world.
WORLD = 4
# And neighbours in a group, so that NCCL finds a GPU for each where there are no more of them than members.
MEMBERS = {1: [2], 2: [1, 2], 3: [1, 2, 3], WORLD: [0, 1, 2, 3]}
PRELOAD = ["tests.conftest", "tests.annotated_attention.test_ring_details"]

# In a process of the pool: its groups, by size.
groups: dict[int, Any] = {}


@dataclass(frozen=True)
class Failure:
    """What a function raised in its process."""

    kind: str
    message: str
    trace: str


def serve(connection: Connection, rank: int, folder: str, timeout: float) -> None:
    """The life of a process: to run what comes, until nothing can come any more."""
    torch.set_num_threads(1)
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(rank % torch.cuda.device_count())
    store = dist.FileStore(str(Path(folder, "store")), WORLD)
    # To come together may take long on a busy machine, whatever their groups have for a timeout later.
    dist.init_process_group(backend, store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=60))
    limit = timedelta(seconds=timeout)
    groups.update({n: dist.new_group(members, timeout=limit) for n, members in MEMBERS.items()})
    # All are here. (On gloo: NCCL would want a GPU for each.)
    dist.all_reduce(torch.zeros(1))
    with suppress(EOFError, OSError):
        while True:
            function, arguments = pickle.loads(connection.recv_bytes())
            try:
                result = function(*arguments)
            except Exception as error:
                result = Failure(type(error).__name__, str(error), traceback.format_exc())
            connection.send_bytes(pickle.dumps(result))
    # Whoever sent has gone. A group that lost a rank might not be left in peace.
    os._exit(0)


class Ranks:
    """Four processes, to be used by `with`. `timeout` is that of their groups."""

    def __init__(self, timeout: float = 30.0) -> None:
        self.timeout = timeout
        self.folder = tempfile.TemporaryDirectory(prefix="ranks")
        if "forkserver" not in multiprocessing.get_all_start_methods():
            pytest.skip("needs processes that are forked: this system has none")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self.connections: list[Connection] = []
        self.processes: list[Any] = []
        for rank in range(WORLD):
            ours, theirs = context.Pipe()
            arguments = theirs, rank, self.folder.name, timeout
            self.processes.append(context.Process(target=serve, args=arguments, daemon=True))
            self.processes[-1].start()
            theirs.close()
            self.connections.append(ours)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for connection in self.connections:
            connection.close()
        for process in self.processes:
            process.kill()
            process.join(10)
        self.folder.cleanup()

    def outcomes(self, n: int, function: Callable[..., Any], *arguments: Any, gone: int = -1) -> list[Any]:
        """What each of `n` ranks returned, or its `Failure`. Rank `gone` is not waited for: None."""
        connections = [self.connections[member] for member in MEMBERS[n]]
        call = pickle.dumps((function, (n, *arguments)))
        for connection in connections:
            connection.send_bytes(call)
        found: dict[int, Any] = {} if gone < 0 else {gone: None}
        while len(found) < n:
            missing = {connections[rank]: rank for rank in range(n) if rank not in found}
            ready = wait(list(missing), timeout=4 * self.timeout)
            if not ready:
                raise TimeoutError(f"ranks {list(missing.values())} are silent")
            for connection in ready:
                assert isinstance(connection, Connection)
                found[missing[connection]] = pickle.loads(connection.recv_bytes())
        return [found[rank] for rank in range(n)]

    def run(self, n: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function(n, *arguments)` returned in each of `n` ranks."""
        results = self.outcomes(n, function, *arguments)
        for rank, result in enumerate(results):
            assert not isinstance(result, Failure), f"rank {rank} of {n}:\n{result.trace}"
        return results
