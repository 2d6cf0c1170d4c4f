r"""# Ring attention

A million tokens, in a model of the size of Llama 3 8B. Queries, keys, values and outputs of one layer are 20
GiB in bf16. To train, those of all 32 layers are kept: 640 GiB [check:test_a_million_tokens|20 and 640 GiB].
An H100 has 80 GB, and would compute for five minutes, at the peak of its datasheet, on the attention of one
forward pass [check:test_a_million_tokens|five minutes]. Lesson 13 made the memory linear. Now linear is too
much.

So deal the *text* out to $n$ devices. Nothing else in a transformer will notice: projections and layers that
feed forward look at one token at a time. Only in attention does every query want every key.

Let the devices stand in a ring. Each keeps its queries, and hands its keys and values to the next, $n - 1$
times: then all keys have passed by all queries. What a query found in each share is merged by the two lines
of lesson 13. And while a device computes with the keys at hand, the next ones are under way.

![Four devices. In each row they compute with the keys of the colour shown, and hand them on meanwhile. Each
holds its own keys and two rooms in which others travel, whatever the number of devices.](figure:ring)

## What came before

Li et al. (2021, arXiv:2105.13120) sent keys round a ring, then values, with whole rows of scores in between.
Blockwise attention (Liu and Abbeel 2023, arXiv:2305.19370) went through the keys block by block, on one
device. Ring Attention (Liu, Zaharia and Abbeel 2023) put both together: no row of scores, and the sending
hidden behind the computing.

## A union is a merge

Let $A_0, \dots, A_{n-1}$ be the keys of the ranks, and $(\mathbf{o}^A, L^A)$ attention to the keys in $A$ and
its logarithm. The sets are disjoint, and so, with the merge $\oplus$,

$$\big(\mathbf{o}, L\big) = \bigoplus_{m=0}^{n-1} \big(\mathbf{o}^{A_{r-m}},\, L^{A_{r-m}}\big), \qquad r - m
\text{ modulo } n.$$

Every rank takes them in another order: its own, then those of the rank before it, and so on. The merge is
associative and commutative, so all are right [check:test_agrees_with_pytorch], if not to the last bit
[check:test_every_rank_sums_in_its_own_order].

A share of keys that lies behind a query adds the empty reader, $(0, -\infty)$, which is neutral. It need not
be looked at: causality costs nothing but a plan (on the page on the same work for all).

## The way back

Lesson 13's backward pass needs no row of weights either. With $L_i$ and $D_i$ of *all* keys, which stay with
the query, a weight is made anew from one query and one key, and the gradients are sums:

$$d\mathbf{q}_i = \sum_m \sum_{j \in A_{r-m}} \lambda\, dS_{ij}\, \mathbf{k}_j, \qquad
d\mathbf{k}_j = \sum_{r'} \sum_{i \in Q_{r'}} \lambda\, dS_{ij}\, \mathbf{q}_i ,$$

with $Q_{r'}$ for the queries of rank $r'$, of all heads that share the key. The first goes over keys, and
they come by. The second goes over queries, which stay where they are: so the *sum* travels, together with its
keys, and each rank adds its part. Its own part a rank keeps at home. What the others have to say sets out at
the next rank, empty, and $n - 1$ hops later it is back [check:test_sums_come_home_in_as_many_hops].

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | what this rank's share of the text asks, |
| $\mathbf{k}_j$ | `key` | `b g s d` | offers |
| $\mathbf{v}_j$ | `value` | `b g s e` | and gives |
| $n$ | `n` | scalar | ranks in the ring |
| $r$ | `rank` | scalar | this one |
| $m$ | `step` | scalar | hops that the keys at hand have made |
| $r - m$ | `source` | scalar | the rank that they come from, modulo $n$ |
| $\mathbf{o}$ | `output` | `b h t e` | merged so far |
| $L$ | `lse` | `b h t` | and its logarithm |
| $\lambda$ | `scale` | scalar | $1/\sqrt d$ unless given |
| $d\mathbf{q}_i$ | `dq` | `b h t d` | gradient at the queries, |
| $d\mathbf{k}_j$ | `dk` | `b g s d` | at the keys, |
| $d\mathbf{v}_j$ | `dv` | `b g s e` | and at the values |

**Source.** Liu, Zaharia and Abbeel (2023), arXiv:2310.01889, section 3 and algorithm 1: its hosts are our
ranks, its block size $c$ is our $t$.
"""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from annotated_attention.flash import flash_forward, merge_attention
from annotated_attention.flash_backward import flash_backward
from annotated_attention.ring_travel import Parcel, Ring, check_ranks, pack, unpack
from annotated_attention.ring_zigzag import check_share, seen_by, zigzag_shard, zigzag_unshard
from annotated_attention.scaled_dot_product import check_inputs

