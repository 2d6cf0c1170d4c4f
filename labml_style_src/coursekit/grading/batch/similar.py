"""Submissions that are nearly the same, for a human to look at.

Two submissions are compared by their fingerprints (`fingerprints.py`). What most of a class writes says nothing, and
the easy tasks are alike in every class: a fingerprint is worth 1 if no more than two hold it, less the more hold it,
and next to nothing if all do. Alike are two that share half of the smaller one, and at least what 40 fingerprints
are worth that nobody else has, which is a task of middling size: a short submission never says enough.
Against the course's own solution each is held by itself, since half a class may have it from there.

Measured on the 15 lessons, with the course's solution and two of another hand for each. Of these 45 independent
pairs none is alike, the nearest shares 13 %. In classes of 60, whose one, two or three easy tasks are written in one
of three ways and whose others have nothing in common, 0 of 79,650 honest pairs are alike (the nearest share 33, 42
and 50 %). Who handed in nothing but the first task, in one of those three ways word for word, is alike to somebody
in 0 of 900 cases; with the first two tasks in 4 %, with three in 11 %; in classes of 6 more often (6, 31, 58 %).
Copies were made of each of the 45 texts: comments and layout changed, names changed, functions in another order, one
line changed, a line changed in every function, type hints gone, numbers changed, padded with 30 functions: all are
found. With all of these but the last two at once (135 copies): all are found; in the classes of 60: 224 of 225.
Not found are a single task copied into a longer text of one's own, and what was written anew with the other text
in mind.
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from coursekit.grading.batch.fingerprints import fingerprints, stub_runs

# Two submissions are alike if this share of the smaller one is in the other ...
ALIKE = 0.5
# ... and it is worth so many fingerprints that the two alone hold.
EVIDENCE = 40.0
# So many others, who write in other ways, are imagined beside the class: two hand-ins can be alike too.
IMAGINED = 10


@dataclass(frozen=True)
class Pair:
    """Two students, the share of the smaller submission that is in the other, and what it is worth."""

    first: str
    second: str
    share: float
    worth: float


@dataclass(frozen=True)
class Group:
    """Students whose submissions hang together by pairs that are alike, the most alike first. In the group
    `of_solution` each pair is a student and, without a name, the course's own solution."""

    students: tuple[str, ...]
    pairs: tuple[Pair, ...]
    of_solution: bool = False


def groups(texts: dict[str, str], stub: str, solution: str = "") -> list[Group]:
    """The groups among the submissions (by student), those with the most alike pair first; before them those who
    are like the course's solution, however many they are."""
    given = stub_runs(stub)
    known = {text: fingerprints(text, given) for text in {solution, *texts.values()}}
    prints = {student: known[text] for student, text in sorted(texts.items())}
    return like_solution(prints, known[solution]) + like_each_other(prints)


def like_solution(prints: dict[str, set[int]], solution: set[int]) -> list[Group]:
    """One group or none. Every fingerprint is worth 1: the solution is known, so nobody needs to guess from the
    class what is common."""
    pairs = []
    for student, own in prints.items():
        both, least = len(own & solution), min(len(own), len(solution))
        if both >= max(EVIDENCE, ALIKE * least):
            pairs.append(Pair(student, "", both / least, both))
    pairs.sort(key=order)
    return [Group(tuple(sorted(pair.first for pair in pairs)), tuple(pairs), True)] if pairs else []


def order(pair: Pair) -> tuple[float, float, str, str]:
    """The most alike first."""
    return (-pair.share, -pair.worth, pair.first, pair.second)


def like_each_other(prints: dict[str, set[int]]) -> list[Group]:
    pairs = compared(prints, ALIKE, EVIDENCE)
    leader = {student: student for student in prints}

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
        own.sort(key=order)
        students = {student for pair in own for student in (pair.first, pair.second)}
        found.append(Group(tuple(sorted(students)), tuple(own)))
    return sorted(found, key=lambda group: (*order(group.pairs[0])[:2], group.students))


def rarity(holders: int, students: int) -> float:
    """What a fingerprint says: 1 if no more than two hold it, next to nothing if all do."""
    most = students + IMAGINED
    return min(1.0, math.log(most / holders) / math.log(most / 2))


def compared(prints: dict[str, set[int]], share: float = 0.0, worth: float = 0.0) -> list[Pair]:
    """Every pair that shares at least so much, in no useful order."""
    students = list(prints)
    holders: dict[int, list[int]] = defaultdict(list)
    for place, student in enumerate(students):
        for fingerprint in prints[student]:
            holders[fingerprint].append(place)
    # Where one copied from another, many fingerprints have the same holders: they are added up as one.
    held = Counter(tuple(who) for who in holders.values())
    count = len(students)
    total, shared = np.zeros(count), np.zeros((count, count))
    for who, times in sorted(held.items()):
        weight = times * rarity(len(who), count)
        total[list(who)] += weight
        if len(who) > 1:
            shared[np.ix_(who, who)] += weight
    smaller = np.minimum.outer(total, total)
    shares = np.divide(shared, smaller, out=np.zeros_like(shared), where=smaller > 0)
    firsts, seconds = np.nonzero(np.triu((shared > 0) & (shares >= share) & (shared >= worth), 1))
    return [
        Pair(students[i], students[j], float(shares[i, j]), float(shared[i, j]))
        for i, j in zip(firsts.tolist(), seconds.tolist(), strict=True)
    ]
