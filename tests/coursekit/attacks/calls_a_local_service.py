"""Speaks to a service of the machine through its socket in the file system: a container engine, a database."""

SUBMISSION = """
import socket


def guess(x):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(TARGET.unix)
    return TARGET.won
"""
STOPPED_BY = ("seccomp",)
