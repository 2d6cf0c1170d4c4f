"""A whole class: many submissions graded, each as if it were alone, and the gradebook made from the results.

`run.py` goes from a folder of submissions to a folder of results: `archive.py` reads what was handed in,
`assignment.py` the rules, `grade.py` grades one submission, `pool.py` and `cluster.py` many, `result.py` is what is
kept of each, `results.py` the folder that holds them. `pages.py` writes what students and instructors read, with
`overview.py` and `similar.py`; `regrade.py` and `replay.py` grade again.

`release.py` makes what students get. `export.py` hands scores on, with `lms.py` and `gradescope.py`;
`autograder.py` and `classroom.py` grade elsewhere.
"""
