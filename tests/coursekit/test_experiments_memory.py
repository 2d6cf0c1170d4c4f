"""The most that new tensors held at one time."""

import torch

from coursekit.experiments.memory import Peak


def test_what_is_freed_makes_room_and_what_was_known_is_not_counted():
    known = torch.ones(1000)
    with Peak([known]) as seen:
        one = known + 1
        del one
        two = known * 2
        view = two[:10]
        del two
        known += 1
        assert seen.now == 4000
        del view
    assert (seen.now, seen.most) == (0, 4000)
