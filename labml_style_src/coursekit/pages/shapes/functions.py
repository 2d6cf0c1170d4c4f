"""What the text of a function says about its values: where each is assigned, and how its axes are called."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

Definition = ast.FunctionDef | ast.AsyncFunctionDef
LETTER = re.compile(r"[A-Za-z]\w*")


@dataclass
class Function:
    """A function or method. Lines are the file's; a name is a parameter, a local, or `self.attribute`."""

    qualname: str
    parameters: list[str] = field(default_factory=list)
    # Parameters that have a line of the signature to themselves.
    parameter_lines: dict[str, int] = field(default_factory=dict)
    # The shape strings in the annotation of a parameter, then of a local (several in a union), and in that of
    # each value returned.
    annotations: dict[str, list[str]] = field(default_factory=dict)
    returned: list[list[str]] = field(default_factory=list)
    # Each line's statement, which is known by its first line, and what each statement assigns.
    statements: dict[int, int] = field(default_factory=dict)
    targets: dict[int, list[str]] = field(default_factory=dict)
    returns: set[int] = field(default_factory=set)


def read_functions(tree: ast.Module) -> dict[str, Function]:
    """The functions of a module and the methods of its classes, by qualified name."""
    return {function.qualname: function for function in _functions(tree.body, "")}


def _functions(body: list[ast.stmt], prefix: str) -> Iterator[Function]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, Definition):
            yield _function(node, prefix + node.name)


def _function(node: Definition, qualname: str) -> Function:
    function = Function(qualname)
    signature = node.args
    arguments = [*signature.posonlyargs, *signature.args, *signature.kwonlyargs]
    lines = [argument.lineno for argument in arguments]
    for argument in arguments:
        function.parameters.append(argument.arg)
        function.annotations[argument.arg] = _shape_strings(argument.annotation)
        if lines.count(argument.lineno) == 1 and argument.lineno > node.lineno:
            function.parameter_lines[argument.arg] = argument.lineno
    function.returned = [_shape_strings(part) for part in _parts(node.returns)]
    for statement in node.body:
        _read_statement(statement, function)
    return function


def _parts(annotation: ast.expr | None) -> list[ast.expr | None]:
    """The members of `tuple[..]`, or the annotation alone."""
    match annotation:
        case ast.Subscript(value=ast.Name("tuple"), slice=ast.Tuple(elts=members)):
            return list(members)
    return [annotation]


def _shape_strings(annotation: ast.expr | None) -> list[str]:
    """The strings of every `Float[Tensor, "b h t d"]` in an annotation."""
    strings = []
    for node in ast.walk(annotation) if annotation else ():
        match node:
            case ast.Subscript(slice=ast.Tuple(elts=[_, ast.Constant(str(text))])):
                strings.append(text)
    return strings


def _read_statement(node: ast.stmt, function: Function) -> None:
    """Note a statement's lines and targets, and those of the statements inside it; nested definitions are not
    entered, since their frames are their own."""
    if isinstance(node, Definition | ast.ClassDef):
        return
    inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    blocks = [
        child for child in ast.iter_child_nodes(node) if isinstance(child, ast.ExceptHandler | ast.match_case)
    ]
    inner += [child for block in blocks for child in block.body]
    last = min((child.lineno - 1 for child in inner), default=node.end_lineno or node.lineno)
    # Statements that share a line cannot be told apart while they run, so they count as one.
    first = function.statements.get(node.lineno, node.lineno)
    for line in range(node.lineno, max(last, node.lineno) + 1):
        function.statements.setdefault(line, first)
    function.targets.setdefault(first, []).extend(_targets(node))
    if isinstance(node, ast.AnnAssign):
        for name in _names(node.target):
            function.annotations.setdefault(name, _shape_strings(node.annotation))
    if isinstance(node, ast.Return):
        function.returns.add(first)
    for child in inner:
        _read_statement(child, function)


def _targets(node: ast.stmt) -> list[str]:
    match node:
        case ast.Assign(targets=targets):
            return [name for target in targets for name in _names(target)]
        case ast.AnnAssign(target=target) | ast.AugAssign(target=target) | ast.For(target=target):
            return _names(target)
        case ast.With(items=items):
            return [name for item in items if item.optional_vars for name in _names(item.optional_vars)]
    return []


def _names(target: ast.expr) -> list[str]:
    match target:
        case ast.Name(id=name):
            return [name]
        case ast.Attribute(value=ast.Name("self"), attr=name):
            return [f"self.{name}"]
        case ast.Tuple(elts=members) | ast.List(elts=members):
            return [name for member in members for name in _names(member)]
    return []


def bind(strings: list[str], shape: tuple[int, ...]) -> dict[str, int]:
    """The sizes of the letters in the first annotation that has the shape's rank.

    `bind(["*batch s d"], (2, 3, 5, 7))` is `{"s": 5, "d": 7}`. Expressions, and axes that may broadcast, bind
    nothing.
    """
    for string in strings:
        tokens = string.split()
        star = next((place for place, token in enumerate(tokens) if token == "..." or token[0] == "*"), None)
        if star is None and len(tokens) != len(shape):
            continue
        if star is not None and len(tokens) - 1 > len(shape):
            continue
        head = tokens if star is None else tokens[:star]
        tail = [] if star is None else tokens[star + 1 :]
        pairs = [*zip(head, shape, strict=False), *zip(reversed(tail), reversed(shape), strict=False)]
        return {token: size for token, size in pairs if LETTER.fullmatch(token)}
    return {}
