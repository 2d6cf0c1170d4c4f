r"""# Attention sinks

A conversation may go on all day; the memory of the model may not. The window of lesson 9 bounds it: keep the
newest $w$ tokens, drop the rest. Do that to a model that was trained without a window, and it breaks at the
token at which the first one is dropped. On a book of 65,000 tokens the perplexity of Llama-2-13B is 5.43 if
the last 1,024 are read anew for every token that is written, and 5,158 with a window of 1,024.

What is missed is not what the first tokens say. Keep four of them, whatever they are, beside a window of
1,020, and perplexity is 5.40 (Xiao et al., table 1). So: the first $n$ tokens stay for ever, the newest $w$
pass by, and places are counted in the cache, not in the text.

$$\mathbf{o}_i = \sum_{j\,\le\,i,\ (j\,<\,n \ \text{or}\ i-j\,<\,w)} P_{ij}\,\mathbf{v}_j$$

The newest token stands at $\hat\imath = \min(i,\; n + w - 1)$, and a token $j$ that is held at

$$\hat\jmath = \begin{cases} j & j < n, \\ j - (i - \hat\imath) & \text{else.} \end{cases}$$

![A stream of tokens, one row for each step, with two sinks and a window of four. Dots: forgotten. The
numbers are the places in the cache, where the newest token never gets beyond 5.](figure:stream)

## What came before

A cache that grows (lesson 7) fills the memory, and past the trained length its positions are new to the
model. A window (lesson 9) does neither, but only models trained with one put up with it. Reading the last
tokens anew for each token is right and slow: keeping the sinks is up to 22.2 times as fast (section 4.5).

## Where attention goes that has nowhere to go

The weights of a row sum to one, so a head that finds nothing must still spend all of it: lesson 1 left that
open. It does least harm on a key whose value is next to nothing, that every query can see. Under a causal
mask there is one such key, the first [check:test_only_the_first_key_is_seen_by_all].

One can watch it. A single head is to repeat a marked token when it is asked and to say nothing otherwise, and
each text begins with a token that means nothing. After 200 steps of training, a query that is not asked puts
more than 99% of its weight on that token, whose value has shrunk to less than a hundredth of the others'
[check:test_a_silent_head_parks_on_the_first_token]. Nobody told it to. Such a token is an *attention sink*.

## Why dropping it breaks the model

Let $p_i = \sum_{j<n} P_{ij}$ be what query $i$ has parked on the sinks. Without them the denominator loses
its largest terms, and all other weights become larger by one factor
[check:test_eviction_multiplies_all_other_weights]:

$$P'_{ij} = \frac{P_{ij}}{1 - p_i}, \qquad \mathbf{o}'_i = \frac{\mathbf{o}_i - \sum_{j<n} P_{ij}\,
\mathbf{v}_j}{1 - p_i}$$

With $p_i = 0.99$, what was a whisper is 100 times as loud. The little head, which made an error of less than
0.001, makes one above 1 [check:test_a_silent_head_breaks_without_its_sink].

![The weights of one query over eight keys, in percent. Above: all of them. Then a window of four, and the same
window with the sink.](figure:eviction)

## Why places are counted anew

Two tokens of the window are as far apart in the cache as in the text. Only the sinks come nearer: their
distance stops growing at $\hat\imath = n + w - 1$ [check:test_only_the_distance_to_the_sinks_is_capped]. So a
model that knows texts of $n + w$ tokens meets no distance that it does not know, and no number grows with the
stream: angles, which lose digits as positions grow (lesson 5), are at token four million what they were at
the first full cache [check:test_nothing_grows_at_token_four_million].

If places are counted anew anyway, are the sinks needed at all? There are four cases:

| | places in the text | places in the cache |
|---|---|---|
| **sinks dropped** | a window | *the same* window |
| **sinks kept** | the distance to them grows for ever | it stops at $n + w - 1$ |

The first row is one case. Whoever sees only distances cannot notice that all places have moved together, and
a window counted anew gives what it gave before [check:test_without_sinks_counting_anew_changes_nothing]. So
counting cannot stand in for the sinks; it is there for their sake. With ALiBi the second row is settled too:
take a sink that has 0.99 of the weight in the gentlest of eight heads, and at a distance of 4,096 tokens the
bias has left it 0.0001 [check:test_far_away_sinks_are_lost_to_alibi]. With rotary positions a far sink is at
angles that training never showed, and what a model makes of them has to be measured.

## Measured at the size of a lesson

Models of two layers learn Python's library from texts of 64 bytes and read streams of 512 with a cache of 32
(`attn experiment attention_sinks`; [all of it](../../results.md#attention-sinks)). One with rotary positions
whose texts all begin with the same byte, a *sink token*, loses 0.08 bits per byte when that is evicted. One
sink wins all of it back, and more win nothing [check:test_one_sink_token_is_needed_and_enough]. One whose
texts begin anywhere never learned to park and loses nothing, with a zero sink or without
[check:test_who_never_parked_loses_nothing]: a collapse takes a larger model.

![What a stream costs above reading the cache anew for every byte, by the number of sinks, for three ways to
train; vanilla and zero sink lie on each other. Bands: three seeds.](figure:sinks_needed)

The four cases, in bits above reading anew: dropped, 0.08 however one counts. Kept and counted in the cache,
0.00. Kept and counted in the text, four sinks cost 1.05, far more than none [check:test_the_four_cases]. So
sinks are needed, and with rotary positions counting anew is needed for them.

## By place, not by meaning

Replace the first four tokens of the text by newlines, and perplexity is 5.60 (table 1). So four newlines may
be read first, `read_stream(model, newlines, caches)`, and then the stream. They are never evicted, and what
the stream began with is forgotten like the rest [check:test_a_prompt_of_newlines_stays]. A small model that
learned one token as its sink knows that token only: four newlines instead of it cost more than no sink
[check:test_newlines_are_no_sinks_here].

Four newlines are one sink, four times. Equal tokens have equal values, and any average of those is the same
value again, so in every layer their keys are equal: a model that takes places from its scores alone cannot
tell them apart [check:test_a_run_of_one_token_is_one_key]. But for their places, the four are one key with
$\ln 4$ added to its score [check:test_four_equal_sinks_are_one].

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{k}_j$ | `key` | `b g t d` | what the newest tokens offer |
| $\mathbf{v}_j$ | `value` | `b g t e` | what the newest tokens give |
| $n$ | `n_sinks` | scalar | how many of the first tokens stay |
| $w$ | `window` | scalar | how many of the newest are kept, the query's own included |
| $\hat\jmath$ | `positions` | `s` | where the keys stand in the cache |
| $\hat\imath$ | – | scalar | where the newest token stands in the cache |
| $P_{ij}$ | – | `b h t s` | how much of $\mathbf{v}_j$ query $i$ takes |

**Source.** Xiao et al. (2023), arXiv:2309.17453, sections 3.1 and 3.2; equation 1 is the softmax with its
first term apart. Their $x + y$ (4+1020) is our $n$ and $w$. Their evaluation script evicts *after* each
token, so that a query there meets $y + 1$ of the newest, its own included.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from annotated_attention.attention_sinks_full import (
    alibi_by_position,
    streaming_alibi,
    streaming_mask,
    streaming_rotary,
)
from annotated_attention.attention_sinks_logits import (
    LearnableSink,
    SinkLogits,
    fused_sink_attention,
    sink_attention,
    sink_gate,
)
from annotated_attention.kv_cache import check_update, empty_slots
from annotated_attention.language_model import LanguageModel, LanguageModelConfig

__all__ = ["LearnableSink", "SinkKVCache", "SinkLogits"]
__all__ += ["alibi_by_position", "fused_sink_attention", "read_stream"]
__all__ += ["sink_attention", "sink_gate"]
__all__ += ["streaming_alibi", "streaming_mask", "streaming_rotary"]


class SinkKVCache:
    r"""## The cache of one layer

    With lesson 3's slot it is the whole method, because a query's position follows from the newest key's:

    ```python
    SelfAttention(m, h, attend=rotary_attention)
    SelfAttention(m, h, attend=alibi_by_position)
    ```

    in a model with `position_embedding="none"`, and a `SinkKVCache` for each layer. At every step of a stream
    of twelve windows, such a model gives what it gives with the masked attention of
    [the next page](../attention_sinks_full/index.md) over the whole text
    [check:test_every_step_equals_the_full_forward]. With $n = 0$ this is lesson 9's window.

    Learned and sinusoidal positions are no use here. They enter with a token, before any cache, and stay in
    its keys; once the cache is full, every further token would be given the place $n + w$
    [check:test_learned_positions_pile_up].

    **Raises.** `ValueError` if `n_sinks` is negative or `window` is less than 1.
    """

    def __init__(self, n_sinks: int, window: int) -> None:
        if n_sinks < 0 or window < 1:
            came = f"n_sinks is {n_sinks}, window is {window}"
            raise ValueError(f"{came}: at least 0 and 1 are wanted")
        self.n_sinks, self.window = n_sinks, window
        self.capacity = n_sinks + window
        self.keys = self.values = torch.empty(1, 0, self.capacity, 0)
        self.seen = 0

    @property
    def held(self) -> int:
        return min(self.seen, self.capacity)

    def update(
        self,
        key: Float[Tensor, "b g t d"],
        value: Float[Tensor, "b g t e"],
    ) -> tuple[Float[Tensor, "b g s d"], Float[Tensor, "b g s e"]]:
        r"""Takes in the newest tokens and returns all that are held, as views in the order of memory
        [check:test_update_writes_in_place]. Memory is taken once, with the first key, and neither moves nor
        grows over 3,000 tokens [check:test_memory_does_not_move]. The texts of a batch begin together and
        stay in step.
        """
        keys, values = self.keys, self.values
        if self.seen == 0:
            keys, values = empty_slots(key, value, self.capacity)
        check_update(key, value, keys, values)

        # Of several tokens that come at once, each would need the sinks at another distance, and a key stands
        # at one place for all. As long as nothing is evicted the places are those of the text, and any number
        # may come [check:test_a_chunk_may_fill_the_cache]. After that, one.
        t = key.shape[2]
        if t > 1 and self.seen + t > self.capacity:
            came = f"cache holds {self.held} of {self.capacity} tokens"
            came = f"{came}, {t} more came: they would evict others"
            wanted = "one at a time is wanted, as read_stream does"
            raise ValueError(f"{came}: {wanted}")

        # Token $j$ of the window lies in place $n + (j - n) \bmod w$: a new one takes the place of the one
        # that is $w$ older.
        n, w = self.n_sinks, self.window
        slot = self.seen if self.seen < n else n + (self.seen - n) % w
        keys[:, :, slot : slot + t] = key
        values[:, :, slot : slot + t] = value
        self.keys, self.values = keys, values
        self.seen += t
        s = self.held
        return keys[:, :, :s], values[:, :, :s]

    @property
    def positions(self) -> Int[Tensor, "s"]:
        r"""$\hat\jmath$: sinks at $0, \dots, n - 1$, then the window by age, in the order of memory
        [check:test_positions_are_those_in_the_cache]."""
        slots = torch.arange(self.held, device=self.keys.device)
        if self.seen <= self.capacity:
            return slots

        # The next token will overwrite the oldest, which therefore stands at $n$.
        n, w = self.n_sinks, self.window
        return torch.where(slots < n, slots, n + (slots - self.seen) % w)

    @property
    def nbytes(self) -> int:
        """The bytes taken: those of lesson 7 for a text of $n + w$ tokens, however long the stream
        [check:test_memory_does_not_move]."""
        return self.keys.nbytes + self.values.nbytes


@torch.no_grad()
def read_stream(
    model: LanguageModel,
    tokens: Integer[Tensor, "b t"],
    caches: Sequence[SinkKVCache],
) -> Float[Tensor, "b t v"]:
    r"""## Reading

    The logits after each token: as much as the caches have room for in one pass, the rest one by one, equal
    to one by one from the start [check:test_read_stream_equals_one_by_one]. It goes on from what the caches
    hold. For a stream without end call it in pieces, or memory fills with logits. No token at all is a
    `ValueError`.

    **Cost.** A step reads $n + w$ keys and values, at token 4,000,000 as with the first full cache, and makes
    as many bytes of new tensors [check:test_nothing_grows_at_token_four_million]. A growing cache reads all:
    `benchmarks/bench_attention_sinks.py` has both, over 100,000 tokens, in milliseconds and in bytes. A window
    that is read anew for each token multiplies all of it by all weights; what a step saves grows with the cache
    ([measured](../../results.md#attention-sinks)).

    ![A step with sinks against reading the window anew, on a CPU: how many times as fast, by the size of the
    cache. Dots are seeds.](figure:faster)

    **When it fails.**

    - *It remembers no more than a window.* Change a token that one layer has evicted, and nothing moves
      [check:test_what_is_evicted_is_forgotten]; through $L$ layers, a word reaches $L\,(w - 1)$ tokens on
      (lesson 9). The authors say so too: a book that is streamed is not a book that was read.
    - *A sink must have formed.* Of the models in table 2, Llama-2-7B needs four: 0, 1, 2, 4 and 8 sinks give
      3359.95, 11.88, 10.51, 9.59 and 9.54. A small model may hardly have any: at 160M parameters, dropping
      the first token costs 27.87 against 18.05 (table 3), no collapse.
    - *Prompts are slow*, for a prompt longer than the cache is read by the token. Evicting several at once
      makes it fast and inexact: the first queries of the chunk then see less than a window.

    **In production.** StreamingLLM's code keeps keys unturned and turns all of them in every step, as here,
    but shortens the cache with `torch.cat`. Transformers had a `SinkCache`; version 5 removed it. llama.cpp
    keeps the first tokens (`--keep`), discards half of the rest when the context is full, and turns those
    that stay by the difference (lesson 5).
    """
    if not tokens.shape[1]:
        came = tuple(tokens.shape)
        raise ValueError(f"tokens is {came}: at least one is wanted")
    room = min(cache.capacity - cache.held for cache in caches)
    first, rest = tokens[:, :room], tokens[:, room:]
    pieces = [x for x in (first, *rest.split(1, dim=1)) if x.shape[1]]
    training = model.training
    try:
        model.eval()
        logits = [model(x, caches=caches) for x in pieces]
    finally:
        model.train(training)
    return torch.cat(logits, dim=1)


def example(axes: dict[str, int]) -> None:
    """A stream that outgrows its cache: the shapes beside the code are read off this run."""
    b, g, t, s, d, e, v = (axes[letter] for letter in "bgtsdev")
    cache = SinkKVCache(2, s - 2)
    cache.update(torch.randn(b, g, s, d), torch.randn(b, g, s, e))
    cache.update(torch.randn(b, g, 1, d), torch.randn(b, g, 1, e))
    config = LanguageModelConfig(
        vocab_size=v,
        d_model=g * d,
        n_layers=1,
        n_heads=g,
        position_embedding="none",
    )
    tokens = torch.zeros(b, s + t, dtype=torch.long)
    read_stream(LanguageModel(config), tokens, [SinkKVCache(2, s - 2)])
