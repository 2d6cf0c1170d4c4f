r"""# Ring attention

`ring_attention(query, key, value, group, *, is_causal=False, scale=None) -> (output, lse)`, as `flash_attention`;
`zigzag_shard(x, rank, n_ranks, dim=2)`, `zigzag_unshard(shards, dim=2)`, `zigzag_positions(t, rank, n_ranks)`
(`t` a rank's own tokens) and `seen_by(rank, source, t, is_causal) -> (rows, columns)` from the page on the cut.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | what the positions of this rank ask |
| $\mathbf{k}_j$ | `key` | `b g s d` | what they offer |
| $\mathbf{v}_j$ | `value` | `b g s e` | and give |
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from annotated_attention.flash import flash_forward, merge_attention
from annotated_attention.flash_backward import flash_backward
from annotated_attention.ring_zigzag import seen_by, zigzag_shard, zigzag_unshard
from annotated_attention.scaled_dot_product import check_inputs

__all__ = ["Parcel", "Ring", "RingAttention", "ring_attention", "ring_backward"]
__all__ += ["ring_forward", "seen_by", "zigzag_shard", "zigzag_unshard"]

# Queries and keys in a tile, as `flash_attention` has them.
TILES = 256, 512


class Ring:
    r"""## A place in the ring

    Whom this rank gives to, and whom it takes from.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = dist.group.WORLD if group is None else group
        self.n = dist.get_world_size(self.group)
        self.rank = dist.get_rank(self.group)
        if self.rank < 0:
            came = f"group has {self.n} ranks and this process is none of them"
            raise ValueError(f"{came}: a group that it belongs to is wanted")
        self.left, self.right = (self.rank - 1) % self.n, (self.rank + 1) % self.n

    @contextmanager
    def naming(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            said = f"ring attention, rank {self.rank} of {self.n}: {what}"
            raise RuntimeError(f"{said}: lost, or later than the timeout ({error})") from error


@dataclass
class Parcel:
    r"""## What travels

    Two buffers: one is sent and computed with, in the other the next arrives.
    """

    ring: Ring
    what: str
    full: Tensor
    empty: Tensor = field(init=False)
    works: list[dist.Work] = field(init=False)
    step: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.empty = torch.empty_like(self.full)

    def label(self) -> str:
        ring = self.ring
        said = f"step {self.step} of {ring.n - 1}, {self.what} to rank {ring.right}"
        return f"{said} and from rank {ring.left}"

    def send(self) -> None:
        ring = self.ring
        self.step += 1
        right, left = (dist.get_global_rank(ring.group, x) for x in (ring.right, ring.left))
        give = dist.P2POp(dist.isend, self.full, right, ring.group)
        take = dist.P2POp(dist.irecv, self.empty, left, ring.group)
        with ring.naming(self.label()):
            self.works = dist.batch_isend_irecv([give, take])

    def receive(self) -> None:
        with self.ring.naming(self.label()):
            for work in self.works:
                work.wait()
        self.full, self.empty = self.empty, self.full


def pack(key: Tensor, value: Tensor) -> Tensor:
    return torch.cat([key.flatten(), value.flatten()])


def unpack(packed: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    k, v = packed.split([key.numel(), value.numel()])
    return k.view(key.shape), v.view(value.shape)


def ring_forward(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    ring: Ring,
    is_causal: bool,
    scale: float,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t"]]:
    r"""## Once round"""
    t, e = query.shape[2], value.shape[3]
    q = query.to(torch.promote_types(query.dtype, torch.float32))
    output = q.new_zeros(*q.shape[:3], e)
    lse = q.new_full(q.shape[:3], -torch.inf)
    keys = Parcel(ring, "keys", pack(key, value))
    for step in range(ring.n):
        source = (ring.rank - step) % ring.n
        if step < ring.n - 1:
            keys.send()
        k, v = unpack(keys.full, key, value)
        rows, columns = seen_by(ring.rank, source, t, is_causal)
        k, v = k[:, :, columns], v[:, :, columns]
        diagonal = is_causal and source == ring.rank
        part = flash_forward(q[:, :, rows], k, v, diagonal, scale, *TILES)
        before = output[:, :, rows], lse[:, :, rows]
        output[:, :, rows], lse[:, :, rows] = merge_attention(*before, *part)
        if step < ring.n - 1:
            keys.receive()
    return output.to(query.dtype), lse


def ring_backward(
    grad_output: Float[Tensor, "b h t e"],
    grad_lse: Float[Tensor, "b h t"],
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    output: Float[Tensor, "b h t e"],
    lse: Float[Tensor, "b h t"],
    ring: Ring,
    is_causal: bool,
    scale: float,
) -> tuple[
    Float[Tensor, "b h t d"],
    Float[Tensor, "b g s d"],
    Float[Tensor, "b g s e"],
]:
    r"""## And once more"""
    t, q = query.shape[2], query.to(lse.dtype)
    dq = torch.zeros_like(q)
    keys = Parcel(ring, "keys", pack(key, value))
    home = torch.zeros_like(keys.full, dtype=lse.dtype)
    sums = Parcel(ring, "gradients of keys", torch.zeros_like(home))
    for step in range(ring.n):
        source = (ring.rank - step) % ring.n
        if step < ring.n - 1:
            keys.send()
        k, v = unpack(keys.full, key, value)
        rows, columns = seen_by(ring.rank, source, t, is_causal)
        k, v = k[:, :, columns], v[:, :, columns]
        of_queries = [x[:, :, rows] for x in (grad_output, grad_lse, q)]
        results = output[:, :, rows], lse[:, :, rows]
        diagonal = is_causal and source == ring.rank
        found = flash_backward(*of_queries, k, v, *results, diagonal, scale, *TILES)
        dq[:, :, rows] += found[0]
        if step > 1:
            sums.receive()
        dk, dv = unpack(home if step == 0 else sums.full, key, value)
        dk[:, :, columns] += found[1]
        dv[:, :, columns] += found[2]
        if step > 0:
            sums.send()
        if step < ring.n - 1:
            keys.receive()
    if ring.n > 1:
        sums.receive()
        home += sums.full
    dk, dv = unpack(home, key, value)
    return dq.to(query.dtype), dk.to(key.dtype), dv.to(value.dtype)


class RingAttention(torch.autograd.Function):
    r"""## What is kept"""

    @staticmethod
    def forward(ctx, query, key, value, *options):
        with torch.autocast(query.device.type, enabled=False):
            output, lse = ring_forward(query, key, value, *options)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.options = options
        return output, lse

    @staticmethod
    def backward(ctx, *grad_outputs):
        if torch.is_grad_enabled():
            came = "create_graph=True asks for a gradient of the gradient"
            raise RuntimeError(f"{came}, which ring_attention lacks")
        saved = ctx.saved_tensors
        with torch.autocast(saved[0].device.type, enabled=False):
            gradients = ring_backward(*grad_outputs, *saved, *ctx.options)
        return *gradients, None, None, None


def check_ranks(ring: Ring, query, key, value, is_causal: bool, scale: float) -> None:
    r"""## One mind"""
    try:
        check_inputs(query, key, value, None, is_causal, enable_gqa=True)
        t, s = query.shape[2], key.shape[2]
        if is_causal and (t != s or t % 2):
            came = f"query has {t} tokens, key has {s}"
            raise ValueError(f"{came}: with is_causal, two pieces of each text, as many of both, are wanted")
        grad = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
        shapes = ", ".join(
            f"{name} {tuple(x.shape)}" for name, x in (("query", query), ("key", key), ("value", value))
        )
        mine = (True, f"{query.dtype}, {shapes}, is_causal={is_causal}, scale={scale}, gradients={grad}")
    except ValueError as error:
        mine = (False, str(error))
    if ring.n == 1:
        said = [mine]
    else:
        said = [mine] * ring.n
        with ring.naming("comparing the shapes of all ranks"):
            dist.all_gather_object(said, mine, ring.group)
    for rank, (sound, message) in enumerate(said):
        if not sound:
            raise ValueError(message if rank == ring.rank else f"rank {rank}: {message}")
    for rank, (_, message) in enumerate(said):
        if message != said[0][1]:
            raise ValueError(f"rank 0 has {said[0][1]}, rank {rank} {message}: the same is wanted of all")


def ring_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    group: dist.ProcessGroup | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t"]]:
    r"""## The function

    Each rank brings its share of the text, and has its share of the answer. With `is_causal`, the share is that
    of `zigzag_shard`.
    """
    ring = Ring(group)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    check_ranks(ring, query, key, value, is_causal, scale)
    return RingAttention.apply(query, key, value, ring, is_causal, scale)


def example(axes: dict[str, int]) -> None:
    """The shapes beside the code are read off this run."""
