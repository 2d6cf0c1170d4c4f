r"""# On a GPU

In PyTorch each line of the loop is a kernel of its own, and what passes from one line to the next goes
through the memory that the tiles were meant to spare. So here is the loop once more, as *one* kernel, written
in Triton: forward, backward, and with everything that models put into the middle of attention. This page has
what one calls; [the kernel](../flash_triton_kernels/index.md) and [the kernels going
back](../flash_triton_kernels_backward/index.md) have pages of their own.

It is the same function as before, and without a GPU it is PyTorch. With `TRITON_INTERPRET=1` a CPU runs the
kernels, slowly: so this page was tested where there was no GPU [check:test_agrees_with_the_formula].

![A query sees the keys from `low` to `high`, under each mask and under all three at once.](figure:intervals)

## One interval, one score, one sum

A kernel is rigid: what is not in it cannot be had. But what models ask for comes in three places only.

*Who sees whom.* A causal mask, a window, documents packed into one text: all of them let a query see an
interval of keys, and so does any combination. Two numbers a query say it all, and tiles outside are never
visited, which [the page of the kernel](../flash_triton_kernels/index.md) proves.

*What a score is.* A cap, then a bias, one line each:

$$S_{ij} = c \tanh\!\big(\lambda\,\mathbf{q}_i^\top \mathbf{k}_j / c\big) - m_h\,|i - j| .$$

*What is summed.* A sink adds $e^{z_h}$ to the sum and nothing to the values, once, at the end of a row.

Everything else, the walk over the tiles, the online softmax, its gradient, is the same for all
[check:test_options_combine].

## What others call it

| here | flash-attn | Transformers |
|---|---|---|
| `is_causal`, top-left | `causal`, bottom-right | `is_causal` |
| `window` $w$, causal | `window_size=(w - 1, 0)` | `sliding_window=w` |
| `window` $w$, both sides | `window_size=(w - 1, w - 1)` | |
| `documents` | `cu_seqlens_q` | `cu_seq_lens_q` |
| `soft_cap` | `softcap` | `softcap` |
| `alibi_slopes` | `alibi_slopes` | |
| `sink_logits` | `s_aux` (3), `learnable_sink` (4) | `s_aux` |

FlexAttention is this seam with a compiler behind it: of two functions of indices, `mask_mod` and `score_mod`,
it makes a kernel and a list of tiles to visit; a sink it leaves to whoever has `lse`. Here all lies open.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | what position $i$ asks |
| $\mathbf{k}_j$ | `key` | `b g s d` | what position $j$ offers |
| $\mathbf{v}_j$ | `value` | `b g s e` | what position $j$ gives |
| $S_{ij}$ | `scores` | a block | as above |
| $\lambda$ | `scale` | scalar | $1/\sqrt d$ unless given |
| $w$ | `window` | scalar | keys in sight, the query's own counted |
| $c$ | `soft_cap`, `cap` | scalar | no score exceeds it |
| $m_h$ | `alibi_slopes`, `slopes` | `h` | what a step of distance costs (lesson 6) |
| $z_h$ | `sink_logits`, `sinks` | `h` | the score of nothing (lesson 10) |
| $L_i$ | `lse` | `b h t` | logarithm of the sum, the sink's share included |

**Source.** Dao (2023), arXiv:2307.08691. The cap: Gemma 2 (2024), arXiv:2408.00118, section 2.
"""

import importlib.util
import os
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from annotated_attention.flash import flash_attention
from annotated_attention.scaled_dot_product import check_inputs

__all__ = ["TritonFlashAttention", "check_options", "flash_attention_triton"]
__all__ += ["attend_in_blocks", "has_kernels", "keys_in_sight"]
__all__ += ["spans_of", "tiles_visited"]


def has_kernels(query: Tensor) -> bool:
    r"""## Kernel or PyTorch

    Kernels run on a GPU where Triton is installed, or in its interpreter. They know no float64.
    """
    is_there = query.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    is_known = query.dtype != torch.float64
    return is_there and is_known and bool(importlib.util.find_spec("triton"))


