"""Whatever a submission's process sends, or does not, the grader goes on: with a sentence, within its time, with
the next question answered by a new process."""

import math
import time
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
import torch

from coursekit.grading import backends, wire
from coursekit.grading.backends import SecondProcess
from coursekit.grading.sandbox import Host
from coursekit.grading.sandbox.process import in_words
from coursekit.grading.submission import Submission
from coursekit.grading.verbs import Student, StudentError

# A submission that finds the grader's descriptors and speaks over them itself.
CODE = """
import os, struct, sys, threading, time

def is_open(number):
    try:
        os.fstat(number)
        return True
    except OSError:
        return False

def descriptors():
    import stat
    pipes = [n for n in range(3, 64) if is_open(n) and stat.S_ISFIFO(os.fstat(n).st_mode)]
    answers = []
    for number in pipes:
        try:
            os.write(number, b"")
            answers.append(number)
        except OSError:
            pass
    requests = [n for n in pipes if n not in answers]
    return requests[0], answers[0]

REQUESTS, ANSWERS = descriptors()

def asked():
    frame = sys._getframe()
    while "request" not in frame.f_locals or "number" not in frame.f_locals["request"]:
        frame = frame.f_back
    return frame.f_locals["request"]["number"]

def sent(data):
    while data:
        data = data[os.write(ANSWERS, data):]

def message(header, body=b""):
    header = header.replace("NUMBER", str(asked())).encode("latin-1")
    return struct.pack("<IQ", len(header), len(body)) + header + body

def same(x): return x

def raw(text):
    sent(text.encode("latin-1"))
    time.sleep(600)

def forge(header, body=""):
    sent(message(header, body.encode("latin-1")))
    time.sleep(600)

def forever(header):
    start = message(header)
    sent(start[:20])
    while True:
        sent(b" ")
        time.sleep(0.02)

def ahead():
    value = '{"dict": [["number", %d], ["value", "forged"]]}'
    number = asked()
    for known in (number, number + 1):
        header = (value % known).encode()
        sent(struct.pack("<IQ", len(header), 0) + header)
    return "true"

def deaf():
    sent(message('{"dict": [["number", NUMBER], ["value", 1]]}'))
    time.sleep(600)

def closes(requests, answers):
    if requests: os.close(REQUESTS)
    if answers: os.close(ANSWERS)
    if not answers: sent(message('{"dict": [["number", NUMBER], ["value", 1]]}'))
    time.sleep(600)

def loop():
    while True: pass

def sleeps(): time.sleep(600)

def exits(code): os._exit(code)

def crash():
    import ctypes
    ctypes.string_at(0)
"""
SUBMISSION = Submission(CODE, "hostile.py", "hostile.py")


@pytest.fixture
def backend(zygote: Host, monkeypatch: pytest.MonkeyPatch) -> Generator[SecondProcess]:
    monkeypatch.setattr(backends, "ENDING_SECONDS", 0.3)
    backend = SecondProcess(SUBMISSION, seconds=0.2, host=zygote)
    yield backend
    backend.close()


@pytest.fixture
def student(backend: SecondProcess) -> Student:
    return Student(backend)


def fails(student: Student, name: str, *args: Any) -> str:
    with pytest.raises(StudentError) as error:
        student.call(name, *args)
    return error.value.sentence


UNREADABLE = {
    "not a message": "nothing that anyone could read, and long enough to be one",
    "an endless header": wire.PREFIX.pack(wire.HEADER_LIMIT + 1, 0).decode("latin-1"),
    "an endless body": wire.PREFIX.pack(2, 1 << 62).decode("latin-1") + "{}",
    "not UTF-8": wire.PREFIX.pack(2, 0).decode("latin-1") + "\xff\xfe",
    "not JSON": wire.PREFIX.pack(2, 0).decode("latin-1") + "{{",
}


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE)
def test_bytes_that_are_no_message_are_one_failure(student: Student, backend: SecondProcess, text: str):
    told = fails(student, "raw", text)
    assert told.startswith("the answer cannot be read: ")
    assert backend.events == [f"in raw: {told}"]
    assert student.call("same", 1) == 1


