"""Evidence beside the points: where a submission calls what it was to build itself.

The source is read, not run: a name that is put together while it runs (`getattr(F, "scaled_" + rest)`), comes
out of `eval` or is escaped in a string is beyond it. What then runs is noted by `sandbox/watch.py`.
"""

import ast
import functools
import re
import unicodedata
from collections.abc import Iterable

from coursekit.grading.sandbox.watch import NAMES
from coursekit.grading.session import pieces
from coursekit.grading.submission import Submission, syntax_tree

# Whole attention functions and layers of PyTorch's and of others.
FUSED = {
    *NAMES,
    *("MultiheadAttention", "TransformerEncoderLayer", "TransformerDecoderLayer", "Transformer"),
    *("TransformerEncoder", "TransformerDecoder", "flash_attn_func", "memory_efficient_attention"),
}
# Functions that reach into a module by a name in quotes.
BY_NAME = {"getattr", "attrgetter", "vars", "__import__", "import_module"}
# Aliases of aliases that are followed: a chain without end would take the grader's time.
ALIASES_LIMIT = 100


def fused_notes(submission: Submission) -> list[str]:
    """A sentence for the first place that uses a ready-made attention, if there is one.

    Calls at the top level are scratch work (a comparison, say), not part of an answer.
    """
    return list(_noted(submission.text, tuple(submission.cells)))


# The same submission is asked about again: for its report and as evidence, and on every seed.
@functools.lru_cache(maxsize=1)
def _noted(text: str, cells: tuple[int, ...]) -> list[str]:
    submission = Submission(text, "", "", list(cells))
    tree = readable(submission)
    # Most submissions are done here, in a tenth of the time.
    if not mentioned(submission.text, tree):
        return []
    nodes = list(ast.walk(tree))
    imported = imports(nodes)
    fused = [node for node in nodes if is_fused(node, imported)]
    if not fused:
        return []
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    definitions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    inside = {id(node) for definition in definitions for node in ast.walk(definition)}
    types = {id(part) for node in nodes for hint in hints(node) for part in ast.walk(hint)}
    for node in fused:
        if id(node) in types or (id(node) in called and id(node) not in inside):
            continue
        assert isinstance(node, ast.expr)
        verb = "calls" if id(node) in called else "uses"
        place = f"{submission.where(node.lineno)} {verb} {dotted(node)}"
        return [f"Note: the exercise asks you to build this yourself; {place}."]
    return []


def mentioned(text: str, tree: ast.Module) -> bool:
    """Whether the name of a ready-made attention stands anywhere but amid the lines of a docstring."""
    known: list[ast.Module | ast.FunctionDef | ast.ClassDef] = [tree]
    for node in known:
        known += [child for child in node.body if isinstance(child, ast.FunctionDef | ast.ClassDef)]
    documented: set[int] = set()
    for first in (node.body[0] for node in known if node.body):
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            # Its first and last line may hold code as well.
            documented.update(range(first.lineno + 1, first.end_lineno or 0))
    # Lines and identifiers as Python reads them.
    lines = re.split(r"\r\n|\r|\n", unicodedata.normalize("NFKC", text))
    numbers = {place for place, line in enumerate(lines, start=1) if any(name in line for name in FUSED)}
    return not numbers <= documented


def readable(submission: Submission) -> ast.Module:
    """The submission's syntax tree; of a notebook that of the cells that are valid Python."""
    body: list[ast.stmt] = []
    for part in pieces(submission.text, submission.cells):
        if tree := syntax_tree(part):
            body += tree.body
    return ast.Module(body, [])


def dotted(node: ast.expr) -> str:
    """`F.scaled_dot_product_attention` as it stands there; of a chain too long to read its end."""
    if name := quoted(node):
        return f"{name} by its name"
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    names += [node.id] if isinstance(node, ast.Name) else []
    return ".".join(reversed(names[:6]))[-200:]


def hints(node: ast.AST) -> list[ast.AST]:
    """The type hints that stand at a node."""
    found = (getattr(node, name, None) for name in ("annotation", "returns"))
    return [hint for hint in found if isinstance(hint, ast.AST)]


def imports(nodes: Iterable[ast.AST]) -> dict[str, str]:
    """Each name that comes from outside, and what it is in the module it comes from: imported, with a star too,
    or another name for something imported (`attend = F.scaled_dot_product_attention`)."""
    nodes = list(nodes)
    known: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                name = alias.name if isinstance(node, ast.ImportFrom) else alias.name.partition(".")[0]
                # What the file defines itself comes after the star, or hides it anyway.
                if name == "*":
                    known |= {name: name for name in FUSED - own(nodes)}
                else:
                    known[alias.asname or name] = alias.name.rpartition(".")[2]
    renamed = [
        (target.id, node.value)
        for node in nodes
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    ]
    # An alias of an alias may stand above it, in a function.
    for _ in range(ALIASES_LIMIT):
        more = {
            name: last for name, value in renamed if name not in known and (last := handed_on(value, known))
        }
        if not more:
            break
        known |= more
    return known


def own(nodes: Iterable[ast.AST]) -> set[str]:
    """The functions and classes that are defined."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in nodes if isinstance(node, kinds)}


def handed_on(value: ast.expr, imported: dict[str, str]) -> str:
    """What a value is in the module it comes from, "" if it is not simply something imported."""
    if isinstance(value, ast.Name):
        return imported.get(value.id, "")
    if not is_from_outside(value, imported):
        return ""
    return quoted(value) or (value.attr if isinstance(value, ast.Attribute) else "module")


def is_fused(node: ast.AST, imported: dict[str, str]) -> bool:
    """Whether this is `F.scaled_dot_product_attention` or the like, reached from something imported: a
    function of the student's own may have such a name."""
    if isinstance(node, ast.Name):
        return isinstance(node.ctx, ast.Load) and imported.get(node.id) in FUSED
    if isinstance(node, ast.Attribute):
        return node.attr in FUSED and is_from_outside(node.value, imported)
    return quoted(node) in FUSED and is_from_outside(node, imported)


def is_from_outside(node: ast.AST, imported: dict[str, str]) -> bool:
    """Whether an expression reaches, through attributes and by names in quotes, into something imported."""
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        elif isinstance(node, ast.Call) and function(node) in BY_NAME:
            if function(node) not in ("getattr", "vars") or not node.args:
                return True
            node = node.args[0]
        else:
            return False
    return node.id in imported


def quoted(node: ast.AST) -> str:
    """The name in quotes by which `getattr(F, "name")`, `attrgetter("name")` or `vars(F)["name"]` reaches in."""
    texts: list[ast.expr] = []
    if isinstance(node, ast.Subscript):
        texts = [node.slice]
    elif isinstance(node, ast.Call) and function(node) in BY_NAME:
        texts = node.args
    names = (text.value for text in texts if isinstance(text, ast.Constant))
    return next((name.rpartition(".")[2] for name in names if isinstance(name, str)), "")


def function(call: ast.Call) -> str:
    """The last name of what is called."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""
