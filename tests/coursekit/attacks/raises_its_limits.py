"""Raises the limits that were set for it, of files and of memory."""

SUBMISSION = """
import resource


def guess(x):
    for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_NPROC):
        soft, hard = resource.getrlimit(kind)
        try:
            more = 4096 if hard == resource.RLIM_INFINITY else hard + 1
            resource.setrlimit(kind, (more, more))
        except (OSError, ValueError):
            continue
        if hard != resource.RLIM_INFINITY:
            return TARGET.won
    return 0.0
"""
