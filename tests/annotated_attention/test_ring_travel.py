"""The proof of `ring_travel`: each test is a claim that its page makes."""

import re
import signal
from collections.abc import Iterator

import pytest
import torch
from tests.annotated_attention.test_ring import TEXT, assert_is_attention
from tests.annotated_attention.test_ring_details import (
    buffers_of_a_round,
    faults,
    kinds_of_error,
    lose,
    strangers,
)
from tests.proof import normal
from tests.ranks import Failure, Ranks

from annotated_attention.ring_travel import pack, unpack

# Seconds until a group gives a rank up.
SOON = 3.0


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks() as pool:
        yield pool


def test_two_buffers_are_enough(ranks: Ranks) -> None:
    for places, messages in ranks.run(4, buffers_of_a_round):
        assert messages == ["rank 0", "rank 1", "rank 2", "rank 3"]
        assert len(places) == 2


@pytest.mark.parametrize("n", [2, 3, 4])
def test_any_number_of_ranks(ranks: Ranks, n: int, device: str) -> None:
    assert_is_attention(ranks, n, TEXT, torch.float64, True, device)


def assert_all_say_so(outcomes: list, lost: int, hop: int, *parcels: str) -> None:
    """All but the lost one, each for itself: which hop of what failed, from whom and to whom."""
    n = len(outcomes)
    assert outcomes.pop(lost) is None
    for rank, x in zip((rank for rank in range(n) if rank != lost), outcomes, strict=True):
        assert isinstance(x, Failure), x
        assert x.kind == "RuntimeError"
        ends = f"to rank {(rank + 1) % n} and from rank {(rank - 1) % n}: a rank may be lost, or later than the timeout"
        found = re.match(rf"ring attention, rank {rank} of {n}, hop (\d) of {n - 1}, (.*) {ends}", x.message)
        assert found, x.message
        # Those further away have come one hop further. What was on its way to a neighbour may have been lost, too.
        assert 1 <= int(found[1]) <= min(hop + 1, n - 1)
        assert found[2] in parcels


@pytest.mark.parametrize(("n", "lost", "hop"), [(4, 2, 2), (2, 1, 1)], ids=["4", "2"])
@pytest.mark.parametrize("what", ["keys", "gradients"], ids=["forward", "backward"])
def test_a_lost_rank_is_named(n: int, lost: int, hop: int, what: str) -> None:
    with Ranks(timeout=SOON) as ranks:
        outcomes = ranks.outcomes(n, lose, lost, what, hop, signal.SIGKILL, gone=lost)
    assert_all_say_so(outcomes, lost, hop, what, "keys")


def test_a_late_rank_is_named() -> None:
    with Ranks(timeout=SOON) as ranks:
        outcomes = ranks.outcomes(4, lose, 1, "keys", 1, signal.SIGSTOP, gone=1)
    assert_all_say_so(outcomes, 1, 1, "keys")


def test_who_comes_too_late_to_compare_is_named() -> None:
    with Ranks(timeout=SOON) as ranks:
        outcomes = ranks.outcomes(4, lose, 3, "keys", 0, signal.SIGKILL, gone=3)
    for rank, x in enumerate(outcomes[:3]):
        assert isinstance(x, Failure), x
        assert x.message.startswith(
            f"ring attention, rank {rank} of 4, comparing shapes with all: a rank may be lost"
        )


@pytest.mark.parametrize("fault", ["refusal", "difference"])
def test_all_find_the_same_fault(ranks: Ranks, fault: str) -> None:
    said = {
        "refusal": "rank 2: no keys came",
        "difference": "shape is 5 on rank 0, 7 on rank 2: the same on all ranks is wanted",
    }
    assert ranks.run(4, faults, fault) == [said[fault]] * 4
    assert ranks.run(4, faults, "none") == ["none"] * 4


def test_a_stranger_is_refused(ranks: Ranks) -> None:
    refused = "group does not contain this process: one that it belongs to is wanted"
    assert ranks.run(4, strangers) == [refused, "a place", "a place", refused]


def test_what_was_packed_is_unpacked() -> None:
    key, value = normal("key", 2, 3, 5, 7), normal("value", 2, 3, 5, 11)
    packed = pack(key.transpose(0, 1).contiguous().transpose(0, 1), value)
    keys, values = unpack(packed, key, value)
    assert torch.equal(keys, key)
    assert torch.equal(values, value)
    values.zero_()
    assert packed[key.numel() :].eq(0).all()


def test_the_pool_says_what_happened(ranks: Ranks) -> None:
    with pytest.raises(AssertionError, match="rank 0 of 3:\nTraceback"):
        ranks.run(3, kinds_of_error, "odd")
