r"""# What a ring costs

Each rank computes with $b\,h\,t^2$ pairs of query and key in a step, and hands on $b\,g\,t\,(d + e)$ numbers.
The work grows with the square of $t$, the message with $t$. So from some length on the message takes no time
of its own: it is there before the work is done. Which length that is follows from two numbers of the machine.

![One step after another, to scale: computing above, sending below. The shares of the first ring are long
enough, those of the second are not.](figure:overlap)

## When sending is hidden

Let a device compute $F$ operations in a second and send $B$ bytes. A step has two products of $2\,b h t^2 d$
and $2\,b h t^2 e$ operations, and a message of $\beta$ bytes a number. It is hidden if

$$\frac{b\,g\,t\,(d + e)\,\beta}{B} \le \frac{2\,b\,h\,t^2\,(d + e)}{F}
\quad\Longleftrightarrow\quad t \ge \frac FB \cdot \frac gh \cdot \frac \beta 2 .$$

Width, batch and number of ranks are gone. With 2 bytes and $g = h$ it is the paper's $c \ge F/B$. Queries
that share keys are a gift: 8 to a key, and an eighth of the length will do. Folded causality halves the work
and not the message, so it doubles the length.

Back, each step has five products instead of two, and two messages: keys, and sums of gradients in float32. In
bf16, with $d = e$, that is 1.2 times the length [check:test_lengths_that_hide|1.2].

By their datasheets (not measured here), an H100 SXM has 989 TFLOP/s in bf16, and sends 450 GB/s over NVLink,
half of the 900 that are stated for both directions, or 50 GB/s over one 400 Gb/s InfiniBand port. With 32
heads on 8, causal, a share should have 1,100 tokens in the first case and 9,900 in the second
[check:test_lengths_that_hide|1,100 and 9,900]. A kernel that reaches 60% of the peak does with 60% of that.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $F$ | `flops` | scalar | operations a second |
| $B$ | `bandwidth` | scalar | bytes a second, in one direction |
| $\beta$ | `size` | scalar | bytes of a number: 2 in bf16 |
| $n$ | `n` | scalar | ranks |
| $t$ | `t` | scalar | tokens of one rank |
| $s$ | `s` | scalar | keys of one rank, in decoding |
| $\mathbf{q}_i$ | `query` | `b h t d` | the same on all ranks, in decoding |
| $\mathbf{k}_j$ | `key` | `b g s d` | a rank's own, |
| $\mathbf{v}_j$ | `value` | `b g s e` | and its values |

**Source.** Liu, Zaharia and Abbeel (2023), arXiv:2310.01889, section 3. Jacobs et al. (2023),
arXiv:2309.14509 (DeepSpeed-Ulysses). Shyam et al. (2024), arXiv:2408.04093 (Tree Attention).
"""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from annotated_attention.flash import flash_attention, merge_attention
from annotated_attention.ring_travel import Ring

__all__ = ["decode_across_ranks", "least_tokens", "ring_bytes", "ways"]


def least_tokens(
    flops: float,
    bandwidth: float,
    h: int,
    g: int,
    d: int,
    e: int,
    *,
    size: int = 2,
    is_causal: bool = False,
) -> tuple[float, float]:
    r"""## The least length

    Returns how many tokens a rank must have for sending to be hidden, forward and backward. Sums have 4 bytes
    a number or more; the last of them, on its way home, nothing hides.
    """
    # Bytes of a step by its operations, where $b\,g\,t$ and $b\,h\,t^2$ have been divided out.
    sums = max(size, 4)
    forward = size * (d + e) / (2 * (d + e))
    backward = (size + sums) * (d + e) / (2 * (3 * d + 2 * e))
    ratio = flops / bandwidth * g / h * (2 if is_causal else 1)
    return ratio * forward, ratio * backward


def ring_bytes(
    b: int,
    g: int,
    t: int,
    d: int,
    e: int,
    n: int,
    *,
    size: int = 2,
) -> tuple[int, int]:
    r"""## What one rank sends

    Forward and backward, in bytes:

    $$(n - 1)\,N\beta \qquad\text{and}\qquad (n - 1)\,N\,(\beta + 4), \qquad N = b\,g\,t\,(d + e),$$

    with $\beta$ for 4 where $\beta$ is more. This is what is handed to `isend`, to the byte
    [check:test_bytes_are_foretold]. Heads count by $g$, not $h$: no key is repeated before it travels.
    Causality could save little, and here saves nothing: the ranks behind the source need half of its keys,
    but those before it, whom the ring reaches last, need all.
    """
    numbers = (n - 1) * b * g * t * (d + e)
    return numbers * size, numbers * (size + max(size, 4))


