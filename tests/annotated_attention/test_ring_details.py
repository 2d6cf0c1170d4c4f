"""What the proofs of `ring` and its parts are made of: functions that run in a rank, and attention by all of them."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from tests import proof
from tests.annotated_attention.test_flash_details import Products
from tests.proof import normal
from tests.ranks import Ranks, groups
from torch import Tensor

from annotated_attention import ring
from annotated_attention.ring import ring_attention
from annotated_attention.ring_costs import decode_across_ranks
from annotated_attention.ring_travel import Parcel, Ring, check_ranks
from annotated_attention.ring_zigzag import zigzag_shard, zigzag_unshard
from coursekit.experiments.memory import Peak

Tensors = tuple[Tensor, ...]


def share(x: Tensor, n: int, is_causal: bool) -> Tensor:
    """This rank's: folded where it has to be, else straight."""
    rank = dist.get_rank(groups[n])
    return zigzag_shard(x, rank, n) if is_causal else x.chunk(n, dim=2)[rank]


def whole(shares: list[Tensor], is_causal: bool) -> Tensor:
    return zigzag_unshard(list(shares)) if is_causal else torch.cat(list(shares), dim=2)


def attend(
    n: int, inputs: Tensors, grads: Tensors | None, is_causal: bool, scale: float | None, device: str
) -> Tensors:
    """In a rank: its share of output and logarithm, or of the gradients."""
    mine = [share(x, n, is_causal).to(device) for x in inputs]
    options = {"is_causal": is_causal, "scale": scale}
    if grads is None:
        results = ring_attention(*mine, groups[n], **options)
        return tuple(x.cpu() for x in results)
    leaves = [x.requires_grad_() for x in mine]
    upstream = [share(x, n, is_causal).to(device) for x in grads]
    results = ring_attention(*leaves, groups[n], **options)
    return tuple(x.cpu() for x in torch.autograd.grad(results, leaves, upstream))


class Remote(torch.autograd.Function):
    """Attention by `n` ranks as a function of the whole text, with its gradient."""

    @staticmethod
    def forward(ctx, ranks: Ranks, n: int, options: tuple, *inputs: Tensor):
        ctx.save_for_backward(*inputs)
        ctx.call = ranks, n, options
        return Remote.gather(ctx, inputs, None)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        return None, None, None, *Remote.gather(ctx, ctx.saved_tensors, grads)

    @staticmethod
    def gather(ctx, inputs: Tensors, grads: Tensors | None) -> Tensors:
        ranks, n, options = ctx.call
        device = inputs[0].device
        if device.type == "cuda" and torch.cuda.device_count() < n:
            pytest.skip(f"needs CUDA on {n} GPUs: NCCL has no two ranks on one")
        sent = [None if xs is None else tuple(x.detach().cpu() for x in xs) for xs in (inputs, grads)]
        shares = zip(*ranks.run(n, attend, *sent, *options, device.type), strict=True)
        return tuple(whole(xs, options[0]).to(device) for xs in shares)


def by(
    ranks: Ranks, n: int, *, is_causal: bool = False, scale: float | None = None
) -> Callable[..., tuple[Tensor, Tensor]]:
    """`ring_attention` of `n` ranks, for whoever has the whole text."""
    return partial(Remote.apply, ranks, n, (is_causal, scale))


def without_lse(function: Callable[..., Any]) -> Callable[..., Tensor]:
    return lambda *inputs: function(*inputs)[0]


def small(n: int, is_causal: bool, dtype: torch.dtype = torch.float32, t: int = 6, s: int = 6) -> Tensors:
    """A rank's own inputs, drawn by its rank: two texts, six heads on three, values of another width."""
    rank = dist.get_rank(groups[n])
    shapes = {"query": (2, 6, t, 5), "key": (2, 3, s, 5), "value": (2, 3, s, 7)}
    return tuple(normal(f"{x} {rank}", *shape, dtype=dtype) for x, shape in shapes.items())


def forward_backward(n: int, is_causal: bool, inputs: Tensors) -> None:
    output, lse = ring_attention(*inputs, groups[n], is_causal=is_causal)
    (output.sum() + lse.sum()).backward()


