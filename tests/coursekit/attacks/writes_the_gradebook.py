"""Writes itself a better score where the results are kept. Seen: results files in a folder of the student's."""

SUBMISSION = """
import os


def guess(x):
    with open(os.path.join(TARGET.results, "grades.csv"), "a") as file:
        file.write("mallory,100\\n")
    return TARGET.won
"""
STOPPED_BY = ("namespaces", "rlimits", "uid", "landlock")
