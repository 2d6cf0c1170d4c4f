"""The wire against a hostile child: whatever the bytes are, the grader ends with an answer or a `StudentError`."""

import contextlib
import io
import json
import math
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.coursekit.grading.tiny import handed_in, write_lesson

from coursekit.grading import wire
from coursekit.grading.backends import SecondProcess
from coursekit.grading.checking import Checks
from coursekit.grading.feedback import plain
from coursekit.grading.sandbox.host import Host
from coursekit.grading.sandbox.limits import Limits
from coursekit.grading.sandbox.process import Process
from coursekit.grading.submission import Submission
from coursekit.grading.values import BFLOAT16, DTYPES, Other, Reference, dtype_name, in_words
from coursekit.grading.verbs import StudentError, stops_in_words

# Numbers that break conversions.
EXTREMES = st.sampled_from(
    [0, 1, -1, 2**31, 2**61 - 1, 2**63, 10**400, math.inf, -math.inf, math.nan, 1e308, -0.0, True, None]
)
SCALARS = st.one_of(
    EXTREMES, st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["\x1b[2J", "\ud800"])
)
SHAPES = st.one_of(st.lists(st.one_of(st.integers(-2, 5), EXTREMES), max_size=4), SCALARS)
KINDS = st.sampled_from([*wire._KINDS, *wire._INPUT_KINDS, "pickle", ""])
ARRAYS = st.tuples(
    st.one_of(st.sampled_from([*DTYPES, "bfloat16", "object", "O", "V8"]), SCALARS),
    SHAPES,
    st.one_of(st.permutations(range(3)), SHAPES),
)


def nodes(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Headers that are nearly right: a kind with contents that may be another's."""
    inner = st.recursive(
        leaves,
        lambda below: st.one_of(
            st.dictionaries(KINDS, below, min_size=1, max_size=1),
            st.dictionaries(KINDS, st.lists(below, max_size=3), min_size=1, max_size=1),
            st.builds(lambda pairs: {"dict": pairs}, st.lists(st.tuples(SCALARS, below), max_size=3)),
            st.builds(
                lambda kind, array: {kind: array}, st.sampled_from(["array", "tensor", "leaf"]), ARRAYS
            ),
        ),
        max_leaves=8,
    )
    return inner


HEADERS = nodes(SCALARS)
MESSAGES = st.builds(
    lambda pairs: {"dict": pairs},
    st.lists(st.tuples(st.sampled_from(["value", "error", "printed", "x"]), HEADERS), max_size=3),
)


def decoded(header: bytes, body: bytes, inputs: bool = False) -> Any:
    try:
        return wire.decode(header, body, inputs=inputs)
    except wire.WireError:
        return None


@given(MESSAGES, st.binary(max_size=64), st.booleans())
@settings(max_examples=200)
@example({"dict": [["a", {"reference": math.inf}]]}, b"", False)
@example({"dict": [["a", {"complex": [10**400, 0]}]]}, b"", False)
@example({"dict": [["a", {"leaf": ["int64", [1], [0]]}]]}, b"12345678", True)
@example({"dict": [["a", {"tuple": {"a": 1}}]]}, b"", False)
def test_a_header_that_is_nearly_right_is_read_or_refused(header: Any, body: bytes, inputs: bool):
    decoded(json.dumps(header).encode(), body, inputs)


@given(st.binary(max_size=120), st.binary(max_size=16), st.booleans())
@settings(max_examples=100)
def test_any_bytes_are_read_or_refused(header: bytes, body: bytes, inputs: bool):
    decoded(header, body, inputs)


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.complex_numbers(allow_nan=False),
        st.text(max_size=5),
        st.builds(Reference, st.integers(0, 99)),
        st.builds(Other, st.text(max_size=5)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers(-(2**60), 2**60)), inner, max_size=3),
    ),
    max_leaves=10,
)


