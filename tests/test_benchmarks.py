"""The arithmetic of the benchmarks: fits, roofs, work, absence. Nothing is timed here but for its form."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from benchmarks import gpu, gpu_aims, peers, roofline
from benchmarks.growth import exponent
from benchmarks.roofline import Roof, Work
from torch.utils.flop_counter import FlopCounterMode

from annotated_attention.bigbird import bigbird_plan
from annotated_attention.scaled_dot_product import scaled_dot_product_attention
from coursekit.course import find_course

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("law", [0.0, 1.0, 1.5, 2.0])
def test_the_exponent_of_a_power_law_is_found(law):
    rows = [{"t": t, "ms": 3.0 * t**law} for t in (1024, 2048, 4096, 8192)]
    assert exponent(rows, "ms") == pytest.approx(law, abs=1e-9)


def test_only_the_last_three_lengths_count_and_only_those_that_were_measured():
    rows = [{"t": t, "ms": 100.0 + t**2 / 2**20} for t in (1, 2, 4)]
    rows += [{"t": t, "ms": float(t)} for t in (1024, 2048, 4096)] + [{"t": 8192}]
    assert exponent(rows, "ms") == pytest.approx(1.0)


def test_the_slower_of_arithmetic_and_memory_is_predicted():
    roof = Roof(flops=1e9, bandwidth=1e6)
    assert roof.predicted_ms(Work(2e9, 1e3)) == pytest.approx(2000.0)
    assert roof.predicted_ms(Work(2e3, 5e6)) == pytest.approx(5000.0)
    case = roofline.beside(roof, Work(2e9, 1e6), 4000.0)
    assert case["intensity"] == 2000
    assert case["times_predicted"] == pytest.approx(2.0)
    assert case["flops_a_second"] == pytest.approx(5e8)
    assert Roof(3, 1) | Roof(2, 5) == Roof(3, 5)


def test_the_operations_of_the_plain_formula_are_those_that_pytorch_counts():
    t, h, d = 48, 3, 16
    inputs = torch.randn(3, 1, h, t, d).unbind()
    with FlopCounterMode(display=False) as counter:
        scaled_dot_product_attention(*inputs)
    assert roofline.naive(t, h, d, 4).flops == counter.get_total_flops()


def test_the_work_of_patterns_is_that_of_the_pairs_they_see():
    t, h, d, size = 64, 2, 16, 4
    shape = (t, h, d, size)
    i = torch.arange(t)
    distance = i[:, None] - i
    each = 4 * h * d

    seen = int(((distance >= 0) & (distance < 10)).sum())
    assert roofline.windowed(*shape, 10).flops == each * seen
    assert roofline.windowed(*shape, t).flops == each * int((distance >= 0).sum())
    assert roofline.tiled(*shape).flops == each * int((distance >= 0).sum())

    # A key that is global and near is two columns: longformer's formula counts both.
    near = int((distance.abs() < 10).sum())
    assert roofline.longformer(*shape, 10, 1).flops == each * (near + 2 * t)
    every = bigbird_plan(4, n_window=3, n_global=4, n_random=0, seed=0)
    assert roofline.bigbird(*shape, 16, every).flops == each * t * t
    assert roofline.windowed(*shape, 10).bytes == size * 4 * t * h * d
    assert roofline.step(t, h, 1, d, size).bytes == size * (2 * h * d + 2 * t * d)


def test_peaks_are_measured_and_finite():
    found = roofline.roof(torch.float32, n=32, mib=1)
    assert math.isfinite(found.flops)
    assert found.flops > 0 < found.bandwidth


def test_who_cannot_run_is_listed_with_its_own_words():
    inputs = torch.randn(3, 1, 2, 8, 4).unbind()

    def broken():
        def attend(query, key, value):
            raise RuntimeError("no kernel\nfor this (Triggered internally at x)")

        return attend

    makers = {
        "ours": lambda: F.scaled_dot_product_attention,
        "broken": broken,
        "fla": lambda: peers.package("flash-linear-attention"),
    }
    found = peers.tried(makers, lambda function: lambda: function(*inputs))
    assert list(found.calls) == ["ours"]
    assert found.absent["broken"] == "no kernel for this"
    if "flash-linear-attention" not in peers.versions():
        assert found.absent["fla"] == "flash-linear-attention is not installed"


def test_every_backend_of_sdpa_is_there_or_says_why():
    t = 16
    inputs = torch.randn(3, 1, 2, t, 4).unbind()
    makers = {name: make for name, make in peers.dense(t, True).items() if name.startswith(("SDPA", "naive"))}
    found = peers.tried(makers, lambda function: lambda: function(*inputs))
    assert {*found.calls, *found.absent} == {"naive", *peers.BACKENDS}
    expected = scaled_dot_product_attention(*inputs, is_causal=True)
    for call in found.calls.values():
        torch.testing.assert_close(call(), expected)
    assert all(found.absent.values())


@pytest.mark.parametrize("what", ["window", "ALiBi"])
def test_peers_with_a_mask_compute_what_the_course_does(what):
    from annotated_attention.alibi import alibi_attention, alibi_slopes
    from annotated_attention.sliding_window import sliding_window_attention

    t = 24
    inputs = torch.randn(3, 1, 2, t, 8).unbind()
    if what == "window":
        makers, expected = peers.window(t, 5), sliding_window_attention(*inputs, 5)
    else:
        makers, expected = peers.alibi(t, alibi_slopes(2)), alibi_attention(*inputs)
    torch.testing.assert_close(makers["SDPA, mask"]()(*inputs), expected)


def test_aims_on_a_gpu_are_the_worst_that_was_measured():
    about = {"what": "dense", "is_causal": True, "pass": "forward", "d": 128, "b": 1}
    cases = [
        {**about, "t": t, "peer": peer, "ms": ms}
        for t, times in ((8192, (2.0, 1.6, 4.0)), (16384, (4.0, 3.0, 2.0)), (1024, (9.0, 1.0, 1.0)))
        for peer, ms in zip(("ours", "SDPA, flash", "SDPA, cuDNN"), times, strict=True)
    ]
    cases += [
        {**about, "t": 8192, "peer": "naive", "ms": 0.1},
        {**about, "t": 8192, "peer": "x", "absent": "y"},
    ]
    cases += [{"what": "exponent", "mechanism": "window", "ms": ms} for ms in (1.0, 1.2)]
    found = {aim["aim"]: aim for aim in gpu_aims.aims(cases)}
    forward = found["forward, of the best SDPA backend's speed"]
    assert (forward["measured"], forward["holds"]) == (0.5, False)
    assert found["backward, of the best SDPA backend's speed"]["holds"] is None
    assert found["exponent of growth, window"]["measured"] == 1.2
    assert found["exponent of growth, window"]["holds"] is False


def test_a_phase_that_fails_or_has_no_time_is_told_and_the_next_one_runs(tmp_path, monkeypatch):
    def broken(end):
        yield {"what": "one"}
        raise RuntimeError("no more")

    phases = [gpu.Phase("first", 60, broken), gpu.Phase("second", 60, lambda end: iter([{"what": "two"}]))]
    phases.append(gpu.Phase("late", 0, lambda end: iter([{"what": "never"}])))
    monkeypatch.setattr(gpu, "phases", lambda rehearse: phases)
    result = gpu.run([], tmp_path / "gpu.json", rehearse=True, minutes=1)
    assert json.loads((tmp_path / "gpu.json").read_text("utf-8")) == result
    assert [phase["state"] for phase in result["phases"]] == ["RuntimeError: no more", "done", "done"]
    assert [case.get("what", case.get("skipped")) for case in result["cases"]] == [
        "one",
        "two",
        "the time was up",
    ]


def test_what_takes_too_long_is_ended():
    import sys
    import time

    began = time.monotonic()
    code, output = gpu.until(
        began + 1.5, [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"]
    )
    assert code == -9
    assert output.endswith("the time was up")
    assert time.monotonic() - began < 30


def test_results_have_one_form_and_say_what_measured_them():
    for benchmark in find_course(ROOT).benchmarks:
        if benchmark.result.exists():
            result = json.loads(benchmark.result.read_text("utf-8"))
            assert result["benchmark"] == benchmark.name
            assert re.fullmatch(r"\d{4}-\d\d-\d\d", result["date"])
            assert {"machine", "versions", "cases"} <= set(result)
            assert result["cases"]
