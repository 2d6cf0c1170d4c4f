"""Opens a port of its own, for another submission to leave its answers at."""

SUBMISSION = """
import socket


def guess(x):
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname(), timeout=1) as connection:
            return TARGET.won
"""
