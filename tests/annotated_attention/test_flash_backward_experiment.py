"""What the page of `flash_backward` says of the experiments is what their results say."""

import math

import pytest
from tests.annotated_attention.test_flash_experiment import HALF, results


def test_errors_of_sums_in_the_dtype() -> None:
    for dtype in HALF:
        for run in results("_errors").where(dtype=dtype, inputs="normal"):
            # The tiles of the kernel: 64 or 256 queries, 512 keys.
            t = run.settings["t"]
            queries, keys = math.ceil(t / (256 if t >= 768 else 64)), math.ceil(t / 512)
            for name, tiles in (("dq", keys), ("dk", queries), ("dv", queries)):
                found = run.measured[f"sdpa {name}"] / run.measured[f"rounded {name}"]
                assert found == pytest.approx(math.sqrt((tiles + 3) / 2), rel=0.06)


def test_errors_of_the_fused_kernel() -> None:
    some = results("_errors").where(dtype="bfloat16", inputs="normal", t=4096)
    ratios = [run.measured["sdpa dk"] / run.measured["tiles 64 by 64 dk"] for run in some]
    assert {round(ratio, 1) for ratio in ratios} == {3.1}