class TritonFlashAttention(torch.autograd.Function):
    r"""The pair of passes. Kept are the inputs, the output and its logarithm, as before."""

    @staticmethod
    def forward(ctx, query, key, value, sinks, slopes, *options):
        from annotated_attention.flash_triton_kernels import launch_forward

        inputs = query, key, value, sinks, slopes
        with torch.cuda.device_of(query):
            output, lse = launch_forward(*[*inputs, *options])
        ctx.save_for_backward(*inputs, output, lse)
        ctx.options = options
        return output, lse

    @staticmethod
    def backward(ctx, *grad_outputs):
        from annotated_attention import flash_triton_kernels_backward as back

        if torch.is_grad_enabled():
            came = "create_graph=True asks for a gradient of the gradient"
            raise RuntimeError(f"{came}, which flash_attention_triton lacks")
        saved, wants_slopes = ctx.saved_tensors, ctx.needs_input_grad[4]
        given = [*grad_outputs, *saved, *ctx.options, wants_slopes]
        with torch.cuda.device_of(saved[0]):
            grads = back.launch_backward(*given)
        return *grads, *(None for _ in ctx.options)


def flash_attention_triton(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    *,
    is_causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    alibi_slopes: Float[Tensor, "h"] | None = None,
    sink_logits: Float[Tensor, "h"] | None = None,
    soft_cap: float | None = None,
    documents: Sequence[int] | Int[Tensor, "n"] | None = None,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t"]]:
    r"""## The function

    Attention and its logarithm, in float16, bf16 and float32 [check:test_agrees_with_pytorch], with gradients
    at every tensor that goes in, and through both that come out [check:test_options_combine]. The logarithm
    is float32; with a sink it is that of *all* that was summed, so the weights of keys alone sum to less than
    1. Merge it with further keys, and the sink counts once [check:test_a_sink_counts_once_in_a_merge].

    `window` counts the query's own key and looks to both sides unless `is_causal`. `documents` are
    boundaries, $n + 1$ numbers from 0 to $t$, such as `cu_seqlens`: a query sees its own document only, which
    may be empty [check:test_documents_are_texts_of_their_own]. They are the same for all texts of a batch;
    whoever packs has one text, $b = 1$. A tensor on a GPU is read back, and Python waits for it.

    **Shapes.** `query` is `b h t d`, `key` is `b g s d`, `value` is `b g s e`, with $h$ a multiple of $g$:
    keys are never repeated. Any lengths, and any strides of the first three axes without a copy
    [check:test_lengths_and_strides]. Wider than 256, PyTorch computes it. A query that sees nothing gets 0,
    its logarithm is $-\infty$ or its sink [check:test_who_sees_nothing].

    **Raises.** `ValueError` if something does not fit [check:test_wrong_input_is_refused].
    """
    check_inputs(query, key, value, None, is_causal, enable_gqa=True)
    for kv in (key, value):
        check_options(query, kv, window, alibi_slopes, sink_logits, soft_cap)
    (t, d), (s, e) = query.shape[2:], value.shape[2:]
    scale = float(d**-0.5 if scale is None else scale)
    kernels = has_kernels(query) and max(d, e) <= 256
    options = window, alibi_slopes, sink_logits, soft_cap, documents
    if not kernels and all(option is None for option in options):
        plain = {"is_causal": is_causal, "scale": scale}
        return flash_attention(query, key, value, **plain)

    # How far a query looks back, and ahead. $t + s$ is further than any text reaches.
    before = t + s if window is None else min(window, t + s) - 1
    reach = before, 0 if is_causal else before, *spans_of(documents, query, s)
    wide = torch.promote_types(query.dtype, torch.float32)
    sinks = None if sink_logits is None else sink_logits.to(wide).contiguous()
    slopes = None if alibi_slopes is None else alibi_slopes.to(wide).contiguous()
    if not kernels:
        given = query, key, value, sinks, slopes
        return attend_in_blocks(*given, *reach, scale, soft_cap)

    # The kernel's unit of scores is $1/\lambda$, which should be more than 0: the sign goes to the queries.
    if scale <= 0:
        query, scale = query * -float(scale < 0), abs(scale) or 1.0
    given = query, key, value, sinks, slopes
    return TritonFlashAttention.apply(*given, *reach, scale, soft_cap)


def check_options(
    query,
    key,
    window,
    alibi_slopes,
    sink_logits,
    soft_cap,
) -> None:
    r"""### What is refused

    What a kernel would read without asking, at addresses of which it knows nothing.
    """
    if window is not None and window < 1:
        raise ValueError(f"window is {window}: at least 1 is wanted")
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"soft_cap is {soft_cap}: more than 0 is wanted")
    h, device = query.shape[1], query.device
    if key.device != device:
        came = f"keys or values are on {key.device}, query on {device}"
        raise ValueError(f"{came}: one device is wanted")
    vectors = {"alibi_slopes": alibi_slopes, "sink_logits": sink_logits}
    for name, x in vectors.items():
        if x is not None and (x.shape != (h,) or x.device != device):
            came = f"{name} has shape {tuple(x.shape)}, on {x.device}"
            raise ValueError(f"{came}: {(h,)} on {device} is wanted")


