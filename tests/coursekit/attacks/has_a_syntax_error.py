"""No Python at all, with escapes where the complaint would quote them."""

SUBMISSION = "def double(x:\n    return '\x1b[2J' <script>\n"
PREPARED = False
POINTS = 0
TOLD = "is not valid Python"
