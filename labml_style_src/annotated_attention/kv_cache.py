r"""# The KV cache

To write its thousandth token, the model of lesson 3 reads 999. It had read 998 of them a moment before, to
write the last one. A thousand tokens cost half a million readings, and next to nothing of that is new.

Nothing of it can come out differently either. Where attention is causal, what a token computes depends on the
tokens before it, never on those after. So each layer keeps what later tokens will ask for, and every token is
read once:

$$\mathbf{o}_i = \sum_{j \le i} \operatorname{softmax}_j\Big(\tfrac{1}{\sqrt d}\,\mathbf{q}_i^\top
\mathbf{k}_j\Big)\,\mathbf{v}_j.$$

Of all that stands here, only $\mathbf{q}_i$, $\mathbf{k}_i$ and $\mathbf{v}_i$ are new. The other keys and
values are old, and old queries do not occur: there is a KV cache, and no Q cache.

![A prompt of five tokens, then three more. Filled: keys, values and scores that a step computes, with the
number of scores. Pale: keys and values that it finds in the cache.](figure:triangle)

## What came before

A recurrent network reads a token, updates a state of fixed size and forgets the token. The transformer gave
that up to be trained on all positions at once. But writing cannot be done at once, and keys and values of the
past are the state that it carries along. It forgets nothing, and it grows with every token.

## Why the past stays as it was

In the first layer, $\mathbf{k}_j$ and $\mathbf{v}_j$ are projections of token $j$ alone. Its output
$\mathbf{o}_j$ mixes values at positions up to $j$, and norms and MLP act on each position by itself. So what
enters the second layer at $j$ depends on tokens $0, \dots, j$, and so on upwards: appending a token moves no
key and no value of any layer [check:test_the_past_never_changes]. Take the mask away and the argument fails
at its first step. An encoder, where every token sees the new one, has nothing to keep
[check:test_without_causality_the_past_changes].

So a text may be read in any pieces: all at once, one token at a time, or in chunks. The cuts cannot be seen
in the result [check:test_cuts_are_invisible], which is that of the full forward pass
[check:test_equals_the_full_forward_pass]. On paper it is exact. A computer adds up a product of one row in
another order than one of many, so the results agree as two orders of addition do, not to the last bit.

## Where a key stands

With a cache, positions cannot be read off the shapes any longer: $t$ queries and $s$ keys may stand anywhere.
So the cache says where its keys stand, the newest key says where the queries stand, and lesson 3's
`causal_mask` compares the two: query $i$ sees key $j$ if $0 \le j \le i$. A slot without a key is at
position $-1$, which no query sees.

Texts of different lengths then need nothing more: each row of a batch writes behind its own last token.

![Three prompts in one cache, and the positions of its slots. They are read together, padded on the right; the
padding is forgotten; three tokens later, each row has written behind its own text.](figure:rows)

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{k}_j$ | `key` | `b g t d` | what the newest positions offer |
| $\mathbf{v}_j$ | `value` | `b g t e` | what the newest positions give |
| $n_b$ | `lengths` | `b` | how many tokens each text has in the cache |
| $j$ | `slots` | `b t` | where the newest are written: slot $j$ is position $j$ |
| $s$ | `longest` | scalar | $\max_b n_b$, the slots that attention reads |
| $L$ | `n_layers` | scalar | number of layers, each with a cache |
| $g$ | `n_kv_heads` | scalar | key and value heads: $h$, until lesson 8 |
| $N$ | `n_parameters` | scalar | numbers in the model's matrices |
| $u$ | `dtype` | scalar | bytes of a number |

**Source.** Shazeer (2019), arXiv:1911.02150, section 2.4: `prev_K` and `prev_V` are our `keys` and `values`,
$n$ is our $s$, $d$ the width of the model, $k$ and $v$ our $d$ and $e$; where its listing projects $M$, the
new $x$ is meant.
"""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int, Integer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from annotated_attention.language_model import LanguageModel, LanguageModelConfig, generate, sample

__all__ = ["KVCache", "decode_cost", "generate_batch", "kv_cache_bytes", "make_caches", "prefill"]


