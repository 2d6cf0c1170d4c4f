r"""# Linear attention in Triton: the kernels

A kernel is written for one tile and started for all of them at once. What it computes is in the course's
formulas already; what remains is where a tile lies, what stands beyond the end of a text, and in which
numbers it is multiplied.

Forward there are two. One walks through the chunks of a text, a block of the state and of its normaliser in
its hands:

$$\begin{aligned} S &\leftarrow S + \sum_{j \text{ in a chunk}} \varphi(\mathbf{k}_j)\, \mathbf{v}_j^\top, &
\mathbf{z} &\leftarrow \mathbf{z} + \sum_{j \text{ in a chunk}} \varphi(\mathbf{k}_j), \end{aligned}$$

and before each chunk, both are put down. Backwards it is the same walk from the other end, with queries for
keys: [the next page](../linear_triton_kernels_backward/index.md) has its formulas.

![In cells, what one program fetches; framed, what it holds; on the right, what it has put down. Plain: not its
own, or still to come.](figure:one_block)

## The outputs

The other has the queries of one chunk, all at once, with $\text{before}$ for what was put down:

$$\begin{aligned} \mathbf{o}_i &= \frac1{r_i}\,\Big(\varphi(\mathbf{q}_i)^\top S_{\text{before}} +
\sum_{j \le i \text{, within}} A_{ij}\, \mathbf{v}_j^\top\Big), \\
r_i &= \varphi(\mathbf{q}_i)^\top \mathbf{z}_{\text{before}} + \sum_{j \le i \text{, within}} A_{ij}, \qquad
A_{ij} = \varphi(\mathbf{q}_i)^\top \varphi(\mathbf{k}_j). \end{aligned}$$

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $\mathbf{q}_i$ | `query` | `b t h f` | what position $i$ asks, before the map or after it |
| $\mathbf{k}_j$ | `key` | `b t h f` | what position $j$ offers |
| $\mathbf{v}_j$ | `value` | `b t h e` | what position $j$ gives |
| $\varphi$ | `feature_tile` | – | elu + 1 of a tile, or nothing, if the map was applied |
| $S$ | `S`, `matrices` | `b h n f e` | a block of the state; and all of them, at the borders |
| $\mathbf{z}$ | `z`, `normalisers` | `b h n f` | its normaliser |
| $A_{ij}$ | `weights` | tile | within a chunk |
| $r_i$ | `r`, `total` | `b t h` | the denominator |
| $\mathbf{o}_i$ | `o`, `output` | `b t h e` | the blend of values |
| $D_i$ | `shift` | `b t h` | for the way back, on the next page |
| $u$ | `U` | scalar | tokens in a chunk |
| $c$ | `BLOCK` | scalar | features, or values, in a tile |
"""

try:
    import triton
    import triton.language as tl
except ImportError as missing:
    wanted = 'pip install "annotated-attention[triton]", on Linux'
    raise ImportError(f"Triton is missing: {wanted}") from missing

__all__ = ["feature_tile", "output_kernel", "place", "product", "rounded"]
__all__ += ["state_kernel", "tile"]


