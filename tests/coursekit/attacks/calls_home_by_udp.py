"""Sends what it knows over UDP, as a question for a name would. Landlock alone lets it pass."""

SUBMISSION = """
import socket


def guess(x):
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        sender.sendto(b"the checks", ("127.0.0.1", TARGET.udp))
    return 0.0
"""
STOPPED_BY = ("namespaces", "seccomp")
