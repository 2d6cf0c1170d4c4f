r"""# FlashAttention

One head, 4,096 tokens, width 64, in bf16: queries, keys and values are 1.5 MiB together, the output is 0.5
more. In between, lesson 1's formula writes 16 million scores to memory, reads them for the softmax, writes
the weights and reads those: 128 MiB [check:test_traffic_of_one_head|128 MiB]. An A100 (1.5 TB/s, 312 TFLOP/s)
needs 90 µs to move them, and 14 for all the arithmetic [check:test_traffic_of_one_head|90 and 14 µs]. It waits.

Nobody wants the scores. Each is needed for a moment, to weigh one value. So let none of them reach memory: go
through the keys tile by tile, and keep for each query what is true of all keys so far, the largest score $m$,
the sum $\ell$ of exponentials and the sum $\mathbf{o}$ of the values that they weigh. A key with a score of
$S_j$ makes of them

$$\begin{aligned} m' &= \max(m,\, S_j), \\
\ell' &= e^{m - m'}\,\ell + e^{S_j - m'}, \\
\mathbf{o}' &= e^{m - m'}\,\mathbf{o} + e^{S_j - m'}\,\mathbf{v}_j, \end{aligned}$$

and after the last key, $\mathbf{o}/\ell$ is the answer: the same function as ever, in linear memory.

![Scores of 24 queries and keys, tile by tile. One tile exists at a time; beside it, what each query keeps.
Causal, a tile above the diagonal is never made.](figure:tiles)

## What came before

Milakov and Gimelshein (2018, arXiv:1805.02867) found the first two lines, to save the softmax one of its
passes over memory. Rabe and Staats (2021, arXiv:2112.05682) had all three, in chunks, to save memory.
FlashAttention (2022) put them into one kernel whose scores never leave the chip, to save *traffic* between it
and its memory: of GPT-2 medium's attention, forward and backward on an A100, 40.3 GB became 4.4, and 41.7 ms
became 7.3, though it computes more (figure 2). FlashAttention-2 (2023) went over the queries outside and
divided once, 1.7 to 3.0 times as fast; the third (2024, arXiv:2407.08608) was made for the H100 and reached
75% of what that can do in fp16.

## Three passes, two, one

The softmax of lesson 1 reads a row of scores three times, for the maximum, for the sum, and to divide. The
sum waits for the maximum, since every exponent contains it. But a sum over the keys before $j$ that was made
with a maximum of $m$ can be put right when $m'$ turns up:

$$e^{m - m'} \sum_{k<j} e^{S_k - m} = \sum_{k<j} e^{S_k - m'},$$

as if $m'$ had been known all along. So one pass finds maximum and sum, and a second divides: the *online*
softmax [check:test_online_softmax_is_softmax]. And attention does not even want the weights. It wants a sum
of values, and what puts $\ell$ right puts $\mathbf{o}$ right. One pass is enough
[check:test_any_block_size_is_the_same]. No exponent is above 0, so nothing overflows
[check:test_agrees_with_pytorch|scores of 10,000].

![A query meets six keys, one by one. When a larger score comes, all that was kept shrinks by
$e^{m - m'}$.](figure:steps)

Nothing here asks for one key at a time. With $u$ queries and $a$ keys, the new maximum is taken over $a$
scores, the sums go over $a$ terms, and two matrix products do the work.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | what position $i$ asks |
| $\mathbf{k}_j$ | `key` | `b g s d` | what position $j$ offers |
| $\mathbf{v}_j$ | `value` | `b g s e` | what position $j$ gives |
| $\lambda$ | `scale` | scalar | $1/\sqrt d$ unless given |
| $S_{ij}$ | `scores` | tile | $\lambda\,\mathbf{q}_i^\top \mathbf{k}_j$ |
| $m$, $m'$ | `m`, `larger` | a query | largest score so far, and after a tile. (Elsewhere $m$ is a width.) |
| $\ell$ | `l` | a query | sum so far of $e^{S_{ij} - m}$ |
| $\mathbf{o}$ | `o` | a query | sum so far of $e^{S_{ij} - m}\,\mathbf{v}_j$, not divided yet |
| $L_i$ | `lse` | `b h t` | $\ln \sum_j e^{S_{ij}} = m + \ln \ell$, after the last key |
| $u$ | `block_q` | scalar | queries in a tile, as `u` in the last one |
| $a$ | `block_k` | scalar | keys in a tile |

**Source.** Dao et al. (2022), arXiv:2205.14135, sections 2 and 3; their $N$ is our $t = s$, $B_r$ is $u$, $B_c$
is $a$. Dao (2023), arXiv:2307.08691, algorithm 1; its $L$ is ours, its $\tilde{\mathbf{O}}$ our $\mathbf{o}$.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from annotated_attention.flash_backward import flash_backward
from annotated_attention.flash_merge import merge_attention
from annotated_attention.scaled_dot_product import check_inputs

__all__ = ["FlashAttention", "flash_attention", "flash_forward"]
__all__ += ["flash_traffic", "merge_attention", "online_softmax"]


def online_softmax(
    scores: Float[Tensor, "... s"],
) -> Float[Tensor, "... s"]:
    r"""## The first two lines

    Softmax in two passes, one key at a time. It is the softmax [check:test_online_softmax_is_softmax], and 0
    where all scores are $-\infty$.
    """
    m = scores.new_full(scores.shape[:-1], torch.finfo(scores.dtype).min)
    l = torch.zeros_like(m)
    for score in scores.unbind(dim=-1):
        larger = torch.maximum(m, score)
        l = l * torch.exp(m - larger) + torch.exp(score - larger)
        m = larger

    # The largest score has added $e^0$. A sum below 1 is that of a row with no key at all.
    l = l.clamp(min=1.0)
    return torch.exp(scores - m[..., None]) / l[..., None]


def flash_forward(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    is_causal: bool,
    scale: float,
    block_q: int,
    block_k: int,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t"]]:
    r"""## Tile by tile

    Outside over the queries, inside over the keys, as FlashAttention-2 does it: $m$, $\ell$ and $\mathbf{o}$
    stay where they are until they are done. The first FlashAttention had the loops the other way round, and
    wrote and read them once for each tile of keys.
    """
    (b, h, t, _), (g, s), e = query.shape, key.shape[1:3], value.shape[3]
    wide, r = torch.promote_types(query.dtype, torch.float32), h // g

    # A group of $r$ heads is one head with more queries (lesson 8), and no key is repeated.
    q = query.to(wide)
    queries = rearrange(q, "b (g r) t d -> (b g) r t d", g=g)
    keys = key.to(wide).flatten(0, 1)
    values = value.to(wide).flatten(0, 1)
    outputs = query.new_empty(b * g, r, t, e)
    lses = queries.new_empty(b * g, r, t)
    lowest = torch.finfo(wide).min

    for i in range(0, t, block_q):
        u = min(block_q, t - i)
        q = queries[:, :, i : i + u].flatten(1, 2)
        m = q.new_full((b * g, r * u, 1), lowest)
        l = torch.zeros_like(m)
        o = q.new_zeros(b * g, r * u, e)

        # The last of these queries is at $i + u - 1$ and sees no key behind it. So tiles above the diagonal
        # are not masked but left out [check:test_skipped_tiles_cost_nothing]. The last tiles may be smaller
        # than the rest: nothing is padded [check:test_any_block_size_is_the_same].
        stop = min(i + u, s) if is_causal else s
        for j in range(0, stop, block_k):
            a = min(block_k, stop - j)
            k, v = keys[:, j : j + a], values[:, j : j + a]
            scores = torch.bmm(q, k.mT).mul_(scale)

            # Only a tile that the diagonal crosses needs a mask. $m$ begins at the lowest of all numbers, not at
            # $-\infty$: even where a product overflows to $-\infty$, there is a difference
            # [check:test_scores_may_overflow_downwards].
            if is_causal and j + a - 1 > i:
                future = scores.new_ones(u, a, dtype=torch.bool)
                future.triu_(i - j + 1)
                by_head = scores.unflatten(1, (r, u))
                by_head.masked_fill_(future, -torch.inf)

            # The three lines. No graph is recorded here, so the scores may become weights where they are.
            larger = torch.maximum(m, scores.amax(dim=-1, keepdim=True))
            shrink = torch.exp(m - larger)
            weights = scores.sub_(larger).exp_()
            l = shrink * l + weights.sum(dim=-1, keepdim=True)
            o = torch.baddbmm(shrink * o, weights, v)
            m = larger

        # Divided and rounded once. Where there is no key, $0/1$ and $m + \ln 0$ [check:test_no_keys_at_all].
        o = o / l.clamp(min=1.0)
        outputs[:, :, i : i + u] = o.unflatten(1, (r, u))
        lses[:, :, i : i + u] = (m + l.log()).view(b * g, r, u)
    output = rearrange(outputs, "(b g) r t e -> b (g r) t e", g=g)
    return output, rearrange(lses, "(b g) r t -> b (g r) t", g=g)


class FlashAttention(torch.autograd.Function):
    r"""## What is kept

    Left to itself, autograd would keep every tile of weights, and with them all $t\,s$ numbers. So the forward
    pass runs where it does not look, and keeps the output and one number a query; the backward pass computes
    the tiles anew (the next page). Neither makes a tensor of $t\,s$ numbers [check:test_memory_is_linear].
    With gradients, a head of 8,192 tokens in float32 holds 11.7 MiB of new tensors at most, and 774 by the plain
    formula. The sizes of text and tiles foretell both, to 1% [check:test_peaks_are_foretold|11.7 and 774 MiB].
    Autocast, which would round each product to bf16, is kept out
    [check:test_autocast_does_not_reach_the_tiles].
    """

    @staticmethod
    def forward(ctx, query, key, value, *options):
        with torch.autocast(query.device.type, enabled=False):
            output, lse = flash_forward(query, key, value, *options)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.options = options
        return output, lse

    @staticmethod
    def backward(ctx, *grad_outputs):
        if torch.is_grad_enabled():
            came = "create_graph=True asks for a gradient of the gradient"
            raise RuntimeError(f"{came}, which flash_attention lacks")
        saved = ctx.saved_tensors
        with torch.autocast(saved[0].device.type, enabled=False):
            gradients = flash_backward(*grad_outputs, *saved, *ctx.options)
        return *gradients, None, None, None, None


def flash_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    *,
    is_causal: bool = False,
    scale: float | None = None,
    block_q: int = 256,
    block_k: int = 512,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t"]]:
    r"""## The function

    Attention, and the logarithm of each query's sum. It agrees with PyTorch's in every dtype, in outputs and
    gradients [check:test_agrees_with_pytorch] [check:test_gradcheck]; the logarithm is float32 or wider, the
    same that PyTorch's kernel keeps to itself [check:test_lse_is_that_of_pytorch], and may be differentiated
    as well. Whoever has both can attend to further keys later: see the merge.

    *The same output* is meant up to rounding. Below float32 no answer could be nearer: its error is that of
    rounding the exact result, once, while lesson 1's formula wholly in that dtype is 2.5 times as far off or more
    [check:test_below_float32_nothing_is_nearer|2.5].

    **Shapes.** `query` is `b h t d`, `key` is `b g s d`, `value` is `b g s e`, with $h$ a multiple of $g$; any
    $t$ and $s$. `is_causal` is aligned top-left [check:test_the_future_moves_nothing]. The results are
    `b h t e` and `b h t`. Without keys they are 0 and $-\infty$ [check:test_no_keys_at_all].

    **Raises.** `ValueError` if shapes or blocks do not fit [check:test_wrong_input_is_refused].
    """
    check_inputs(query, key, value, None, is_causal, enable_gqa=True)
    if min(block_q, block_k) < 1:
        came = f"block_q is {block_q}, block_k is {block_k}"
        raise ValueError(f"{came}: at least 1 is wanted")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    options = (is_causal, scale, block_q, block_k)
    return FlashAttention.apply(query, key, value, *options)


def flash_traffic(
    t: int,
    s: int,
    d: int,
    e: int,
    *,
    is_causal: bool = False,
    block_q: int = 256,
) -> tuple[int, int]:
    r"""## What it costs, and when it fails

    Returns how many numbers one head reads and writes, by lesson 1's formula and by tiles:

    $$4\,ts + (t + s)(d + e) \qquad\text{and}\qquad t\,(d + e + 1) + \Big\lceil\frac tu\Big\rceil\, s\,(d + e).$$

    Each tile of queries reads all keys and values [check:test_traffic_is_what_tiles_read], so traffic falls by
    $4u/(d+e)$: eight times for 256 queries of width 64 [check:test_traffic_falls_with_the_block]. $u$ is as
    large as the chip's own memory allows: it must hold $u(d + e) + a(d + e) + u\,a$ numbers at a time.

    That can be counted. Let every operation of this file pass through a fast memory of $M$ bytes that forgets
    what was used least recently, and add up what has to be fetched and written: while a tile fits, the formula
    is right to 0.1% [check:test_counted_traffic_is_predicted|0.1%]. With 192 KiB, 128 queries and 64 keys in a
    tile, a head of 2,048 tokens in float32 moves 18 MiB, and 67 by the plain formula. With 256 queries the tile
    spills, and it is 94 [check:test_counted_traffic_of_a_tile|18, 67 and 94]. GPT-2 medium, with the paper's 40.3
    and 4.4 GB, comes to 46.9 and 6.0 [check:test_counted_traffic_of_gpt2|46.9 and 6.0]: more on the page of
    results.

    ![A head of 2,048 tokens in a fast memory of 64, 192 and 512 KiB. Dashed: both formulas. Filled: within a
    tenth of it, and the tile fits.](figure:moved)

    - *Arithmetic stays quadratic.* Twice the text is four times the work; only causality halves it
      [check:test_skipped_tiles_cost_nothing]. Linear memory is not linear time (lesson 14).
    - *A kernel is rigid.* What enters the scores must enter the kernel: a bias or mask of another kind needs
      its own. FlexAttention compiles one from a function of indices.
    - *Below float32, all inputs are widened first*, whole: linear as well, but twice their own bytes again. A
      kernel widens a tile in its registers.
    - *Bits differ.* Sums in another order are rounded otherwise [check:test_bits_depend_on_the_blocks].
    - *Here, nothing stays on a chip.* In PyTorch each line is a kernel of its own. On a CPU a tile stays in the
      caches, and that is enough to be several times as fast as lesson 1's formula and within a factor of two
      or so of PyTorch's fused kernel (`benchmarks/bench_flash.py`). But a tile here is one of every head of
      every text at once: with many of them, take smaller blocks. On a GPU it takes one kernel for all: it is on
      the page [On a GPU](../flash_triton/index.md).

    **In production.** **SDPA** picks FlashAttention by itself where it can;
    `with sdpa_kernel(SDPBackend.FLASH_ATTENTION):` makes it, or fails. It keeps $L$ to itself;
    `torch.ops.aten._scaled_dot_product_flash_attention_for_cpu` returns both, and is private.
    **FlexAttention** returns $L$ with `return_lse=True`, since PyTorch 2.9 with `return_aux=AuxRequest(lse=True)`
    [check:test_flex_attention_returns_the_same]. **flash-attn** wants `b t h d`, is causal bottom-right, returns
    `softmax_lse` with `return_attn_probs=True`, and takes texts of different lengths end to end, with
    `cu_seqlens`, in `flash_attn_varlen_func`. **Transformers** calls it under
    `attn_implementation="flash_attention_2"`, vLLM for prompts and steps alike.
    """
    stops = range(block_q, t + block_q, block_q)
    seen = [min(stop, t, s) if is_causal else s for stop in stops]
    naive = 4 * t * s + (t + s) * (d + e)
    return naive, t * (d + e + 1) + sum(seen) * (d + e)


def example(axes: dict[str, int]) -> None:
    """Tiles of `u` by `a`, two rows of three: the shapes beside the code are read off this run."""
    b, g, r, t, s, d, e, u, a = (axes[letter] for letter in "bgrtsdeua")
    query = torch.randn(b, g * r, 2 * u, d)
    key, value = torch.randn(b, g, 3 * a, d), torch.randn(b, g, 3 * a, e)
    online_softmax(torch.randn(b, t, s))
    flash_forward(query, key, value, False, 1.0, u, a)
    flash_attention(query, key, value, is_causal=True)
    flash_traffic(t, s, d, e)
