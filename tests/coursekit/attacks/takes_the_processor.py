"""Gives itself a higher priority than all the others have."""

SUBMISSION = """
import os


def guess(x):
    ways = (
        lambda: os.setpriority(os.PRIO_PROCESS, 0, -5),
        lambda: os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1)),
    )
    for way in ways:
        try:
            way()
            return TARGET.won
        except OSError:
            pass
    return 0.0
"""
STOPPED_BY = ("uid", "seccomp")
POWER = True
