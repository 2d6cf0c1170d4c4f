"""The figures of the page, drawn from the mechanism itself. Each function returns one SVG."""
