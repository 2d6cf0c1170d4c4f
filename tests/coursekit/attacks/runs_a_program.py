"""Runs another program, which is bound by nothing that Python was told."""

SUBMISSION = """
import subprocess


def guess(x):
    done = subprocess.run(["/bin/sh", "-c", "echo $0", TARGET.won], capture_output=True, text=True)
    return done.stdout
"""
STOPPED_BY = ("landlock", "seccomp")
