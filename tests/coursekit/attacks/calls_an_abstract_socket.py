"""The same through a socket that has a name and no file."""

SUBMISSION = """
import socket


def guess(x):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect("\\0" + TARGET.abstract)
    return TARGET.won
"""
STOPPED_BY = ("namespaces", "landlock", "seccomp")
LANDLOCK = 6
