"""Raises the limits that were set for it, of files, memory and priority. Only a root that has kept its powers
may, and in most containers it has not: no wall is counted on here."""

SUBMISSION = """
import resource


def guess(x):
    for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_MSGQUEUE, resource.RLIMIT_NICE):
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
