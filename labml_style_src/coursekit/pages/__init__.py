"""From the course's files to the pages of a site.

    source/      an annotated Python file as a chapter: sections of rows, each a thought beside its code
    symbols/     Notation tables, and the links from every place where a symbol is written
    shapes/      shapes that were seen in a run of `example(axes)`, and those that a writer stated
    proofs/      `[check:...]`: the tests, their committed records, and the badges
    notebooks/   the pair of a lesson, its execution, and its page
    site/        everything together: gather, generate, render, check links, serve

Beside them: `mechanism.py` writes the page of a mechanism from the first four, `code.py` colours Python, `inserts.py`
places figures, `katex.py` and `markdown.py` render formulas and `formulas.py` finds those that cannot be read;
`worker.py` imports what has to be run, in a process of its own.
"""
