r"""# Linear attention in Triton: the way back

Autograd could go back through the chunks: it would keep all they made, and have to go through the states from
the last to the first. Written by hand, the gradient of linear attention is linear attention again, three
times, and for two of them the text is read from the right.

A query collects from the keys before it, and their state is there. A key has served all queries behind it. So
what it needs is a sum over these, and that is a state as well, of queries and gradients, that starts at the
end of the text:

$$R_j = \sum_{i \ge j} \hat{\mathbf{q}}_i\, d\mathbf{o}_i^\top, \qquad \mathbf{w}_j = \sum_{i \ge j} D_i\,
\hat{\mathbf{q}}_i .$$

$\hat{\mathbf{q}}_i$ is a query's features over its denominator, $D_i$ one number a row. This is the walk of the
page before, in the other direction.

![A state of keys comes from the left, one of queries from the right. A chunk takes one of each: for the keys
left of its triangle, and for the queries below it.](figure:both_ways)

## With the weights at hand

Divide each query by its denominator, $\hat{\mathbf{q}}_i = \varphi(\mathbf{q}_i) / r_i$. Then $A_{ij} =
\hat{\mathbf{q}}_i^\top \varphi(\mathbf{k}_j)$ are weights that sum to 1, and $\mathbf{o}_i = \sum_{j \le i}
A_{ij}\, \mathbf{v}_j$. If the product of two features grows, so does its value's share, and all others
shrink: $\mathbf{o}_i$ moves by $(\mathbf{v}_j - \mathbf{o}_i)/r_i$. The gradient at that product is therefore

$$\frac1{r_i}\, \underbrace{\big(d\mathbf{o}_i^\top \mathbf{v}_j - D_i\big)}_{dA_{ij}}, \qquad D_i = \mathbf{o}_i^\top
d\mathbf{o}_i,$$

with the one number a row that [lesson 13](../flash_backward/index.md) knows. The rest is linear:

$$\begin{aligned}
d\varphi(\mathbf{q}_i) &= \frac1{r_i} \sum_{j \le i} dA_{ij}\, \varphi(\mathbf{k}_j)
&&= \frac1{r_i} \big(S_i\, d\mathbf{o}_i - D_i\, \mathbf{z}_i\big), \\
d\varphi(\mathbf{k}_j) &= \sum_{i \ge j} dA_{ij}\, \hat{\mathbf{q}}_i
&&= R_j\, \mathbf{v}_j - \mathbf{w}_j, \\
d\mathbf{v}_j &= \sum_{i \ge j} A_{ij}\, d\mathbf{o}_i
&&= R_j^\top \varphi(\mathbf{k}_j). \end{aligned}$$

Chunks are cut as before: the sums within a chunk by its weights, those beyond by a state. Both states are
made before any gradient is; nothing is added to by two programs [check:test_the_formulas_are_the_gradient].

## Who is divided

$r_i$ could as well divide $d\mathbf{o}_i$. But in bf16 all that is divided is rounded. Rounded gradients no
longer match $D_i$, which was made of those that came; and $d\mathbf{o}_i^\top \mathbf{v}_j - D_i$ is a
difference that cancels where values have much in common. A rounded query does no harm: it is rounded alike in
$R$ and $\mathbf{w}$ [check:test_divide_the_query].

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\hat{\mathbf{q}}_i$ | – | `f` | a query's features, divided |
| $d\mathbf{o}_i$ | `grad_output`, `do` | `b t h e` | gradient at the output |
| $r_i$ | `total`, `r` | `b t h` | the denominator |
| $D_i$ | `shift`, `d` | `b t h` | what is subtracted in a row |
| $A_{ij}$ | `weights` | tile | within a chunk, keys down |
| $dA_{ij}$ | `dA` | tile | within a chunk, queries down |
| $S$, $\mathbf{z}$ | `before`, `normalisers` | `b h n f e` | states from the left |
| $R$, $\mathbf{w}$ | `after`, `shifts` | `b h n f e` | states from the right |
| $d\varphi(\mathbf{q}_i)$ | `dq` | tile | becomes the gradient at the query |
| $d\varphi(\mathbf{k}_j)$ | `dk` | tile | and at the key |
| $d\mathbf{v}_j$ | `dv` | tile | and at the value |

**Source.** Katharopoulos et al. (2020), arXiv:2006.16236, equations 13 to 15, of the numerator alone.
"""

try:
    import triton
    import triton.language as tl
except ImportError as missing:
    wanted = 'pip install "annotated-attention[triton]", on Linux'
    raise ImportError(f"Triton is missing: {wanted}") from missing

from annotated_attention.linear_triton_kernels import (
    feature_tile,
    place,
    product,
    rounded,
    tile,
)

__all__ = ["feature_gradient_kernel", "shift_kernel"]
__all__ += ["value_gradient_kernel"]