class KVCache:
    r"""## The cache of one layer

    Room for `capacity` tokens in each text of a batch. The first key shows how many texts, heads and
    dimensions there are, in which dtype and where; that is when memory is taken, and a cache that is empty
    again takes any shape [check:test_an_empty_cache_takes_any_shape].
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}: it must be at least 1")
        self.capacity = capacity
        self.keys = self.values = torch.empty(1, 0, capacity, 0)
        self.lengths, self.longest = torch.zeros(1, dtype=torch.long), 0

    def update(
        self,
        key: Float[Tensor, "b g t d"],
        value: Float[Tensor, "b g t e"],
    ) -> tuple[Float[Tensor, "b g s d"], Float[Tensor, "b g s e"]]:
        r"""Takes in the newest and returns all, up to the longest text
        [check:test_update_writes_behind_each_text], as views: old tokens are not copied, and later updates
        write into the same memory [check:test_update_copies_nothing]. What has no room, is not of the kind
        that the cache began with, or wants a gradient is a `ValueError`, and changes nothing
        [check:test_what_is_refused_changes_nothing].
        """
        keys, values = self.keys, self.values
        if not self.longest:
            keys, values = empty_slots(key, value, self.capacity)
        check_update(key, value, keys, values)

        # Every text grows by $t$: the longest, a Python number, is the first without room.
        t, longest = key.shape[2], self.longest + key.shape[2]
        if longest > self.capacity:
            held = f"cache holds {self.longest} of {self.capacity} tokens"
            raise ValueError(f"{held}, {t} more came: capacity {longest} is wanted")

        # Slot $j$ is position $j$ of the text. `torch.cat` would copy everything for every token.
        rows = torch.arange(len(key), device=key.device)
        lengths = self.lengths if self.longest else torch.zeros_like(rows)
        slots = lengths[:, None] + torch.arange(t, device=key.device)
        keys[rows[:, None], :, slots] = rearrange(key, "b g t d -> b t g d")
        values[rows[:, None], :, slots] = rearrange(value, "b g t e -> b t g e")
        self.keys, self.values = keys, values
        self.lengths, self.longest = lengths + t, longest
        return keys[:, :, :longest], values[:, :, :longest]

    @property
    def positions(self) -> Int[Tensor, "b s"]:
        """Where those keys stand; -1 where there is none [check:test_positions_say_where_keys_stand]."""
        slots = torch.arange(self.longest, device=self.lengths.device)
        return torch.where(slots < self.lengths[:, None], slots, -1)

    @property
    def nbytes(self) -> int:
        """The bytes taken, for `capacity` tokens a text, held or not [check:test_bytes_are_as_predicted]."""
        return self.keys.nbytes + self.values.nbytes

    def truncate(self, lengths: Sequence[int] | Int[Tensor, "b"]) -> None:
        r"""Forgets all but the first `lengths` tokens of each text, as if the rest had never been read
        [check:test_what_is_forgotten_leaves_no_trace]. Three things need it. Padding, read beside a longer
        text. Tokens that were only guessed: in speculative decoding (Leviathan et al. 2022, arXiv:2211.17192)
        a small model drafts several, the large one reads them in one pass and keeps those it agrees with. And
        a row whose text is finished: cut to 0, it is free for the next
        [check:test_a_row_can_be_given_to_another_text].
        """
        kept, held = [int(n) for n in lengths], self.lengths.tolist()
        fits = [0 <= n <= m for n, m in zip(kept, held, strict=False)]
        if len(kept) != len(held) or not all(fits):
            raise ValueError(f"lengths is {kept}: of each text, at most {held} is wanted")
        shortest, longest = min(kept, default=0), self.longest
        self.lengths = self.lengths.new_tensor(kept)
        self.longest = max(kept, default=0)

        # A NaN that was read would outlive its token, for a row's slots are read up to the longest text.
        behind = torch.arange(shortest, longest, device=self.lengths.device)
        forgotten = rearrange(behind >= self.lengths[:, None], "b n -> b 1 n 1")
        self.keys[:, :, shortest:longest].masked_fill_(forgotten, 0.0)
        self.values[:, :, shortest:longest].masked_fill_(forgotten, 0.0)


def empty_slots(key: Tensor, value: Tensor, n_slots: int) -> tuple[Tensor, Tensor]:
    r"""Memory for more of the same. It holds zeros, for $0 \cdot \text{NaN}$ is NaN: a mask would not hide it."""
    if key.ndim != 4 or value.ndim != 4:
        came = f"key is {tuple(key.shape)}, value is {tuple(value.shape)}"
        raise ValueError(f"{came}: b g t d and b g t e are wanted")
    room = (*key.shape[:2], n_slots)
    return key.new_zeros(*room, key.shape[3]), key.new_zeros(*room, value.shape[3])


def check_update(key: Tensor, value: Tensor, keys: Tensor, values: Tensor) -> None:
    """What a cache began with, it goes on with. Written in place, it has no way back for a gradient."""
    for name, new, held in (("key", key, keys), ("value", value, values)):
        shape = (*held.shape[:2], key.shape[2], held.shape[3])
        wanted = f"{held.dtype} of shape {shape} on {held.device}"
        came = f"{new.dtype} of shape {tuple(new.shape)} on {new.device}"
        if came != wanted:
            raise ValueError(f"{name} is {came}: {wanted} is wanted")
        if new.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} wants a gradient: torch.no_grad() is wanted")


def kv_cache_bytes(
    n_layers: int,
    n_kv_heads: int,
    d: int,
    length: int,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    e: int | None = None,
) -> int:
    r"""## How many bytes

    A token leaves one key and one value in each head of each layer, whatever it says. In bytes, with $e = d$
    unless said otherwise:

    $$L\,g\,(d + e)\,u$$

    | model | $L$ | $g$ | $d$ | a token | a full context |
    |---|---|---|---|---|---|
    | lesson 3's, float32 | 4 | 4 | 32 | 4 KiB | 256 tokens: 1 MiB |
    | Llama-2-7B | 32 | 32 | 128 | 512 KiB | 4,096 tokens: 2 GiB |
    | Llama-3-8B | 32 | 8 | 128 | 128 KiB | 8,192 tokens: 1 GiB |

    The last two are in bf16 [check:test_bytes_of_known_models]. The caches of a model, measured, have as many
    bytes as this predicts, to the last one [check:test_bytes_are_as_predicted].

    ![Bytes of the cache. Llama-2-7B's outgrows the weights of the model; Llama-3-8B's, with a quarter of the
    key heads, is a quarter of it.](figure:growth)
    """
    numbers = n_kv_heads * (d + (d if e is None else e))
    return n_layers * numbers * dtype.itemsize * length * batch


def make_caches(model: LanguageModel, capacity: int) -> list[KVCache]:
    """One cache for each layer, for `model(tokens, caches=...)` and for `generate` of lesson 3."""
    return [KVCache(capacity) for _ in model.blocks]


@torch.no_grad()
def prefill(
    model: LanguageModel,
    prompts: Sequence[Integer[Tensor, "_"]],
    caches: Sequence[KVCache],
    *,
    chunk_size: int | None = None,
) -> Float[Tensor, "b v"]:
    r"""## Prefill: reading

    Reads the prompts, together though their lengths differ, and returns the logits of what follows each. They
    go on from what the caches hold: of a conversation, only the next turn is read
    [check:test_a_conversation_goes_on]. In chunks (Agrawal et al. 2023, arXiv:2308.16369) a long prompt makes
    fewer of its $t\,s$ scores at a time, and in between others may write; the result is the same
    [check:test_chunk_size_is_irrelevant].
    """
    added = [len(prompt) for prompt in prompts]
    size = max(added, default=0) if chunk_size is None else chunk_size
    if min([size, *added]) < 1:
        came = f"prompts have {added} tokens, chunk_size is {size}"
        raise ValueError(f"{came}: at least 1 is wanted")

    # Padding goes to the right, where no token of the text can see it: its keys stand after all of them. While
    # it is read it takes places like any token [check:test_padding_takes_places].
    tokens = pad_sequence(list(prompts), batch_first=True)
    lengths = torch.tensor(added, device=tokens.device)
    kept = lengths + (caches[0].lengths if caches[0].longest else 0)
    chunks, training = tokens.split(size, dim=1), model.training
    try:
        model.eval()
        logits = torch.cat([model(x, caches=caches) for x in chunks], dim=1)
    finally:
        model.train(training)

    # But the next token would see it, at positions that are its own.
    for cache in caches:
        cache.truncate(kept)
    return logits[torch.arange(len(added), device=tokens.device), lengths - 1]


def generate_batch(
    model: LanguageModel,
    prompts: Sequence[Integer[Tensor, "_"]],
    n_tokens: int,
    *,
    chunk_size: int | None = None,
    **sampling: Any,
) -> list[Tensor]:
    r"""## Decode: writing

    Each prompt and `n_tokens` more, chosen as `sampling` says: lesson 3's temperature, `top_p` and generator.
    Each text comes out as it would alone [check:test_a_batch_equals_each_text_alone].
    """
    # The last token is written and never read: it needs no slot [check:test_the_last_token_needs_no_slot].
    later = max(n_tokens - 1, 0)
    caches = make_caches(model, max(map(len, prompts), default=0) + later)
    logits = prefill(model, prompts, caches, chunk_size=chunk_size)

    # Lesson 3's loop does the rest: the newest key of each row says where that text goes on.
    first = sample(logits, **sampling)[:, None]
    written = generate(model, first, later, caches=caches, **sampling)
    pairs = zip(prompts, written[:, :n_tokens], strict=True)
    return [torch.cat([prompt, new.to(prompt.dtype)]) for prompt, new in pairs]


def decode_cost(
    n_parameters: int,
    n_layers: int,
    n_heads: int,
    d: int,
    length: int,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[int, int]:
    r"""## What it costs, and when it fails

    Returns the operations of one step of decoding and the bytes that it must read, each weight and each held
    key and value once, for $b$ texts of $s$ tokens and $g = h$:

    $$\begin{aligned}\text{operations:}&\ 2\,b\,(N + 2 L h d\, s) \\
    \text{bytes:}&\ u\,(N + 2\,b\,L h d\, s)\end{aligned}$$

    The first is what PyTorch counts; without a cache it is $s$ times as much
    [check:test_decode_cost_counts_the_products]. Divide, term by term: in bf16, decoding does $b$ operations
    for each byte of weights and one for each byte of cache, whatever $b$
    [check:test_one_operation_for_a_byte_of_cache]. A batch shares the weights; each text has its own cache.
    An H100 (SXM) does 295 while it reads a byte (989 TFLOP/s in bf16, 3.35 TB/s), so decoding waits for
    memory. In prefill the tokens of a prompt share the weights, and from some 300 on arithmetic is the limit.
    Shazeer's ratio of memory to arithmetic, $\Theta(s/m + 1/b)$, says the same (section 2.4.1); he measured
    1.7 µs a token in an encoder, 46 µs in its decoder (table 2).

    - *It grows.* Llama-2-7B's 6.7 billion weights are outgrown at 25,706 tokens, by the seventh full text of
      a batch [check:test_the_cache_outgrows_the_weights]. Ways out: fewer key heads (lesson 8), a window (9).
    - *It reserves* room for the longest text that may come, and most end sooner. Of the caches that Kwon et
      al. (2023, arXiv:2309.06180) measured, 20.4 to 38.2% held tokens (section 1). Pages of a few tokens,
      handed out as a text grows and found through a table, raise that to 96.3% (figure 2).
    - *The past is frozen.* Change one token, and in every layer but the first the keys and values of all that
      follow are wrong [check:test_an_edit_spoils_what_follows]. Texts can share a beginning, not an end.
    - *Mistakes are silent.* One position off, and the text is still plausible. Compare with the full pass.

    **In production** a step is `F.scaled_dot_product_attention(q, keys, values)`: one new token in texts of
    one length needs no mask. A chunk needs `causal_lower_right(t, s)`, for `is_causal` is aligned top-left
    [check:test_sdpa_with_a_cache]; different lengths need a boolean mask, or in **FlexAttention** a
    `mask_mod` on positions [check:test_flex_attention_with_a_cache]. **flash-attn** writes and attends in one
    kernel, `flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=lengths, causal=True)`, with
    `block_table` for pages. **Transformers** has `past_key_values`: `DynamicCache` grows by `torch.cat`,
    `StaticCache` takes `max_cache_len` slots at once, so that no shape changes and a step can be compiled.
    **vLLM** has pages, shared beginnings, and chunks of prompts in one batch with texts that are written.
    """
    operations = 2 * batch * (n_parameters + 2 * n_layers * n_heads * d * length)
    cache = kv_cache_bytes(n_layers, n_heads, d, length, dtype=dtype)
    return operations, n_parameters * dtype.itemsize + batch * cache


def example(axes: dict[str, int]) -> None:
    """Forwards, back, forwards; then a model: the shapes beside the code are read off this run."""
    b, g, t, d, e, v = (axes[letter] for letter in "bgtdev")
    cache = KVCache(2 * t)
    cache.update(torch.randn(b, g, t, d), torch.randn(b, g, t, e))
    cache.truncate([t - 1] * b)
    cache.update(torch.randn(b, g, 1, d), torch.randn(b, g, 1, e))
    config = LanguageModelConfig(vocab_size=v, d_model=g * d, n_layers=1, n_heads=g)
    model, prompts = LanguageModel(config), [torch.zeros(t, dtype=torch.long)] * b
    prefill(model, prompts, make_caches(model, t))
    generate_batch(model, prompts, 2)
    decode_cost(12 * (g * d) ** 2 + v * g * d, 1, g, d, t, batch=b)
