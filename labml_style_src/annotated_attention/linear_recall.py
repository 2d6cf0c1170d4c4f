r"""# What a state forgets

*The key is under the mat. ... Where is the key?* A softmax over all tokens looks it up: the words are still
there, in the cache. Linear attention has thrown them away. What it kept is one matrix of $d \times e$
numbers, and a hundred sentences have been added into it. Is the mat still in there?

![Pairs of a random key and a value are read, then each key is asked once. Share of right answers, $d = e =
32$; measured.](figure:recall)

Arora et al. (2023) trained 17 models and found that 82% of the distance in perplexity between attention and
gated convolutions, which keep no cache either, lies where a pair of words comes again: *associative recall*.
In it, 70M parameters with attention beat 1.4B without.

## A state is a table of answers

Write pairs $(\mathbf{k}_j, \mathbf{v}_j)$ into $S = \sum_j \mathbf{k}_j \mathbf{v}_j^\top$, with keys of
length 1, and ask for $\mathbf{k}_i$:

$$S^\top \mathbf{k}_i = \mathbf{v}_i + \sum_{j \ne i} (\mathbf{k}_j^\top \mathbf{k}_i)\, \mathbf{v}_j$$

The answer, and noise from every key that is not orthogonal to this one. So

- *orthogonal keys are answered exactly*, and in $d$ dimensions there are $d$ of them
  [check:test_orthogonal_keys_are_exact];
- *of random keys*, two have a product of mean square $1/d$. The noise has $(n-1)/d$ times the energy of the
  answer; signal to noise is $\sqrt{d/(n-1)}$ [check:test_noise_grows_with_the_pairs]. With as many pairs as
  dimensions they are equally loud;
- *the best state has a limit too.* Whatever wrote it, each of its columns has $d$ numbers to solve $n$
  equations. Up to $d$ pairs, all can be exact. Beyond, a share $1 - d/n$ of the energy of random values is
  left over [check:test_the_best_state_has_a_limit]. No training helps: 100,000 pairs do not fit into 64 rows.

An answer need not be exact to be recognised among the values of a vocabulary. So the figure's curves do not
break off at $n = d$; they bend.

The width that counts is that of the features, the $f$ of the lesson's first page. And if these are never
negative, two vectors of them are orthogonal only if each is 0 wherever the other is not. Those of
`elu_plus_one` are nowhere 0: so every answer contains every value
[check:test_positive_features_are_never_orthogonal].

## Why a softmax does not forget

Let the right key's product with the query exceed any other's by $\Delta$ at least. Then with scale $\lambda$
the weights of all wrong keys together are at most

$$\varepsilon = (n-1)\,e^{-\lambda \Delta}$$

[check:test_a_sharp_softmax_is_exact]. The number of pairs comes in by its logarithm. And separated keys are
plentiful: two random keys have a product above $c$ with a probability of at most $e^{-dc^2/2}$, so that as
many as $e^{dc^2/4}$ will likely keep below it, 2,980 for $d = 128$ and $c = \tfrac12$
[check:test_exponentially_many_keys_are_separate]. A softmax recalls exponentially many pairs in the width of
a key, and pays with a cache that keeps them all. (Ramsauer et al., 2020, say this of Hopfield networks, whose
update is attention.)

## Write what is missing

A key that comes again with a new value is the other failure: the sum answers with old and new together. The
*delta rule* (Widrow, Hoff, 1960) first reads what the state would say, and writes the difference:

$$\begin{aligned} S_i &= S_{i-1} + \beta_i\, \mathbf{k}_i\,\big(\mathbf{v}_i - S_{i-1}^\top
\mathbf{k}_i\big)^\top \\ &= \big(I - \beta_i\, \mathbf{k}_i \mathbf{k}_i^\top\big)\, S_{i-1} +
\beta_i\, \mathbf{k}_i \mathbf{v}_i^\top \end{aligned}$$

It is a step of gradient descent on $\tfrac12 |S^\top \mathbf{k}_i - \mathbf{v}_i|^2$, taken while reading
[check:test_it_is_a_step_of_gradient_descent]: the state is a small linear model that is trained on the text.
With $\beta = 1$ and keys of length 1,

- the newest value of a key is returned exactly, whatever was there before [check:test_the_newest_value_wins];
- orthonormal keys give the same state as the sum [check:test_orthonormal_keys_make_a_sum];
- $n \le d$ keys that are merely independent are *not* all exact after one reading, for each write disturbs
  what is not orthogonal to it. Read over and over, they become so: $S$ converges to the smallest solution,
  $K^+ V$ [check:test_repetition_finds_the_smallest_solution]. (It is Kaczmarz' method.)

## It pays by forgetting

Look at the first figure again: for random keys the delta rule recalls *less* than the sum. What a write takes
out along its own key it takes from everybody. On average over random keys, a pair that was written $r$ writes
ago answers with

$$\beta\,\big(1 - \beta/d\big)^r\, \mathbf{v}$$

[check:test_the_delta_rule_fades]: half after about $0.7\,d/\beta$ writes. It is a decay that was not asked
for. What it buys is that the state stays bounded, at $|S|^2 \approx d$ for values of length 1 and
$\beta = 1$, where that of the sum grows with $n$ [check:test_the_state_stays_bounded]. So of a long text the
sum recalls a little of everything, and the delta rule the last few pairs [check:test_a_long_text].

![After 256 pairs: share of right answers, by how many pairs ago the key was written. $d = e = 32$;
measured.](figure:recency)

So it is no larger memory. It is one that a model can *edit*, if it learns keys that keep apart what must be
kept apart.

## Trained, and weighed

All this was for random keys. [In an experiment](../../results.md#linear) they are learned: 16 pairs of 31
keys and 32 values, then the 16 questions; one layer, the same for each mechanism of the course but for what
stands in its slot.

![Right answers against the bytes that the layer keeps, over three seeds. Marks of equal bytes stand side by
side.](figure:recall_bytes)

The cache answers everything, and so does a quarter of it, that of one key head
[check:test_the_cache_answers_everything_and_so_does_a_quarter]. A window answers for what it still holds,
give or take a few in a hundred [check:test_a_window_answers_for_what_it_holds]. Good states need a twelfth of
the cache, 8 rows for 16 pairs, to answer 90% [check:test_a_twelfth_of_the_cache_suffices]: keys that are
learned keep apart what random ones mix up, at least 31 of them. Most is owed to signs. With 8 rows, positive
$\operatorname{elu} + 1$ answers half, a plain sum that fades by the clock nearly nine in ten, and one with a
gate or a correction more [check:test_signs_first_then_gates]. The delta rule has no lead over a gate
[check:test_the_delta_rule_has_no_lead_over_a_gate]: no key comes twice here.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$, $\mathbf{q}$ | `query` | `b h t d` | what position $i$ asks |
| $\mathbf{k}_i$, $\mathbf{k}_j$ | `key` | `b h t d` | under what position $i$ writes |
| $\mathbf{v}_i$, $\mathbf{v}_j$ | `value` | `b h t e` | what it writes |
| $\beta_i$ | `beta` | `b h t` | how much of the difference is written |
| $\ln a_i$ | `log_decay` | `b h t` | logarithm of what is left of the past, at most 0 |
| $S_i$ | `state` | `b h d e` | what the state says is $S_i^\top \mathbf{q}$ |
| $n$ | `n_pairs` | scalar | pairs that are written |
| $\lambda$ | `sharpness` | – | what multiplies the products in a softmax |
| $\Delta$ | `separation` | scalar | by how much the right product exceeds the others |
| $\varepsilon$ | `error` | scalar | weight that may go to wrong keys |

**Source.** Arora et al. (2023), arXiv:2312.04927. Schlag, Irie, Schmidhuber (2021), arXiv:2102.11174, section
4; their $W$ is our $S^\top$. Yang et al. (2024), arXiv:2406.06484, and for the gate arXiv:2412.06464.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from annotated_attention.scaled_dot_product import check_inputs

__all__ = ["delta_rule", "sum_rule"]
__all__ += ["recall_accuracy", "recall_batch", "sharpness"]


def recall_batch(
    b: int,
    n_pairs: int,
    t: int,
    vocabulary: int,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
    r"""## Texts that ask

    Multi-query associative recall: $n$ pairs, key, value, key, value, and after them every key once more, at
    a random place, to be answered with its value:

        tokens    3  8  5  9  0  5  0  3
        targets   .  .  .  .  .  9  .  8

    Keys are tokens of the lower half of the vocabulary, values of the upper; none comes twice in a text, and
    0 is a blank. Nothing can be learned by heart, for each text pairs them anew
    [check:test_texts_ask_what_they_told]. (Arora et al. let most questions follow soon, by a power law. Here
    every place is as likely.)

    **Shapes.** `tokens` is `b t`, `targets` is `b t`. A target is -100 where nothing is asked, which
    PyTorch's `cross_entropy` leaves out.

    **Raises.** `ValueError` if the text is too short for its pairs, or the vocabulary too small.
    """
    half = vocabulary // 2
    if n_pairs < 1 or t < 3 * n_pairs or half <= n_pairs:
        came = f"n_pairs is {n_pairs}, t is {t}"
        came += f", vocabulary is {vocabulary}"
        wanted = "1 <= n_pairs <= t / 3, below half the vocabulary,"
        raise ValueError(f"{came}: {wanted} is wanted")

    def draw(n: int) -> Int[Tensor, "b pairs"]:
        """Different numbers below `n`, for each text."""
        lots = torch.rand(b, n, generator=generator)
        return lots.argsort(dim=-1)[:, :n_pairs]

    keys, values = 1 + draw(half - 1), half + draw(half)
    tokens, targets = torch.zeros(2, b, t, dtype=torch.long)
    tokens[:, 0 : 2 * n_pairs : 2] = keys
    tokens[:, 1 : 2 * n_pairs : 2] = values
    targets[:] = -100

    # The places are in no order, so neither are the questions.
    places = 2 * n_pairs + draw(t - 2 * n_pairs)
    tokens.scatter_(1, places, keys)
    targets.scatter_(1, places, values)
    return tokens, targets


def recall_accuracy(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    tokens: Int[Tensor, "b t"],
    targets: Int[Tensor, "b t"],
    table: Float[Tensor, "v d"],
) -> float:
    r"""## A reader that need not be trained

    What can a mechanism hold, whoever trains it? Take the training out: every token is a row of `table`, and
    where a value stands it is written under the token before it. (In a model the layer below must do that: an
    attention head that looks one token back, or Mamba's short convolution.) A question asks with its own
    token, and the nearest row is the answer. Returned is the share of right ones
    [check:test_a_softmax_answers_everything].

    `attend` is any causal attention, of one head.
    """
    x = table[tokens]
    is_value = (tokens >= len(table) // 2)[..., None]
    written = torch.where(is_value, x.roll(1, dims=1), 0)
    answer = attend(x[:, None], written[:, None], x[:, None])[:, 0]
    found = (answer @ table.mT).argmax(dim=-1)
    asked = targets >= 0
    return (found == targets)[asked].double().mean().item()


def sharpness(n_pairs: int, separation: float, error: float) -> float:
    r"""## How sharp a softmax must be

    $\lambda = \ln\big((n-1)/\varepsilon\big)/\Delta$, solved from above: the scale at which at most
    $\varepsilon$ goes to wrong keys.
    """
    return math.log(max(n_pairs - 1, 1) / error) / separation


def sum_rule(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b h t d"],
    value: Float[Tensor, "b h t e"],
) -> Float[Tensor, "b h t e"]:
    r"""## Adding

    Linear attention as it stands above: no features and no denominator, in the form that is shortest to
    write. What can be said of it holds for any features, with theirs as keys and queries.
    """
    check_inputs(query, key, value, None, is_causal=True)
    wide = torch.promote_types(query.dtype, torch.float32)
    q = query.to(wide)
    k, v = key.to(wide), value.to(wide)
    scores = torch.einsum("b h t d, b h s d -> b h t s", q, k).tril()
    output = torch.einsum("b h t s, b h s e -> b h t e", scores, v)
    return output.to(query.dtype)


def delta_rule(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b h t d"],
    value: Float[Tensor, "b h t e"],
    beta: Float[Tensor, "b h t"],
    log_decay: Float[Tensor, "b h t"] | None = None,
) -> Float[Tensor, "b h t e"]:
    r"""## Correcting

    The formula, token by token: read, compare, write [check:test_agrees_with_the_plain_formula]
    [check:test_gradcheck]. With `log_decay` the state fades first, as on [the page of gated
    decay](../linear_decay/index.md): the *gated* delta rule, which can also wipe the board. It is that of
    Transformers [check:test_transformers_gated_delta_rule_agrees], and no gate is rounded
    [check:test_gates_are_not_rounded].

    Along its key a write leaves $1 - \beta|\mathbf{k}|^2$ of what was there, and everything else as it was.
    So it is stable where $0 \le \beta|\mathbf{k}|^2 \le 2$, and beyond that the state explodes
    [check:test_it_is_stable_up_to_two]. Models divide keys by their length and take $\beta$ from a sigmoid;
    from twice a sigmoid, as in Olmo Hybrid, a write can also change the sign of what was there, and so count
    modulo 2 [check:test_two_counts_parity].

    **Shapes.** `query` and `key` are `b h t d`, `value` is `b h t e`, `beta` and `log_decay` are `b h t`; the
    result is `b h t e`.

    **Raises.** `ValueError` if shapes do not fit [check:test_wrong_input_is_refused].

    **In production.** **flash-linear-attention** has `chunk_delta_rule` and `chunk_gated_delta_rule`. In
    **Transformers**, three layers of four in Qwen3-Next and Olmo Hybrid are the gated rule; Kimi Linear has a
    gate for each coordinate of the key. The layers between them are attention, which looks up what a state
    cannot hold.
    """
    check_inputs(query, key, value, None, is_causal=True)
    decay = torch.zeros_like(beta) if log_decay is None else log_decay
    given = {"key": key[..., 0], "beta": beta, "log_decay": decay}
    for name, x in given.items():
        if x.shape != query.shape[:3]:
            came = f"{name} has {tuple(x.shape)} positions"
            wanted = f"those of query, {tuple(query.shape[:3])}, are wanted"
            raise ValueError(f"{came}: {wanted}")
    wide = torch.promote_types(query.dtype, torch.float32)
    b, h, _, d = query.shape
    state = query.new_zeros(b, h, d, value.shape[3], dtype=wide)

    # One token waits for the one before it. The sum could be cut into chunks, because what is written does
    # not depend on the state; here it does. Within a chunk that is a triangular system of equations, and
    # solving it makes matrix products of this too (the WY form of Yang et al., section 3). It is left out.
    text = query, key, value, beta, decay.to(wide).exp()
    steps = zip(*(x.to(wide).unbind(dim=2) for x in text), strict=True)
    outputs = []
    for q, k, v, rate, keep in steps:
        state = keep[..., None, None] * state
        said = torch.einsum("b h d, b h d e -> b h e", k, state)
        missing = rate[..., None] * (v - said)
        write = torch.einsum("b h d, b h e -> b h d e", k, missing)
        state = state + write
        outputs.append(torch.einsum("b h d, b h d e -> b h e", q, state))
    if not outputs:
        return value
    return torch.stack(outputs, dim=2).to(query.dtype)


def example(axes: dict[str, int]) -> None:
    """As many pairs as `n`: the shapes beside the code are read off this run."""
    b, h, t, d, e, n = (axes[letter] for letter in "bhtden")
    tokens, targets = recall_batch(b, n, 3 * n, 4 * n)
    recall_accuracy(sum_rule, tokens, targets, torch.randn(4 * n, d))
    sharpness(n, 0.5, 0.01)
    query, key = torch.randn(b, h, t, d), torch.randn(b, h, t, d)
    value, gate = torch.randn(b, h, t, e), torch.rand(b, h, t)
    sum_rule(query, key, value)
    delta_rule(query, key, value, gate, -gate)
