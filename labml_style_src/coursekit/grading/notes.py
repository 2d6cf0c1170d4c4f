"""Evidence beside the points: where a submission calls what it was to build itself."""

import ast
import unicodedata
from collections.abc import Iterable, Iterator

from coursekit.grading.session import pieces
from coursekit.grading.submission import Submission, syntax_tree

# Whole attention functions and layers of PyTorch's and of others.
FUSED = {
    *("scaled_dot_product_attention", "flex_attention", "multi_head_attention_forward"),
    *("MultiheadAttention", "TransformerEncoderLayer", "TransformerDecoderLayer", "Transformer"),
    *("flash_attn_func", "memory_efficient_attention"),
}


def fused_notes(submission: Submission) -> list[str]:
    """A sentence for the first place that uses a ready-made attention, if there is one.

    Calls at the top level are scratch work (a comparison, say), not part of an answer.
    """
    # As Python reads identifiers. Most submissions are done here, in a thousandth of the time.
    text = unicodedata.normalize("NFKC", submission.text)
    if not any(name in text for name in FUSED):
        return []
    tree = readable(submission)
    nodes = list(ast.walk(tree))
    imported = dict(imports(nodes))
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
        assert isinstance(node, ast.Name | ast.Attribute)
        verb = "calls" if id(node) in called else "uses"
        place = f"{submission.where(node.lineno)} {verb} {dotted(node)}"
        return [f"Note: the exercise asks you to build this yourself; {place}."]
    return []


def readable(submission: Submission) -> ast.Module:
    """The submission's syntax tree; of a notebook that of the cells that are valid Python."""
    body: list[ast.stmt] = []
    for part in pieces(submission.text, submission.cells):
        if tree := syntax_tree(part):
            body += tree.body
    return ast.Module(body, [])


def dotted(node: ast.expr) -> str:
    """`F.scaled_dot_product_attention` as it stands there; of a chain too long to read its end."""
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


def imports(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, str]]:
    """Each imported name, and what it is in the module it comes from."""
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                name = alias.name if isinstance(node, ast.ImportFrom) else alias.name.partition(".")[0]
                yield alias.asname or name, alias.name.rpartition(".")[2]


def is_fused(node: ast.AST, imported: dict[str, str]) -> bool:
    """Whether this is `F.scaled_dot_product_attention` or the like, reached from something imported: a
    function of the student's own may have such a name."""
    if isinstance(node, ast.Name):
        return imported.get(node.id) in FUSED
    if not isinstance(node, ast.Attribute) or node.attr not in FUSED:
        return False
    root = node.value
    while isinstance(root, ast.Attribute):
        root = root.value
    return isinstance(root, ast.Name) and root.id in imported
