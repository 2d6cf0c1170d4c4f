"""Near-identical submissions: what was copied is found however it is dressed up, what is alike by nature is not."""

import ast
import random
from pathlib import Path

import pytest

from coursekit.course import find_course
from coursekit.grading.batch import similar
from coursekit.grading.batch.fingerprints import (
    TEXT_LIMIT,
    TOKEN,
    fingerprints,
    hashes,
    number,
    own_tokens,
    stub_runs,
)
from coursekit.grading.stub import make_stub, without_markers

COURSE = find_course(Path(__file__))
ALTERNATIVES = COURSE.root / "tests" / "lessons" / "alternatives"


def texts_of(slug: str) -> tuple[dict[str, str], str]:
    """Three independent solutions of a lesson, and its stub."""
    text = COURSE.lesson(slug).exercise.read_text("utf-8")
    found = {path.stem: path.read_text("utf-8") for path in sorted(ALTERNATIVES.glob(f"{slug}_*.py"))}
    found = {name: each for name, each in found.items() if COURSE.owner(name) == COURSE.lesson(slug)}
    return {"solution": without_markers(text), **found}, make_stub(text)


class Renamed(ast.NodeTransformer):
    """Gives every variable, parameter and attribute of the author's own another name."""

    def __init__(self, tree: ast.Module) -> None:
        nodes = list(ast.walk(tree))
        self.names = {
            node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        self.names |= {node.arg for node in nodes if isinstance(node, ast.arg)}

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(f"z_{node.id}" if node.id in self.names else node.id, node.ctx)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(f"z_{node.arg}")

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.value, ast.Name) and node.value.id in ("self", "z_self"):
            node.attr = f"z_{node.attr}"
        return node


def renamed(text: str) -> str:
    tree = ast.parse(text)
    return ast.unparse(Renamed(tree).visit(tree))


def reordered(text: str) -> str:
    """Functions and classes from last to first; and, by the way, laid out anew and without a comment."""
    tree = ast.parse(text)
    movable = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    tree.body = [node for node in tree.body if node not in movable] + movable[::-1]
    return ast.unparse(tree)


def edited(text: str) -> str:
    """With a line of its own in each function."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body.insert(len(node.body) // 2, ast.parse("seen = [i for i in range(3)]").body[0])
    return ast.unparse(tree)


def padded(text: str) -> str:
    return text + "".join(
        f"\ndef help{i}(x):\n    return [x + y * {i} for y in x if y {'<>'[i % 2]} x]\n" for i in range(60)
    )


def disguised(text: str) -> str:
    return reordered(renamed(edited(text)))


@pytest.mark.parametrize("lesson", COURSE.lessons, ids=lambda lesson: lesson.slug)
def test_independent_solutions_are_not_alike(lesson):
    texts, stub = texts_of(lesson.slug)
    assert len(texts) == 3
    prints = {name: fingerprints(text, stub_runs(stub)) for name, text in texts.items()}
    assert max(pair.share for pair in similar.compared(prints)) < 0.15
    assert similar.groups(texts, stub) == []


@pytest.mark.parametrize("change", [renamed, reordered, edited, padded, disguised])
@pytest.mark.parametrize("slug", ["alibi", "multi_head", "flash"])
def test_a_copy_is_found(slug, change):
    texts, stub = texts_of(slug)
    for name, text in list(texts.items()):
        found = similar.groups({**texts, "copy": change(text)}, stub)
        assert [group.students for group in found] == [tuple(sorted(("copy", name)))]


def test_new_names_change_nothing():
    """Functions, and classes whose attributes are not called as one of PyTorch's."""
    for slug, names in (("flash", ["solution", "flash_loops", "flash_terse"]), ("alibi", ["alibi_loops"])):
        texts, stub = texts_of(slug)
        for name in names:
            plain = ast.unparse(ast.parse(texts[name]))
            assert fingerprints(renamed(plain), stub_runs(stub)) == fingerprints(plain, stub_runs(stub))


def test_another_variable_is_another_text():
    def runs(text: str) -> list[int]:
        return hashes(own_tokens(text), 7).tolist()

    assert runs("a = b + c * a") == runs("x = y + z * x")
    assert runs("a = b + c * a") != runs("a = b + c * b")


def test_three_who_share_are_one_group():
    texts, stub = texts_of("alibi")
    texts |= {"anna": disguised(texts["alibi_terse"]), "bert": reordered(texts["alibi_terse"])}
    (group,) = similar.groups(texts, stub)
    assert group.students == ("alibi_terse", "anna", "bert")
    shares = [pair.share for pair in group.pairs]
    assert len(shares) == 3
    assert shares == sorted(shares, reverse=True)
    assert (group.pairs[0].first, group.pairs[0].second, shares[0]) == ("alibi_terse", "bert", 1.0)


def test_the_stub_and_an_easy_task_say_nothing():
    texts, stub = texts_of("alibi")
    first = stub.replace(
        'raise NotImplementedError("power_of_two_slopes is not done yet")', "return 2 ** -torch.arange(n)"
    )
    assert first != stub
    assert fingerprints(stub, stub_runs(stub)) == set()
    assert similar.groups({**texts, "a": stub, "b": stub, "c": first, "d": first}, stub) == []