@given(VALUES)
@settings(max_examples=150)
def test_every_answer_arrives_as_it_was(value: Any):
    assert wire.receive(io.BytesIO(wire.encode({"value": value})))["value"] == value


@given(
    st.sampled_from([*DTYPES, "bfloat16"]),
    st.lists(st.integers(0, 4), max_size=4),
    st.randoms(use_true_random=False),
)
def test_every_array_arrives_bit_for_bit(name: str, shape: list[int], random: Any):
    size = math.prod(shape) * (2 if name == "bfloat16" else DTYPES[name].itemsize)
    raw = bytearray(random.randbytes(size))
    if name == "bool":
        raw = bytearray(byte & 1 for byte in raw)
    flat = np.frombuffer(raw, np.uint16 if name == "bfloat16" else DTYPES[name])
    if name == "bfloat16":
        flat = np.asarray(flat.astype(np.uint32) << 16).view(np.float32).astype(BFLOAT16)
    order = list(range(len(shape)))
    random.shuffle(order)
    array = flat.reshape(shape).transpose(order)
    found = wire.receive(io.BytesIO(wire.encode({"value": array})))["value"]
    assert (found.shape, dtype_name(found)) == (array.shape, name)
    assert found.tobytes() == array.tobytes()


@given(VALUES, st.data())
@settings(max_examples=150)
def test_a_message_with_bytes_changed_or_cut_is_read_or_refused(value: Any, data: st.DataObject):
    message = bytearray(wire.encode({"value": value, "array": np.arange(6.0).reshape(2, 3)}))
    for _ in range(data.draw(st.integers(1, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(message)))
    stream = io.BytesIO(bytes(message[:cut]))
    with contextlib.suppress(wire.WireError, EOFError):
        assert isinstance(wire.receive(stream), dict)


def test_only_arrays_and_plain_values_come_back():
    for value in (torch.ones(2), torch.ones(2, requires_grad=True), torch.float32):
        with pytest.raises(wire.WireError, match="malformed"):
            wire.receive(io.BytesIO(wire.encode({"value": value})))


def test_to_read_a_message_takes_memory_in_proportion_to_its_length():
    """Headers chosen to blow up: what is read may be larger than the bytes by a factor, not without measure."""
    lists = b'{"dict":[["a",{"list":[' + b",".join([b"[]"] * 40_000) + b"]}]]}"
    nests = b'{"dict":[["a",' + b'{"list":[' * 30 + b",".join([b'{"list":[]}'] * 15_000) + b"]}" * 30 + b"]]}"
    claims = json.dumps({"dict": [["a", {"array": ["int8", [1 << 28, 0, 1 << 28], [0, 1, 2]]}]]}).encode()
    keys = json.dumps({"dict": [["a", {"dict": [[k * (2**61 - 1), 0] for k in range(6_000)]}]]}).encode()
    for header in (lists, nests, claims, keys, b"9" * 100_000, b"[" * 100_000, b'{"list":[' * 12_000):
        assert len(header) <= wire.HEADER_LIMIT
        tracemalloc.start()
        decoded(header, b"")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 * len(header) + (1 << 20)


def test_a_length_that_is_only_claimed_takes_no_memory():
    claim = wire.PREFIX.pack(wire.HEADER_LIMIT, wire.BODY_LIMIT) + b"{}"
    tracemalloc.start()
    with pytest.raises(EOFError):
        wire.receive(io.BytesIO(claim))
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


ERRORS = st.one_of(
    HEADERS,
    st.builds(
        lambda pairs: {"dict": pairs},
        st.lists(
            st.tuples(
                st.sampled_from(["type", "bases", "message", "name", "lines", "column", "raised"]),
                st.one_of(
                    st.sampled_from(
                        ["Timeout", "MissingName", "Ended", "SyntaxError", "NotImplementedError"]
                    ),
                    st.just(
                        {"tuple": [{"tuple": [10**30, "f"]}, {"tuple": [-1, "\x1b"]}, {"tuple": [True, 3]}]}
                    ),
                    HEADERS,
                ),
            ),
            max_size=7,
        ),
    ),
)


@given(ERRORS, st.binary(max_size=32), st.booleans())
@settings(max_examples=200)
@example({"dict": [["type", "MissingName"], ["name", "\x1b[2J" * 9999]]}, b"", False)
@example({"dict": [["name", {"array": ["int8", [2], [0]]}]]}, b"12", True)
def test_whatever_is_told_of_an_error_can_be_shown(error: Any, body: bytes, notebook: bool):
    message = decoded(json.dumps({"dict": [["error", error]]}).encode(), body)
    if message is None:
        return
    submission = Submission("x = 1\ny = x / 0\n", "\x1b[2Ja.py", "a.py", [1, 2] if notebook else [])
    told = StudentError(message["error"], submission, loading=notebook)
    for text in (told.text, told.stop, str(told), *stops_in_words(message["error"], submission)):
        assert len(text) < 30_000
        assert all(letter.isprintable() or letter == "\n" for letter in text)


@given(HEADERS, st.binary(max_size=32))
@settings(max_examples=150)
def test_whatever_is_answered_can_be_said_in_words(value: Any, body: bytes):
    message = decoded(json.dumps({"dict": [["value", value]]}).encode(), body)
    if message is not None:
        assert in_words(message["value"]).isprintable()


class Scripted(Process):
    """A child that has its answers ready before it is asked, and then is gone."""

    def __init__(self, script: bytes, folder: Path) -> None:
        theirs, requests = os.pipe()
        answers, ours = os.pipe()
        os.write(ours, script[: 1 << 16])
        os.close(ours)
        super().__init__(requests, answers, folder, 0)
        self.theirs = theirs

    def kill(self) -> None:
        return

    def wait(self, seconds: float) -> int | None:
        if self.theirs is not None:
            os.close(self.theirs)
        self.theirs = None
        return 0


class ScriptedHost(Host):
    def __init__(self, script: bytes, folder: Path) -> None:
        super().__init__(("clock",), {}, Limits())
        self.script, self.folder = script, folder

    def start(self) -> Process:
        return Scripted(self.script, self.folder)


def answered(number: int, answer: Any) -> bytes:
    """A message as a child sends it, with its own bytes where an answer belongs."""
    header = json.dumps({"dict": [["number", number], *answer]}).encode()
    return wire.PREFIX.pack(len(header), 0) + header


ANSWERS = st.lists(
    st.one_of(
        st.tuples(st.just("value"), HEADERS),
        st.tuples(st.just("error"), ERRORS),
        st.tuples(st.just("printed"), st.one_of(HEADERS, st.just({"tuple": ["\x1b[2J" * 99, 10**4000]}))),
    ),
    max_size=3,
)


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> Checks:
    return Checks(write_lesson(tmp_path_factory.mktemp("course")))


@given(st.lists(ANSWERS, max_size=3), st.one_of(st.just(b""), st.binary(max_size=30)))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example([[("value", {"tuple": []})], [("error", {"dict": [["name", "\x1b"]]})]], b"\xff" * 12)
def test_whatever_a_child_sends_the_checks_end_with_a_report(
    checks: Checks, tmp_path: Path, answers: Any, rest: bytes
):
    """The whole way: a child that answers what it likes to the first questions, and then sends some bytes."""
    good = answered(1, [("value", None)]) + answered(2, [("value", {"list": []})])
    script = good + b"".join(answered(number, answer) for number, answer in enumerate(answers, 3)) + rest
    backend = SecondProcess(handed_in("x = 1\n"), host=ScriptedHost(script, tmp_path))
    report = checks.run(backend.submission, backend=backend)
    backend.close()
    assert report.earned == 0
    text = plain(report) + "".join(backend.events)
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert len(text) < 200_000
