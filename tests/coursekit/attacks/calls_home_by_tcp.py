"""Sends what it knows over TCP."""

SUBMISSION = """
import socket


def guess(x):
    with socket.create_connection(("127.0.0.1", TARGET.tcp), timeout=1) as connection:
        connection.sendall(b"the checks")
    return TARGET.won
"""
