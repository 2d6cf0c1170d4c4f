r"""Linked formulas: the right tokens are wrapped, and KaTeX draws what it drew before."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coursekit.pages import katex
from coursekit.pages.symbols.links import link_prose, link_tex
from coursekit.pages.symbols.notation import Scope, Symbol

OPENING = re.compile(r"\{\\htmlData\{[^{}]*\}\{")


def scope(*rows: str, roles: dict[str, str] | None = None) -> Scope:
    """Symbols from rows such as `query: Q, q_i`."""
    symbols = []
    for line, row in enumerate(rows):
        name, _, texes = row.partition(": ")
        role = (roles or {}).get(name)
        symbols.append(Symbol(name, tuple(texes.split(", ")), (name,), role, "", "", line))
    return Scope(tuple(symbols), tuple(symbols))


def brief(tex: str) -> str:
    r"""`{\htmlData{sym=x}{..}}` as `<x:..>`."""
    while (match := OPENING.search(tex)) is not None:
        end = closing(tex, match.end())
        name = re.search(r"sym=(\w+)", match[0])
        assert name is not None
        tex = f"{tex[: match.start()]}<{name[1]}:{tex[match.end() : end]}>{tex[end + 2 :]}"
    return tex


def closing(tex: str, start: int) -> int:
    """Where the group that is open at `start` closes."""
    depth, place = 1, start
    while True:
        depth += {"{": 1, "}": -1}.get(tex[place], 0)
        if depth == 0:
            return place
        place += 2 if tex[place] == "\\" else 1


def stripped(tex: str) -> str:
    """The formula without its wrapping."""
    while (match := OPENING.search(tex)) is not None:
        end = closing(tex, match.end())
        tex = tex[: match.start()] + tex[match.end() : end] + tex[end + 2 :]
    return tex


def drawn(tex: str, display: bool = False) -> str:
    """The text that KaTeX puts on the page, in order."""
    html = katex.render(tex, display)
    return re.sub(r"<[^>]*>", "", html[html.index('class="katex-html"') :])


@pytest.mark.parametrize(
    ("rows", "tex", "linked"),
    [
        (["slopes: m_h"], r"-m_h\,|i-j|", r"-<slopes:m_h>\,|i-j|"),
        (["slopes: m_h"], "m_{h} m_i m", "<slopes:m_{h}> m_i m"),
        (["m: m"], "m_h m_{ij} m", "<m:m_h> <m:m_{ij}> <m:m>"),
        (["p: P", "pij: P_{ij}"], "P_{ij} P P_{i}", "<pij:P_{ij}> <p:P> <p:P_{i}>"),
        (["q: \\mathbf{q}"], r"\mathbf q_i \mathbf{q}_{i}", r"<q:\mathbf q_i> <q:\mathbf{q}_{i}>"),
        (["d: d"], r"\mathbf{d} \mathrm{d}x \text{d} \operatorname{d}", None),
        (["d: d"], r"\frac1d \sqrt d x^d x_d", r"\frac1<d:d> \sqrt <d:d> x^<d:d> x_<d:d>"),
        (["d: d"], r"\sqrt d_i", r"\sqrt <d:d>_i"),
        (["k: K"], r"K^\top K^2_i", r"<k:K>^\top <k:K^2_i>"),
        (["s: QK^\\top", "q: Q", "k: K"], r"QK^\top Q K^{\top} QK", r"<s:QK^\top> <s:Q K^{\top}> <q:Q><k:K>"),
        (["w: W^Q"], "W^Q_i W^Q W", "<w:W^Q_i> <w:W^Q> W"),
        (["x: x", "y: x'"], "x' x x'_i x'^2", "<y:x'> <x:x> <y:x'_i> <y:x'>^2"),
        (["z: z", "j: j"], "z_j z_{jj}^j", "<z:z_<j:j>> <z:z_{<j:j><j:j>}^<j:j>>"),
        (["z: z_j", "j: j"], "z_j^j e^{z_j}", "<z:z_j^<j:j>> e^{<z:z_j>}"),
        (["z: z", "j: j"], "z^j", "<z:z>^<j:j>"),
        (["a: a"], r"\left( a \right)_a \big| a", r"\left( <a:a> \right)_<a:a> \big| <a:a>"),
        (["c: c"], r"\begin{array}{cc} c & c \\ c & c \end{array}", None),
        (["a: \\alpha"], r"\alpha\alphab \alpha_1", r"<a:\alpha>\alphab <a:\alpha_1>"),
        (["q: q"], r"{q}_i {q k} \tag{q} \color{q} q", r"<q:{q}_i> {<q:q> k} \tag{q} \color{q} <q:q>"),
        (["d: d"], "d_{", None),
    ],
)
def test_links(rows: list[str], tex: str, linked: str | None) -> None:
    found = link_tex(tex, scope(*rows))
    if tex.startswith(r"\begin{array}"):
        assert brief(found) == r"\begin{array}{cc} <c:c> & <c:c> \\ <c:c> & <c:c> \end{array}"
    else:
        assert brief(found) == (tex if linked is None else linked)


def test_wrapping_has_the_role() -> None:
    wrapped = link_tex("m_h n", scope("slopes: m_h", "n_heads: n", roles={"slopes": "bias"}))
    assert wrapped == r"{\htmlData{sym=slopes,role=bias}{m_h}} {\htmlData{sym=n_heads}{n}}"
    assert 'data-sym="slopes" data-role="bias"' in katex.render(wrapped)


SYMBOLS = scope(
    r"d: d",
    r"q: \mathbf{q}",
    r"p: P",
    r"pij: P_{ij}",
    r"s: QK^\top",
    r"a: \alpha",
    r"x: x'",
    r"j: j",
    r"w: W^Q",
)
LEAVES = [*"djPQKxi2+=()", r"\alpha ", r"\mathbf q", r"\mathbf{q}", "P_{ij}", r"QK^\top ", "x'", "W^Q", r"\,"]
OPAQUE = [r"\text{d $j$}", r"\operatorname{d}", r"\mathrm{d}", r"\kern1mu ", r"\color{blue}", r"\big| "]
ATOMS = st.sampled_from([*"djPQKxi", r"\alpha", r"\mathbf q", r"\mathbf{q}", r"\mathrm{d}"])


def containers(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    group = inner.map("{{{}}}".format)
    argument = group | ATOMS.map(lambda atom: f" {atom} ")
    script = group | ATOMS
    return st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        group,
        st.tuples(argument, argument).map(lambda pair: rf"\frac{pair[0]}{pair[1]}"),
        argument.map(lambda tex: rf"\sqrt{tex}"),
        st.tuples(ATOMS, script).map("_".join),
        st.tuples(ATOMS, script).map("^".join),
        st.tuples(ATOMS, script, script).map(lambda parts: "{}_{}^{}".format(*parts)),
        st.tuples(ATOMS, script, script).map(lambda parts: "{}^{}_{}".format(*parts)),
        inner.map(lambda tex: rf"\left({tex}\right]"),
        st.tuples(inner, inner).map(
            lambda pair: rf"\begin{{aligned}}{pair[0]}&={pair[1]}\\[1ex]&=d\end{{aligned}}"
        ),
        st.tuples(inner, inner).map(lambda pair: rf"\begin{{array}}{{cc}}{pair[0]}&{pair[1]}\end{{array}}"),
    )


@given(st.recursive(st.sampled_from(LEAVES + OPAQUE), containers, max_leaves=12))
def test_linking_changes_nothing_that_is_drawn(tex: str) -> None:
    linked = link_tex(tex, SYMBOLS)
    assert stripped(linked) == tex
    try:
        before = drawn(tex, display=True)
    except katex.TexError:
        return
    assert drawn(linked, display=True) == before


@pytest.mark.parametrize("tex", ["q_i^2", "V_i^{ab}", "f_i", "W_i^Q", "x'_i"])
def test_scripts_stay_stacked(tex: str) -> None:
    """The boxes are the same as before: only the span of the link is added around them."""
    html = katex.render(link_tex(tex, scope(f"s: {tex[0]}", "x: x'")))
    linked = html[html.index('class="katex-html"') :]
    plain = katex.render(tex)
    boxes = re.findall(r'style="[^"]*"', plain[plain.index('class="katex-html"') :])
    assert "data-sym" in linked
    assert re.findall(r'style="[^"]*"', linked) == boxes


def test_prose() -> None:
    linked = link_prose(
        "The `slopes` $m_h$, `query` and `other`: \\$5, `$m_h$`, $$m_h\n+ 1$$\n\n"
        "```\n$m_h$ `slopes`\n```\n$m_h$.",
        scope("slopes: m_h", roles={"slopes": "bias"}),
    )
    wrapped = r"{\htmlData{sym=slopes,role=bias}{m_h}}"
    assert linked == (
        f'The <code data-sym="slopes" data-role="bias">slopes</code> ${wrapped}$, '
        f"`query` and `other`: \\$5, `$m_h$`, $${wrapped}\n+ 1$$\n\n"
        f"```\n$m_h$ `slopes`\n```\n${wrapped}$."
    )


def test_table_rows_can_be_focused() -> None:
    table = "| symbol | code | shape | meaning |\n|---|:-:|---|---|\n| $|x|$ | `x`, `y` | `b` | of `x` |"
    linked = link_prose(f"{table}\n\nAfter `x`.", scope("x: |x|, x"))
    row = linked.split("\n")[2]
    assert row.count("|") == 7
    assert '| <code data-sym="x" tabindex="0">x</code>, `y` | `b` |' in row
    assert row.endswith('of <code data-sym="x">x</code> |')
    assert linked.endswith('After <code data-sym="x">x</code>.')
