"""Sends what it knows over TCP."""

SUBMISSION = """
import socket


def guess(x):
    with socket.socket() as connection:
        connection.settimeout(1)
        connection.connect(("127.0.0.1", TARGET.tcp))
        connection.sendall(b"the checks")
    return TARGET.won
"""