class Handed:
    """Counts the bytes that are handed to `isend`, and the messages."""

    def __init__(self) -> None:
        self.bytes = self.messages = 0
        self.start = dist.batch_isend_irecv

    def __enter__(self) -> "Handed":
        self.patch = mock.patch.object(dist, "batch_isend_irecv", self.count)
        self.patch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.patch.stop()

    def count(self, batch: list[dist.P2POp]) -> list[dist.Work]:
        for one in batch:
            if one.op is dist.isend:
                self.bytes += one.tensor.nbytes
                self.messages += 1
        return self.start(batch)


def handed(n: int, is_causal: bool, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """Messages and bytes, forward and backward."""
    inputs = [x.requires_grad_() for x in small(n, is_causal, dtype)]
    with Handed() as forward:
        output, lse = ring_attention(*inputs, groups[n], is_causal=is_causal)
    with Handed() as backward:
        (output.sum() + lse.sum()).backward()
    return forward.messages, forward.bytes, backward.messages, backward.bytes


def operations(n: int, is_causal: bool) -> list[tuple[int, int]]:
    """Of each step forward, and of each back, what `Products` counts: operations and masks."""
    found = []

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with Products() as seen:
                result = function(*arguments)
            found.append((seen.operations, seen.masks))
            return result

        return call

    inputs = [x.requires_grad_() for x in small(n, is_causal)]
    with (
        mock.patch.object(ring, "flash_forward", counted(ring.flash_forward)),
        mock.patch.object(ring, "flash_backward", counted(ring.flash_backward)),
    ):
        forward_backward(n, is_causal, tuple(inputs))
    return found


def peaks(n: int, t: int) -> tuple[int, int]:
    """The most bytes that new tensors hold at a time, forward and forward and backward."""
    found = []
    for backward in (False, True):
        inputs = [normal(x, 1, 2, t, 8).float().requires_grad_(backward) for x in ("q", "k", "v")]
        # What the ranks tell one another beforehand is no tensor of the text, and gloo frees it when it likes.
        with mock.patch("annotated_attention.ring.check_ranks"), Peak(inputs) as seen:
            output, _ = ring_attention(*inputs, groups[n], is_causal=True)
            if backward:
                output.backward(inputs[0].detach())
        found.append(seen.most)
    return found[0], found[1]


def rooms(n: int, dtype: torch.dtype) -> dict[str, int]:
    """The bytes of the parcels on a round there and back, by what is in them."""
    begin, found = Parcel.__init__, {}

    def beginning(parcel: Parcel, ring: Ring, what: str, full: Tensor) -> None:
        begin(parcel, ring, what, full)
        found[what] = parcel.full.nbytes + parcel.empty.nbytes

    with mock.patch.object(Parcel, "__init__", beginning):
        forward_backward(n, True, tuple(x.requires_grad_() for x in small(n, True, dtype)))
    return found


def kinds_of_error(n: int, which: str) -> None:
    """Rank `n - 1` brings what is wrong, all others what is right."""
    is_wrong = dist.get_rank(groups[n]) == n - 1
    options: dict[str, Any] = {"is_causal": True}
    query, key, value = small(n, True)
    if is_wrong and which == "length":
        query, key, value = small(n, True, t=8, s=8)
    elif is_wrong and which == "odd":
        query, key, value = small(n, True, t=5, s=5)
    elif is_wrong and which == "keys":
        query, key, value = small(n, True, t=6, s=4)
    elif is_wrong and which == "heads":
        query = query[:, :4]
    elif is_wrong and which == "dtype":
        query, key, value = query.double(), key.double(), value.double()
    elif is_wrong and which == "rank":
        query = query[0]
    elif is_wrong and which == "scale":
        options["scale"] = 0.5
    elif is_wrong and which == "is_causal":
        options["is_causal"] = False
    elif is_wrong and which == "device":
        query, key, value = query.to("meta"), key.to("meta"), value.to("meta")
    elif is_wrong and which == "none":
        value = None
    elif is_wrong and which == "grad":
        query.requires_grad_()
    proof.bare(ring_attention)(query, key, value, groups[n], **options)


def lose(n: int, lost: int, what: str, hop: int, how: int) -> None:
    """Rank `lost` gets a signal when it is about to send a parcel for the `hop`-th time; for 0, before all."""
    send = Parcel.send
    if hop == 0 and dist.get_rank(groups[n]) == lost:
        os.kill(os.getpid(), how)

    def sending(parcel: Parcel) -> None:
        if (parcel.ring.rank, parcel.what, parcel.hops + 1) == (lost, what, hop):
            os.kill(os.getpid(), how)
        send(parcel)

    with mock.patch.object(Parcel, "send", sending):
        forward_backward(n, True, tuple(x.requires_grad_() for x in small(n, True)))


def shares_as_they_come(n: int, inputs: Tensors) -> Tensor:
    """Cut straight, and said to be causal."""
    return ring_attention(*(share(x, n, False) for x in inputs), groups[n], is_causal=True)[0]


def asks_twice(n: int) -> str:
    query, key, value = small(n, False)
    output, _ = ring_attention(query.requires_grad_(), key, value, groups[n])
    try:
        torch.autograd.grad(output.sum(), query, create_graph=True)
    except RuntimeError as error:
        return str(error)
    return "nothing was said"


def buffers_of_a_round(n: int) -> tuple[set[int], list[str]]:
    """Where the parcels of a round lay, and what was in them, by rank of origin."""
    place = Ring.of(groups[n])
    parcel = Parcel(place, "numbers", torch.full((3,), float(place.rank)))
    places, found = set(), {}
    for step in range(n):
        if step < n - 1:
            parcel.send()
        places |= {parcel.full.data_ptr(), parcel.empty.data_ptr()}
        assert parcel.full.unique().numel() == 1
        found[int(parcel.full[0])] = (place.rank - step) % n
        if step < n - 1:
            parcel.receive()
    assert all(came == expected for came, expected in found.items())
    return places, [f"rank {x}" for x in sorted(found)]


def strangers(n: int) -> str:
    """Who is not among the two that have a group of their own."""
    try:
        proof.bare(Ring.of.__func__)(Ring, groups[2])
    except ValueError as error:
        return str(error)
    return "a place"


def decode(n: int, inputs: Tensors) -> Tensors:
    """All have the query. The caches are of different lengths; with four ranks, the first has none."""
    rank, (query, key, value) = dist.get_rank(groups[n]), inputs
    ends = {1: [0, 29], 2: [0, 5, 29], 3: [0, 10, 13, 29], 4: [0, 0, 7, 8, 29]}[n]
    mine = (x[:, :, ends[rank] : ends[rank + 1]] for x in (key, value))
    return decode_across_ranks(query, *mine, groups[n])


def faults(n: int, fault: str) -> str:
    """What all say if rank 2 refuses, or has brought something else."""
    place = Ring.of(groups[n])
    is_at_fault = place.rank == 2
    refusal = "no keys came" if is_at_fault and fault == "refusal" else None
    shape = "7" if is_at_fault and fault == "difference" else "5"
    try:
        check_ranks(place, refusal, {"shape": shape})
    except ValueError as error:
        return str(error)
    return "none"


def without_a_group(n: int) -> bool:
    """The default group has all four."""
    inputs = small(n, True)
    named = ring_attention(*inputs, groups[n], is_causal=True)
    return all(map(torch.equal, named, ring_attention(*inputs, is_causal=True)))


def under_autocast(n: int) -> bool:
    def run() -> list[Tensor]:
        inputs = [x.requires_grad_() for x in small(n, True)]
        output, lse = ring_attention(*inputs, groups[n], is_causal=True)
        (output.float().sum() + lse.sum()).backward()
        return [output, lse, *(x.grad for x in inputs if x.grad is not None)]

    plain = run()
    with torch.autocast("cpu", torch.bfloat16):
        cast = run()
    return len(cast) == 5 and all(map(torch.equal, plain, cast))