def test_what_most_of_the_class_writes_says_nothing():
    texts, stub = texts_of("alibi")
    common, rare = texts["alibi_loops"], texts["alibi_terse"]
    others = {f"s{i}": renamed(common) for i in range(200)}
    found = similar.groups({**others, "ada": rare, "ben": rare}, stub)
    assert [group.students for group in found] == [("ada", "ben")]


def test_who_is_like_the_solution_is_told_however_many_they_are():
    texts, stub = texts_of("alibi")
    solution = texts.pop("solution")
    copies = {f"s{i}": [solution, disguised(solution)][i % 2] for i in range(50)}
    first, *others = similar.groups({**texts, **copies}, stub, solution)
    assert first.of_solution
    assert first.students == tuple(sorted(copies))
    assert not any(group.of_solution for group in others)
    assert (first.pairs[0].first, first.pairs[0].second, first.pairs[0].share) == ("s0", "", 1.0)


@pytest.mark.parametrize("lesson", COURSE.lessons, ids=lambda lesson: lesson.slug)
def test_nobody_else_is_like_the_solution(lesson):
    texts, stub = texts_of(lesson.slug)
    solution = texts.pop("solution")
    assert similar.groups({**texts, "stub": stub, "empty": ""}, stub, solution) == []


def test_the_order_of_the_class_changes_nothing():
    texts, stub = texts_of("rotary")
    texts |= {f"copy {i}": edited(text) for i, text in enumerate(texts.values())}
    shuffled = list(texts.items())
    random.Random(1).shuffle(shuffled)
    assert len(similar.groups(texts, stub)) == 3
    assert similar.groups(dict(shuffled), stub) == similar.groups(texts, stub)


def test_a_file_that_is_not_valid_python_is_compared_too():
    texts, stub = texts_of("alibi")
    broken = texts["solution"].replace("return torch.exp2(-exponents)", "return torch.exp2((-exponents")
    with pytest.raises(SyntaxError):
        ast.parse(broken)
    (group,) = similar.groups({**texts, "ada": broken}, stub)
    assert group.students == ("ada", "solution")


HOSTILE = [
    "(" * 4_000_000, "\\'''" * 1_000_000, '"""', "\\", "'\\", "x" * 4_000_000, "\0\ud800\u202e" * 1000,
    "import (" + "x " * 99, "#\n" * 2_000_000, "a.self." * 500_000, "def " * 100_000, "'" * 999_999, "",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_stalls_the_lexer(text: str):
    assert "".join(match[0] for match in TOKEN.finditer(text[:5000])) == text[:5000]
    texts, stub = texts_of("alibi")
    found = similar.groups({**texts, "ada": text, "ben": disguised(texts["solution"])}, stub)
    assert [group.students for group in found] == [("ben", "solution")]


def test_docstrings_heads_and_imports_are_nobodys_own():
    text = '"""Title."""\nimport torch\n@cache\ndef f(a: int, b=(1, 2)) -> int:\n    r"""Doc."""\n    return a  # so\n'
    assert [token for _, token in own_tokens(text)] == ["", "return", "a"]
    assert [token for _, token in own_tokens("def f(a): return a\nx = 'kept'")] == [
        "",
        "return",
        "a",
        "x",
        "=",
        "'kept'",
    ]


def test_a_bracket_left_open_hides_nothing():
    text = "import (\nx = 1\ndef f(a):\n    return a + 1\n"
    assert [token for _, token in own_tokens(text)] == ["", "return", "a", "+", "1"]


def test_code_that_the_stub_gives_is_nobodys_own():
    given = ast.unparse(ast.parse(texts_of("flash")[0]["flash_loops"]))
    texts, stub = texts_of("alibi")
    assert len(fingerprints(given)) > 100
    assert fingerprints(given, stub_runs(stub + given)) == set()
    mine, alone = (
        fingerprints(text, stub_runs(stub + given)) for text in (given + texts["solution"], texts["solution"])
    )
    assert mine == alone
    both = {name: given + text for name, text in texts.items()}
    assert similar.groups(both, stub + given) == []
    assert len(similar.groups(both, stub)) == 1


def test_what_lies_behind_a_mountain_of_text_is_not_read():
    assert own_tokens("x = 1\n" + "#" * TEXT_LIMIT + "\ny = 2") == own_tokens("x = 1\n")


def test_one_task_of_many_does_not_make_two_alike():
    texts, stub = texts_of("flash")
    tree = ast.parse(texts["flash_loops"])
    longest = max((ast.unparse(node) for node in tree.body if isinstance(node, ast.FunctionDef)), key=len)
    prints = {
        "ada": fingerprints(texts["flash_loops"]),
        "ben": fingerprints(f"{texts['flash_terse']}\n{longest}"),
    }
    (pair,) = similar.compared(prints)
    assert pair.worth > similar.EVIDENCE
    assert 0.15 < pair.share < similar.ALIKE
    assert (
        similar.groups({**texts, "ben": f"{texts['flash_terse']}\n{longest}"} | {"flash_terse": ""}, stub)
        == []
    )


def test_a_fingerprint_is_the_same_on_every_machine():
    assert number("return") == 14263062443638411267
