"""Null bytes and a mark of byte order in the middle of the text."""

SUBMISSION = "def double(x):\n    return 2 * x\n\0\ufeff\nGUESS = '\0'\n"
PREPARED = False
POINTS = 0