FORGED = {
    "nested without end": '{"dict": [["number", NUMBER], ["value", '
    + '{"list": [' * 800
    + "]}" * 800
    + "]]}",
    "a name of no dtype": '{"dict": [["number", NUMBER], ["value", {"array": ["object", [1], [0]]}]]}',
    "a size beyond all": '{"dict": [["number", NUMBER], ["value", {"array": ["int8", [4194304, 16777216], [0, 1]]}]]}',
    "no number": '{"dict": [["value", 1]]}',
    "a number that is text": '{"dict": [["number", "NUMBER"], ["value", 1]]}',
    "a number beside another": '{"dict": [["number", NUMBER1], ["value", 1]]}',
    "an infinite reference": '{"dict": [["number", NUMBER], ["value", {"reference": Infinity}]]}',
    "a tensor": '{"dict": [["number", NUMBER], ["value", {"leaf": ["int8", [], []]}]]}',
    "no dict": '{"list": [NUMBER]}',
}


@pytest.mark.parametrize("header", FORGED.values(), ids=FORGED)
def test_messages_that_are_no_answer_are_one_failure(student: Student, header: str):
    assert fails(student, "forge", header).startswith("the answer cannot be read: ")
    assert student.call("same", 1) == 1


ODD = {
    "printed is a number": ('["printed", 3]', None),
    "printed is half": ('["printed", {"tuple": ["text"]}]', None),
    "printed counts text": ('["printed", {"tuple": ["text", "more"]}]', None),
    "called is a number": ('["called", 5]', None),
    "called has no names": ('["called", {"list": [{"list": []}, {"dict": []}, 1, null]}]', None),
    "not a number, and infinity": ('["value", {"list": [NaN, Infinity, -Infinity]}]', "list"),
    "an unknown key": ('["grade", 100]', None),
}


@pytest.mark.parametrize(("part", "kind"), ODD.values(), ids=ODD)
def test_odd_parts_of_an_answer_are_passed_over(student: Student, backend: SecondProcess, part: str, kind):
    answer = student.call("forge", '{"dict": [["number", NUMBER], ' + part + "]}")
    assert type(answer).__name__ == (kind or "NoneType")
    if kind:
        assert math.isnan(answer[0])
    assert backend.events == []
    assert backend.called == []


@pytest.mark.parametrize("more", ["-5", "1" + "0" * 400])
def test_the_count_of_lines_that_were_printed_is_bounded(student: Student, backend: SecondProcess, more: str):
    backend.printed()
    student.call("forge", '{"dict": [["number", NUMBER], ["printed", {"tuple": ["a", ' + more + "]}]]}")
    printed, lines = backend.printed()
    assert printed == "a"
    assert 0 <= lines <= backends.PRINTED_LINES_LIMIT


@pytest.mark.parametrize(
    "error",
    [
        "3",
        '"text"',
        '{"list": []}',
        '{"dict": [["type", 3], ["bases", 4], ["message", {"list": []}], ["lines", "abc"], ["column", "x"]]}',
        '{"dict": [["type", "A"], ["lines", {"list": [{"tuple": [NUMBER000000000000, "f"]}, {"tuple": [1]}]}]]}',
        '{"dict": [["type", "A"], ["lines", {"list": [{"tuple": [-1, "f"]}, {"tuple": [1.5, null]}]}]]}',
        '{"dict": [["type", "MissingName"], ["name", "x"], ["message", {"tuple": []}]]}',
    ],
)
def test_an_error_of_any_shape_is_a_short_sentence(student: Student, error: str):
    told = fails(student, "forge", '{"dict": [["number", NUMBER], ["error", ' + error + "]]}")
    assert 0 < len(told) < 200
    assert told.isprintable()


def test_bytes_that_drip_slowly_do_not_stop_the_clock(student: Student):
    header = '{"dict": [["number", NUMBER]]}' + " " * 1000
    assert fails(student, "forever", header) == "forever took longer than 0.2 s: does a loop never end?"


def test_half_a_message_and_then_silence_is_a_question_that_took_too_long(student: Student):
    whole = wire.PREFIX.pack(40, 0).decode("latin-1") + '{"dict": ['
    for part in (whole[:5], whole):
        student._backend.slow.clear()  # type: ignore[attr-defined]
        assert fails(student, "raw", part).startswith("raw took longer than 0.2 s")


