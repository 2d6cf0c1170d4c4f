r"""# Linear attention in Triton

Lesson 14's chunks are few and simple products. In PyTorch each of them is a kernel of its own, and between
two kernels lies memory: features are written in float32 and read again, so are the weights within chunks, the
states, numerators and denominators. Of one head of 4,096 tokens, 64 wide, in bf16, the answer and what it is
made of are 2 MiB. PyTorch's operations read and write 52 to get there, the kernels of this page 4
[check:test_traffic_of_one_head|52 and 4 MiB].

So it is lesson 13's story again. Arithmetic is cheap, to fetch is dear, and what is needed for a moment
should never leave the chip.

![Four chunks, two heads, each state in two blocks. Only along an arrow does one thing wait for another. Beside
a triangle of weights, the share of what came before.](figure:at_once)

## What has to wait, and what has not

Within a chunk, a query needs its own chunk and the state before it:

$$\varphi(\mathbf{q}_i)^\top S_i = \varphi(\mathbf{q}_i)^\top S_{\text{before}} + \sum_{j \le i
\text{, within}} A_{ij}\, \mathbf{v}_j^\top .$$

Once all states at the borders are known, no chunk waits for another. So there are two kernels. The first
walks through the text, a state in its hands, and puts it down at each border. The second takes all chunks at
once.

The first seems to be the bottleneck, for it goes step by step. But a state is $f \times e$ numbers that know
nothing of each other. Cut it into blocks of 64 by 64, and each has a walk of its own: 32 heads, 128 wide, are
128 walks, and a step is one product.

## What a chunk size trades

A state at each border is written once and read once. Forward, one head moves

$$t\,(3f + 3e + 1) + 2\,\frac{t}{u}\,f\,(e + 1)$$

numbers [check:test_traffic_is_what_the_kernels_move]: the text, and states. Longer chunks have fewer borders,
and more weights to compute: $2\,u\,(f + e)$ operations a token. With $f = e = 64$:

| $u$ | 16 | 32 | 64 | 128 |
|---|---|---|---|---|
| numbers moved, a token | 905 | 645 | 515 | 450 |
| operations, a token | 20,608 | 24,704 | 32,896 | 49,280 |

In bf16, 64 tokens to a chunk are 32 operations for each byte [check:test_what_a_chunk_size_trades]. An A100
has time for 208. Memory decides at every length here, so longer is better, while there is room: 128 by 128
weights in float32 are a quarter of the 65,536 registers of a multiprocessor
[check:test_what_a_chunk_size_trades|a quarter].

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | what position $i$ asks |
| $\mathbf{k}_j$ | `key` | `b h s d` | what position $j$ offers |
| $\mathbf{v}_j$ | `value` | `b h s e` | what position $j$ gives |
| $\varphi$ | `feature_map` | – | from $d$ numbers to $f$ features |
| $S$ | `before` | – | state at the beginning of each chunk |
| $\mathbf{z}$ | `normalisers` | – | and its normaliser |
| $u$ | `chunk_size` | scalar | tokens in a chunk |

**Source.** Katharopoulos et al. (2020), arXiv:2006.16236, equations 4, 5 and 10 to 12. The two kernels are
those of flash-linear-attention (Yang, Zhang 2024). Mamba-2 cuts its states free of one another as well: Dao,
Gu (2024), arXiv:2405.21060, section 6.
"""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from annotated_attention.flash_triton import has_kernels
from annotated_attention.linear import features, linear_attention
from annotated_attention.linear_features import FeatureMap, elu_plus_one
from annotated_attention.scaled_dot_product import check_inputs

__all__ = ["LinearTriton", "linear_attention_triton"]
__all__ += ["linear_triton_traffic"]

CHUNK_SIZES = (16, 32, 64, 128)


def arithmetic(x: Tensor) -> str:
    r"""## How it is multiplied

    A GPU has units for products of narrow numbers; all sums are in float32. float16 ends at 65,504, which a
    sum over a text soon exceeds, and begins at $6 \cdot 10^{-8}$, below which a query falls that is divided
    by such a sum. TF32 has its ten bits, and float32's range, but the unit cuts the other bits off: that is
    always towards 0, and so does not average out. So a float16 product is three of TF32, which together keep
    nearly all bits: of large parts, and of what was cut from each.
    """
    if x.dtype == torch.float32 or not x.is_cuda:
        return "ieee"
    return "bf16" if x.dtype == torch.bfloat16 else "tf32x3"


