r"""# A language model

Attention alone predicts nothing. Vectors go in and blends of them come out: there is no text, no probability,
no order, and the blend has replaced what was read.

What stands around it is a *stream*. A token becomes a vector $x$. Each layer reads the stream, adds what it
found, and passes it on. In the end the stream is compared with the vectors of all tokens:

$$\begin{aligned}
x &= E_{\text{token}} + p_{\text{position}}, \\
x &\leftarrow x + \operatorname{Attention}(\operatorname{LN}(x)), \\
x &\leftarrow x + \operatorname{MLP}(\operatorname{LN}(x)), \\
z &= \operatorname{LN}(x)\, E^\top, \qquad P(\text{next}) = \operatorname{softmax}(z),
\end{aligned}$$

where the two lines in the middle are one of $L$ layers.

![Six bytes, two layers. Attention brings something from the past into a stream, the MLP works within one.
Above every byte stands a guess at the next.](figure:stream)

## What came before

Shannon counted which letters follow which (1948), but a table for $k$ bytes of context has $256^k$ rows, most
of them never seen. Recurrent networks kept one vector for the whole past, and took as many steps to read a
text as it has tokens. The Transformer (2017) was made to translate: its decoder also looked at an encoder,
and was normalised *after* each addition. GPT (2018) kept only the decoder. GPT-2 (2019) normalised in front
of each layer, and let the layers begin small. That is the model of this page.

A text has the probability $P(x_1)\, P(x_2 \mid x_1)\, P(x_3 \mid x_1 x_2) \cdots$, and under a causal mask
one pass over it gives every factor, none of which has seen its own answer [check:test_future_moves_nothing].

## The stream is a sum

No layer replaces $x$. What comes out is what went in plus $2L$ additions [check:test_stream_is_a_sum], so a
layer can read all that came before it, and the gradient reaches each of them directly.

Let every addition have variance 1 and be independent of the rest. After $n$ of them the token itself has
$1/(1+n)$ of the variance. Normalise after each addition instead, $x \leftarrow \operatorname{LN}(x + f(x))$,
and each halves what was there: $2^{-n}$ is left, and the direct gradient shrinks by $2^{-n/2}$
[check:test_post_norm_halves_the_past]. For $n = 24$, the 12 layers of the small GPT-2, that is a
sixteen-millionth against a twenty-fifth. Such models train only if the learning rate rises slowly; pre-norm
hardly needs that (Xiong et al. 2020, arXiv:2002.04745). Its price is one last $\operatorname{LN}$, because
the stream grows.

![How much of the variance each of 24 additions has in the end; the token itself is on the left. Above:
pre-norm. Below: post-norm.](figure:shares)

## One table, read both ways

$E$ turns tokens into vectors; its transpose asks how much the stream looks like each of them. One table of
$v\,m$ numbers is trained from both sides [check:test_one_table_learns_twice], and gives a lower perplexity
than two (Press and Wolf 2017, arXiv:1608.05859).

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $x$ | `x` | `b t m` | the stream, a vector for each token |
| $E$ | `self.embedding` | – | one vector for each of the $v$ tokens there are |
| $p$ | `self.place` | – | one vector for each position |
| $z$ | `forward` | – | logits, `b t v`: what speaks for each token, to be next |
| $L$ | `n_layers` | scalar | layers; each adds twice |
| $m$ | `d_model` | scalar | width of the stream |
| $N$ | `products` | scalar | parameters by which a token is multiplied |

**Source.** Vaswani et al. (2017), arXiv:1706.03762, sections 3.3 to 3.5. Radford et al. (2019), *Language
Models are Unsupervised Multitask Learners*, section 2.3. Their GPT-2 has biases in all projections and
dropout on attention weights too; here attention has neither.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from annotated_attention.language_model_sampling import generate, sample
from annotated_attention.language_model_slot import (
    Attend,
    Cache,
    SelfAttention,
    causal_attention,
    causal_mask,
    placed,
)
from annotated_attention.language_model_training import train

__all__ = ["Attend", "Cache", "SelfAttention", "causal_attention"]
__all__ += ["causal_mask", "generate", "placed", "sample"]
__all__ += ["Block", "LanguageModel", "LanguageModelConfig"]
__all__ += ["language_model_cost", "sinusoidal", "train"]

MakeAttention = Callable[["LanguageModelConfig", int], nn.Module]


def self_attention(config: "LanguageModelConfig", layer: int) -> nn.Module:
    return SelfAttention(config.d_model, config.n_heads)


@dataclass(frozen=True)
class LanguageModelConfig:
    """## What can be chosen

    `make_attention(config, layer)` builds the attention of each layer: what is called with
    `(x, *, positions=None, cache=None)` and turns `b t m` into `b t m`. The slot has a page of its own, and
    so has the training.
    """

    vocab_size: int = 256
    max_length: int = 256
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    dropout: float = 0.0
    position_embedding: str = "learned"
    make_attention: MakeAttention = self_attention

    def __post_init__(self) -> None:
        for name in ("vocab_size", "max_length", "d_model", "n_layers"):
            size = getattr(self, name)
            if size < 1:
                raise ValueError(f"{name} is {size}: at least 1 is wanted")
        if not 0 <= self.dropout < 1:
            came = f"dropout is {self.dropout}"
            raise ValueError(f"{came}: at least 0, and below 1, is wanted")
        kinds = ("learned", "sinusoidal", "none")
        if self.position_embedding not in kinds:
            came = f"position_embedding is {self.position_embedding!r}"
            raise ValueError(f"{came}: one of {kinds} is wanted")


class Block(nn.Module):
    r"""## A layer

    Attention moves things between tokens, and is linear in what it moves. The MLP,
    $W_2 \operatorname{GELU}(W_1 x)$, bends what one token has, and is four times as wide inside.
    """

    def __init__(self, config: LanguageModelConfig, layer: int) -> None:
        super().__init__()
        m = config.d_model
        self.attention_norm = nn.LayerNorm(m)
        self.attention = config.make_attention(config, layer)
        self.mlp_norm = nn.LayerNorm(m)
        self.mlp = nn.Sequential(
            nn.Linear(m, 4 * m),
            nn.GELU(),
            nn.Linear(4 * m, m),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "b t m"],
        positions: Int[Tensor, "... t"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "b t m"]:
        normed = self.attention_norm(x)
        found = self.attention(normed, positions=positions, cache=cache)
        x = x + self.dropout(found)
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


def sinusoidal(
    positions: Int[Tensor, "... t"],
    d_model: int,
) -> Float[Tensor, "... t m"]:
    r"""## Positions

    The mask tells a layer how much came before, hardly in which order. So a vector that depends on the
    position joins the token. It is learned, one for each place, or made of waves, $2\pi$ to $10000 \cdot
    2\pi$ tokens long:

    $$p_{i,2n} = \sin(i\, \omega_n), \qquad p_{i,2n+1} = \cos(i\, \omega_n), \qquad
    \omega_n = 10000^{-2n/m}.$$

    A shift by $k$ tokens turns each pair by the angle $k\,\omega_n$, wherever it stands
    [check:test_a_shift_is_a_rotation]. Lesson 5 makes more of that.
    """
    even = torch.arange(0, d_model, 2, device=positions.device)
    angles = positions[..., None] * 10000.0 ** (-even / d_model)
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1)
    return waves.flatten(-2)[..., :d_model]


class LanguageModel(nn.Module):
    """## The model"""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        v, m, n_layers = config.vocab_size, config.d_model, config.n_layers
        self.embedding = nn.Embedding(v, m)
        if config.position_embedding == "learned":
            self.position_embedding = nn.Embedding(config.max_length, m)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, n) for n in range(n_layers))
        self.norm = nn.LayerNorm(m)

        # GPT-2's beginning. With a deviation of 0.02 in $E$ the logits are small and the first loss is
        # $\ln v$, a fair guess; with the 1 of `nn.Embedding` it would be far worse
        # [check:test_first_loss_is_a_fair_guess]. What writes into the stream begins smaller by
        # $1/\sqrt{2L}$, so that a deeper model adds no more [check:test_depth_does_not_widen_the_stream].
        # One thing a new model does expect: that each token is repeated, for its stream still looks most
        # like its own vector [check:test_a_new_model_expects_repetition].
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                writes = name.endswith((".w_o", ".mlp.2"))
                smaller = math.sqrt(2 * n_layers) if writes else 1.0
                nn.init.normal_(module.weight, std=0.02 / smaller)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(
        self,
        tokens: Integer[Tensor, "b t"],
        *,
        positions: Int[Tensor, "... t"] | None = None,
        caches: Sequence[Cache] | None = None,
    ) -> Float[Tensor, "b t v"]:
        r"""### From tokens to logits

        The logits of the token after each. With `caches`, one for each layer, `tokens` are those that were
        not read before [check:test_caches_continue_a_text]. `positions` say where they stand, if not behind
        each other from 0 on or behind what the caches hold; a cache numbers its keys itself.

        **Raises.** `ValueError` if one of the three does not fit [check:test_wrong_input_is_refused].
        """
        self.check(tokens, caches)
        x = self.embedding(tokens.long())

        # Positions count on from what the first layer's cache holds. Padding, below 0, gets any vector:
        # nobody looks at it.
        if self.config.position_embedding != "none":
            where = positions
            if where is None:
                where = torch.arange(tokens.shape[1], device=tokens.device)
                if caches is not None and caches[0].positions.numel():
                    last = caches[0].positions.amax(dim=-1, keepdim=True)
                    where = where + last + 1
            x = x + self.place(where.clamp(min=0)).to(x.dtype)
        x = self.dropout(x)
        for n, block in enumerate(self.blocks):
            x = block(x, positions, None if caches is None else caches[n])
        return F.linear(self.norm(x), self.embedding.weight)

    def place(
        self,
        where: Int[Tensor, "... t"],
    ) -> Float[Tensor, "... t m"]:
        """### The vector of a position"""
        m, length = self.config.d_model, self.config.max_length

        # Waves have variance 1/2, tokens begin with $0.02^2$, a thousandth of the sum
        # [check:test_waves_would_drown_the_tokens]. Vaswani et al. multiply the tokens by $\sqrt m$; here
        # the waves are made as small as the tokens.
        if self.config.position_embedding == "sinusoidal":
            return 0.02 * math.sqrt(2) * sinusoidal(where, m)

        # A table has an end.
        if where.numel() and where.max() >= length:
            came = f"tokens reach position {where.max()}"
            wanted = f"learned positions end at max_length - 1 = {length - 1}"
            raise ValueError(f"{came}: {wanted}")
        return self.position_embedding(where)

    def check(self, tokens: Tensor, caches: Sequence[Cache] | None) -> None:
        """What is not there would be an index error deep inside, on a GPU the end of the process."""
        v, n_layers = self.config.vocab_size, self.config.n_layers
        if tokens.ndim != 2 or tokens.is_floating_point():
            came = f"tokens is {tokens.dtype} of shape {tuple(tokens.shape)}"
            raise ValueError(f"{came}: integers of shape b t are wanted")
        # Compared as Python's numbers: as a byte, 256 would be 0.
        within = tokens if tokens.numel() else tokens.new_zeros(1)
        low, high = (int(x) for x in within.aminmax())
        if not 0 <= low <= high < v:
            came = f"tokens lie between {low} and {high}"
            raise ValueError(f"{came}: 0 to vocab_size - 1 = {v - 1} is wanted")
        if caches is not None and len(caches) != n_layers:
            came = f"caches are {len(caches)}"
            raise ValueError(f"{came}: one for each of {n_layers} layers is wanted")


