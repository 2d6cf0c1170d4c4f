"""Opens a port of its own, for another submission to leave its answers at."""

SUBMISSION = """
import socket


def guess(x):
    with socket.socket() as server, socket.socket() as client:
        client.settimeout(1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
        return TARGET.won
"""
STOPPED_BY = ("namespaces", "landlock", "seccomp")
LANDLOCK = 4
