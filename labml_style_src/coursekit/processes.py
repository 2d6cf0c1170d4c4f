"""Processes that share work. This module imports next to nothing: what a process imports for its first piece of work
comes after it has been told what Ctrl-C means."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from coursekit.machine import cores, die_with_parent

# Windows waits for no more at a time.
MOST = 61


@contextmanager
def workers(
    jobs: int | None = None,
    begin: Callable[..., None] | None = None,
    *arguments: Any,
    one_thread: bool = True,
) -> Generator[ProcessPoolExecutor]:
    """A pool of processes, one a core unless said otherwise, in each of which `begin` is called once. They end with
    this block, at once if it fails."""
    # Spawned, not forked: PyTorch may have started threads here.
    spawn = multiprocessing.get_context("spawn")
    jobs = min(jobs or cores(), MOST)
    pool = ProcessPoolExecutor(jobs, spawn, _begin, (one_thread, begin, *arguments))
    try:
        yield pool
    except BaseException:
        for process in list(pool._processes.values()):
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(one_thread: bool, begin: Callable[..., None] | None, *arguments: Any) -> None:
    # Ctrl-C is for the process that these serve, and it ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    if one_thread:
        # PyTorch reads it when it is imported.
        os.environ["OMP_NUM_THREADS"] = "1"
    if begin:
        begin(*arguments)
