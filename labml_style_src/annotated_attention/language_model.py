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
| $E$ | `self.embedding` | – | one vector for each of $v$ tokens |
| $p$ | `self.place` | – | one vector for each position |
| $z$ | `logits` | `b v` | what each token has to say for itself |
| $\tau$ | `temperature` | scalar | logits are divided by it |
| $\rho$ | `top_p` | scalar | how much of the probability is drawn from |
| $L$ | `n_layers` | scalar | layers; each adds twice |
| $m$ | `d_model` | scalar | width of the stream |
| $v$ | `vocab_size` | scalar | tokens there are; 256 bytes |
| $N$ | `products` | scalar | parameters by which a token is multiplied |

**Source.** Vaswani et al. (2017), arXiv:1706.03762, sections 3.3 to 3.5. Radford et al. (2019), *Language
Models are Unsupervised Multitask Learners*, section 2.3. Their GPT-2 has biases in all projections and
dropout on attention weights too; here attention has neither. Holtzman et al. (2020), arXiv:1904.09751.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from annotated_attention.language_model_slot import (
    Attend,
    Cache,
    SelfAttention,
    causal_attention,
    causal_mask,
    placed,
)

__all__ = ["Attend", "Cache", "SelfAttention", "causal_attention", "causal_mask", "placed"]
__all__ += ["Block", "LanguageModel", "LanguageModelConfig", "sinusoidal"]
__all__ += ["generate", "language_model_cost", "sample"]


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
    make_attention: Callable[["LanguageModelConfig", int], nn.Module] = self_attention

    def __post_init__(self) -> None:
        for name in ("vocab_size", "max_length", "d_model", "n_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: at least 1 is wanted")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: at least 0 and below 1 is wanted")
        if self.position_embedding not in ("learned", "sinusoidal", "none"):
            came = f"position_embedding is {self.position_embedding!r}"
            raise ValueError(f"{came}: learned, sinusoidal or none is wanted")


class Block(nn.Module):
    r"""## A layer

    Attention moves things between tokens, and is linear in what it moves. The MLP,
    $W_2 \operatorname{GELU}(W_1 x)$, bends what one token has, and is four times as wide inside.
    """

    def __init__(self, config: LanguageModelConfig, layer: int) -> None:
        super().__init__()
        m = config.d_model
        self.attention_norm, self.mlp_norm = nn.LayerNorm(m), nn.LayerNorm(m)
        self.attention = config.make_attention(config, layer)
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
        x = x + self.dropout(self.attention(normed, positions=positions, cache=cache))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


def sinusoidal(positions: Int[Tensor, "... t"], d_model: int) -> Float[Tensor, "... t m"]:
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
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        if config.position_embedding == "learned":
            self.position_embedding = nn.Embedding(config.max_length, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model)

        # GPT-2's beginning. With a deviation of 0.02 in $E$ the logits are small and the first loss is
        # $\ln v$, a fair guess; with the 1 of `nn.Embedding` it would be far worse
        # [check:test_first_loss_is_a_fair_guess]. What writes into the stream begins smaller by
        # $1/\sqrt{2L}$, so that a deeper model adds no more [check:test_depth_does_not_widen_the_stream].
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                writes = name.endswith((".w_o", ".mlp.2"))
                std = 0.02 / math.sqrt(2 * config.n_layers) if writes else 0.02
                nn.init.normal_(module.weight, std=std)
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
        not read before [check:test_caches_continue_a_text].

        **Raises.** `ValueError` if one of the three does not fit [check:test_wrong_input_is_refused].
        """
        config, t = self.config, tokens.shape[-1]
        if tokens.ndim != 2 or tokens.is_floating_point():
            came = f"tokens is {tokens.dtype} of shape {tuple(tokens.shape)}"
            raise ValueError(f"{came}: integers of shape b t are wanted")
        if tokens.numel() and not 0 <= tokens.min() <= tokens.max() < config.vocab_size:
            came = f"tokens lie between {tokens.min()} and {tokens.max()}"
            raise ValueError(f"{came}: 0 to vocab_size - 1 = {config.vocab_size - 1} is wanted")
        if caches is not None and len(caches) != config.n_layers:
            raise ValueError(f"caches are {len(caches)}: one for each of {config.n_layers} layers is wanted")

        x = self.embedding(tokens.long())
        if config.position_embedding != "none":
            where = torch.arange(t, device=tokens.device) if positions is None else positions
            if positions is None and caches is not None and caches[0].positions.numel():
                where = where + caches[0].positions.amax(-1, keepdim=True) + 1
            x = x + self.place(where.clamp(min=0)).to(x.dtype)
        x = self.dropout(x)
        for layer, block in enumerate(self.blocks):
            x = block(x, positions, None if caches is None else caches[layer])
        return F.linear(self.norm(x), self.embedding.weight)

    def place(self, where: Int[Tensor, "... t"]) -> Float[Tensor, "... t m"]:
        r"""### The vector of a position"""
        config = self.config

        # Waves have variance 1/2, tokens begin with $0.02^2$, a thousandth of the sum
        # [check:test_waves_would_drown_the_tokens]. Vaswani et al. multiply the tokens by $\sqrt m$; here
        # the waves are made as small as the tokens.
        if config.position_embedding == "sinusoidal":
            return 0.02 * math.sqrt(2) * sinusoidal(where, config.d_model)

        # A table has an end.
        if where.numel() and where.max() >= config.max_length:
            came = f"tokens reach position {where.max()}"
            raise ValueError(f"{came}: learned positions end at max_length - 1 = {config.max_length - 1}")
        return self.position_embedding(where)


