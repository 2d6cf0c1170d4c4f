"""For every test: shapes are enforced in the mechanisms, errors reach the reports, devices are visible."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from jaxtyping import install_import_hook
from xdist.scheduler import LoadScopeScheduling

CONTENT = Path(__file__).parents[1] / "labml_style_src" / "annotated_attention"

# The course's types are documentation to its reader; here, and only here, a wrong shape is an error. Triton reads
# the source of a kernel and takes no wrapper for it.
SHAPED = [path.stem for path in CONTENT.glob("*.py") if "@triton.jit" not in path.read_text("utf-8")]
install_import_hook([f"annotated_attention.{stem}" for stem in SHAPED], "beartype.beartype")

# Without a GPU Triton's interpreter runs the kernels. It has to be told before Triton is imported.
if not any(Path("/dev").glob("nvidia[0-9]*")) and shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"

# The same examples on every machine: a failure that comes and goes teaches nobody.
hypothesis.settings.register_profile("proof", derandomize=True, deadline=None, max_examples=40)
hypothesis.settings.load_profile("proof")


# What is expensive to make is made by one process: a site with its server and browser, zygotes with one wall left
# out each, a Dask cluster, a class graded by the commands of a page, the server that forks ranks.
TOGETHER = (
    "tests/site/",
    "tests/coursekit/attacks/",
    "tests/coursekit/grading/batch/test_cluster.py",
    "tests/coursekit/test_class_pages.py",
    "tests/annotated_attention/test_ring",
)


class Shared(LoadScopeScheduling):
    """Under `-n`, each test goes to the next free worker, but all of one place in `TOGETHER` to one, and these
    first. (A mark, `xdist_group`, would say so; pytest 9.2 ignores what xdist 3.8 makes of it.)"""

    def _split_scope(self, nodeid: str) -> str:
        return next((place for place in TOGETHER if nodeid.startswith(place)), nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Shared:
    return Shared(config, log)


def pytest_report_collectionfinish() -> str | None:
    proof = sys.modules.get("tests.proof")
    return None if proof is None else f"proof: seed {proof.SEED}"


# Of session scope, so that Hypothesis accepts it beside `@given`.
@pytest.fixture(scope="session", params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    """Each case is collected for both devices, and visibly skipped where there is no GPU."""
    import torch

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs CUDA: this machine has none")
    return request.param


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Each comparison becomes one `("measured", [error, bound])` of the test's report, also under xdist."""
    # A test that compares nothing has not imported `proof`, and need not wait for torch.
    proof = sys.modules.get("tests.proof")
    if proof is not None:
        proof.measured.clear()
    try:
        return (yield)
    finally:
        if proof is not None:
            item.user_properties += [("measured", list(pair)) for pair in proof.measured]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was skipped, one line a reason: hundreds of lines would hide it."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    )
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"skipped {count} cases: {reason}", yellow=True)
