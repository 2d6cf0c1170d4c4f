r"""# Back through the tiles

The backward pass wants the weights. Every formula of lesson 1 has $P$ in it, all $t\,s$ numbers, and the
forward pass has just taken care that they never were in memory. To keep them for this moment would undo it.

But they are easily made again. All that the softmax needed was the maximum and the sum of a row, and with
those known, a tile of weights takes one matrix product and one exponential. To compute them twice is quicker
than to fetch them.

![To scale, for 1,024 tokens and a width of 64. The square would be the weights. Of it there is one tile at a
time; what lasts are the strips.](figure:kept)

## What came before

Checkpointing (Chen et al. 2016, arXiv:1604.06174) drops what autograd would keep, and runs that part of the
forward pass again when it is asked for. Rabe and Staats did so with their chunks of attention. FlashAttention
went on from there: it wrote the gradient down by hand, and so it does not run the forward pass again but only
one product of it, since the other was there to make an output that is known.

## One number a row

Lesson 1's weight is $e^{S_{ij} - m_i}/\ell_i$. Put the denominator into the exponent:

$$P_{ij} = e^{S_{ij} - L_i}, \qquad L_i = m_i + \ln \ell_i = \ln \sum_j e^{S_{ij}} .$$

FlashAttention kept $m$ and $\ell$; FlashAttention-2 noticed that $L$ is enough
[check:test_weights_from_one_number].

## One more number a row

Lesson 1 found $dS_{ij} = P_{ij}\big(dP_{ij} - \sum_k P_{ik}\, dP_{ik}\big)$. The sum goes over a whole row,
of which a tile has only a part. But $dP_{ik} = \mathbf{v}_k^\top d\mathbf{o}_i$, and so

$$D_i = \sum_k P_{ik}\, \mathbf{v}_k^\top d\mathbf{o}_i
= \Big(\sum_k P_{ik}\, \mathbf{v}_k\Big)^{\!\top} d\mathbf{o}_i = \mathbf{o}_i^\top d\mathbf{o}_i :$$

known before the first tile, if the output was kept [check:test_row_sum_needs_no_weights].

## The logarithm has a gradient too

$L$ is a result, and when results are merged the loss depends on it. A softmax is the gradient of its
logarithm, $\partial L_i / \partial S_{ij} = P_{ij}$, so each score receives $P_{ij}\, dL_i$ more:

$$dS_{ij} = P_{ij}\,\big(dP_{ij} - (D_i - dL_i)\big).$$

One subtraction for each query, outside of all tiles, is all that it takes
[check:test_gradient_through_the_logarithm]. The rest is linear:

$$\begin{aligned} d\mathbf{v}_j &= \sum_i P_{ij}\, d\mathbf{o}_i, &
d\mathbf{q}_i &= \lambda \sum_j dS_{ij}\,\mathbf{k}_j, &
d\mathbf{k}_j &= \lambda \sum_i dS_{ij}\,\mathbf{q}_i . \end{aligned}$$

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | as before |
| $\mathbf{k}_j$ | `key` | `b g s d` | |
| $\mathbf{v}_j$ | `value` | `b g s e` | |
| $\mathbf{o}_i$ | `output` | `b h t e` | what the forward pass returned |
| $L_i$ | `lse` | `b h t` | and its logarithm |
| $d\mathbf{o}_i$ | `grad_output` | `b h t e` | gradient at the output |
| $dL_i$ | `grad_lse` | `b h t` | gradient at the logarithm |
| $D_i - dL_i$ | `shift` | `b h t` | what is subtracted in a row |
| $P_{ij}$ | `weights` | tile | made once more |
| $dS_{ij}$ | `ds` | tile | gradient at the scores |
| $d\mathbf{q}_i$ | `dq` | `b h t d` | gradient at the queries, |
| $d\mathbf{k}_j$ | `dk` | `b g s d` | at the keys, |
| $d\mathbf{v}_j$ | `dv` | `b g s e` | and at the values |

**Source.** Dao et al. (2022), arXiv:2205.14135, section 3.1 and appendix B; Dao (2023), arXiv:2307.08691,
algorithm 2. The papers return no $L$ and have no $dL$.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

__all__ = ["flash_backward", "flash_backward_cost"]


def flash_backward(
    grad_output: Float[Tensor, "b h t e"],
    grad_lse: Float[Tensor, "b h t"],
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    output: Float[Tensor, "b h t e"],
    lse: Float[Tensor, "b h t"],
    is_causal: bool,
    scale: float,
    block_q: int,
    block_k: int,
) -> tuple[
    Float[Tensor, "b h t d"],
    Float[Tensor, "b g s d"],
    Float[Tensor, "b g s e"],
]:
    r"""## The gradient

    The same walk over the same tiles, those above the diagonal left out
    [check:test_skipped_tiles_cost_nothing]. It is the gradient of attention [check:test_gradcheck], and at least
    as near to it as that of PyTorch's fused kernel, in every dtype [check:test_as_exact_as_the_fused_kernel].

    Nothing in it asks for all keys at once. Give it a piece of the keys, with `output` and `lse` of *all*: then
    the `dk` and `dv` of the piece are right, and the `dq` of all pieces add up
    [check:test_pieces_of_keys_add_up]. Ring attention goes back like this (lesson 16).
    """
    g, s = key.shape[1:3]
    t, r = query.shape[2], query.shape[1] // g
    wide = lse.dtype

    def by_group(x: Tensor) -> Tensor:
        x = x.to(wide)
        return rearrange(x, "b (g r) t d -> (b g) r t d", g=g)

    # $D_i - dL_i$, before any tile.
    products = grad_output.to(wide) * output.to(wide)
    shift = products.sum(dim=-1) - grad_lse
    queries, grads = by_group(query), by_group(grad_output)
    lses, shifts = by_group(lse[..., None]), by_group(shift[..., None])
    keys = key.to(wide).flatten(0, 1)
    values = value.to(wide).flatten(0, 1)

    # A query meets its keys within one turn of the outer loop, a key its queries in all of them: `dks` and
    # `dvs` collect, in float32 even if the keys are not.
    dqs = torch.empty_like(queries)
    dks, dvs = torch.zeros_like(keys), torch.zeros_like(values)
    for i in range(0, t, block_q):
        u = min(block_q, t - i)
        q = queries[:, :, i : i + u].flatten(1, 2)
        do = grads[:, :, i : i + u].flatten(1, 2)
        lse_i = lses[:, :, i : i + u].flatten(1, 2)
        shift_i = shifts[:, :, i : i + u].flatten(1, 2)

        dq_tile = torch.zeros_like(q)
        stop = min(i + u, s) if is_causal else s
        for j in range(0, stop, block_k):
            tile = slice(j, min(j + block_k, stop))
            k, v = keys[:, tile], values[:, tile]

            # $P_{ij} = e^{S_{ij} - L_i}$, and 0 for the future. `baddbmm` adds a product to its first
            # argument, so the logarithm is subtracted on the way.
            weights = torch.baddbmm(-lse_i, q, k.mT, alpha=scale).exp_()
            if is_causal and tile.stop - 1 > i:
                weights.unflatten(1, (r, u)).tril_(i - j)

            # $dS_{ij} = P_{ij}\,(dP_{ij} - (D_i - dL_i))$.
            ds = torch.baddbmm(-shift_i, do, v.mT).mul_(weights)
            dvs[:, tile].baddbmm_(weights.mT, do)
            dks[:, tile].baddbmm_(ds.mT, q, alpha=scale)
            dq_tile.baddbmm_(ds, k, alpha=scale)
        dqs[:, :, i : i + u] = dq_tile.unflatten(1, (r, u))

    # All three in the dtype that came.
    sums = dqs, dks, dvs
    dqs, dks, dvs = (x.to(query.dtype) for x in sums)
    dq = rearrange(dqs, "(b g) r t d -> b (g r) t d", g=g)
    dk = rearrange(dks, "(b g) s d -> b g s d", g=g)
    dv = rearrange(dvs, "(b g) s e -> b g s e", g=g)
    return dq, dk, dv


def flash_backward_cost(
    b: int,
    h: int,
    t: int,
    s: int,
    d: int,
    e: int,
) -> tuple[int, int]:
    r"""## What it costs, and when it fails

    Returns the operations of the backward pass with all keys in sight, and the numbers that are kept for it
    beside the inputs:

    $$2\,bhts\,(3d + 2e) \qquad\text{and}\qquad bht\,(e + 1).$$

    Five products, where autograd with all weights at hand has four: a sixth more work forward and backward
    together, if $d = e$ [check:test_five_products_instead_of_four]. And $e + 1$ numbers a query instead of
    $s$.

    - *Large scores lose digits.* An $L$ near 10,000 is rounded to 1/1024 in float32, and a weight recomputed
      from it is off by as much as 0.05%; $m$ and $\ell$, kept apart, would not be
      [check:test_one_number_is_rounded]. Fused kernels share this.
    - *Zeros are not quite zero.* A row with a single key has $P = 1$, whatever its score, and no gradient. Here
      $dP$ and $D$ are the same number by different sums, and a rounding error is left
      [check:test_a_row_with_one_key].
    - *A rounded output leaves a trace.* Below float32, $D$ is made of the output as it was handed out, and its
      rounding enters the gradient [check:test_a_rounded_output_enters_the_gradient].
    - *Sums below float32 lose digits.* PyTorch's kernel for a CPU adds up `dq`, `dk` and `dv` in the dtype of the
      inputs, tile after tile. Let one rounding have the error $\rho$. The sum of $k$ of $n$ tiles is about
      $\sqrt{k/n}$ of the last one, and each is rounded: $\rho^2 \sum_k k/n = \rho^2 (n + 1)/2$. With the rounding
      of the weights that is $\rho \sqrt{(n + 3)/2}$, as measured [check:test_errors_of_sums_in_the_dtype]. Of
      4,096 tokens the kernel makes 16 tiles of queries: in bf16 its `dk` is 3.1 times as far off as the one here
      [check:test_errors_of_the_fused_kernel|3.1]. On a GPU, `dk` and `dv` stay in registers, in float32.
    - *Once only.* The gradient has no gradient. To ask for it, with `create_graph=True`, is a `RuntimeError`
      [check:test_not_twice_differentiable]; PyTorch's `once_differentiable` would say so too late, or never.
    - *Order matters on a GPU.* There, many tiles work at once. FlashAttention-2 goes over keys outside, so
      that each worker owns its `dk` and `dv`, and adds to a `dq` of all with atomic operations: in another
      order each time, with other bits. flash-attn has `deterministic=True`, slower and larger; this loop is
      deterministic [check:test_the_same_bits_every_time].

    ![Errors in bf16, relative to the result: means and ranges of three seeds. The tiles' are those of one
    rounding. "Sloppy" keeps $m$, $\ell$ and $\mathbf o$ in bf16; "sdpa" is PyTorch's, on a CPU.](figure:exact)

    **In production** the pair of passes is one `autograd.Function`, as here: flash-attn's `FlashAttnFunc`, and
    in PyTorch the backward of SDPA's fused backends.
    """
    return 2 * b * h * t * s * (3 * d + 2 * e), b * h * t * (e + 1)


def example(axes: dict[str, int]) -> None:
    """Tiles of `u` by `a`, two rows of three: the shapes beside the code are read off this run."""
    b, g, r, d, e, u, a = (axes[letter] for letter in "bgrdeua")
    h, t, s = g * r, 2 * u, 3 * a
    query, key, value = torch.randn(b, h, t, d), torch.randn(b, g, s, d), torch.randn(b, g, s, e)
    output, lse = torch.randn(b, h, t, e), torch.randn(b, h, t)
    flash_backward(output, lse, query, key, value, output, lse, False, 1.0, u, a)
    flash_backward_cost(b, h, t, s, d, e)
