"""Sends what it knows over TCP, to a machine that listens."""

SUBMISSION = """
import socket


def guess(x):
    with socket.socket() as connection:
        connection.settimeout(1)
        connection.connect(("127.0.0.1", TARGET.tcp))
        connection.sendall(b"the checks")
    return TARGET.won
"""
STOPPED_BY = ("namespaces", "landlock", "seccomp")
LANDLOCK = 4