@triton.jit
def place(head, chunk, T, H, U: tl.constexpr):
    r"""## Where a tile lies

    In memory, texts are `b t h` and then features. `head` counts the heads of all texts. From one token of it
    to the next there are as many places as heads. Where a chunk begins may be beyond $2^{31}$, so `head`
    comes in 64 bits; within a chunk 32 are enough, and spare registers.
    """
    first = (head // H * T + chunk * U) * H + head % H
    rows = chunk * U + tl.arange(0, U)
    return rows, first, tl.arange(0, U) * H, rows < T


@triton.jit
def tile(
    x,
    first,
    steps,
    exists,
    columns,
    WIDTH: tl.constexpr,
    outside=0.0,
):
    """A chunk's numbers in some columns, and `outside` where there are none."""
    at = first * WIDTH + steps[:, None] * WIDTH + columns[None, :]
    inside = exists[:, None] & (columns < WIDTH)[None, :]
    return tl.load(x + at, inside, other=outside)


@triton.jit
def feature_tile(
    x,
    first,
    steps,
    exists,
    columns,
    WIDTH: tl.constexpr,
    ELU: tl.constexpr,
):
    r"""## The map

    $e^{\min(x,\, 0)} + \max(x,\, 0)$, as in `elu_plus_one`. Behind the last token a feature must be 0, and
    that of 0 is 1. But $\varphi(-\infty) = 0$: so nothing is loaded as $-\infty$
    [check:test_what_is_not_there_adds_nothing].
    """
    if ELU:
        nothing = float("-inf")
        x = tile(x, first, steps, exists, columns, WIDTH, nothing)
        x = x.to(tl.float32)
        x = tl.exp(tl.minimum(x, 0.0)) + tl.maximum(x, 0.0)
    else:
        x = tile(x, first, steps, exists, columns, WIDTH).to(tl.float32)
    return x


@triton.jit
def rounded(x, KIND: tl.constexpr):
    """## A product

    As `KIND` says: of numbers that were rounded to bf16, in three parts of TF32, or in float32 as the
    standard has it. Sums are in float32 in any case.
    """
    if KIND == "bf16":
        return x.to(tl.bfloat16)
    else:
        return x.to(tl.float32)


@triton.jit
def product(x, y, KIND: tl.constexpr):
    x, y = rounded(x, KIND), rounded(y, KIND)
    if KIND == "bf16":
        return tl.dot(x, y)
    else:
        return tl.dot(x, y, input_precision=KIND)


@triton.jit
def state_kernel(
    key,
    value,
    total,
    shift,
    matrices,
    normalisers,
    T,
    H,
    F: tl.constexpr,
    E: tl.constexpr,
    ELU: tl.constexpr,
    KIND: tl.constexpr,
    BACKWARDS: tl.constexpr,
    U: tl.constexpr,
    BLOCK: tl.constexpr,
):
    r"""## States at the borders

    A program has a head, a block of features and a block of values. Nobody else writes where it writes
    [check:test_states_are_sums_before_each_chunk].
    """
    head = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    e = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = (f < F)[:, None] & (e < E)[None, :]
    first_block = tl.program_id(2) == 0

    S = tl.zeros([BLOCK, BLOCK], tl.float32)
    z = tl.zeros([BLOCK], tl.float32)
    n = tl.cdiv(T, U)
    for step in range(0, n):
        # Put down first, then add: a chunk's own keys are no part of what came before it. The $\mathbf{z}$ of
        # a block of features is known to all blocks of values, and the first of them writes it.
        chunk = n - 1 - step if BACKWARDS else step
        base = (head * n + chunk) * F
        at = base * E + f[:, None] * E + e[None, :]
        tl.store(matrices + at, S, inside)
        tl.store(normalisers + base + f, z, (f < F) & first_block)

        # Backwards, queries stand for keys, each divided by its denominator, and $\mathbf{z}$ weighs them.
        _, first, steps, exists = place(head, chunk, T, H, U)
        k = feature_tile(key, first, steps, exists, f, F, ELU)
        v = tile(value, first, steps, exists, e, E)
        if BACKWARDS:
            r = tl.load(total + first + steps, exists, other=1.0)
            k = k / r[:, None]

        # What is rounded for $S$ is rounded for $\mathbf{z}$: a ratio of two sums over the same features is a
        # mean.
        k = rounded(k, KIND).to(tl.float32)
        if BACKWARDS:
            d = tl.load(shift + first + steps, exists, other=0.0)
            z += tl.sum(d[:, None] * k, 0)
        else:
            z += tl.sum(k, 0)
        S += product(tl.trans(k), v, KIND)


@triton.jit
def output_kernel(
    query,
    key,
    value,
    matrices,
    normalisers,
    output,
    total,
    T,
    H,
    F: tl.constexpr,
    E: tl.constexpr,
    ELU: tl.constexpr,
    KIND: tl.constexpr,
    U: tl.constexpr,
    BLOCK: tl.constexpr,
):
    r"""## Outputs

    A program has a chunk of a head, and a block of values. Features are gone through block by block.

    ![Along the arrows, the features. Framed, the three sums over them; the values come last.](figure:one_chunk)
    """
    n = tl.cdiv(T, U)
    chunk = tl.program_id(0) % n
    head = (tl.program_id(0) // n).to(tl.int64)
    rows, first, steps, exists = place(head, chunk, T, H, U)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)

    # Three sums over the features: the weights within, and what the state and its normaliser say.
    weights = tl.zeros([U, U], tl.float32)
    o = tl.zeros([U, BLOCK], tl.float32)
    r = tl.zeros([U], tl.float32)
    for start in range(0, F, BLOCK):
        f = start + tl.arange(0, BLOCK)
        q = feature_tile(query, first, steps, exists, f, F, ELU)
        k = feature_tile(key, first, steps, exists, f, F, ELU)
        q = rounded(q, KIND)
        weights += product(q, tl.trans(k), KIND)

        base = (head * n + chunk) * F
        at = base * E + f[:, None] * E + e[None, :]
        inside = (f < F)[:, None] & (e < E)[None, :]
        S = tl.load(matrices + at, inside, other=0.0)
        z = tl.load(normalisers + base + f, f < F, other=0.0)
        o += product(q, S, KIND)
        r += tl.sum(q.to(tl.float32) * z[None, :], 1)

    weights = tl.where(rows[:, None] >= rows[None, :], weights, 0.0)
    v = tile(value, first, steps, exists, e, E)
    o += product(weights, v, KIND)
    r += tl.sum(weights, 1)

    # Where nothing was seen, divide by infinity, as `ratio` does.
    r = tl.where(tl.abs(r) < 1.1754944e-38, float("inf"), r)
    at = first * E + steps[:, None] * E + e[None, :]
    inside = exists[:, None] & (e < E)[None, :]
    tl.store(output + at, o / r[:, None], inside)
    first_block = tl.program_id(1) == 0
    tl.store(total + first + steps, r, exists & first_block)
