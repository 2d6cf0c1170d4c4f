"""Reads the machine's users, and opens a file by handle, past every folder's permission."""

SUBMISSION = """
def guess(x):
    text = open("/etc/passwd").read()
    return TARGET.won if ":" in text else 0.0
"""
STOPPED_BY = ("landlock",)
