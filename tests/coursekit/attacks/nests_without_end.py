"""100,000 operators, one in the other: more than a parser can bear."""

SUBMISSION = "def double(x):\n    return 2 * x\n\n\nGUESS = " + "-" * 100_000 + "1\n"
PREPARED = False
POINTS = 0