def ways(
    b: int,
    h: int,
    g: int,
    t: int,
    d: int,
    e: int,
    n: int,
    *,
    size: int = 2,
) -> dict[str, tuple[int, int]]:
    r"""## Other ways to bring them together

    Returns for three ways the bytes that one rank sends forward, and the bytes of keys and values for which
    it has room at a time.

    - *A ring* sends $(n - 1)\,N$ numbers and has room for $2N$.
    - *Gathering* all keys first sends as many [check:test_ways_count_what_moves], and needs room for $n\,N$,
      the keys of the whole text. In return the rest is one call of an ordinary kernel, with any mask.
    - *All to all* (DeepSpeed-Ulysses) exchanges tokens for heads: afterwards each rank has all tokens of
      $h/n$ heads and their $g/n$ heads of keys, attends to them as one device would, and a second exchange
      undoes the first. Of queries, keys, values and outputs, $b\,t\,(h + g)(d + e)$ numbers, it sends all but
      the $n$-th part that is its own.

    A ring sends $n\,g/(h + g)$ times as much as all to all [check:test_ring_or_all_to_all]: twice as much on
    4 ranks if every query head has its keys, and less on up to 8 ranks if 8 of them share. But all to all can
    have no more ranks than there are heads of keys, unless it repeats them, and nothing of it is hidden. The
    two are combined: all to all within a machine, a ring between machines.
    """
    keys = b * g * t * (d + e) * size
    heads = b * t * (h + g) * (d + e) * size
    return {
        "ring": ((n - 1) * keys, 2 * keys),
        "gather": ((n - 1) * keys, n * keys),
        "all to all": ((n - 1) * heads // n, keys),
    }


def decode_across_ranks(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    group: dist.ProcessGroup | None = None,
    *,
    scale: float | None = None,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t"]]:
    r"""## One query

    A model that writes has one query, and a cache dealt out to the ranks. To send the keys round would be
    absurd. Let the query come to the keys: all ranks have it, each attends to its own cache, and only answers
    travel, $b\,h\,t\,(e + 1)$ numbers, as on lesson 13's page on decoding. For one token behind 262,144 keys
    a rank, with 32 heads on 8 of width 128, that is 16 KiB and not 1 GiB
    [check:test_an_answer_is_smaller|16 KiB and 1 GiB].

    The result is the same on all ranks, to the last bit, since all merge in the same order
    [check:test_decoding_agrees]. Caches may be of different lengths, or empty. Nothing here has a gradient.

    Tree Attention merges in pairs instead, in $\log_2 n$ rounds. For a prompt with many queries behind a long
    cache, Yang et al. (2024, arXiv:2411.01783) send whichever is smaller, queries or keys.

    **Shapes.** As `flash_attention`; `query` and the results are the same on all ranks, $s$ is each one's
    own. No rank checks what the others brought.
    """
    ring = Ring.of(group)
    wide = torch.promote_types(query.dtype, torch.float32)
    inputs = query.to(wide), key.to(wide), value.to(wide)
    with torch.no_grad():
        output, lse = flash_attention(*inputs, scale=scale)
    mine = torch.cat([output, lse[..., None]], dim=-1)

    # One message: an answer, and how much stands behind it.
    answers = [torch.empty_like(mine) for _ in range(ring.n)]
    with ring.naming("gathering answers"):
        # With a handle to wait for: only that knows the timeout on every backend.
        work = dist.all_gather(answers, mine, group=ring.group, async_op=True)
        assert work is not None
        work.wait()
    parts = [(x[..., :-1], x[..., -1]) for x in answers]
    output, lse = parts[0]
    for part in parts[1:]:
        output, lse = merge_attention(output, lse, *part)
    return output.to(query.dtype), lse


def example(axes: dict[str, int]) -> None:
    """A group of one, in this process: the shapes beside the code are read off this run."""
    b, g, r, t, s, d, e = (axes[letter] for letter in "bgrtsde")
    query = torch.randn(b, g * r, t, d)
    key, value = torch.randn(b, g, s, d), torch.randn(b, g, s, e)
    least_tokens(989e12, 450e9, g * r, g, d, e)
    ring_bytes(b, g, t, d, e, 3)
    ways(b, g * r, g, t, d, e, 3)
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        decode_across_ranks(query, key, value)
    finally:
        dist.destroy_process_group()
