r"""# A rolling cache

A cache grows with every token, and lesson 7's has to be told how large it may become. A stream has no end: a
conversation that goes on, a log that is read as it is written.

But where a query looks at the last $w$ tokens only, nobody will ever ask for an older one. So $w$ places are
enough for a text of any length. The newest token goes where the oldest stood:

$$\text{slot} = \text{position} \bmod w$$

![A ring of six slots while a text is read. A number is the position of the token in a slot; outlined, the one
that was just written.](figure:ring)

## What came before

The other way is to move: drop the oldest row, shift the rest, append. It keeps the keys in order, at the cost
of copying all $w$ of them for every token. A ring writes one and moves none
[check:test_a_step_writes_in_place]. Mistral 7B (2023) made it known as the *rolling buffer cache*.

## Order is not needed

What the ring gives up is order: its first slot holds whatever came last to it. Attention does not mind. A sum
over keys is the same in any order, and who may look at whom is decided by positions, which go on counting:
after 100,000 tokens, a ring of six holds positions 99,994 to 99,999 [check:test_positions_go_on_counting]. So
masks and rotary positions are those of the whole text. Lesson 6's ALiBi takes its keys to lie in order and
does not fit; lesson 10 has one that goes by positions.

A language model with a ring in each layer writes what it would write with all keys and a masked matrix, at
every step of a text as long as one likes [check:test_stream_equals_the_masked_forward_pass].

## Read in pieces

A single token may push out the oldest at once: with it, the window is full. A piece of $t$ tokens may not.
Its first query still needs the $w - 1$ tokens before it, and its last one would already have overwritten
them. So a piece is answered with those and itself, $w - 1 + t$ keys in order, and only then is the ring
written [check:test_pieces_of_any_size_are_the_same_text]. A prompt is best read in pieces of about $w$: then
no more than $2w$ keys are in use at once.

And in such an answer the last query could look further back than $w$. With one token at a time the ring
*is* the window, whatever attends; with pieces, the attention has to know $w$ as well
[check:test_a_piece_needs_the_window_in_its_attention].

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{k}_j$ | `key` | `b g t d` | what the newest positions offer |
| $\mathbf{v}_j$ | `value` | `b g t e` | what the newest positions give |
| $w$ | `window` | scalar | tokens in the ring |
| $p$ | `length` | scalar | tokens read so far: the position of the next one |
| $j$ | `positions` | `s` | where the keys stand that `update` returned last |

**Source.** Jiang et al. (2023), arXiv:2310.06825, section 2: *rolling buffer cache*, *pre-fill and chunking*.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from annotated_attention.kv_cache import check_update, empty_slots, kv_cache_bytes

__all__ = ["RollingKVCache", "rolling_kv_cache_bytes"]


class RollingKVCache:
    r"""## The ring

    Room for the last `window` tokens of each text of a batch. All texts are read in step: one length, and no
    padding. The first key shows shapes, dtype and device, and that is when memory is taken, once
    [check:test_memory_never_grows].
    """

    def __init__(self, window: int) -> None:
        if window < 1:
            raise ValueError(f"window is {window}: it must be at least 1")
        self.window, self.length = window, 0
        self.keys = self.values = torch.empty(1, 0, window, 0)
        self.positions = torch.arange(0)

    def update(
        self,
        key: Float[Tensor, "b g t d"],
        value: Float[Tensor, "b g t e"],
    ) -> tuple[Float[Tensor, "b g s d"], Float[Tensor, "b g s e"]]:
        r"""Takes in the newest, and returns all that their queries may need. After it, `positions` says where
        these keys stand. What is not of the kind that the ring began with, or wants a gradient, is a
        `ValueError`, and changes nothing [check:test_what_is_refused_leaves_the_ring_alone].
        """
        keys, values = self.keys, self.values
        if not self.length:
            keys, values = empty_slots(key, value, self.window)
        check_update(key, value, keys, values)

        # One token is answered with the ring itself, to be written below. Slot $c$ then holds the last
        # position up to $p$ that is $c$ modulo $w$, and that is $p - (p - c) \bmod w$.
        w, p, t = self.window, self.length, key.shape[2]
        new = torch.arange(p, p + t, device=key.device)
        if t == 1:
            slots = torch.arange(min(p + 1, w), device=key.device)
            positions = p - (p - slots) % w
            seen = keys[:, :, : len(slots)], values[:, :, : len(slots)]

        # A piece overwrites what it needs, so it is answered with a copy. Old before new: the positions have
        # no gap, and the attention can take them for a band.
        else:
            old = torch.arange(max(0, p - w + 1), p, device=key.device)
            positions = torch.cat([old, new])
            seen = (
                torch.cat([keys[:, :, old % w], key], dim=2),
                torch.cat([values[:, :, old % w], value], dim=2),
            )

        # Of a piece longer than the ring, only the last $w$ tokens stay.
        slots = new[-w:] % w
        keys[:, :, slots] = key[:, :, -w:]
        values[:, :, slots] = value[:, :, -w:]
        self.keys, self.values = keys, values
        self.length, self.positions = p + t, positions
        return seen

    @property
    def nbytes(self) -> int:
        """The bytes of the ring, full or not [check:test_bytes_of_the_ring]."""
        return self.keys.nbytes + self.values.nbytes


def rolling_kv_cache_bytes(
    n_layers: int,
    n_kv_heads: int,
    d: int,
    window: int,
    length: int,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> int:
    r"""## What it costs, and when it fails

    Lesson 7's formula, with $\min(s, w)$ tokens for a text of $s$. Mistral 7B has 32 layers of 8 key heads of
    width 128, 128 KiB a token: 512 MiB for its window of 4,096, and 4 GiB for 32,768 tokens without one,
    eight times as much, as the paper says [check:test_bytes_of_mistral].

    ![Bytes of Mistral 7B's cache, with a window of 4,096 tokens (full colour) and without
    (pale).](figure:growth)

    A step reads $w$ keys at most, so a token costs the same at position 10 million as at 10,000. In return:

    - *There is no way back.* Lesson 7's cache could `truncate`; here, what would have to return has been
      overwritten. So guesses cannot be taken back: to give up $k$ drafted tokens, speculative decoding needs
      a ring of $w - 1 + k$ slots (the exercise ends with one). And texts of different lengths cannot be read
      side by side, for padding would push out tokens. The ring has no `truncate`, and lesson 7's `prefill`
      refuses it [check:test_a_ring_has_no_way_back].
    - *The first tokens go*, which a model that was trained without a window cannot bear (lesson 10).
    - *Positions go on.* A table of learned positions ends long before a stream does (lesson 3), and rotary
      positions must be kept as whole numbers: the ring holds keys unturned, so nothing is rounded with time.

    **In production.** **Transformers**' sliding layers concatenate, answer with all, and keep the last
    $w - 1$ keys, in order. **vLLM** holds pages, and frees those that have left the window. Models that mix
    windows and full attention (Gemma 2 and 3, gpt-oss) hold a cache of each kind, layer by layer.
    """
    held = min(length, window)
    return kv_cache_bytes(n_layers, n_kv_heads, d, held, batch=batch, dtype=dtype)


def example(axes: dict[str, int]) -> None:
    """A piece, then a token: the shapes beside the code are read off this run."""
    b, g, t, s, d, e = (axes[letter] for letter in "bgtsde")
    cache = RollingKVCache(s)
    for n in (s - t, t, 1):
        cache.update(torch.randn(b, g, n, d), torch.randn(b, g, n, e))
    rolling_kv_cache_bytes(1, g, d, s, t)
