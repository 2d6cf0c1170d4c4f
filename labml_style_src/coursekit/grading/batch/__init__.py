"""A whole class: many submissions graded, each as if it were alone, and the gradebook made from the results.

`archive.py` reads what was handed in, `assignment.py` the rules, `grade.py` grades one submission,
`pool.py` and `cluster.py` many, `result.py` is what is kept of each, `results.py` the folder that holds them.
"""
