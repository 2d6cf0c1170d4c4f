"""What one submission can use up."""

import pytest

from coursekit.grading.sandbox import rlimits
from coursekit.grading.submission import Submission
from coursekit.grading.verbs import StudentError


def test_memory_is_limited_to_what_the_child_adds(walled):
    """PyTorch's own gigabytes are not counted; Python, NumPy and PyTorch say it in their own words."""
    size = 300 << 20
    for code in (
        f"bytearray({size})",
        f"np.zeros({size}, dtype='u1')",
        f"import mmap; mmap.mmap(-1, {size})",
    ):
        assert walled.run(code, "rlimits", memory_mb=512)[0] == "done"
        assert walled.run(code, "rlimits", memory_mb=256)[0] in {
            "MemoryError",
            "_ArrayMemoryError",
            "OSError",
        }
    kind, message = walled.run(f"torch.zeros({size}, dtype=torch.uint8)", "rlimits", memory_mb=256)
    assert kind == "RuntimeError"
    assert f"you tried to allocate {size} bytes" in message


@pytest.mark.parametrize(
    "code", ["bytearray(n)", "np.zeros(n, dtype='u1')", "torch.zeros(n, dtype=torch.uint8)"]
)
def test_a_student_is_told_that_memory_ran_out(walled, code):
    kind, message = walled.run(f"n = 300 << 20\n{code}", "rlimits", memory_mb=256)
    told = {"type": kind, "message": message}
    said = StudentError(told, Submission("", "a.py", "a.py")).sentence
    assert said == f"there is not enough memory for what is made here ({kind}): is an array far too large?"


def test_little_memory_is_enough_for_a_gradient(walled):
    code = "x = torch.randn(64, 64, requires_grad=True)\n(x @ x).softmax(-1).sum().backward()\nanswer = True"
    assert walled.run(code, "rlimits", "seccomp", memory_mb=256) == ("done", True)


@pytest.mark.parametrize("others", [(), ("uid",)], ids=["root", "nobody"])
def test_the_limits_are_set_and_stay(walled, others):
    code = """
import resource as r
answer = [r.getrlimit(kind)[0] for kind in (r.RLIMIT_CPU, r.RLIMIT_NOFILE, r.RLIMIT_CORE, r.RLIMIT_FSIZE)]
answer += [r.getrlimit(r.RLIMIT_MEMLOCK)[1], r.getrlimit(r.RLIMIT_MSGQUEUE)[1]]
answer += [r.getrlimit(kind)[0] == r.getrlimit(kind)[1] for kind in (r.RLIMIT_AS, r.RLIMIT_STACK)]
answer.append(open('/proc/self/oom_score_adj').read())
"""
    kind, found = walled.run(code, "rlimits", *others)
    assert kind == "done"
    assert found[:6] == [30 + rlimits.SPARE_SECONDS, rlimits.OPEN_FILES, 0, 0, 0, 0]
    assert found[6:8] == [True, True]
    assert found[8].strip() == "1000"


def test_files_cannot_grow(walled, tmp_path):
    file = tmp_path / "file"
    assert walled.run(f"open({str(file)!r}, 'wb', buffering=0).write(b'x')", "rlimits")[0] == "OSError"
    assert file.read_bytes() == b""


def test_open_files_run_out(walled):
    code = "kept = [open(os.devnull) for _ in range(100)]"
    assert walled.run(code)[0] == "done"
    assert walled.run(code, "rlimits") == ("OSError", "[Errno 24] Too many open files: '/dev/null'")


def test_a_user_of_its_own_makes_few_threads_and_processes(walled):
    code = """
import threading, time
answer = 0
stop = threading.Event()
try:
    for _ in range(200):
        threading.Thread(target=stop.wait, daemon=True).start()
        answer += 1
except RuntimeError:
    pass
stop.set()
"""
    assert walled.run(code) == ("done", 200)
    kind, made = walled.run(code, "rlimits", "uid")
    assert kind == "done"
    assert 8 < made < rlimits.TASKS


def test_a_lower_limit_of_the_machines_stays(walled):
    code = """
import resource
from coursekit.grading.sandbox import Limits
from coursekit.grading.sandbox import rlimits
from coursekit.grading.submission import Submission
from coursekit.grading.verbs import StudentError
resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
rlimits.enter(Limits(), own_user=False)
answer = resource.getrlimit(resource.RLIMIT_NOFILE)
"""
    assert walled.run(code) == ("done", [20, 20])
