r"""# The merge

Two readers have half of the keys each, and each has attended to those. Can their two answers become the one
that a single reader of all keys would have given, with no key looked at again?

Two averages can be averaged if it is known how much stands behind each. Here that is the sum of the
exponentials, or its logarithm $L$. With it,

$$\begin{aligned} L &= \ln\big(e^{L_A} + e^{L_B}\big), \\
\mathbf{o} &= e^{L_A - L}\,\mathbf{o}_A + e^{L_B - L}\,\mathbf{o}_B. \end{aligned}$$

Tiles on a chip, the parts of a long cache, a beginning that many texts share (the page on decoding), the ranks
of a cluster (lesson 16): all of them meet in these two lines.

![Eight keys, merged one after another, and in pairs. The area of a circle is the sum $e^L$ behind an answer, its
shade is the answer. The two that come last are one and the same.](figure:tree)

## What came before

To merge averages by their weights is as old as statistics; databases call what can be computed in parts so an
*algebraic* aggregate, and FlashAttention's paper says that this is what it uses (section 3.1). Milakov and
Gimelshein (2018, arXiv:1805.02867, section 3.1) wrote maximum and sum as one operation on pairs and noted
that it is associative and commutative, so that it may run in parallel.

## A monoid

Let $A$ be a set of keys. The triple of the last page says of it

$$m = \max_{j \in A} S_j, \qquad \ell = \sum_{j \in A} e^{S_j - m}, \qquad
\mathbf{o} = \sum_{j \in A} e^{S_j - m}\,\mathbf{v}_j .$$

Take $m$ for an exponent. Then $(m, \ell, \mathbf{o})$ is a way to write the two numbers $e^m \ell = \sum_A
e^{S_j}$ and $e^m \mathbf{o} = \sum_A e^{S_j}\mathbf{v}_j$, which would overflow if they were written out. Both
are sums over $A$, and sums over disjoint sets add. So to merge is to add, in this notation:

$$\begin{aligned} m &= \max(m_A, m_B), \\ \ell &= e^{m_A - m}\,\ell_A + e^{m_B - m}\,\ell_B, \\
\mathbf{o} &= e^{m_A - m}\,\mathbf{o}_A + e^{m_B - m}\,\mathbf{o}_B, \end{aligned}$$

and what addition has, the merge inherits. It is *associative* and *commutative*
[check:test_merge_is_associative_and_commutative]: keys may come in any grouping and any order. The empty set
is *neutral* [check:test_the_empty_triple_is_neutral]. A key alone is $(S_j, 1, \mathbf{v}_j)$, and to merge
these one after another is the online softmax [check:test_one_key_at_a_time_is_the_recurrence].

## Two numbers say as much

The triple has one number too many. Add $c$ to $m$ and multiply $\ell$ and $\mathbf{o}$ by $e^{-c}$: nothing
that it stands for has changed. So one may choose, and the best choice is $\ell = 1$. Then $m$ has become
$L = m + \ln \ell$, the triple is $(L, 1, \mathbf{o}/\ell)$, and $\mathbf{o}/\ell$ is the attention of $A$
itself [check:test_both_forms_say_the_same]. In this form kernels hand their results on.

The share of $A$ is $e^{L_A - L} = \sigma(L_A - L_B)$, the gate of lesson 10. And for $n$ parts it is
$\operatorname{softmax}_n(L_n)$: the merge of $n$ answers is once more attention, whose scores are the
logarithms and whose values are the answers [check:test_the_merge_is_attention_over_parts].

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $S_j$ | `scores` | `... t s` | scores of a query for a set of keys |
| $\mathbf{v}_j$ | `value` | `... s e` | what the keys give |
| $m$ | `m` | `... t 1` | largest score of the set |
| $\ell$ | `l` | `... t 1` | sum of $e^{S_j - m}$ |
| $\mathbf{o}$ | `o` | `... t e` | sum of $e^{S_j - m}\,\mathbf{v}_j$, in a triple |
| $L$ | `lse` | `... t` | $\ln \sum_j e^{S_j}$; $-\infty$ for no keys |
| $\mathbf{o}_A$, $\mathbf{o}_B$ | `output_a`, `output_b` | `... t e` | attention of each set |

**Source.** Dao et al. (2022), arXiv:2205.14135, section 3.1; Dao (2023), arXiv:2307.08691, section 2.3. The
form with $L$: Ye et al. (2025), arXiv:2501.01005, section 2.2.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["finish", "merge_attention", "merge_triples", "summary"]

Triple = tuple[Tensor, Tensor, Tensor]


def summary(
    scores: Float[Tensor, "... t s"],
    value: Float[Tensor, "... s e"],
) -> Triple:
    r"""## What one reader knows

    The triple of a set of keys. Where a query sees none of them, it is the empty one.
    """
    # The empty maximum is the lowest of all numbers, not $-\infty$: two of them have a difference.
    lowest = torch.finfo(scores.dtype).min
    m = scores.amax(dim=-1, keepdim=True).clamp(min=lowest)
    weights = torch.exp(scores - m)
    l = weights.sum(dim=-1, keepdim=True)
    return m, l, weights @ value


def merge_triples(a: Triple, b: Triple) -> Triple:
    r"""### Two readers are one

    The three lines above. Neither factor exceeds 1, so what does not overflow in the parts does not in the
    whole.
    """
    m_a, l_a, o_a = a
    m_b, l_b, o_b = b
    m = torch.maximum(m_a, m_b)
    x, y = torch.exp(m_a - m), torch.exp(m_b - m)
    return m, x * l_a + y * l_b, x * o_a + y * o_b


def finish(triple: Triple) -> tuple[Tensor, Tensor]:
    r"""### From three numbers to two

    Attention and its logarithm.
    """
    m, l, o = triple
    return o / l.clamp(min=1.0), (m + l.log()).squeeze(-1)


def merge_attention(
    output_a: Float[Tensor, "... t e"],
    lse_a: Float[Tensor, "... t"],
    output_b: Float[Tensor, "... t e"],
    lse_b: Float[Tensor, "... t"],
) -> tuple[Float[Tensor, "... t e"], Float[Tensor, "... t"]]:
    r"""## The merge

    Of the attention to two disjoint sets of keys, the attention to all [check:test_halves_make_a_whole]. One
    may be empty, or both: 0 and $-\infty$ then, without NaN [check:test_empties_merge_to_empty].

    Gradients go through all four, and those of the whole come out [check:test_gradients_of_the_whole]. The
    logarithms are no by-product here. How much a reader counts depends on its keys, so whatever hands out an
    $L$ to be merged has to differentiate it too:

    $$dL_A = e^{L_A - L}\,\big(dL + d\mathbf{o}^\top(\mathbf{o}_A - \mathbf{o})\big).$$

    **Shapes.** `output_a` is `... t e`, `lse_a` is `... t` and float32 or wider, `output_b` and `lse_b` are alike.
    So are the results.

    **Raises.** `ValueError` if they are not [check:test_wrong_input_is_refused].
    """
    pairs = {"a": (output_a, lse_a), "b": (output_b, lse_b)}
    for name, (output, lse) in pairs.items():
        alike = output_a.dtype, output_a.shape, output_a.shape[:-1]
        is_wide = lse.dtype in (torch.float32, torch.float64)
        came = output.dtype, output.shape, lse.shape
        if came != alike or not is_wide:
            named = (
                f"output_{name} is {output.dtype} {tuple(output.shape)}, "
                f"lse_{name} {lse.dtype} {tuple(lse.shape)}"
            )
            wanted = "two outputs alike, and lse ... t of float32 or wider"
            raise ValueError(f"{named}: {wanted} are wanted")

    # Whatever is subtracted from both gives the same, so it has no gradient. Two times $-\infty$ would leave no
    # number to subtract.
    largest = torch.maximum(lse_a, lse_b).detach()
    largest = largest.masked_fill(largest == -torch.inf, 0.0)
    x, y = torch.exp(lse_a - largest), torch.exp(lse_b - largest)

    # Of two empties the sum is 0. Its logarithm may be $-\infty$, its gradient may not.
    total = x + y
    empty = total == 0.0
    total = total.masked_fill(empty, 1.0)
    lse = (largest + total.log()).masked_fill(empty, -torch.inf)
    share_a, share_b = (x / total)[..., None], (y / total)[..., None]
    output = share_a * output_a + share_b * output_b
    return output.to(output_a.dtype), lse


def merged_with_nothing(
    output: Float[Tensor, "b h t e"],
    lse: Float[Tensor, "b h t"],
    sink_logits: Float[Tensor, "h"],
) -> Float[Tensor, "b h t e"]:
    r"""## What else is a merge, and when it fails

    A reader who gives nothing but counts for $e^{z_h}$ is a sink logit, and with $z_h = 0$ the merge is
    softmax-off-by-one [check:test_a_sink_logit_is_a_merge_with_nothing]. Lesson 10's sinks and its window are
    two readers: for a query that has every sink behind its window, the pass of all is the merge of both
    [check:test_sinks_and_window_are_two_readers].

    - *The sets must be disjoint.* A key that both have read counts twice, and nothing shows it
      [check:test_a_key_read_twice_counts_twice].
    - *Outputs are rounded at each merge.* Of 64 parts in bf16, merged one after another, more is lost than
      their rounding; merge in float32 and round once [check:test_round_after_the_last_merge].
    - *$L$ wants float32.* bf16 has a step of 1/16 at 10, and a share is off by 6% for that much: here it is
      refused [check:test_wrong_input_is_refused].
    - *There is no way back.* Taken out of a sum, a large part leaves rounding errors behind.

    - *Logarithms have a base.* FlashInfer's kernels return $\log_2$ of the sum, and its merge takes them so;
      FlashAttention's are natural, as here. To merge the one kind with the rule for the other gives plausible
      numbers and wrong ones [check:test_the_other_base_is_wrong]: vLLM (pull request 28840) and SGLang
      (35045) have had this bug.

    **In production** this is FlashInfer's `merge_state(v_a, s_a, v_b, s_b)`, with logarithms `t h`, and vLLM's
    `merge_attn_states(output, prefix_output, prefix_lse, suffix_output, suffix_lse)`, with `h t`.
    """
    z = sink_logits[:, None].to(lse.dtype).expand_as(lse)
    return merge_attention(output, lse, torch.zeros_like(output), z)[0]


def example(axes: dict[str, int]) -> None:
    """Two halves: the shapes beside the code are read off this run."""
    b, h, t, s, e = (axes[letter] for letter in "bhtse")
    scores, value = torch.randn(b, h, t, s), torch.randn(b, h, s, e)
    triple = summary(scores, value)
    output, lse = finish(merge_triples(triple, triple))
    merge_attention(output, lse, output, lse)
    merged_with_nothing(output, lse, torch.zeros(h))
