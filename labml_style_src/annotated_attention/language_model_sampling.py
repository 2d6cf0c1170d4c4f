r"""# Sampling

A model gives each byte a probability. A text needs one byte.

Always to take the likeliest is the wrong answer to a fair question. Such a text repeats itself: a sentence
that was likely once is likelier the second time, and nothing ever breaks the circle. To draw from the whole
distribution is wrong in another way. Each of a hundred unlikely bytes is rare, but some unlikely byte is not,
and one of them is enough to lead the rest of the text astray.

So the distribution is bent before it is drawn from. A *temperature* $\tau$ makes it sharper or flatter, and
of the result only the likeliest tokens are kept, as many as it takes to reach a share $\rho$:

$$P_k \propto e^{z_k/\tau}, \qquad K = \text{the fewest tokens with } \sum_{k \in K} P_k \ge \rho .$$

![Twelve tokens at three temperatures, and those that $\rho = 0.9$ keeps.](figure:nucleus)

## What came before

Translation looked for the likeliest *sentence*, with beams that keep several beginnings alive. For a text
that has no single right answer, the likeliest is dull: Holtzman et al. (2020) measured that people write
tokens of middling probability, with surprises, and that beams avoid just these. Fan et al. (2018) drew from
the $k$ likeliest tokens, a number that is too small where all is open, and too large where little is. A
*share* adapts: after `retur` one byte has it all, after `return ` dozens share it.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $z_k$ | `logits` | `b v` | what speaks for token $k$ |
| $\tau$ | `temperature` | scalar | below 1 is sharper; 0 takes the largest |
| $\rho$ | `top_p` | scalar | the share that is drawn from |
| $P_k$ | `ordered` | `b v` | probabilities, the largest first |

**Source.** Holtzman et al. (2020), *The Curious Case of Neural Text Degeneration*, arXiv:1904.09751, section
3.1: their $V^{(p)}$ is our $K$. Fan, Lewis, Dauphin (2018), arXiv:1805.04833.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

__all__ = ["generate", "sample"]


def sample(
    logits: Float[Tensor, "b v"],
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "b"]:
    r"""## One token

    **Shapes.** `logits` is `b v`, the result is `b`.

    **Raises.** `ValueError` if the temperature is negative, or the share is not above 0 and at most 1
    [check:test_wrong_input_is_refused].
    """
    if not 0 <= temperature < math.inf:
        came = f"temperature is {temperature}"
        raise ValueError(f"{came}: a number that is not negative is wanted")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}: above 0, at most 1, is wanted")

    # As $\tau \to 0$ all probability goes to the largest logit [check:test_temperature_sharpens].
    if temperature == 0:
        return logits.argmax(dim=-1)

    # A softmax does not feel what is subtracted from all. With the largest at 0, nothing overflows, however
    # cold it is; but a GPU multiplies by $1/\tau$, which must not be infinite in float32.
    wide = torch.promote_types(logits.dtype, torch.float32)
    logits = logits.to(wide) - logits.to(wide).amax(dim=-1, keepdim=True)
    probabilities = (logits / max(temperature, 1e-30)).softmax(dim=-1)

    # A token is kept if those before it do not reach $\rho$ yet. So the one that crosses is in, and there is
    # always one [check:test_top_p_keeps_the_nucleus]. A share of 1 cuts nothing, though the sum of a large
    # vocabulary may be rounded to 1 before its end [check:test_a_share_of_one_cuts_nothing].
    ordered, index = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    if top_p < 1:
        ordered = ordered.masked_fill(before >= top_p, 0.0)

    # `multinomial` draws in proportion, and needs no sum of 1.
    drawn = torch.multinomial(ordered, 1, generator=generator)
    return index.gather(-1, drawn)[:, 0]


@torch.no_grad()
def generate(
    model: nn.Module,
    tokens: Integer[Tensor, "b t"],
    n_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    caches: Sequence[Any] | None = None,
    generator: torch.Generator | None = None,
) -> Integer[Tensor, "b _"]:
    r"""## Token after token

    Returns `tokens` and `n_tokens` more. What was drawn is read like the rest: the model cannot take a byte
    back. What `caches` hold goes before `tokens`. The last token that is written is in no cache yet: a call
    that goes on begins with it [check:test_a_text_goes_on_where_it_stopped]. The model writes in evaluation
    mode, without dropout, and is then put back in the mode that it had
    [check:test_generate_evaluates_and_goes_back].

    **Raises.** `ValueError` if there is no token to begin with.

    **Cost.** Drawing is cheap beside reading, but for large vocabularies the sort is felt: production code
    looks for the threshold without sorting.

    **When it fails.** A share of 0.9 cuts what is rare and right as well: no name that was never seen, no
    digit against the odds. And no temperature helps a model that is sure of something wrong.

    **In production.** Transformers has `model.generate(do_sample=True, temperature=..., top_p=...)`, vLLM
    `SamplingParams(temperature=..., top_p=...)`; both bend first and cut then, as here. For what a request
    does not say, Transformers and vLLM's server read the checkpoint's own `generation_config.json`. To draw a
    token from the same seed on another machine is to hope: a rounding can move the border between two.
    """
    if tokens.ndim != 2 or tokens.shape[1] < 1:
        came = f"tokens has shape {tuple(tokens.shape)}"
        raise ValueError(f"{came}: b t with at least one token is wanted")
    was_training = model.training
    model.eval()
    try:
        read = 0
        for _ in range(n_tokens):
            # Without caches the whole text is read again for each token, $t^2/2$ tokens for a text of $t$
            # and $t^3/3$ scores a head. With those of lesson 7 each is read once, and the same text comes
            # out [check:test_caches_write_the_same_text].
            logits = model(tokens[:, read:], caches=caches)[:, -1]
            read = 0 if caches is None else tokens.shape[1]
            token = sample(
                logits,
                temperature=temperature,
                top_p=top_p,
                generator=generator,
            )
            token = token[:, None].to(tokens.dtype)
            tokens = torch.cat([tokens, token], dim=1)
    finally:
        model.train(was_training)
    return tokens


def example(axes: dict[str, int]) -> None:
    """A model that takes every token for equally likely: the shapes are read off this run."""
    b, t, v = (axes[letter] for letter in "btv")

    class Even(nn.Module):
        def forward(self, tokens: Tensor, caches: None) -> Tensor:
            return torch.zeros(*tokens.shape, v)

    sample(torch.zeros(b, v))
    generate(Even(), torch.zeros(b, t, dtype=torch.long), 1)
