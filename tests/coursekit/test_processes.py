"""Processes that share work end with the one that they work for."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coursekit.processes import workers

WAITS = """
import time
from pathlib import Path
from coursekit.processes import workers

def long(path):
    path.touch()
    time.sleep(300)

if __name__ == "__main__":
    try:
        with workers(2) as pool:
            asked = [pool.submit(long, Path(f"begun_{each}")) for each in range(4)]
            asked[0].result()
    except KeyboardInterrupt:
        print("stopped")
"""


def test_what_is_asked_is_answered_by_other_processes_on_one_thread(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with workers(2) as pool:
        assert pool.submit(os.getpid).result() != os.getpid()
        assert pool.submit(os.getenv, "OMP_NUM_THREADS").result() == "1"


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to a group there")
def test_ctrl_c_ends_all_at_once_and_without_a_word(tmp_path: Path):
    (tmp_path / "waits.py").write_text(WAITS, "utf-8")
    process = subprocess.Popen(
        [sys.executable, "waits.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A shell starts what it puts into the background deaf to Ctrl-C, and the tests may be there.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        until = time.monotonic() + 60
        while len(list(tmp_path.glob("begun_*"))) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=30)[0] == "stopped\n"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert len(list(tmp_path.glob("begun_*"))) == 2
