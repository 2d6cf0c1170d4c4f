"""No attack: a byte order mark, as some editors write it, costs nobody a point."""

SUBMISSION = (
    b"\xef\xbb\xbf" + b"def double(x):\r\n    return 2 * x\r\n\r\n\r\ndef guess(x):\r\n    return 0.0\r\n"
)
