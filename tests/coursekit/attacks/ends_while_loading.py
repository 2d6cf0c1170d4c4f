"""Prints what a test runner prints and ends with success before any check is run."""

SUBMISSION = """
import os

print("3 passed in 0.01s")
print("::result::score=100")
os.write(1, b"ok 1 - all\\n")
os._exit(0)
"""
POINTS = 0
TOLD = "ended by itself"
