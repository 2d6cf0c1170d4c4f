"""Four megabytes of `a=1`: valid Python that takes a parser 17 seconds and 2.4 GB."""

SUBMISSION = b"a=1\n" * 990_000
POINTS = 0
TOLD = "is it the right file?"
