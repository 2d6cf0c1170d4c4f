r"""# The state as a memory

A transformer remembers by keeping everything. Its cache (lesson 7) grows with every token, and every new
token reads all of it. A recurrent network keeps a state of one size, and a token costs the same wherever it
stands; but it was trained one step after the other.

Linear attention is both. It is trained in chunks, all positions at once, and writes like a recurrent network:

$$\begin{gathered} S_i = S_{i-1} + \varphi(\mathbf{k}_i)\,\mathbf{v}_i^\top, \\
\mathbf{z}_i = \mathbf{z}_{i-1} + \varphi(\mathbf{k}_i), \\[4pt]
\mathbf{o}_i = \frac{\varphi(\mathbf{q}_i)^\top S_i}{\varphi(\mathbf{q}_i)^\top \mathbf{z}_i}\,.
\end{gathered}$$

Token after token, a model with such layers computes what one pass over the whole text computes
[check:test_a_stream_equals_the_full_pass], and after 1,000 tokens its memory has not grown by a byte
[check:test_the_state_does_not_grow].

![What one head keeps, in numbers, for d = e = f = 64. The cache begins with nothing and passes the state at
token 33.](figure:memory)

## What came before

LSTMs (Hochreiter and Schmidhuber 1997) carry a vector along, of as many numbers as the layer is wide, and
mix it by a matrix at each step, which is why the steps cannot be taken at once. Here the state is a matrix
for each head, wider than the layer by a factor of $f$; and as nothing is done to it but adding, the order of
the additions is free, and so is the way through the text.

## A text can be read from both ends

The state of a text is the sum of the states of its parts, so parts may be read apart, by different machines,
and their states added [check:test_parts_are_read_apart]. What follows from that is not only convenient. The
sum does not know what came first: exchange two tokens of the past, and a layer says the same
[check:test_the_past_has_no_order]. Whatever order a layer needs must be in the keys, from positions that
joined the tokens (lesson 3) or from layers below, which saw another past at each token.

And a state is a value. A cache is cut to go back, as speculative decoding must. Of a state, one keeps a copy
from before the draft [check:test_going_back_is_remembering].

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b h t d` | what position $i$ asks |
| $\mathbf{k}_i$ | `key` | `b h t d` | under what it writes |
| $\mathbf{v}_i$ | `value` | `b h t d` | what it writes |
| $S$, $\mathbf{z}$ | `state` | – | the sums of `LinearState`: `b h f e` and `b h f` |
| $\varphi$ | `feature_map` | – | from $d$ numbers to $f$ features |
| $i$ | `positions` | `... t` | where the tokens stand; below 0 is padding |
| $L$ | `n_layers` | scalar | layers, each with a state |

**Source.** Katharopoulos et al. (2020), arXiv:2006.16236, section 3.4: equations 16 to 20, whose $s_i$ and
$z_i$ are our $S_i$ and $\mathbf{z}_i$; table 1 for MNIST, and the supplement on *stateful softmax* for what a
cache changes.
"""

from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from annotated_attention.language_model_slot import Cache
from annotated_attention.linear import (
    LinearState,
    linear_attention,
    linear_attention_piece,
    linear_attention_step,
)
from annotated_attention.linear_features import FeatureMap, elu_plus_one
from annotated_attention.multi_head import merge_heads, split_heads

__all__ = ["LinearCache", "LinearSelfAttention", "linear_state_bytes"]


class LinearCache:
    r"""## The cache of one layer

    Lesson 3 wants three things of a cache. Bytes it has, and they do not change. Of positions it knows the
    newest, which is all that a model asks for to number what comes next: learned positions count on
    [check:test_learned_positions_count_on]. Keys and values it cannot give back, and `update` says so. So it
    fits every model, and among layers only those below [check:test_a_cache_without_keys].

    Texts of different lengths are read side by side if positions below 0 mark the padding, on the left or on
    the right [check:test_texts_of_different_lengths]. Lesson 7 had to cut it off again.
    """

    def __init__(self) -> None:
        self.state: LinearState | None = None
        self.positions = torch.arange(0)

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        came = f"key has {key.shape[-2]} tokens"
        wanted = "a LinearCache keeps none, so LinearSelfAttention is wanted"
        raise ValueError(f"{came}: {wanted}")

    @property
    def nbytes(self) -> int:
        return 0 if self.state is None else self.state.nbytes


