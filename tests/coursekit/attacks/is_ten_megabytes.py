"""Ten megabytes of comments, which only a grader that reads everything would read."""

SUBMISSION = b"# so much to say\n" * 600_000 + b"def double(x):\n    return 2 * x\n"
POINTS = 0
TOLD = "is it the right file?"
