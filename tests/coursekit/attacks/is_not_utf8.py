"""A file that is no text: half of it in another encoding."""

SUBMISSION = "def double(x):\n    return 2 * x  # déjà vu\n".encode("latin-1") + bytes(range(256))
POINTS = 0
TOLD = "is not UTF-8 text"
