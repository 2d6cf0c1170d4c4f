"""Submissions that are nearly the same, for a human to look at."""

import math
from collections import Counter, defaultdict
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
    pairs = compared(texts, stub, ALIKE, EVIDENCE)
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


def compared(texts: dict[str, str], stub: str, share: float = 0.0, bits: float = 0.0) -> list[Pair]:
    """Every pair that shares at least so much, in no useful order."""
    students, given = sorted(texts), stub_runs(stub)
    places: dict[str, list[int]] = defaultdict(list)
    for place, student in enumerate(students):
        places[texts[student]].append(place)
    holders: dict[int, list[int]] = defaultdict(list)
    for text, same in places.items():
        for fingerprint in fingerprints(text, given):
            holders[fingerprint] += same
    # Where one copied from another, many fingerprints have the same holders: they are added up as one.
    held = Counter(tuple(sorted(who)) for who in holders.values())
    count = len(students)
    total, shared = np.zeros(count), np.zeros((count, count))
    for who, times in sorted(held.items()):
        # What few hold says much, what nearly all hold says nothing.
        weight = times * math.log2((count + IMAGINED) / len(who))
        total[list(who)] += weight
        if len(who) > 1:
            shared[np.ix_(who, who)] += weight
    smaller = np.minimum.outer(total, total)
    shares = np.divide(shared, smaller, out=np.zeros_like(shared), where=smaller > 0)
    firsts, seconds = np.nonzero(np.triu((shared > 0) & (shares >= share) & (shared >= bits), 1))
    return [
        Pair(students[i], students[j], float(shares[i, j]), float(shared[i, j]))
        for i, j in zip(firsts.tolist(), seconds.tolist(), strict=True)
    ]
