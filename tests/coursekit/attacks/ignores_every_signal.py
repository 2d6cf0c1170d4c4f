"""Ignores every signal that can be ignored, and goes on."""

SUBMISSION = """
import signal
import time

for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def guess(x):
    began = time.process_time()
    while time.process_time() - began < TARGET.too_long:
        pass
    return TARGET.won
"""
STOPPED_BY = ("clock",)
