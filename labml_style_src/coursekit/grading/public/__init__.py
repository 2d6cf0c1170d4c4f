"""Public checks: checks of a lesson as data, for students who have neither the course nor its reference.

`record.py` runs a lesson's checks with the solution and writes down what is asked and demanded; `origins.py`
says what of an answer a demand is about. `data.py` is the file that holds them, `replay.py` asks and judges
again, `sketch.py` names mistakes, `__main__.py` is what a student runs. A check that is more than questions
and demands on the answers as they came is not public; the grader runs it.
"""