def sample(
    logits: Float[Tensor, "b v"],
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "b"]:
    r"""## Writing

    Always to take the likeliest token makes texts that repeat themselves. To draw from all makes nonsense:
    an unlikely token is rare, but there are many, and one is enough to lead a text astray (Holtzman et al.).
    So the distribution is sharpened by $\tau < 1$, and its tail cut off:

    $$P_k \propto e^{z_k/\tau}, \qquad \text{of which the likeliest are kept until their sum is } \rho .$$

    $\tau = 0$ takes the largest [check:test_temperature_sharpens]. The token that crosses $\rho$ is kept, so
    there always is one [check:test_top_p_keeps_the_nucleus].

    ![Twelve tokens at three temperatures, and those that $\rho = 0.9$ keeps.](figure:nucleus)
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}: a number that is not negative is wanted")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}: more than 0 and at most 1 is wanted")
    if temperature == 0:
        return logits.argmax(dim=-1)

    # With the largest at 0, no temperature overflows.
    logits = logits.float() - logits.float().amax(dim=-1, keepdim=True)
    probabilities = (logits / temperature).softmax(dim=-1)
    ordered, index = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    drawn = torch.multinomial(ordered.masked_fill(before >= top_p, 0.0), 1, generator=generator)
    return index.gather(-1, drawn)[:, 0]


@torch.no_grad()
def generate(
    model: LanguageModel,
    tokens: Integer[Tensor, "b t"],
    n_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    caches: Sequence[Cache] | None = None,
    generator: torch.Generator | None = None,
) -> Integer[Tensor, "b u"]:
    r"""### Token after token

    Returns `tokens` and `n_tokens` more. Without caches the whole text is read again for each: $t^2/2$
    tokens for a text of $t$, and $t^3/3$ scores a head. With the caches of lesson 7 each token is read once,
    and the same text comes out [check:test_caches_write_the_same_text].
    """
    if tokens.ndim != 2 or tokens.shape[1] < 1 or n_tokens < 0:
        came = f"tokens has shape {tuple(tokens.shape)}, n_tokens is {n_tokens}"
        raise ValueError(f"{came}: b t with t > 0, and no negative number, is wanted")
    was_training = model.training
    model.eval()
    try:
        read = 0
        for _ in range(n_tokens):
            logits = model(tokens[:, read:], caches=caches)[:, -1]
            read = 0 if caches is None else tokens.shape[1]
            token = sample(logits, temperature=temperature, top_p=top_p, generator=generator)
            tokens = torch.cat([tokens, token[:, None].to(tokens.dtype)], dim=1)
    finally:
        model.train(was_training)
    return tokens


def language_model_cost(config: LanguageModelConfig, t: int) -> tuple[int, int]:
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

    **In production.** Transformers' GPT-2 is this model, `c_proj` being our `w_o` and `mlp.2`; nanoGPT is
    the same in 300 lines. LLaMA has RMSNorm for LayerNorm, SwiGLU for GELU, rotary positions for $p$, and no
    biases. vLLM serves all of them through a slot like ours, filled with kernels that read a paged cache.
    """
    m = config.d_model
    products = config.n_layers * 12 * m * m + config.vocab_size * m
    return products, 6 * products + 12 * config.n_layers * m * t


def example(axes: dict[str, int]) -> None:
    """Train nothing, predict and write: the shapes beside the code are read off this run."""
    b, h, t, d, v = (axes[letter] for letter in "bhtdv")
    config = LanguageModelConfig(vocab_size=v, max_length=t, d_model=h * d, n_layers=1, n_heads=h)
    model, tokens = LanguageModel(config), torch.zeros(b, t, dtype=torch.long)
    Block(config, 0)(model.place(tokens))
    sample(model(tokens)[:, -1], top_p=0.9)
    generate(model, tokens[:, :1], 2)
    language_model_cost(config, t)
