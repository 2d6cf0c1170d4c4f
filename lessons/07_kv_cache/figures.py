"""The figures of the KV cache page, drawn from the mechanism itself. Each function returns one SVG."""
