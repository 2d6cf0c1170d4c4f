"""The proof of `ring_zigzag`: each test is a claim that its page makes."""

import torch

from annotated_attention.ring_zigzag import zigzag_positions, zigzag_shard, zigzag_unshard


def test_there_and_back() -> None:
    text = torch.arange(24)
    shards = [zigzag_shard(text, rank, 3, 0) for rank in range(3)]
    assert all(torch.equal(x, zigzag_positions(8, rank, 3)) for rank, x in enumerate(shards))
    assert torch.equal(zigzag_unshard(shards, 0), text)