def spans_of(
    documents: Sequence[int] | Int[Tensor, "n"] | None,
    query: Float[Tensor, "b h t d"],
    s: int,
) -> tuple[Int[Tensor, "t"] | None, Int[Tensor, "t"] | None]:
    r"""### Documents

    Where the document of each position starts, and where it ends: $2t$ numbers.
    """
    if documents is None:
        return None, None
    marks = torch.as_tensor(documents, dtype=torch.int32, device="cpu")
    lengths, t = marks.diff(), query.shape[2]
    is_whole = t == s and len(marks) and marks[0] == 0 and marks[-1] == t
    if not is_whole or (lengths < 0).any():
        came = f"documents is {marks.tolist()} for {t} queries and {s} keys"
        wanted = "boundaries that rise from 0 to the number of both"
        raise ValueError(f"{came}: {wanted} are wanted")
    starts = marks[:-1].repeat_interleave(lengths)
    ends = marks[1:].repeat_interleave(lengths)
    return starts.to(query.device), ends.to(query.device)


def keys_in_sight(
    i: Int[Tensor, "t"],
    s: int,
    before: int,
    after: int,
    starts: Int[Tensor, "n"] | None,
    ends: Int[Tensor, "n"] | None,
) -> tuple[Int[Tensor, "t"], Int[Tensor, "t"]]:
    r"""## Without a kernel

    The same interval in PyTorch: query `i` sees keys from `low` to `high`, the last not included.
    """
    low, high = (i - before).clamp(min=0), (i + after + 1).clamp(max=s)
    if starts is not None and ends is not None:
        low, high = low.maximum(starts[i]), high.minimum(ends[i])
    return low, high