__all__ = ["Ring", "RingAttention", "ring_attention", "ring_backward"]
__all__ += ["ring_forward", "seen_by", "zigzag_shard", "zigzag_unshard"]

# Queries and keys in a tile, as in `flash_attention`.
TILES = 256, 512


def ring_forward(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    ring: Ring,
    is_causal: bool,
    scale: float,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t"]]:
    r"""## Once round

    `ring` knows its rank and its neighbours; a `Parcel` sends what is in it, and takes the next one (both on
    the next page).
    """
    n, rank, t = ring.n, ring.rank, query.shape[2]
    q = query.to(torch.promote_types(query.dtype, torch.float32))

    # What has been merged stays in float32 until the last merge. It begins with a reader of nothing.
    output = q.new_zeros(*query.shape[:3], value.shape[3])
    lse = q.new_full(query.shape[:3], -torch.inf)
    keys = Parcel(ring, "keys", pack(key, value))
    for step in range(n):
        source = (rank - step) % n

        # They go on before they are used, not after: sending and computing take place at once. What has been
        # everywhere goes nowhere.
        if step < n - 1:
            keys.send()

        # Of the other's keys some may lie behind all queries here, or some queries before them all. What is
        # left is seen in full, but for the first step, where the keys are this rank's own.
        k, v = unpack(keys.full, key, value)
        rows, columns = seen_by(rank, source, t, is_causal)
        k, v = k[:, :, columns], v[:, :, columns]
        is_own = is_causal and step == 0
        part = flash_forward(q[:, :, rows], k, v, is_own, scale, *TILES)

        before = output[:, :, rows], lse[:, :, rows]
        merged = merge_attention(*before, *part)
        output[:, :, rows], lse[:, :, rows] = merged
        if step < n - 1:
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
    r"""## And once more

    The same walk. Two parcels are under way: the keys, and one hop behind them the sums of their gradients.
    """
    n, rank, t = ring.n, ring.rank, query.shape[2]
    q = query.to(lse.dtype)
    dq = torch.zeros_like(q)

    # Gradients are summed, and sent, in float32 or wider.
    keys = Parcel(ring, "keys", pack(key, value))
    home: Float[Tensor, "numbers"]
    home = torch.zeros_like(keys.full, dtype=lse.dtype)
    sums = Parcel(ring, "gradients", torch.zeros_like(home))
    for step in range(n):
        source = (rank - step) % n
        if step < n - 1:
            keys.send()
        k, v = unpack(keys.full, key, value)
        rows, columns = seen_by(rank, source, t, is_causal)
        k, v = k[:, :, columns], v[:, :, columns]
        is_own = is_causal and step == 0
        found = flash_backward(
            grad_output[:, :, rows],
            grad_lse[:, :, rows],
            q[:, :, rows],
            k,
            v,
            output[:, :, rows],
            lse[:, :, rows],
            is_own,
            scale,
            *TILES,
        )
        dq[:, :, rows] += found[0]

        # What the rank before has sent belongs to the same keys. At step 1 nobody has added to it yet.
        if step > 1:
            sums.receive()
        total = home if step == 0 else sums.full
        dk, dv = unpack(total, key, value)
        dk[:, :, columns] += found[1]
        dv[:, :, columns] += found[2]
        if step > 0:
            sums.send()
        if step < n - 1:
            keys.receive()

    # The last hop is home.
    if n > 1:
        sums.receive()
        home += sums.full
    dk, dv = unpack(home, key, value)
    return dq.to(query.dtype), dk.to(key.dtype), dv.to(value.dtype)


class RingAttention(torch.autograd.Function):
    r"""## What is kept

    As in lesson 13: the inputs, the output, one number a query. No key of another rank is kept, so memory
    does not depend on $n$ [check:test_memory_does_not_grow_with_the_ring]; the price is that the keys travel
    twice. Autocast is kept out of the tiles [check:test_autocast_does_not_reach_the_tiles].
    """

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

    To be called by all ranks of `group` (`None` is the default group
    [check:test_no_group_is_the_default_group]), each with its share of one text; each gets its share of the
    answer, and of its logarithm. Together these are attention to the whole text, in every dtype, in outputs
    and gradients [check:test_agrees_with_pytorch] [check:test_gradcheck]. Alone, a rank sends nothing and
    computes what `flash_attention` does [check:test_one_rank_is_flash_attention].

    With `is_causal`, the shares must be those of `zigzag_shard`, which folds the text. Without, any will do,
    as long as all are of one length: keys may be more or fewer than queries.

    **Shapes.** `query` is `b h t d`, `key` is `b g s d`, `value` is `b g s e`, the same on all ranks, with
    $h$ a multiple of $g$. The results are `b h t e` and `b h t`.

    **Raises.** `ValueError`, and the same one on all ranks, if what one of them brought is wrong or not what
    the others brought [check:test_wrong_input_is_refused_by_all]. `RuntimeError` if a rank is lost or late:
    see the page on what travels.
    """
    ring = Ring.of(group)
    refusal, brought = None, {}
    try:
        check_inputs(query, key, value, None, is_causal, enable_gqa=True)
        check_share(query.shape[2], key.shape[2], is_causal)

        # One rank with other shapes, or that alone wants gradients, would leave its neighbours waiting.
        inputs = {"query": query, "key": key, "value": value}
        wants_grad = any(x.requires_grad for x in inputs.values())
        for name, x in inputs.items():
            brought[name] = f"{x.dtype} {tuple(x.shape)} on {x.device.type}"
        brought |= {"is_causal": f"{is_causal}", "scale": f"{scale}"}
        brought["requires_grad"] = f"{wants_grad and torch.is_grad_enabled()}"
    except Exception as error:
        # Whatever it is, the others must hear of it.
        refusal = str(error)
    check_ranks(ring, refusal, brought)

    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return RingAttention.apply(query, key, value, ring, is_causal, scale)


def held_bytes(
    b: int,
    h: int,
    g: int,
    t: int,
    d: int,
    e: int,
    *,
    size: int = 2,
) -> tuple[int, int, int]:
    r"""## What it costs, and when it fails

    Returns the bytes of a rank's queries, keys, values and outputs, in `size` bytes a number, and the bytes
    of the rooms in which others travel: two for keys, and on the way back three more for sums of gradients,
    in 4 bytes a number or more, one of them at home, for its own [check:test_rooms_are_foretold]. None has
    an $n$ in it: with twice the ranks the text may be twice as long. What travels, and when that takes no
    time of its own, has a page to itself.

    - *The cut is not looked at.* Under `is_causal` a rank cannot see from its numbers which tokens they are.
      Shares of another cut give an answer, and a wrong one [check:test_another_cut_gives_another_answer].
    - *Whatever knows positions must know the cut.* Rotary angles, the labels of the loss, a mask of
      documents: all are cut the same way; `zigzag_positions` says where a token stands.
    - *All ranks, or none.* A rank whose loss does not touch its output does not go back, and its neighbours
      wait until the timeout.
    - *Bits differ.* With another number of ranks the sums have another order
      [check:test_every_rank_sums_in_its_own_order]. With the same number, the same bits come again
      [check:test_the_same_bits_every_time].
    - *Once only.* As in lesson 13, the gradient has no gradient [check:test_not_twice_differentiable].
    - *A kernel for the tiles.* Here each pair of shares is lesson 13's PyTorch. On a GPU a kernel that
      returns its logarithm takes that place, and nothing else changes.

    **In production.** **PyTorch** has `context_parallel(mesh, buffers=..., buffer_seq_dims=...)`,
    experimental: within it SDPA gathers the keys of all ranks, and after `set_rotate_method("alltoall")` lets
    them travel round a ring. **Megatron Core** splits the text with `context_parallel_size`,
    **TransformerEngine** offers rings, gathering and all-to-all under `cp_comm_type`.
    **ring-flash-attention** is closest to this page: its `zigzag_ring_flash_attn_func` has flash-attn's
    kernels for tiles, and sends the sums of gradients $n$ times, since they set out from home. Llama 3
    (arXiv:2407.21783, section 3.3.2) was trained without a ring: all keys are gathered first, which is
    simpler with a mask of documents, and with few key heads it is not much that is gathered.
    """
    numbers = b * g * t * (d + e)
    held = (b * h * t * (d + e) + numbers) * size
    return held, 2 * numbers * size, 3 * numbers * max(size, 4)


def example(axes: dict[str, int]) -> None:
    """A ring of one, in this process: the shapes beside the code are read off this run."""
    b, g, r, t, s, d, e = (axes[letter] for letter in "bgrtsde")
    query = torch.randn(b, g * r, t, d)
    key, value = torch.randn(b, g, s, d), torch.randn(b, g, s, e)
    output, lse = ring_forward(query, key, value, Ring(0, 1, None), False, 1.0)
    kept = query, key, value, output, lse
    ring_backward(output, lse, *kept, Ring(0, 1, None), False, 1.0)
    held_bytes(b, g * r, g, t, d, e)
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        ring_attention(query, key, value)
    finally:
        dist.destroy_process_group()
