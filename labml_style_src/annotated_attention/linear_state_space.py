r"""# The state-space view

Engineers who steer rockets know a memory that never grows. A *state* $\mathbf{h}$ moves by itself, is pushed
by what comes in, and shows a part of itself outside:

$$\mathbf{h}'(\tau) = A\,\mathbf{h}(\tau) + B\,x(\tau), \qquad y(\tau) = C\,\mathbf{h}(\tau)$$

From this, by a road that never touches attention, come S4, Mamba and Mamba-2. The roads meet. Let $A$ be a
number for each head and let the token say the rest, and what comes out is linear attention with a gate:

$$\mathbf{y}_i = \sum_{j \le i} (\mathbf{c}_i^\top \mathbf{b}_j)\; a_{j+1} \cdots a_i\; \Delta_j\,
\mathbf{x}_j$$

Where they say $C$ we say query; $B$ is a key, $\Delta x$ a value.

![The matrix that takes $\Delta X$ to $Y$, 24 tokens in chunks of 6. On the diagonal: attention. Below it,
each block is a product of three thin factors, and passes through the state.](figure:semiseparable)

## What came before

S4 (Gu et al., 2021) has constant $A$, $B$, $C$, the matrix $A$ made so that the state keeps a history of its
input. With constants, $y$ is $x$ convolved with the kernel $C \bar A^r \bar B$
[check:test_constants_make_a_convolution], which an FFT computes fast. But a convolution treats all tokens
alike; it cannot decide to remember this one. Mamba (Gu, Dao, 2023) lets $B$, $C$ and the step $\Delta$ depend
on the token and calls that *selective*. Now there is no convolution left, and no matrix product yet: each
channel fades each coordinate of its state at a rate of its own, and the recurrence is run as a scan, in a
kernel that keeps the state in fast memory. Mamba-2 (Dao, Gu, 2024) gives all coordinates of a head *one*
rate. That is less general, and it is attention: tensor cores can do it.

## From time to tokens

A token is a signal that stays constant for a time $\Delta$. For a number $A < 0$ the equation can be solved
over that time, without an error (a *zero-order hold*):

$$\begin{gathered} \mathbf{h}_i = a_i\,\mathbf{h}_{i-1} + g_i\,B\,x_i, \\
a_i = e^{\Delta_i A}, \qquad g_i = \frac{e^{\Delta_i A} - 1}{A} \end{gathered}$$

[check:test_the_hold_is_exact]. For a small step $g \approx \Delta$, and Mamba's code, of both kinds, takes
$g = \Delta$ [check:test_a_small_step_is_its_gain]. What matters is the coupling. A large $\Delta$ forgets
much and writes strongly; a small one does neither, and the token passes unseen. The gate of an LSTM, $1 - f$
on what is new and $f$ on what is old, is the same hold [check:test_the_hold_is_a_gate].

## A matrix with thin blocks

From $X$ to $Y$ it is one matrix $M$: $L \odot C B^\top$ with $L_{ij} = a_{j+1} \cdots a_i$, times $\Delta_j$
in each column. Take any block of it below the diagonal, queries from $n$ on and keys before $n$. The path
from $j$ to $i$ leads across the border:

$$M_{ij} = \big(a_n \cdots a_i\, \mathbf{c}_i\big)^\top \big(a_{j+1} \cdots a_{n-1}\, \mathbf{b}_j\big)\,
\Delta_j$$

a function of $i$ times a function of $j$, in $d$ dimensions. So every such block, however large, has rank $d$
at most; such a matrix is called *semiseparable* [check:test_blocks_have_the_rank_of_the_state]. The blocks of
a causal softmax have full rank [check:test_a_softmax_has_full_rank]. That is the difference in one sentence:
what the future can know of the past passes through $d$ numbers for each channel, or through as many as there
are tokens.

It is also the algorithm. Cut $M$ into chunks: blocks on the diagonal are computed as attention, those below
as *what $j$ leaves at the border*, *what fades on the way*, *what $i$ reads*, and that is [the chunked form
of gated decay](../linear_decay/index.md) [check:test_chunks_are_blocks_of_the_matrix].

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{x}_i$ | `x` | `b h t e` | the input; the value, before its step |
| $\Delta_i$ | `dt` | `b h t` | step: for how long the token lasts, at least 0 |
| $A$ | `A` | `h` | rate of a head, below 0 |
| $\mathbf{b}_i$ | `B` | `b g t d` | where the token writes; the key |
| $\mathbf{c}_i$ | `C` | `b g t d` | where it reads; the query |
| $D$ | `D` | `h` | how much of the input goes straight to the output |
| $a_i$ | – | `b h t` | what is left of the past: $e^{\Delta_i A}$, logarithm `log_decay` |
| $g_i$ | `gain` | `b h t` | with how much weight a held input enters |
| $\mathbf{h}_i$ | `state` | `b h d e` | the state; lesson 14's $S_i$ |
| $M$ | `matrix` | `b h t t` | from $X$ to $Y$ |
| $\mathbf{y}_i$ | `y` | `b h t e` | the output |

**Source.** Dao, Gu (2024), arXiv:2405.21060, sections 2 to 6; their $N$ is our $d$ and their $P$ our $e$. Gu,
Dao (2023), arXiv:2312.00752, section 3, whose $\Delta$ is our $\Delta$. Gu, Goel, Re (2021),
arXiv:2111.00396.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from annotated_attention.linear_decay import decayed_linear_attention, segment_sum

__all__ = ["Mamba2Layer", "selective_scan", "state_space_attention"]
__all__ += ["state_bytes", "state_space_matrix", "zero_order_hold"]


def zero_order_hold(
    dt: Float[Tensor, "b h t"],
    A: Float[Tensor, "h"],
) -> tuple[Float[Tensor, "b h t"], Float[Tensor, "b h t"]]:
    r"""## The hold

    Returns $\ln a = \Delta A$ and the gain $g$. `expm1` computes $e^x - 1$ without taking 1 from something
    that is almost 1, so that short steps keep their digits.
    """
    log_decay = dt * A[:, None]
    gain = torch.expm1(log_decay) / A[:, None]
    return log_decay, gain


def selective_scan(
    x: Float[Tensor, "b h t e"],
    dt: Float[Tensor, "b h t"],
    rates: Float[Tensor, "h d"],
    B: Float[Tensor, "b g t d"],
    C: Float[Tensor, "b g t d"],
) -> Float[Tensor, "b h t e"]:
    r"""## The recurrence, with a rate for each coordinate

    As in Mamba, where each channel is a head of its own ($e = 1$), and $B$ and $C$ are the same for all
    ($g = 1$). Here it stands for comparison, token by token: if the $d$ rates of a head are equal, it is the
    attention below [check:test_one_rate_makes_it_attention], and only then does one $L$ stand for all
    coordinates.
    """
    groups = x.shape[1] // B.shape[1]
    query = C.repeat_interleave(groups, dim=1)
    key = B.repeat_interleave(groups, dim=1)
    value = dt[..., None] * x
    left = torch.exp(dt[..., None] * rates[:, None])
    steps = (y.unbind(dim=2) for y in (query, key, value, left))
    (b, h, _, e), d = x.shape, rates.shape[1]
    state, outputs = x.new_zeros(b, h, d, e), []
    for q, k, v, a in zip(*steps, strict=True):
        write = torch.einsum("b h d, b h e -> b h d e", k, v)
        state = a[..., None] * state + write
        outputs.append(torch.einsum("b h d, b h d e -> b h e", q, state))
    return torch.stack(outputs, dim=2)


def state_space_matrix(
    dt: Float[Tensor, "b h t"],
    A: Float[Tensor, "h"],
    B: Float[Tensor, "b g t d"],
    C: Float[Tensor, "b g t d"],
) -> Float[Tensor, "b h t t"]:
    r"""## The matrix

    $M_{ij} = (\mathbf{c}_i^\top \mathbf{b}_j)\,L_{ij}\,\Delta_j$, all of it: for looking at, and to check by.
    $L$ is the $D$ of gated decay. If nothing fades, $A = 0$, it is the causal mask.
    """
    faded = segment_sum(dt * A[:, None]).exp()
    scores = torch.einsum("b g t d, b g s d -> b g t s", C, B)
    scores = scores.repeat_interleave(dt.shape[1] // B.shape[1], dim=1)
    matrix = scores * faded * dt[:, :, None]
    return matrix


def state_space_attention(
    x: Float[Tensor, "b h t e"],
    dt: Float[Tensor, "b h t"],
    A: Float[Tensor, "h"],
    B: Float[Tensor, "b g t d"],
    C: Float[Tensor, "b g t d"],
    D: Float[Tensor, "h"] | None = None,
    *,
    chunk_size: int = 64,
) -> Float[Tensor, "b h t e"]:
    r"""## The duality, in one call

    Query $C$, key $B$, value $\Delta X$, decay $\Delta A$: the function of the other page. It is the
    recurrence, and it is the matrix, outputs and gradients
    [check:test_agrees_with_the_recurrence_and_the_matrix] [check:test_gradcheck].

    Heads may share keys and queries, $h$ a multiple of $g$. It is lesson 8 in a mirror. There, many queries
    share a key and a value, because the cache is what costs. Here nothing is cached but the state, one for
    each head whatever is shared, and what sharing saves is projections: Mamba-2's *multi-value attention*,
    $g = 1$.

    **Shapes.** `x` is `b h t e`, `dt` is `b h t`, `A` is `h`, `B` is `b g t d`, `C` is `b g t d`, `D` is `h`;
    the result is `b h t e`.

    **Raises.** `ValueError` if heads, lengths or chunk do not fit [check:test_wrong_input_is_refused].
    """
    h, g, skip = x.shape[1], B.shape[1], A if D is None else D
    fits = A.shape == skip.shape == (h,) and dt.shape == x.shape[:3]
    fits &= B.shape == C.shape and B.shape[::2] == x.shape[::2]
    if not fits or g == 0 or h % g:
        given = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": skip}
        came = (f"{name} is {tuple(y.shape)}" for name, y in given.items())
        wanted = "b h t e, b h t, h, b g t d (twice), h, with h a multiple of g,"
        came = ", ".join(came)
        raise ValueError(f"{came}: {wanted} are wanted")
    wide = torch.promote_types(x.dtype, torch.float32)
    query = C.to(wide).repeat_interleave(h // g, dim=1)
    key = B.to(wide).repeat_interleave(h // g, dim=1)

    # The step belongs to the value and to the decay. Both products are taken in float32: what is rounded
    # before a sum cannot be mended after it.
    value = x.to(wide) * dt.to(wide)[..., None]
    log_decay = dt.to(wide) * A.to(wide)[:, None]
    attend = decayed_linear_attention
    y = attend(query, key, value, log_decay, chunk_size=chunk_size)
    if D is not None:
        y = y + D.to(wide)[:, None, None] * x
    return y.to(x.dtype)


class Mamba2Layer(nn.Module):
    r"""## A layer of Mamba-2

    What such a layer adds around the duality, and each part has its reason:

    - a *short convolution*, over this token and the three before it, of all that enters. It is how one layer
      can write a value under the token before it, as [recall](../linear_recall/index.md) needs;
    - $\Delta = \operatorname{softplus}(\dots)$, so that a step is positive, and $A = -e^{\dots}$, so that a
      rate is negative: nothing can grow;
    - a *gate* on the output, $y \cdot \operatorname{silu}(z)$, and an RMS norm after it, for without a
      softmax nothing else keeps the size of a sum in bounds.

    Parameters have the names of Transformers' `Mamba2Mixer`, whose weights it loads, and whose output it
    gives [check:test_transformers_mamba2_agrees]. (There, a kernel of `mamba_ssm` fuses convolution, scan and
    norm.)
    """

    def __init__(
        self,
        m: int,
        n_heads: int,
        e: int,
        d: int,
        n_groups: int = 1,
    ) -> None:
        super().__init__()
        self.n_heads, self.n_groups = n_heads, n_groups
        inner, shared = n_heads * e, n_groups * d
        self.sizes = [inner, inner + 2 * shared, n_heads]
        self.parts = [inner, shared, shared]
        width = inner + 2 * shared
        self.in_proj = nn.Linear(m, sum(self.sizes), bias=False)
        self.conv1d = nn.Conv1d(width, width, 4, padding=3, groups=width)
        self.dt_bias = nn.Parameter(torch.ones(n_heads))
        self.D = nn.Parameter(torch.ones(n_heads))
        self.A_log = nn.Parameter(torch.arange(1.0, n_heads + 1).log())
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.out_proj = nn.Linear(inner, m, bias=False)

    def forward(self, stream: Float[Tensor, "b t m"]) -> Float[Tensor, "b t m"]:
        joint = self.in_proj(stream)
        z, mixed, step = joint.split(self.sizes, -1)

        # The padding is on both sides; what hangs over at the end has seen the future, and is cut off.
        mixed = self.conv1d(mixed.mT)[:, :, : stream.shape[1]].mT
        mixed = F.silu(mixed)
        wide, write, read = mixed.split(self.parts, -1)

        y = state_space_attention(
            rearrange(wide, "b t (h e) -> b h t e", h=self.n_heads),
            F.softplus(step + self.dt_bias).mT,
            -self.A_log.exp(),
            rearrange(write, "b t (g d) -> b g t d", g=self.n_groups),
            rearrange(read, "b t (g d) -> b g t d", g=self.n_groups),
            self.D,
        )

        # The norm is over the heads of a group, its weight over all.
        gated = rearrange(y, "b h t e -> b t (h e)") * F.silu(z)
        gated = gated.unflatten(-1, (self.n_groups, -1))
        normed = F.rms_norm(gated, gated.shape[-1:], eps=1e-5)
        return self.out_proj(normed.flatten(-2) * self.norm.weight)


def state_bytes(
    n_layers: int,
    n_heads: int,
    d: int,
    e: int,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
) -> int:
    r"""## What it costs, and when it fails

    A state is $d\,e$ numbers for each head and layer, whatever was read. Mamba-Codestral 7B has 64 layers of
    128 heads of 128 by 64: 256 MiB in float32, as much as the keys and values of 2,048 tokens in Mistral 7B
    [check:test_bytes_of_a_state]. Before that, a cache is smaller; after it, never again. Work and memory of
    training are those of [gated decay](../linear_decay/index.md).

    - *A state forgets*: see [recall](../linear_recall/index.md).
    - *One rate a head* is the price of matrix products. With $d$ rates, the chunked form needs exponents of
      both signs inside a chunk, or a scan.
    - *Nothing turns.* Rates are real and negative, so $0 < a < 1$: a state can fade and cannot change its
      sign [check:test_a_state_that_fades_cannot_flip]. To count modulo 2 takes that (Grazzi et al., 2024,
      arXiv:2411.12537); the [delta rule](../linear_recall/index.md) can.

    **In production.** `mamba_ssm`'s `mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, D=...)` is the
    call above, laid out `b t h e` and `b t g d`. Transformers runs `Mamba2`, Bamba, Granite 4, Zamba2,
    Nemotron-H and Falcon-H1 on it; Jamba and the first Zamba have Mamba's scan. All but the first are
    *hybrids*: beside many layers with a state, some of attention look things up. (In Falcon-H1 every layer
    has both.)
    """
    return batch * n_layers * n_heads * d * e * dtype.itemsize


def example(axes: dict[str, int]) -> None:
    """Heads in groups of `r`: the shapes beside the code are read off this run."""
    b, g, r, t, d, e, m = (axes[letter] for letter in "bgrtdem")
    x, dt = torch.randn(b, g * r, t, e), torch.rand(b, g * r, t)
    B, C = torch.randn(b, g, t, d), torch.randn(b, g, t, d)
    A, D = -torch.rand(g * r), torch.randn(g * r)
    zero_order_hold(dt, A)
    selective_scan(x, dt, -torch.rand(g * r, d), B, C)
    state_space_matrix(dt, A, B, C)
    state_space_attention(x, dt, A, B, C, D)
    Mamba2Layer(m, g * r, e, d, g)(torch.randn(b, t, m))
    state_bytes(1, g * r, d, e)