def settings(
    query: Float[Tensor, "b t h f"],
    value: Float[Tensor, "b t h e"],
    chunk_size: int,
    is_elu: bool,
) -> dict:
    """What all kernels are told. A Hopper takes tiles of 64 features; an older chip, and products that are
    not for tensor cores, 32: with 64, registers spill [check:test_nothing_spills]."""
    (t, h, f), e = query.shape[1:], value.shape[3]
    kind = arithmetic(value)
    block = 32
    if kind != "ieee":
        major, _ = torch.cuda.get_device_capability(value.device)
        block = 64 if major >= 9 else 32
    widest = 1 << (max(f, e, 16) - 1).bit_length()
    sizes = {"T": t, "H": h, "F": f, "E": e, "U": chunk_size}
    options = {"ELU": is_elu, "KIND": kind, "BLOCK": min(block, widest)}
    return sizes | options | {"num_warps": 8, "num_stages": 2}


def states(
    key: Float[Tensor, "b t h f"],
    value: Float[Tensor, "b t h e"],
    told: dict,
    total: Float[Tensor, "b t h"] | None = None,
    shift: Float[Tensor, "b t h"] | None = None,
) -> tuple[Float[Tensor, "b h n f e"], Float[Tensor, "b h n f"]]:
    """## The walk

    A program for each block of each head's state. It is carried in float32, and put down in the dtype in
    which it will be multiplied: it would be rounded to that in any case.
    """
    from annotated_attention import linear_triton_kernels as kernels

    (b, t, h, f), e = key.shape, value.shape[3]
    n, block = -(-t // told["U"]), told["BLOCK"]
    kept = torch.bfloat16 if told["KIND"] == "bf16" else torch.float32
    matrices = value.new_empty(b, h, n, f, e, dtype=kept)
    normalisers = value.new_empty(b, h, n, f, dtype=torch.float32)
    grid = (b * h, -(-f // block), -(-e // block))
    tensors = key, value, total, shift, matrices, normalisers
    options = {**told, "BACKWARDS": total is not None}
    kernels.state_kernel[grid](*tensors, **options)
    return matrices, normalisers


class LinearTriton(torch.autograd.Function):
    """## Forward, and back

    Kept are what came, the output and one denominator a token. States are made once more on the way back. To
    keep them would take as much again as the values, at $u = f = 64$.
    """

    @staticmethod
    def forward(ctx, query, key, value, chunk_size, is_elu):
        from annotated_attention import linear_triton_kernels as kernels

        told = settings(query, value, chunk_size, is_elu)
        before, normalisers = states(key, value, told)
        b, t, h, e = value.shape
        output = torch.empty_like(value)
        total = value.new_empty(b, t, h, dtype=torch.float32)
        grid = (b * h * before.shape[2], -(-e // told["BLOCK"]))
        tensors = query, key, value, before, normalisers, output, total
        kernels.output_kernel[grid](*tensors, **told)
        ctx.save_for_backward(query, key, value, output, total)
        ctx.told = told
        return output

    @staticmethod
    def backward(ctx, *grad_outputs):
        from annotated_attention import (
            linear_triton_kernels_backward as back,
        )

        if torch.is_grad_enabled():
            came = "create_graph=True asks for a gradient of the gradient"
            raise RuntimeError(f"{came}, which the kernels lack")
        query, key, value, output, total = ctx.saved_tensors
        grad, told = grad_outputs[0].contiguous(), ctx.told
        (b, t, h, f), e, block = query.shape, value.shape[3], told["BLOCK"]

        # $D_i$ first, then states from both ends of the text.
        shift = torch.empty_like(total)
        tokens = b * t * h
        sizes = {"E": e, "U": 64, "BLOCK": block}
        grid = (-(-tokens // 64),)
        back.shift_kernel[grid](output, grad, shift, tokens, **sizes)
        before, normalisers = states(key, value, told)
        after, shifts = states(query, grad, told, total, shift)

        # And all chunks at once.
        chunks = b * h * before.shape[2]
        dq, dk, dv = (torch.empty_like(x) for x in (query, key, value))
        text = query, key, value, grad, total, shift
        known = before, normalisers, after, shifts
        grid = (chunks, -(-f // block))
        back.feature_gradient_kernel[grid](*text, *known, dq, dk, **told)
        grid = (chunks, -(-e // block))
        tensors = query, key, grad, total, after, dv
        back.value_gradient_kernel[grid](*tensors, **told)
        return dq, dk, dv, None, None


def linear_attention_triton(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b h s d"],
    value: Float[Tensor, "b h s e"],
    *,
    is_causal: bool = True,
    feature_map: FeatureMap = elu_plus_one,
    chunk_size: int = 64,
) -> Float[Tensor, "b h t e"]:
    r"""## The function

    `linear_attention`, by kernels: the same outputs and gradients [check:test_agrees_with_linear_attention]
    whatever the size of a chunk [check:test_any_chunk_size_is_the_same], and the same bits every time, for
    nothing is added up by two at once [check:test_the_same_bits_every_time].

    **Shapes.** `query` is `b h t d`, `key` is `b h s d`, `value` is `b h s e`; the result is `b h t e`.
    `is_causal` is aligned top-left. In float64, on a CPU, without Triton or without a mask,
    `linear_attention` itself answers [check:test_elsewhere_it_is_linear_attention].

    **Raises.** `ValueError` if anything does not fit [check:test_wrong_input_is_refused].
    """
    check_inputs(query, key, value, None, is_causal)
    if chunk_size not in CHUNK_SIZES:
        came = f"chunk_size is {chunk_size}"
        raise ValueError(f"{came}: one of {CHUNK_SIZES} is wanted")

    # Without a mask there is one state for all queries: two products, which any library does well.
    n = min(query.shape[2], key.shape[2])
    in_torch = partial(linear_attention, feature_map=feature_map)
    if not is_causal or not has_kernels(query) or 0 in (n, *query.shape):
        given = {"is_causal": is_causal, "chunk_size": chunk_size}
        return in_torch(query, key, value, **given)

    # elu + 1 is a few instructions on a tile that is on the chip already. Here, in PyTorch, it would be
    # features in float32, written and read. Any other map is applied here, and autograd knows its gradient.
    is_elu = feature_map is elu_plus_one
    q, k, v = (x[:, :, :n] for x in (query, key, value))
    if not is_elu:
        q, k = features(q, feature_map), features(k, feature_map)

    # Projections leave their tokens as `b t h d` in memory (lesson 2). The kernels read them so: to transpose
    # back costs nothing, and what lies otherwise is copied.
    q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    with torch.cuda.device_of(v):
        output = LinearTriton.apply(q, k, v, chunk_size, is_elu)
    output = output.transpose(1, 2)

    # Queries behind the last key read all.
    if n < query.shape[2]:
        rest = in_torch(query[:, :, n:], key, value, is_causal=False)
        output = torch.cat([output, rest], dim=2)
    return output


def linear_triton_traffic(
    t: int,
    f: int,
    e: int,
    chunk_size: int,
) -> tuple[int, int]:
    r"""## What it costs, and when it fails

    Returns how many numbers one causal head moves, forward and back, if $f$ and $e$ fit into a block
    [check:test_traffic_is_what_the_kernels_move]:

    $$t\,(3f + 3e + 1) + \frac tu\, 2 f (e + 1) \quad\text{and}\quad t\,(8f + 8e + 6) + \frac tu\, f\,(5 e + 4).$$

    - *Few heads, long text.* The walks are $b\,h\,\lceil f/64 \rceil \lceil e/64 \rceil$ in number. One text
      of 8 heads, 64 wide, has 8 of them, each of $t/u$ steps, on a chip of a hundred multiprocessors.
    - *Wide features.* Each block of values computes the weights within its chunk anew, over all features. For
      `taylor_features`, $1 + d + d^2$ of them, that is most of the work.
    - *Rounded once more.* In bf16, features and states are rounded before they are multiplied, where
      `linear_attention` keeps float32. Outputs and gradients stay within the bounds that hold for it
      [check:test_what_a_gpu_rounds].
    - *Once only.* The gradient has no gradient [check:test_not_twice_differentiable].

    **In production.** **flash-linear-attention**'s `chunk_linear_attn` has these kernels, with decay and
    packed texts, chunks of 64 and states kept in the dtype of the keys; the denominator is left to PyTorch.
    **Mamba-2** sums up each chunk by itself, all at once, and passes the sums along in a kernel of its own
    (`_chunk_state_fwd`, `_state_passing_fwd`, `_chunk_scan_fwd`), in chunks of 256: more to write, nothing to
    wait for but additions.
    """
    chunks = -(-t // chunk_size)
    forward = t * (3 * f + 3 * e + 1) + chunks * 2 * f * (e + 1)
    backward = t * (8 * f + 8 * e + 6) + chunks * f * (5 * e + 4)
    return forward, backward


def example(axes: dict[str, int]) -> None:
    """Chunks of 16: the shapes beside the code are read off this run."""
    b, h, t, s, d, e = (axes[name] for name in "bhtsde")
    query = torch.randn(b, h, t, d)
    key, value = torch.randn(b, h, s, d), torch.randn(b, h, s, e)
    linear_attention_triton(query, key, value)
    linear_triton_traffic(t, d, e, 64)
