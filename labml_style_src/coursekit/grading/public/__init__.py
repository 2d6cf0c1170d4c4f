"""Public checks: checks of a lesson as data, for students who have neither the course nor its reference.

`record.py` runs a check with the solution and writes down what it asks and what it demands, `origins.py` says
which part of an answer a demand is about, and `replay.py` asks and judges again. `publish.py` does so with a whole
lesson and proves on right, wrong and odd answers (`probes.py`) that the copy judges as the original. `data.py` is
the file of all of them, in which `sketch.py` keeps what mistakes look like; `archive.py` makes the program that a
student runs, `student.py`. A check that is more than questions and demands on the answers as they came is not
public: the grader runs it.
"""
