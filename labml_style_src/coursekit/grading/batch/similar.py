"""Submissions that are nearly the same, for a human to look at."""

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from coursekit.grading.batch.fingerprints import fingerprints, stub_runs

# Two submissions are alike if they share this much of the smaller one, in bits ...
ALIKE = 0.6
# ... and this many bits, or there is nothing to tell an origin by.
EVIDENCE = 60.0
# So many others, who write in other ways, are imagined beside the class: two hand-ins can be alike too.
IMAGINED = 10


@dataclass(frozen=True)
class Pair:
    """Two students; the share of the smaller submission that is in the other, and in how many bits it shows."""

    first: str
    second: str
    share: float
    bits: float


@dataclass(frozen=True)
class Group:
    """Students whose submissions hang together by pairs that are alike, the most alike first."""

    students: tuple[str, ...]
    pairs: tuple[Pair, ...]


def groups(texts: dict[str, str], stub: str) -> list[Group]:
    """The groups among the submissions (by student), those with the most alike pair first."""
    pairs = [pair for pair in compared(texts, stub) if pair.share >= ALIKE and pair.bits >= EVIDENCE]
    leader = {student: student for student in texts}

    def lead(student: str) -> str:
        while leader[student] != student:
            leader[student] = student = leader[leader[student]]
        return student

    for pair in pairs:
        leader[lead(pair.second)] = lead(pair.first)
    members: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        members[lead(pair.first)].append(pair)
    found = []
    for own in members.values():
        own.sort(key=lambda pair: (-pair.share, -pair.bits, pair.first, pair.second))
        students = {student for pair in own for student in (pair.first, pair.second)}
        found.append(Group(tuple(sorted(students)), tuple(own)))
    return sorted(found, key=lambda group: (-group.pairs[0].share, -group.pairs[0].bits, group.students))


def compared(texts: dict[str, str], stub: str) -> list[Pair]:
    """Every pair that shares anything, in no useful order."""
    students, given = sorted(texts), stub_runs(stub)
    holders: dict[int, list[int]] = defaultdict(list)
    for place, student in enumerate(students):
        for fingerprint in fingerprints(texts[student], given):
            holders[fingerprint].append(place)
    count = len(students)
    total, shared = np.zeros(count), np.zeros((count, count))
    for fingerprint in sorted(holders):
        places = holders[fingerprint]
        # What few hold says much, what nearly all hold says nothing.
        bits = math.log2((count + IMAGINED) / len(places))
        total[places] += bits
        if len(places) > 1:
            shared[np.ix_(places, places)] += bits
    smaller = np.minimum.outer(total, total)
    firsts, seconds = np.nonzero(np.triu(shared, 1))
    return [
        Pair(students[i], students[j], float(shared[i, j] / smaller[i, j]), float(shared[i, j]))
        for i, j in zip(firsts.tolist(), seconds.tolist(), strict=True)
    ]