class LinearSelfAttention(nn.Module):
    r"""## In a model

    It fills lesson 3's slot, with the projections of lesson 2:

    ```python
    def layer(config, n):
        return LinearSelfAttention(config.d_model, config.n_heads)

    LanguageModel(LanguageModelConfig(make_attention=layer))
    ```

    With a `LinearCache` for each layer, `generate` writes what it would write by reading everything again
    [check:test_a_model_writes_the_same_text]. A map with parameters, as a module, is trained with the rest
    [check:test_a_map_may_be_trained].

    **Raises.** `ValueError` if `d_model` is no multiple of `n_heads`, the cache is of another kind, or
    positions do not rise [check:test_wrong_input_is_refused].
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        feature_map: FeatureMap = elu_plus_one,
        chunk_size: int = 64,
    ) -> None:
        super().__init__()
        if n_heads < 1 or d_model < 1 or d_model % n_heads:
            came = f"d_model is {d_model}, n_heads is {n_heads}"
            raise ValueError(f"{came}: a multiple of n_heads is wanted")
        self.n_heads, self.chunk_size = n_heads, chunk_size
        self.feature_map = feature_map
        self.w_q = nn.Linear(d_model, d_model, bias=False)
        self.w_k = nn.Linear(d_model, d_model, bias=False)
        self.w_v = nn.Linear(d_model, d_model, bias=False)
        self.w_o = nn.Linear(d_model, d_model, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b t m"],
        *,
        positions: Int[Tensor, "... t"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "b t m"]:
        if cache is not None and not isinstance(cache, LinearCache):
            came = f"cache is a {type(cache).__name__}"
            raise ValueError(f"{came}: a LinearCache is wanted")
        query = split_heads(self.w_q(x), self.n_heads)
        key = split_heads(self.w_k(x), self.n_heads)
        value = split_heads(self.w_v(x), self.n_heads)

        # Of positions, the sum has no use but one: padding stands below 0, and gets no features, so that it
        # sees nothing and adds nothing [check:test_padding_sees_nothing_and_moves_nothing].
        i, newest = placed(x, positions, cache)
        phi = self.feature_map
        if positions is not None:
            phi = masked(phi, i >= 0)
        if cache is None:
            attend = partial(linear_attention, feature_map=phi)
            found = attend(query, key, value, chunk_size=self.chunk_size)

        # A prompt is read in chunks, and what is written, token by token. A very long prompt is best given in
        # pieces: all its chunks are in memory at once.
        else:
            u, past = self.chunk_size, cache.state
            read = partial(linear_attention_piece, chunk_size=u)
            if x.shape[1] == 1:
                read = linear_attention_step
            found, past = read(query, key, value, past, feature_map=phi)
            cache.state, cache.positions = past, newest
        return self.w_o(merge_heads(found))


def placed(
    x: Float[Tensor, "b t m"],
    positions: Int[Tensor, "... t"] | None,
    cache: LinearCache | None,
) -> tuple[Int[Tensor, "... t"], Int[Tensor, "... _"]]:
    r"""Where the tokens of `x` stand, and which of these is the newest. What was read later stands behind: a
    sum in the order of the text has no other way to hide the future.
    """
    last = torch.arange(0) if cache is None else cache.positions
    last = last.to(x.device)
    if positions is None:
        i = torch.arange(x.shape[1], device=x.device)
        i = i + last + 1 if last.numel() else i
        return i, torch.cat([last, i], dim=-1)[..., -1:]
    rows = torch.broadcast_shapes(last.shape[:-1], positions.shape[:-1])
    i = positions.expand(*rows, -1)
    known = torch.cat([last.expand(*rows, -1), i], dim=-1)
    before, new = known.cummax(dim=-1).values[..., :-1], known[..., 1:]
    if ((new >= 0) & (new <= before)).any():
        came = f"positions are {known.tolist()}"
        wanted = "each above those before it, or below 0, is wanted"
        raise ValueError(f"{came}: {wanted}")
    return i, known.cummax(dim=-1).values[..., -1:]


def masked(
    feature_map: FeatureMap,
    exists: Bool[Tensor, "... t"],
) -> FeatureMap:
    """No features where there is no token."""
    return lambda x: feature_map(x) * exists[..., None, :, None]


def linear_state_bytes(
    n_layers: int,
    n_heads: int,
    f: int,
    e: int,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
) -> int:
    r"""## What it costs, and when it fails

    Bytes of a model's states, $L\,h\,f\,(e + 1)$ numbers for each text, and the caches of a model have as
    many [check:test_bytes_are_as_predicted]. A cache of keys and values has $d + e$ numbers a token and head,
    so it is larger from

    $$s^* = \frac{f\,(e + 1)}{d + e}$$

    tokens on: 33 if all are 64, and twice that if the cache is in bf16 and the state in float32
    [check:test_where_the_cache_passes_the_state]. Llama-2-7B's shape would need 64.5 MiB for any text, in
    place of 2 GiB for 4,096 tokens [check:test_bytes_of_llama_2]. Features cost: Based's 273, for keys of 16
    numbers and values of 64, are passed by a cache at token 222 only.

    A step does four operations for each number of the state, two to write and two to read, at any position.
    *How much faster* that is depends on what one compares with, and the paper says so. On MNIST: 142.8 images
    a second against 0.45, 317 times as many, where the softmax reads everything again for each pixel. Against
    one with a cache, on CIFAR-10: 55.8 times the throughput, with the largest batches that fit, and for a
    batch of one a latency that is 1.15 times better.

    ![One token more, in a model of eight layers: how many times as long as with states, over the tokens
    before it.](figure:baselines)

    [So it is here](../../results.md#linear). A model of eight layers, 256 wide, writes 784 tokens five
    times or so as fast as one that reads its prefix again [check:test_a_prefix_is_an_easy_opponent], and not
    as fast as one with a cache [check:test_a_cache_is_not]: most of a token's time goes to projections, which
    both have, and a short cache is read in one call. Many long texts at once are where states pay
    [check:test_many_texts_are_where_it_pays], and of these more fit: after 3,072 tokens the cache has 186
    times their numbers [check:test_as_many_more_texts_fit].

    - *What is lost is lost.* $f$ directions hold at most $f$ keys apart; the rest overlap
      ([recall](../linear_recall/index.md)).
    - *Nothing can be dropped.* A window or a sink would have to be subtracted, key by key, from a rounded
      sum.
    - *A bf16 state stops growing* at 256 features of 1. Keep it in float32, whatever the model is in.
    - *Beginnings are shared by copying*, not by pointing: each branch of a conversation has its own state.

    **In production.** **Transformers** keeps the states of MiniMax in a `MiniMaxCache`, beside the keys of
    its softmax layers. In **vLLM** a state takes a page of the cache, and pages of keys are made as large;
    `mamba_cache_dtype` sets its dtype. **flash-linear-attention** takes `initial_state` and returns the last
    with `output_final_state=True`.
    """
    return n_layers * n_heads * f * (e + 1) * dtype.itemsize * batch


def example(axes: dict[str, int]) -> None:
    """A prompt, then a token: the shapes beside the code are read off this run."""
    b, h, t, d = (axes[name] for name in "bhtd")
    layer, cache = LinearSelfAttention(h * d, h), LinearCache()
    layer(torch.randn(b, t, h * d), positions=torch.arange(t))
    layer(torch.randn(b, t, h * d), cache=cache)
    layer(torch.randn(b, 1, h * d), cache=cache)
