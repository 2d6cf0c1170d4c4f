"""A sketch knows an answer again that is the same but for rounding, and no other."""

import numpy as np
import pytest

from coursekit.grading import wire
from coursekit.grading.compare import same
from coursekit.grading.public.sketch import alike, sketch
from coursekit.grading.values import BFLOAT16, Other

X = np.random.default_rng(0).normal(size=(3, 5, 7))
MARKED = np.where(np.arange(7) == 3, np.nan, X)


def changed(value, index, to):
    value = value.copy()
    value[index] = to
    return value


PAIRS = {
    "itself": (X, X),
    "rounding": (X * (1 + 1e-13), X),
    "another order in memory": (np.asfortranarray(X), X),
    "one entry": (changed(X, (1, 2, 3), 0.5), X),
    "one small entry": (changed(X, (1, 2, 3), X[1, 2, 3] + 1e-6), X),
    "two entries exchanged": (changed(changed(X, (0, 0, 0), X[0, 0, 1]), (0, 0, 1), X[0, 0, 0]), X),
    "sign": (-X, X),
    "shape": (X[..., None], X),
    "NaN": (MARKED, MARKED),
    "NaN elsewhere": (MARKED[..., ::-1], MARKED),
    "infinity": (changed(X, (0, 0, 0), np.inf), changed(X, (0, 0, 0), -np.inf)),
    "float32 of it": (X.astype(np.float32), X),
    "bfloat16 of it": (X.astype(BFLOAT16), X.astype(np.float32)),
    "float32 a little off": (X.astype(np.float32) + np.float32(1e-3), X),
    "whole numbers": (np.arange(6), np.arange(6)),
    "other whole numbers": (np.arange(6) + (np.arange(6) == 5), np.arange(6)),
    "truth values": (X > 0, X > 0),
    "truth values as numbers": ((X > 0).astype(int), X > 0),
    "complex": (X * 1j, X * 1j),
    "conjugate": (X * 1j, X * -1j),
    "empty": (X[:0], X[:0]),
    "a number": (0.5, 0.5 + 1e-14),
    "another number": (0.5, 0.6),
    "text": ("a", "b"),
    "nothing": (None, None),
    "a tuple": ((X, 1), (X, 1)),
    "a longer tuple": ((X, 1), (X, 1, 2)),
    "a dict": ({"a": X}, {"a": X}),
    "another name": ({"a": X}, {"b": X}),
    "an error": ([X, ValueError("no")], [X, ValueError("no")]),
    "another error": ([ValueError("no")], [ValueError("yes")]),
    "another type": (Other("set"), Other("object")),
}


@pytest.mark.parametrize(("ours", "theirs"), PAIRS.values(), ids=PAIRS)
def test_alike_is_what_the_same_answers_are(ours, theirs):
    sketched = sketch(theirs)
    # As it comes from the file.
    message = wire.encode({"it": sketched})
    header = wire.PREFIX.unpack(message[: wire.PREFIX.size])[0] + wire.PREFIX.size
    read = wire.decode(message[wire.PREFIX.size : header], message[header:])["it"]
    assert alike(sketch(ours), read) == same(ours, theirs)


def test_a_sketch_is_small():
    assert len(wire.encode({"it": sketch(np.zeros((100, 100)))})) < 300
