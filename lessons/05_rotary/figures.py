"""The figures of the rotary page, drawn from the mechanism itself. Each function returns one SVG."""