def language_model_cost(
    config: LanguageModelConfig,
    t: int,
) -> tuple[int, int]:
    r"""## What it costs, and when it fails

    Returns $N$ and the operations of training on one token of a text of $t$
    [check:test_cost_counts_the_products]. A layer has $4m^2$ parameters in attention and $8m^2$ in the MLP,
    and $E$ has $v\,m$. Each means one multiplication and one addition a token, and twice that again on the
    way back: $6N$. Scores and blends add $12\,L\,m\,t$, as much as the layers at $t = 6m$. The default model
    has $N = 0.82$ million, and takes 6.5 million operations a token.

    - *Learned positions end.* There is no vector for place 256. Waves go on, but the model has never met
      them (lesson 6). With `"none"`, the slot has to know order.
    - *All is read again* for every token that is written (lesson 7).
    - *Bytes are short.* 256 of them are eight lines of a program. Models in use read tokens of some four
      bytes, from a table of 32,000 or more.

    **In production.** Transformers' GPT-2 is this model with biases and an approximate GELU, `c_proj` being
    our `w_o` and `mlp.2`; nanoGPT is the same in some 300 lines. LLaMA has RMSNorm for LayerNorm, SwiGLU for
    GELU, rotary positions for $p$, and no biases. vLLM serves all of them through a slot like ours, filled
    with kernels that read a paged cache.
    """
    v, m, n_layers = config.vocab_size, config.d_model, config.n_layers
    products = n_layers * 12 * m * m + v * m
    return products, 6 * products + 12 * n_layers * m * t


def example(axes: dict[str, int]) -> None:
    """From tokens to logits: the shapes beside the code are read off this run."""
    b, h, t, d, v = (axes[letter] for letter in "bhtdv")
    config = LanguageModelConfig(v, t, h * d, n_layers=1, n_heads=h)
    model = LanguageModel(config)
    tokens = torch.zeros(b, t, dtype=torch.long)
    Block(config, 0)(model(tokens) @ model.embedding.weight)
    model.place(torch.arange(t))
    sinusoidal(torch.arange(t), 2 * d)
    language_model_cost(config, t)
