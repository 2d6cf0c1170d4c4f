"""A notebook whose source holds half characters, control characters and a shell line."""

SUBMISSION = rb"""{"cells": [
    {"cell_type": "code", "source": ["def double(x):\n", "    return 2 * x\n"]},
    {"cell_type": "code", "source": ["!touch /tmp/owned\n", "SECRET = '\ud800\u001b[2J\u0000'\n"]},
    {"cell_type": "code", "source": ["def guess(x):\n", "    return SECRET\n"]}
]}"""
FILENAME = "ground.ipynb"
