"""Runs pieces of code behind chosen walls, each in a forked child of one process with PyTorch loaded.

The fork is from a process of its own, not from pytest's, whose threads a wall would refuse.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

from coursekit.grading.sandbox import layers

SERVER = """
import json, os, sys, traceback
import coursekit.grading.sandbox.landlock, coursekit.grading.sandbox.seccomp
from coursekit.grading.sandbox import Limits
from coursekit.grading.sandbox import layers, reach, uid
import einops, numpy, torch

for line in sys.stdin:
    active, memory, code = json.loads(line)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        told = None
        try:
            if "uid" in active and (reason := reach.shown(own_mounts=False)):
                raise OSError(reason)
            walls = layers.prepare(active, Limits(memory_mb=memory))
            walls.enter(lambda: uid.become(uid.NOBODY))
        except BaseException as error:
            told = ["not entered", str(error)]
        else:
            names = {"os": os, "torch": torch, "np": numpy, "einops": einops}
            try:
                exec(code, names)
                told = ["done", names.get("answer")]
            except BaseException as error:
                told = [type(error).__name__, str(error)[:500]]
        os.write(writing, json.dumps(told).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as stream:
        told = stream.read()
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(told or json.dumps(["ended", ended]), flush=True)
"""


class Walled:
    """Asks the process that forks."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, code: str, *active: str, memory_mb: int = 2048) -> tuple[str, Any]:
        """("done", what the code left in `answer`), (the exception's type, its message) or ("ended", code)."""
        for layer in active:
            if reason := layers.available()[layer]:
                pytest.skip(f"no {layer} here: {reason}")
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([active, memory_mb, code]) + "\n")
        self._process.stdin.flush()
        kind, what = json.loads(self._process.stdout.readline())
        return kind, what

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10)
