r"""# A planted fact

How far a stack of windows *sees* is arithmetic. What a model makes of it is not: the furthest token has one
way in, among all the ways there are, and whoever passes something on must have picked it up before anyone
asked. So plant a fact at the start of a document, ask for it at the end, and count right answers by distance.

Two questions hide in that count, and only one of them is about training.

## What can be known

Let the mask $A$ say which token looks at which, $A_{ij} = 1$ if $i$ looks at $j$. Of which tokens has $i$
heard after $L$ layers? Of those of which somebody in its sight had heard one layer below, and, by the
residual stream, of all that it knew itself:

$$H_0 = I, \qquad H_L = \big[\,(I + A)\, H_{L-1} > 0\,\big]$$

If $H_{L,ij} = 0$ then no parameters, trained or not, can make the output at $i$ depend on token $j$. Change
the fact, and the logits stay the same, in every bit [check:test_unheard_facts_move_no_bit]. With $v$ values,
all as likely, the answer is right once in $v$ times, whatever it is [check:test_a_guess_is_right_once_in_v].
That is a cliff, and no data, training or width moves it:

- a causal window: $i$ has heard of $j$ if $0 \le i - j \le L(w-1)$
  [check:test_windows_hear_as_far_as_they_reach];
- with one global token: of everything, from the second layer on [check:test_a_hub_is_two_layers];
- with blocks drawn by lot: wherever the graph of the plan has a path of at most $L$ arcs (lesson 12)
  [check:test_plans_hear_along_their_paths].

## What has to be learned

Within the reach, somebody must be found who hands the fact on. One fact among blanks is easy: whoever sees
what is no blank takes it. With several facts, and each token asking for one of them, the one who hands on
does not know what the next one will be asked, and must carry *all* of them in one vector: $n \log_2 v$ bits
for $n$ facts. Dense attention is spared that. There the asking token itself looks, knowing what it looks for.

So a pattern can fail in two ways. The next section is about the cliff; what crosses a global token is told
with [the graph of a plan](../bigbird_graph/index.md).

## What was seen

A document of 80 tokens begins with one of eight facts; all others are blanks, and each is asked for it. For
two windows and up to four layers, with three seeds, all models answer at *every* distance up to $L(w-1)$, and
none of them at any beyond: there exactly one answer in eight is right [check:test_the_cliff]. A window of 8
in four layers knows what stands 28 tokens back. At 29 it is blind, which Mistral's count of $L\,w$ includes.

![Right answers by distance, asked everywhere; the mean over three seeds, and the band from the least to the
greatest. Red: where the answers must end. Above it the number of layers.](figure:cliff)

That training uses all of the reach is a finding, and an easy one to get here. Each blank that is asked is
also taught, so a relay is learned from hop to hop. Ask only the last token, and nobody tells those on the way
what to carry. All models learn it all the same. It takes time: of three stacks that reach 28 tokens, one
layer of 29 needs 30 to 40 steps, two of 15 need 70 to 80, and four of 8 need 150 to 290
[check:test_hops_cost_steps|the steps]. A cheap window is paid for in hops.

![Steps of training until all within reach is right: the mean, the least and the greatest of three seeds.
](figure:hops)

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $A$ | `mask` | `t t` | who looks at whom |
| $H_L$ | `ways` | `t t` | who has heard of whom after $L$ layers |
| $L$ | `n_layers` | scalar | layers |
| $n$ | `n_facts` | scalar | facts in a document, and keys that can be asked for |
| $v$ | `n_values` | scalar | values that a fact can have |

**Source.** The idea is that of passkeys hidden in long texts (Mohtashami and Jaggi 2023, arXiv:2305.16300),
made so small that a model learns it in seconds; many facts are the associative recall of lesson 14.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor, nn

from annotated_attention.language_model import (
    Attend,
    LanguageModel,
    LanguageModelConfig,
    SelfAttention,
    causal_attention,
)
from annotated_attention.language_model_training import rate_factor

__all__ = ["heard", "planted_facts", "reader", "teach"]


def planted_facts(
    b: int,
    t: int,
    n_facts: int,
    n_values: int,
    *,
    places: tuple[int, int] = (0, 1),
    generator: torch.Generator | None = None,
) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"], Int[Tensor, "b t"]]:
    r"""## The documents

    Token $k < n$ asks for key $k$; the facts follow, one token for each pair of a key and a value. Facts
    stand in places from the first of `places` up to the second, any as likely; every other token asks:

        tokens    4  0  1  7  0     n = 2, v = 3, facts at 0 and 3
        targets   .  4  7  .  4
        where     .  0  3  .  0

    The answer is the fact's own token, so a stream that has copied it has answered
    [check:test_documents_ask_for_what_they_told].

    **Shapes.** `tokens` is `b t`, `targets` is `b t`, and so is `where`, the place of the fact that is asked
    for. Where nothing is asked a target is -100, which `cross_entropy` leaves out, and `where` means nothing.

    **Raises.** `ValueError` if there is no place for the facts [check:test_wrong_input_is_refused].
    """
    first, stop = places
    if not 0 < n_facts <= stop - first or not 0 <= first < stop <= t:
        came = f"n_facts is {n_facts}, places are {places}, t is {t}"
        raise ValueError(f"{came}: a place in the text for each is wanted")
    lots = torch.rand(b, stop - first, generator=generator)
    where = first + lots.argsort(dim=-1)[:, :n_facts]
    values = torch.randint(n_values, (b, n_facts), generator=generator)
    facts = n_facts + torch.arange(n_facts) * n_values + values

    asked = torch.randint(n_facts, (b, t), generator=generator)
    tokens = asked.scatter(1, where, facts)
    targets = facts.gather(1, asked).scatter(1, where, -100)
    return tokens, targets, where.gather(1, asked)


def heard(
    mask: Bool[Tensor, "t t"],
    n_layers: int,
) -> Bool[Tensor, "t t"]:
    r"""## Who has heard

    The recursion above: $H_L$.
    """
    ways = torch.eye(len(mask), device=mask.device)
    sees = mask.to(ways.dtype) + ways
    for _ in range(n_layers):
        ways = ((sees @ ways) > 0).to(ways.dtype)
    return ways > 0


def reader(
    attend: Attend,
    *,
    n_layers: int,
    n_facts: int,
    n_values: int,
    length: int,
    d_model: int = 32,
    n_heads: int = 2,
) -> LanguageModel:
    r"""## The reader

    Lesson 3's model, with any attention in its slot. It has no vectors for positions: to find a fact among
    blanks takes none, and so the mask alone says who stands where
    [check:test_the_mask_is_all_that_has_order].
    """

    def attention(config: LanguageModelConfig, layer: int) -> nn.Module:
        return SelfAttention(d_model, n_heads, attend=attend)

    config = LanguageModelConfig(
        vocab_size=n_facts * (1 + n_values),
        max_length=length,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        position_embedding="none",
        make_attention=attention,
    )
    model = LanguageModel(config)

    # A fact begins as the sum of its key and its value. A model can learn from nothing which of $n v$ tokens
    # belong to which key, but it takes most of the training, and is not what is asked here
    # [check:test_a_fact_begins_near_its_key].
    key = 0.1 * torch.randn(n_facts, d_model)
    value = 0.1 * torch.randn(n_values, d_model)
    fact = (key[:, None] + value).flatten(0, 1)
    with torch.no_grad():
        model.embedding.weight.copy_(torch.cat([key, fact]))
    return model


def teach(
    model: nn.Module,
    draw: Callable[[], tuple[Tensor, Tensor]],
    *,
    steps: int,
    learning_rate: float = 6e-3,
    report: Callable[[int], None] | None = None,
) -> None:
    """## The teaching

    `draw()` gives tokens and targets; the rate rises and falls as in lesson 3
    [check:test_a_fact_is_learned_in_seconds]. `report(step)` is called after each step.
    """
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(steps):
        tokens, targets = draw()
        logits = model(tokens).flatten(0, 1)
        loss = F.cross_entropy(logits, targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            factor = rate_factor(step, steps, warmup=20)
            group["lr"] = learning_rate * factor
        optimizer.step()
        if report is not None:
            report(step + 1)


def example(axes: dict[str, int]) -> None:
    """As many facts as `n`: the shapes beside the code are read off this run."""
    b, n, t, v = (axes[letter] for letter in "bntv")
    draw = partial(planted_facts, b, t, n, v, places=(0, t))
    heard(torch.ones(t, t).tril() > 0, 2)
    sizes = {"n_facts": n, "n_values": v, "length": t, "d_model": 6}
    model = reader(causal_attention, n_layers=1, **sizes)
    teach(model, lambda: draw()[:2], steps=1)
