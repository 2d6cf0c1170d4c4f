"""A notebook that is nothing but opening brackets."""

SUBMISSION = b'{"cells": ' + b"[" * 200_000
FILENAME = "ground.ipynb"
POINTS = 0
TOLD = "is not a notebook"
