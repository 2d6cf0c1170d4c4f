"""Shapes that a writer stated, held against those that were seen.

They are stated in the **Shapes.** paragraphs of docstrings (`clauses.py` has the grammar) and in Notation
tables: a code span (of several, one must agree), or the word scalar for no axes. A name has the shape with
which a function has it first: what a parameter came with, what a local was given.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence

from coursekit.pages.problems import Problem
from coursekit.pages.shapes.agreement import Stated, agree, read_shape
from coursekit.pages.shapes.axes import Namer, Sizes
from coursekit.pages.shapes.clauses import RESULT, Claim, read_claims
from coursekit.pages.shapes.recording import Axes, Frame, ShapeRecord
from coursekit.pages.symbols import Notation, names_in
from coursekit.pages.symbols.notation import CODE_SPAN, Symbol

CALLED = ("__call__", "forward")  # the methods whose result a class's docstring speaks of
Definition = ast.FunctionDef | ast.ClassDef
Fault = tuple[int, str]


def check_stated(text: str, path: str, notation: Notation, record: ShapeRecord) -> list[Problem]:
    """What is stated in a source and disagrees with what was seen, or cannot be read.

    A function that the example does not call, and a value that is no array, agree with everything.
    """
    faults = [fault for scope in notation.scopes.values() for s in scope.symbols for fault in _cell(s)[1]]
    for frame in record.frames:
        faults += _table_faults(frame, notation)
    for node, qualname in _definitions(ast.parse(text).body, ""):
        match node.body[0]:
            case ast.Expr(ast.Constant(str()) as docstring):
                claims, unread = read_claims(docstring, names_in(node))
                faults += unread
                for frame in record.frames:
                    if qualname in (frame.qualname, frame.qualname.rpartition(".")[0]):
                        faults += _claim_faults(claims, frame, isinstance(node, ast.ClassDef))
    return [Problem(path, line, message) for line, message in sorted(set(faults))]


def _definitions(body: list[ast.stmt], prefix: str) -> Iterator[tuple[Definition, str]]:
    for node in body:
        if isinstance(node, Definition):
            yield node, prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from _definitions(node.body, f"{prefix}{node.name}.")


def _cell(symbol: Symbol) -> tuple[list[Stated], list[Fault]]:
    """The shapes in a table's cell, and what there cannot be read."""
    texts = [match["code"] for match in CODE_SPAN.finditer(symbol.shape)]
    shapes = [(text, read_shape(text)) for text in texts]
    faults = [(symbol.line, f"the shape `{text}` cannot be read") for text, shape in shapes if shape is None]
    scalar = [Stated("scalar", False, ())] if not texts and "scalar" in symbol.shape else []
    return scalar + [shape for _, shape in shapes if shape], faults


def _table_faults(frame: Frame, notation: Notation) -> Iterator[Fault]:
    for symbol in notation.scope(frame.qualname).symbols:
        options = _cell(symbol)[0]
        for name in symbol.names:
            seen = frame.seen.get(name, frame.seen.get(f"self.{name}"))
            if options and seen is not None and all(agree(o, seen, frame.letters) is None for o in options):
                yield symbol.line, _message(name, options, seen, frame, frame.letters)


def _claim_faults(claims: list[Claim], frame: Frame, is_class: bool) -> Iterator[Fault]:
    letters = frame.letters
    for claim in claims:
        for seen in _seen(claim, frame, is_class):
            found = [agree(option, seen, letters, claim.broadcast) for option in claim.options]
            if all(bound is None for bound in found):
                yield claim.line, _message(claim.subject, claim.options, seen, frame, letters)
            # What one clause calls an axis, the next one calls it too.
            letters = next((bound for bound in found if bound is not None), letters)


def _seen(claim: Claim, frame: Frame, is_class: bool) -> list[Axes]:
    """The shapes in a frame that a claim speaks of."""
    if claim.subject != RESULT:
        shape = frame.seen.get(claim.subject, frame.seen.get(f"self.{claim.subject}"))
        return [] if shape is None else [shape]
    if is_class and frame.qualname.rpartition(".")[2] not in CALLED:
        return []
    results = frame.result if claim.index is None else frame.result[claim.index : claim.index + 1]
    return [shape for shape in results if shape is not None]


def _message(
    subject: str, options: Sequence[Stated], seen: Axes, frame: Frame, letters: Mapping[str, Sizes]
) -> str:
    stated = " or ".join("scalar" if option.text == "scalar" else f"`{option.text}`" for option in options)
    shown = f"`{Namer(letters).shape(seen)}`" if seen else "a scalar"
    called = subject if subject == RESULT else f"`{subject}`"
    return f"{called} is stated as {stated}, but in {frame.qualname} it is {shown}"
