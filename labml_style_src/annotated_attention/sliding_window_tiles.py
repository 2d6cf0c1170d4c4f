r"""# Tiles, there and back

Cut a block of queries out of a text, and the keys that it has in sight: that is a *tile*, and attention of
its own. Forward, nothing could be simpler. A slice copies nothing, and the answers are written one behind the
other.

![Four tiles of a window, cut where the text ends. A block beside a query or a key for each tile that sends it
a gradient: one for a query, up to three for a key.](figure:sent_back)

Backward, this would be quadratic again. To autograd every slice is an operation of its own, whose gradient is
as long as the text: zeros, but for a few rows. There are $t/u$ tiles, and each would send back $t$ rows
[check:test_slices_have_a_quadratic_backward].

So the way back is written by hand. Let tile $n$ have the queries $\mathcal{R}_n$ and the keys
$\mathcal{C}_n$. A query is in one tile, a key in several, and what they send back adds up:

$$d\mathbf{q}_i = d\mathbf{q}_i^{(n)}, \quad i \in \mathcal{R}_n, \qquad
d\mathbf{k}_j = \sum_{n \,:\, j \in \mathcal{C}_n} d\mathbf{k}_j^{(n)}, \qquad
d\mathbf{v}_j = \sum_{n \,:\, j \in \mathcal{C}_n} d\mathbf{v}_j^{(n)} .$$

Each of the three is laid out once, and every tile adds to it where its rows are. Windows, global tokens
(lesson 11) and random blocks (lesson 12) differ in what a tile has in sight, and in nothing else.

## What came before

Kernels for such patterns add into a place too, on a GPU by atomic operations. PyTorch's `unfold` makes spans
that overlap without a copy, and this page once used it. But its gradient is that of all spans, $a/u$ times as
long as the text, made in full before it is added up. A large tensor is new memory, and the system clears
every page of it at the first touch, which takes time of its own.

## Computed twice

What a tile needs on its way back can be made again from its inputs. So nothing else is kept
[check:test_nothing_is_kept_but_the_inputs], and each tile is computed a second time when its gradient is
asked for. That is one more forward pass; the sums of the spans took longer. FlashAttention makes the same
bargain with dense attention (lesson 13).

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathcal{R}_n$ | `rows` | slice | queries of tile $n$ |
| $\mathcal{C}_n$ | `columns` | slices | its keys, in runs |
| $d\mathbf{q}_i$ | `dq` | `b h t d` | gradient at the queries, |
| $d\mathbf{k}_j$ | `dk` | `b g s d` | at the keys, |
| $d\mathbf{v}_j$ | `dv` | `b g s e` | and at the values |
| $u$ | – | scalar | queries in a tile |
| $a$ | – | scalar | keys that a tile has in sight |

**Source.** Chen et al. (2016), arXiv:1604.06174, for making again what was not kept.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Tile", "attend_in_tiles", "backward_in_tiles", "forward_in_tiles"]
__all__ += ["fused"]


Tile = tuple[slice, Sequence[slice], Tensor | None]


def forward_in_tiles(
    attend: Callable[..., Tensor],
    tiles: Iterable[Tile],
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    *shared: Tensor,
) -> Float[Tensor, "b h t e"]:
    r"""## There

    A tile is its queries, which lie together; its keys, in one run or several; and a mask, or None if all see
    all. `attend(q, k, v, mask, *shared)` is any attention; `shared` is what it needs in every tile alike.
    Nothing that grows with the text is made, but the output [check:test_memory_is_that_of_the_results].
    """
    output = query.new_empty(*query.shape[:3], value.shape[3])
    for rows, columns, mask in tiles:
        k, v = gather(key, columns), gather(value, columns)
        o = attend(query[:, :, rows], k, v, mask, *shared)
        output[:, :, rows] = o
    return output


def gather(x: Tensor, runs: Sequence[slice]) -> Tensor:
    """One run is a view. Several are put side by side: a copy, of the size of a tile."""
    parts = [x[:, :, run] for run in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def backward_in_tiles(
    attend: Callable[..., Tensor],
    tiles: Iterable[Tile],
    grad_output: Float[Tensor, "b h t e"],
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    *shared: Tensor,
) -> tuple[Tensor, ...]:
    r"""## And back

    The gradients at all inputs [check:test_gradcheck], the shared ones too
    [check:test_shared_inputs_have_gradients].
    """
    # A key may be in every tile, and a sum over all of them is too long for bfloat16
    # [check:test_gradients_are_summed_wide].
    wide = torch.promote_types(query.dtype, torch.float32)
    inputs = key, value, *shared
    dq = torch.empty_like(query)
    sums = [torch.zeros_like(x, dtype=wide) for x in inputs]
    dk, dv, *rest = sums
    for rows, columns, mask in tiles:
        # Cut off from the text, a tile is a graph of its own, and gone after one turn of the loop.
        k, v = gather(key, columns), gather(value, columns)
        parts = query[:, :, rows], k, v, *shared
        leaves = [x.detach().requires_grad_() for x in parts]
        with torch.enable_grad():
            o = attend(*leaves[:3], mask, *leaves[3:])
        do = grad_output[:, :, rows]
        dq_n, dk_n, dv_n, *rest_n = torch.autograd.grad(o, leaves, do)

        # What was put side by side goes back to its places.
        dq[:, :, rows] = dq_n
        lengths = [run.stop - run.start for run in columns]
        dks, dvs = dk_n.split(lengths, 2), dv_n.split(lengths, 2)
        for run, dk_run, dv_run in zip(columns, dks, dvs, strict=True):
            dk[:, :, run] += dk_run
            dv[:, :, run] += dv_run
        for whole, part in zip(rest, rest_n, strict=True):
            whole += part
    pairs = zip(sums, inputs, strict=True)
    return dq, *(total.to(x.dtype) for total, x in pairs)


class TileByTile(torch.autograd.Function):
    r"""## Both passes

    `tiles` is a function here, since both passes go through all of them. Autocast would round what a tile
    computes, and is kept out [check:test_autocast_stays_outside].
    """

    @staticmethod
    def forward(ctx, attend, tiles, *inputs):
        ctx.attend, ctx.tiles = attend, tiles
        ctx.save_for_backward(*inputs)
        with torch.autocast(inputs[0].device.type, enabled=False):
            return forward_in_tiles(attend, tiles(), *inputs)

    @staticmethod
    def backward(ctx, *grad_outputs):
        if torch.is_grad_enabled():
            came = "create_graph=True asks for a gradient of the gradient"
            raise RuntimeError(f"{came}, which tiles lack")
        given = *grad_outputs, *ctx.saved_tensors
        with torch.autocast(given[0].device.type, enabled=False):
            gradients = backward_in_tiles(ctx.attend, ctx.tiles(), *given)
        return None, None, *gradients


def attend_in_tiles(
    attend: Callable[..., Tensor],
    tiles: Callable[[], Iterable[Tile]],
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    *shared: Tensor,
) -> Float[Tensor, "b h t e"]:
    r"""What lessons 9 to 12 call. The gradient has no gradient: to ask for it is a `RuntimeError`
    [check:test_not_twice_differentiable].
    """
    return TileByTile.apply(attend, tiles, query, key, value, *shared)


def fused(
    query: Float[Tensor, "b h u d"],
    key: Float[Tensor, "b g a d"],
    value: Float[Tensor, "b g a e"],
    mask: Bool[Tensor, "... u a"] | None,
    *,
    scale: float | None = None,
) -> Float[Tensor, "b h u e"]:
    r"""## What stands in a tile

    PyTorch's fused kernel, mostly. A group of heads is one head with more queries (lesson 8), so keys are not
    repeated.

    **When it fails.** Each tile is a call, and has its price before anything is computed: a short text, or one
    in tiles of a few queries, is quicker in one piece. On a GPU, one kernel would do it all.
    """
    r = query.shape[1] // key.shape[1]
    folded = rearrange(query, "b (g r) u d -> b g (r u) d", r=r)
    if mask is not None:
        mask = repeat(mask, "... u a -> ... (r u) a", r=r)
    attend = F.scaled_dot_product_attention
    output = attend(folded, key, value, mask, scale=scale)
    return rearrange(output, "b g (r u) e -> b (g r) u e", r=r)


def example(axes: dict[str, int]) -> None:
    """Run once on primes: the shapes beside the code are read off this run."""
    b, g, r, t, s, d, e = (axes[name] for name in "bgrtsde")
    query, key, value = torch.randn(b, g * r, t, d), torch.randn(b, g, s, d), torch.randn(b, g, s, e)
    tiles = [(slice(0, t), [slice(0, s)], None)]
    output = forward_in_tiles(fused, tiles, query, key, value)
    backward_in_tiles(fused, tiles, output, query, key, value)
    attend_in_tiles(fused, lambda: tiles, query, key, value)
    fused(query, key, value, torch.ones(t, s, dtype=torch.bool))