@triton.jit
def shift_kernel(
    output,
    grad_output,
    shift,
    tokens,
    E: tl.constexpr,
    U: tl.constexpr,
    BLOCK: tl.constexpr,
):
    r"""## One number a row

    $D_i$, of all tokens of all heads, as they lie in memory.
    """
    first = tl.program_id(0).to(tl.int64) * U
    steps = tl.arange(0, U)
    exists = first + steps < tokens
    d = tl.zeros([U], tl.float32)
    for start in range(0, E, BLOCK):
        e = start + tl.arange(0, BLOCK)
        o = tile(output, first, steps, exists, e, E).to(tl.float32)
        do = tile(grad_output, first, steps, exists, e, E)
        d += tl.sum(o * do.to(tl.float32), 1)
    tl.store(shift + first + steps, d, exists)


@triton.jit
def feature_gradient_kernel(
    query,
    key,
    value,
    grad_output,
    total,
    shift,
    before,
    normalisers,
    after,
    shifts,
    grad_query,
    grad_key,
    T,
    H,
    F: tl.constexpr,
    E: tl.constexpr,
    ELU: tl.constexpr,
    KIND: tl.constexpr,
    U: tl.constexpr,
    BLOCK: tl.constexpr,
):
    r"""## At queries and keys

    A program has a chunk of a head, and a block of features. $dA$ is made once for both gradients.
    """
    n = tl.cdiv(T, U)
    chunk = tl.program_id(0) % n
    head = (tl.program_id(0) // n).to(tl.int64)
    rows, first, steps, exists = place(head, chunk, T, H, U)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    base = (head * n + chunk) * F

    # Three sums over the values: $dA$ within, $S\, d\mathbf{o}$ and $R\, \mathbf{v}$ from beyond.
    dA = tl.zeros([U, U], tl.float32)
    dq = tl.zeros([U, BLOCK], tl.float32)
    dk = tl.zeros([U, BLOCK], tl.float32)
    for start in range(0, E, BLOCK):
        e = start + tl.arange(0, BLOCK)
        v = tile(value, first, steps, exists, e, E)
        do = tile(grad_output, first, steps, exists, e, E)
        dA += product(do, tl.trans(v), KIND)
        at = base * E + f[:, None] * E + e[None, :]
        inside = (f < F)[:, None] & (e < E)[None, :]
        S = tl.load(before + at, inside, other=0.0)
        R = tl.load(after + at, inside, other=0.0)
        dq += product(do, tl.trans(S), KIND)
        dk += product(v, tl.trans(R), KIND)

    # What is subtracted, and the mask.
    r = tl.load(total + first + steps, exists, other=1.0)
    d = tl.load(shift + first + steps, exists, other=0.0)
    z = tl.load(normalisers + base + f, f < F, other=0.0)
    w = tl.load(shifts + base + f, f < F, other=0.0)
    dq -= d[:, None] * z[None, :]
    dk -= w[None, :]
    past = rows[:, None] >= rows[None, :]
    dA = tl.where(past, dA - d[:, None], 0.0)

    q = feature_tile(query, first, steps, exists, f, F, ELU)
    k = feature_tile(key, first, steps, exists, f, F, ELU)
    dq = (dq + product(dA, k, KIND)) / r[:, None]
    dk += product(tl.trans(dA), q / r[:, None], KIND)

    # The map's own slope is 1 above 0 and $e^x$ below, which is $\min(\varphi, 1)$.
    if ELU:
        dq *= tl.minimum(q, 1.0)
        dk *= tl.minimum(k, 1.0)
    at = first * F + steps[:, None] * F + f[None, :]
    inside = exists[:, None] & (f < F)[None, :]
    tl.store(grad_query + at, dq, inside)
    tl.store(grad_key + at, dk, inside)


@triton.jit
def value_gradient_kernel(
    query,
    key,
    grad_output,
    total,
    after,
    grad_value,
    T,
    H,
    F: tl.constexpr,
    E: tl.constexpr,
    ELU: tl.constexpr,
    KIND: tl.constexpr,
    U: tl.constexpr,
    BLOCK: tl.constexpr,
):
    r"""## At values

    This is the kernel of the outputs, with keys that ask and queries that answer. It has no denominator:
    queries were divided.
    """
    n = tl.cdiv(T, U)
    chunk = tl.program_id(0) % n
    head = (tl.program_id(0) // n).to(tl.int64)
    rows, first, steps, exists = place(head, chunk, T, H, U)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    r = tl.load(total + first + steps, exists, other=1.0)

    weights = tl.zeros([U, U], tl.float32)
    dv = tl.zeros([U, BLOCK], tl.float32)
    for start in range(0, F, BLOCK):
        f = start + tl.arange(0, BLOCK)
        q = feature_tile(query, first, steps, exists, f, F, ELU)
        k = feature_tile(key, first, steps, exists, f, F, ELU)
        k = rounded(k, KIND)
        weights += product(k, tl.trans(q / r[:, None]), KIND)

        at = (head * n + chunk) * F * E + f[:, None] * E + e[None, :]
        inside = (f < F)[:, None] & (e < E)[None, :]
        R = tl.load(after + at, inside, other=0.0)
        dv += product(k, R, KIND)

    future = rows[:, None] <= rows[None, :]
    weights = tl.where(future, weights, 0.0)
    do = tile(grad_output, first, steps, exists, e, E)
    dv += product(weights, do, KIND)
    at = first * E + steps[:, None] * E + e[None, :]
    inside = exists[:, None] & (e < E)[None, :]
    tl.store(grad_value + at, dv, inside)