def test_an_answer_to_a_question_that_was_not_asked_yet_comes_to_light(student: Student):
    assert student.call("ahead") == "forged"
    assert student.call("same", 1) == "forged"
    told = "the answer cannot be read: it answers another question"
    assert fails(student, "same", 2) == told
    assert student.call("same", 3) == 3


def test_a_process_that_does_not_read_cannot_hold_a_long_question_up(student: Student):
    assert student.call("deaf") == 1
    long = torch.zeros(200_000)
    assert fails(student, "same", long).startswith("same took longer than 0.2 s")
    assert student.call("ahead") == "forged"


@pytest.mark.parametrize(("requests", "answers"), [(False, True), (True, True)])
def test_who_closes_the_way_of_the_answers_gives_none(student: Student, requests: bool, answers: bool):
    told = "the process that ran the code ended by itself (it closed the way its answers take)"
    assert fails(student, "closes", requests, answers) == told
    assert student.call("same", 1) == 1


def test_who_closes_the_way_of_the_questions_gets_none(student: Student):
    assert student.call("closes", True, False) == 1
    told = "the process that ran the code ended by itself (it closed the way its answers take)"
    assert fails(student, "same", 1) == told
    assert student.call("same", 1) == 1


@pytest.mark.parametrize("name", ["loop", "sleeps"])
def test_the_sentence_has_the_limit_whether_the_code_worked_or_slept(
    student: Student, backend: SecondProcess, name: str
):
    told = f"{name} took longer than 0.2 s: does a loop never end?"
    assert fails(student, name) == told
    assert fails(student, name) == told
    assert backend.events == [f"in {name}: {told}"]


def test_an_answer_longer_than_the_format_allows_never_reaches_the_grader(student: Student):
    assert student.call("same", np.zeros(1000, np.int8)).size == 1000
    told = fails(student, "forge", '{"dict": [["number", NUMBER]]}', "x" * 100)
    assert told == "the answer cannot be read: malformed message: bytes left over"


def test_the_submission_has_a_time_in_all_and_then_no_more_questions(zygote: Host):
    backend = SecondProcess(SUBMISSION, seconds=5, host=zygote)
    student = Student(backend)
    assert student.call("same", 1) == 1
    backend.left = 0.2
    told = "the time for the whole submission (60 s) is used up"
    assert [fails(student, name) for name in ("sleeps", "same", "loop")] == [told] * 3
    assert backend.slow == {}
    assert backend.events == [f"in sleeps: {told}"]
    backend.close()


def test_time_between_questions_is_the_graders(zygote: Host, monkeypatch: pytest.MonkeyPatch):
    backend = SecondProcess(SUBMISSION, host=zygote)
    Student(backend).call("same", 1)
    before = backend.left
    now = time.monotonic
    monkeypatch.setattr("coursekit.grading.sandbox.clock.time.monotonic", lambda: now() + 1000)
    Student(backend).call("same", 1)
    assert before - 60 < backend.left < before
    backend.close()


def test_a_file_that_never_finishes_is_ended(zygote: Host, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backends, "LOAD_SECONDS", 0.2)
    backend = SecondProcess(Submission("while True: pass\n", "a.py", "a.py"), host=zygote)
    with pytest.raises(StudentError) as error:
        Student(backend).begin(0)
    told = "the file took longer than 0.2 s: does a loop never end?"
    assert error.value.sentence == told
    assert error.value.loading
    assert backend.events == [f"while the file was loaded: {told}"]
    backend.close()


def test_what_happened_is_kept_once_each_and_never_without_end(student: Student, backend: SecondProcess):
    for code in (*range(30), 3, 4):
        fails(student, "exits", code)
    assert len(backend.events) == backends.EVENTS_LIMIT
    assert len(set(backend.events)) == backends.EVENTS_LIMIT


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (7, "exit code 7"),
        (0, "exit code 0"),
        (-31, "stopped for a call of the system that is not allowed"),
        (-9, "killed, most likely for want of memory"),
        (-11, "it crashed: segmentation fault"),
        (-15, "SIGTERM"),
        (-99, "signal 99"),
        (None, "it closed the way its answers take"),
    ],
)
def test_how_a_process_ended_is_said_in_words(code: int | None, words: str):
    assert in_words(code) == words


def test_a_crash_is_named(student: Student):
    assert fails(student, "crash").endswith("(it crashed: segmentation fault)")
    assert student.call("same", 1) == 1
