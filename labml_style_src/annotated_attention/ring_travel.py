r"""# What travels

A ring is as fast as its slowest hand-over, and stands still with its first dead member. Three things are to
be had: a device should not wait for what could have come while it computed; two neighbours should not wait
for each other; and if one is lost, the others should say so, not wait for ever.

![The way back on rank $r$ of four; time goes to the right, a colour is the rank whose keys they are. A block
lies in its room, a wedge is arriving. The height of a sum: how many ranks have added to it.](figure:rooms)

## Two rooms

Each rank has its keys in one buffer, and an empty one of the same size. It starts to send the first, starts
to receive into the second, and computes with the first meanwhile: both only read it. When all three are done,
the buffers change places. Two are enough, since what was sent is not needed any more
[check:test_two_buffers_are_enough].

Keys and values of one rank go as one message, end to end: half as many messages for the same bytes.

## Who begins?

If every rank sent first, and sending waited until the other side receives, nobody would ever receive. Here
both are *started*, in one batch, by all ranks in the same order, and waited for later. So nobody's turn
depends on another's, in a ring of any length; two ranks, where left and right are one, are no exception
[check:test_any_number_of_ranks].

## Who is missing?

On gloo, a rank that is killed closes its connections, and its two neighbours notice at once. Those further
away notice when nothing has come for as long as the group's `timeout`, given to `init_process_group` or
`new_group` [check:test_a_lost_rank_is_named]. So does everybody if a rank is stopped but not dead
[check:test_a_late_rank_is_named]. The error says which hop it was, and from and to whom. On NCCL it is found
out in another way (`receive`, below). The group is of no use afterwards; start again from the last
checkpoint.

## On GPUs

A process takes one GPU, says so before all else, and speaks through two backends: tensors of a GPU travel by
NCCL, words about them by gloo, which does not wait for the GPU.

    torch.cuda.set_device(local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl", timeout=timedelta(minutes=5))

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $n$ | `n` | scalar | ranks in the ring |
| $r$ | `rank` | scalar | this one, from 0: its place in the group |
| $\mathbf{k}_j$ | `key` | `b g s d` | keys of a rank |
| $\mathbf{v}_j$ | `value` | `b g s e` | and its values |

**Source.** *Distributed communication package* and *Torch NCCL environment variables*, docs.pytorch.org.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

__all__ = ["Parcel", "Ring", "check_ranks", "pack", "unpack"]


@dataclass(frozen=True)
class Ring:
    r"""## A place in the ring

    This rank, of how many, and the group in which they speak.
    """

    rank: int
    n: int
    group: dist.ProcessGroup | None

    @classmethod
    def of(cls, group: dist.ProcessGroup | None) -> "Ring":
        r"""### From a group

        `None` is the default group. A process outside of the group has no place in it
        [check:test_a_stranger_is_refused].
        """
        rank, n = dist.get_rank(group), dist.get_world_size(group)
        if rank < 0:
            came = "group does not contain this process"
            raise ValueError(f"{came}: one that it belongs to is wanted")
        return cls(rank, n, dist.group.WORLD if group is None else group)

    @contextmanager
    def naming(self, what: str) -> Iterator[None]:
        r"""### What went wrong where

        A backend's error names an address. This adds what was under way.
        """
        try:
            yield
        except RuntimeError as error:
            where = f"ring attention, rank {self.rank} of {self.n}, {what}"
            why = "a rank may be lost, or later than the timeout"
            raise RuntimeError(f"{where}: {why} ({error})") from error


def pack(
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
) -> Float[Tensor, "numbers"]:
    r"""## One message

    Keys and values, end to end.
    """
    return torch.cat([key.flatten(), value.flatten()])


def unpack(
    packed: Float[Tensor, "numbers"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
) -> tuple[
    Float[Tensor, "b g s d"],
    Float[Tensor, "b g s e"],
]:
    r"""### And two again

    In the shapes of `key` and `value`. They are views: what is written to them is in the message.
    """
    parts = packed.split([key.numel(), value.numel()])
    return parts[0].view(key.shape), parts[1].view(value.shape)


class Parcel:
    r"""## A parcel

    `full` may be read at any time; after `receive` it is what the rank before had there.
    """

    def __init__(self, ring: Ring, what: str, full: Tensor) -> None:
        self.ring, self.what = ring, what
        self.full, self.empty = full, torch.empty_like(full)
        self.hops, self.works = 0, []

    def hop(self) -> str:
        n, rank = self.ring.n, self.ring.rank
        ends = f"to rank {(rank + 1) % n} and from rank {(rank - 1) % n}"
        return f"hop {self.hops} of {n - 1}, {self.what} {ends}"

    def send(self) -> None:
        r"""### On its way

        On NCCL a batch is one operation, in a stream of its own, that begins when the current stream has come
        this far; on gloo a thread of its own works at it.
        """
        group, n, rank = self.ring.group, self.ring.n, self.ring.rank
        right, left = (rank + 1) % n, (rank - 1) % n
        self.hops += 1
        with self.ring.naming(self.hop()):
            self.works = dist.batch_isend_irecv(
                [
                    dist.P2POp(dist.isend, self.full, None, group, 0, right),
                    dist.P2POp(dist.irecv, self.empty, None, group, 0, left),
                ]
            )

    def receive(self) -> None:
        r"""### Arrived

        Gloo's `wait` returns when the numbers are there, and raises when the timeout is over. NCCL's lets the
        current *stream* wait, and returns at once. A lost rank is then found by the watchdog of the group: by
        default (`TORCH_NCCL_ASYNC_ERROR_HANDLING=3`) it ends the process after the timeout, with an error in
        its log that knows nothing of hops. With `TORCH_NCCL_BLOCKING_WAIT=1` there is no watchdog; `wait`
        blocks and raises, as on gloo. A hop and the step beside it still overlap, but the host no longer runs
        ahead of them.
        """
        with self.ring.naming(self.hop()):
            for work in self.works:
                work.wait()
        self.full, self.empty = self.empty, self.full


def check_ranks(
    ring: Ring,
    refusal: str | None,
    brought: dict[str, str],
) -> None:
    r"""## Of one mind

    The ranks must have brought the same shapes, or one will send what another has no room for. And if one of
    them raises an error and leaves, the others wait for it in vain. So each tells all others what it brought,
    or why it refuses that, and all of them find the same fault [check:test_all_find_the_same_fault].

    Those are two small messages to everybody before anything else: how long the words are, and the words. Of
    a group that has gloo too they take that way; with NCCL alone they would wait for the GPU.
    """
    said: list = [(refusal, brought)]
    if ring.n > 1:
        said = [None] * ring.n
        with ring.naming("comparing shapes with all"):
            mine = refusal, brought
            dist.all_gather_object(said, mine, ring.group)
    for rank, (refusal, _) in enumerate(said):
        if refusal is not None:
            raise ValueError(f"rank {rank}: {refusal}")
    first = said[0][1]
    for rank, (_, theirs) in enumerate(said):
        for name, came in theirs.items():
            if came != first[name]:
                both = f"{first[name]} on rank 0, {came} on rank {rank}"
                wanted = "the same on all ranks is wanted"
                raise ValueError(f"{name} is {both}: {wanted}")


def example(axes: dict[str, int]) -> None:
    """The shapes beside the code are read off this run."""
    b, g, s, d, e = (axes[letter] for letter in "bgsde")
    key, value = torch.randn(b, g, s, d), torch.randn(b, g, s, e)
    unpack(pack(key, value), key, value)
