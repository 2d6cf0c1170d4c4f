"""Half a character, which no encoding can write."""

SUBMISSION = "def double(x):\n    return 2 * x\n\n\nGUESS = '\ud800'\n\n\ndef guess(x):\n    return GUESS\n"
PREPARED = False
POINTS = 0
