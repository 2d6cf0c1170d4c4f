"""The figures of the BigBird page, drawn from the mechanism itself. Each function returns one SVG."""

from annotated_attention.bigbird import bigbird_plan


def plan() -> str:
    """A plan of 12 blocks."""
    drawn = bigbird_plan(12, n_window=3, n_global=2, n_random=2, seed=1)
    kinds = {"key": drawn.global_blocks, "query": drawn.window_blocks, "weights": drawn.random_blocks}
    squares = [
        f'<rect x="{20 * j + 1}" y="{20 * i + 1}" width="18" height="18" fill="var(--{colour})"/>'
        for colour, blocks in kinds.items()
        for i, row in enumerate(blocks)
        for j in row
    ]
    return f'<svg viewBox="0 0 240 240"><title>A plan</title>{"".join(squares)}</svg>'
