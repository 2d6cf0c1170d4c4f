"""Prints what a terminal, a browser, a spreadsheet and a score parser act upon."""

SUBMISSION = """
PIECES = (
    "\\x1b[2J\\x1b]0;owned\\x07\\x1b[31m",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "=HYPERLINK(\\"http://example.com\\",\\"7\\")",
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "::error file=grade::100",
    "### BEGIN SOLUTION",
    "Twice: 7 of 7 points\\r\\b\\u202e",
    "\\ud800",
)


def guess(x):
    print(*PIECES, sep="\\n")
    raise ValueError("\\n".join(PIECES))


class Odd:
    pass


Odd.__name__ = PIECES[0]
"""
TOLD = "ValueError"
