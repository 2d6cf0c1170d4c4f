"""Shapes as people write them, `... h·d s+1`: reading one, and whether it agrees with one that was seen."""

import ast
import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from coursekit.pages.shapes.axes import Sizes
from coursekit.pages.shapes.recording import Axes

ARITHMETIC = (ast.BinOp, ast.Name, ast.Constant, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Load)


@dataclass(frozen=True)
class Stated:
    """A shape as written. `is_open` says that any axes may come before its own (`...`, `*batch`)."""

    text: str
    is_open: bool
    axes: tuple[ast.expr, ...]


def read_shape(text: str) -> Stated | None:
    """The shape that a text states, or None if it states none."""
    tokens = text.split()
    is_open = bool(tokens) and (tokens[0] == "..." or tokens[0].startswith("*"))
    axes = [_read_axis(token) for token in tokens[is_open:]]
    known = tuple(axis for axis in axes if axis is not None)
    return Stated(text, is_open, known) if tokens and len(known) == len(axes) else None


def _read_axis(token: str) -> ast.expr | None:
    python = re.sub(r"(\d)([A-Za-z_])", r"\1*\2", token.replace("·", "*").replace("×", "*"))
    try:
        tree = ast.parse(python, mode="eval").body
    except SyntaxError:
        return None
    whole = all(isinstance(node.value, int) for node in ast.walk(tree) if isinstance(node, ast.Constant))
    plain = all(isinstance(node, ARITHMETIC) for node in ast.walk(tree))
    return tree if plain and whole and not keyword.iskeyword(token) else None


def agree(
    stated: Stated, seen: Axes, letters: Mapping[str, Sizes], broadcast: bool = False
) -> dict[str, Sizes] | None:
    """The letters, with those that the shape adds, if it agrees with what was seen; None if it does not.

    A letter that stands alone and has no size yet takes the one it meets. With `broadcast` the stated shape
    is what the seen one must broadcast to. An axis whose size changed in a loop agrees with anything.
    """
    axes = stated.axes
    if broadcast and len(seen) < len(axes):
        axes = axes[len(axes) - len(seen) :]
    if len(seen) < len(axes) or (len(seen) > len(axes) and not stated.is_open):
        return None
    bound = dict(letters)
    pairs = list(zip(axes, seen[len(seen) - len(axes) :], strict=True))
    # Letters first, so that `2d d` is as good as `d 2d`.
    for axis, sizes in sorted(pairs, key=lambda pair: not isinstance(pair[0], ast.Name)):
        if sizes is None or (broadcast and set(sizes) == {1}):
            continue
        if isinstance(axis, ast.Name) and len(axis.id) == 1:
            bound.setdefault(axis.id, sizes)
        wanted = [_evaluate(axis, bound, run) for run in range(len(sizes))]
        if any(value != size for value, size in zip(wanted, sizes, strict=True)):
            return None
    return bound


def _evaluate(node: ast.expr, letters: Mapping[str, Sizes], run: int) -> Fraction | None:
    """The size of a stated axis in one run; None if it has a letter without a size."""
    match node:
        case ast.Name(id=name):
            return Fraction(letters[name][run]) if name in letters else None
        case ast.Constant(value=int(number)):
            return Fraction(number)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _evaluate(left, letters, run), _evaluate(right, letters, run)
            if a is None or b is None:
                return None
            match op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
            return None if b == 0 else (Fraction(a // b) if isinstance(op, ast.FloorDiv) else a / b)
    return None
