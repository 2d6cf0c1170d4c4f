"""The figures of the ring pages, drawn from the mechanism itself. Each function returns one SVG."""