def attend_in_blocks(
    query, key, value, sinks, slopes,
    before, after, starts, ends, scale, cap, block=256,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    r"""A block of queries at a time, and of the keys only those that it sees. Going back, each block is computed
    once more (`checkpoint`), so the memory is linear here too [check:test_memory_without_a_kernel_is_linear].
    """
    t, s = query.shape[2], key.shape[2]
    parts = []
    for first in range(0, max(t, 1), block):
        u = min(block, t - first)
        i = torch.arange(first, first + u, device=query.device)
        low, high = keys_in_sight(i, s, before, after, starts, ends)
        left, right = (int(low[0]), int(high[-1])) if t else (0, 0)
        left, right = min(left, right), right
        j = torch.arange(left, right, device=query.device)
        seen = (j >= low[:, None]) & (j < high[:, None])
        distance = (i[:, None] - j).abs()
        block_of = query[:, :, first : first + u]
        tiles = block_of, key[:, :, left:right], value[:, :, left:right]
        given = *tiles, sinks, slopes, seen, distance, scale, cap
        part = checkpoint(attend_to_block, *given, use_reentrant=False)
        parts.append(part)
    outputs, lses = zip(*parts, strict=True)
    return torch.cat(outputs, dim=2), torch.cat(lses, dim=2)


def attend_to_block(
    query, key, value, sinks, slopes, seen, distance, scale, cap
) -> tuple[Tensor, Tensor]:  # fmt: skip
    r"""The formula."""
    g, wide = key.shape[1], torch.promote_types(query.dtype, torch.float32)
    q = rearrange(query.to(wide), "b (g r) t d -> b g r t d", g=g)
    with torch.autocast(query.device.type, enabled=False):
        scores = torch.einsum("b g r t d, b g s d -> b g r t s", q, key.to(wide))
        scores = scores.flatten(1, 2) * scale
        if cap is not None:
            scores = cap * torch.tanh(scores / cap)
        if slopes is not None:
            scores = scores - slopes[:, None, None] * distance
        scores = scores.masked_fill(~seen, -torch.inf)

        # The sink enters the sum. A finite logarithm keeps an empty row from becoming NaN.
        lse = scores.logsumexp(dim=-1)
        if sinks is not None:
            lse = torch.logaddexp(lse, sinks[:, None])
        finite = lse.clamp(min=torch.finfo(wide).min)
        weights = torch.exp(scores - finite[..., None])
        weights = rearrange(weights, "b (g r) t s -> b g r t s", g=g)
        product = "b g r t s, b g s e -> b g r t e"
        output = torch.einsum(product, weights, value.to(wide))
    return output.flatten(1, 2).to(query.dtype), lse


def tiles_visited(
    low: Int[Tensor, "t"],
    high: Int[Tensor, "t"],
    u: int,
    a: int,
) -> tuple[int, int]:
    r"""## What it costs, and when it fails

    Returns how many tiles of `u` queries by `a` keys the kernel visits, and how many of these it masks. At
    8,192 tokens, in tiles of 128 by 64, there are 8,192. Under a causal mask 4,160 are visited and 128
    masked; with a window of 512, 620 and 248 [check:test_visited_tiles_are_counted|8,192 tokens].

    - *A tile is visited whole.* A window of 64 keys still takes 3 tiles of 64 for 128 queries, of which it
      uses a third [check:test_visited_tiles_are_counted|a third]. Very short documents are better in a batch.
    - *A head of 80 or 96 is computed as one of 128*, zeros included.
    - *Few key heads make few programs.* Going back, a program has a tile of keys for all query heads of the
      group: a single text of 8,192 tokens with a single key head is 64 of them, and an H100 has 132
      multiprocessors.
    - *float32 is slow.* It is multiplied without tensor cores, to be float32.
    - *No dropout, no mask of holes.* What is no interval needs FlexAttention, or lesson 12's tiles.
    - *The first call compiles*, for each dtype, width and set of options, and anew for a length or stride that
      is 1 or that 16 divides: seconds.

    Nothing here waits for anything but itself. FlashAttention-3 goes further, with what an H100 has for it:
    some warps do nothing but fetch (*warp specialisation*), two groups of others take turns, the one in a
    softmax while the other multiplies (*ping-pong*), and within a group the next product of queries and keys
    runs beside the softmax before. Triton's compiler decides such things by itself; we make no claim on what
    it reaches here.

    **In production** call **SDPA** where it can do what is wanted, **FlexAttention** where it cannot, and
    **flash-attn** for packed texts: the table above says under which names.
    """
    visited = masked = 0
    for lows, highs in zip(low.split(u), high.split(u), strict=True):
        start, stop = int(lows.min()) // a, -(-int(highs.max()) // a)
        whole = int(highs.min()) // a + -int(lows.max()) // a
        visited += max(stop - start, 0)
        masked += max(stop - start, 0) - max(whole, 0)
    return visited, masked


def example(axes: dict[str, int]) -> None:
    """Packed documents with everything on: the shapes beside the code are read off this run."""
    b, g, r, t, d, e = (axes[letter] for letter in "bgrtde")
    query, key, value = torch.randn(b, g * r, t, d), torch.randn(b, g, t, d), torch.randn(b, g, t, e)
    slopes, sinks = torch.rand(g * r), torch.randn(g * r)
    flash_attention_triton(query, key, value, window=3, alibi_slopes=slopes, sink_logits=sinks)
    spans_of([0, 1, t], query, t)
    keys_in_sight(torch.arange(t), t, 2, 0, None, None)
    attend_to_block(query, key, value, None, None, torch.ones(t, t, dtype=torch.bool), None, 1.0, None)
