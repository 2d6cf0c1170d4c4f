"""The figures of the page, drawn from the model itself. Each function returns one SVG."""


def block() -> str:
    """To be drawn."""
    return '<svg viewBox="0 0 200 20"><title>A block</title></svg>'
