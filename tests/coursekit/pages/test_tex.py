r"""The reader of TeX: what is one atom, what is opaque, what is refused."""

import pytest

from coursekit.pages.symbols.tex import TexSyntaxError, normalise, parse


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (r"\mathbf q_i", r"\mathbf{q}_{i}"),
        (r"\mathbf  {q} _ i", r"\mathbf{q}_{i}"),
        ("{q}_i", "q_{i}"),
        ("x^2_i", "x_i^2"),
        ("x'", r"x^{\prime}"),
        ("x'_i", "x_i'"),
        (r"\frac1d", r"\frac{1}{d}"),
        (r"\frac\alpha{d}", r"\frac{\alpha}{d}"),
        (r"x^\frac12", r"x^{\frac{1}{2}}"),
        (r"\sqrt d", r"\sqrt{d}"),
        (r"\hat\mathbf q", r"\hat{\mathbf{q}}"),
        ("a b % a comment\n c", "abc"),
        (r"\sum\limits_j x", r"\sum_j x"),
    ],
)
def test_same_formula(left: str, right: str) -> None:
    assert normalise(left) == normalise(right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("d", r"\mathbf{d}"),
        ("d", r"\mathrm d"),
        ("q", "q'"),
        (r"\mathbf{q}", r"\mathbf{qk}"),
        ("ab_c", "{ab}_c"),
        (r"\alpha x", r"\alphax"),
        ("P_{ij}", "P_i j"),
    ],
)
def test_other_formula(left: str, right: str) -> None:
    assert normalise(left) != normalise(right)


def plain_letters(tex: str) -> str:
    """Every one-letter atom in a formula, in order: what linking can reach."""

    def walk(atoms) -> str:
        found = ""
        for atom in atoms:
            found += atom.key if len(atom.key) == 1 and atom.key.isalpha() else ""
            found += "".join(walk(sequence) for sequence in atom.inner)
            found += "".join(walk(script.atoms) for script in (atom.sub, atom.sup) if script)
        return found

    return walk(parse(tex))


@pytest.mark.parametrize(
    ("tex", "letters"),
    [
        (r"\text{a $b$ \{c} d", "d"),
        (r"\operatorname{softmax}_j x", "jx"),
        (r"\operatorname*{argmax}_j x", "jx"),
        (r"\mathrm{d}x \mathbf d \hat d", "x"),
        (r"\begin{array}{cc} a & b \\[2pt] c & d \end{array}", "abcd"),
        (r"\begin{aligned} a &= b \\ &= c \end{aligned}", "abc"),
        (r"\begin{pmatrix*}[r] a \end{pmatrix*}", "a"),
        (r"\left( \frac{a}{b} \right) c", "abc"),
        (r"\left\langle a \middle| b \right\rangle", "ab"),
        (r"\Big( a \bigr] b", "ab"),
        (r"\kern1em a \hspace{2em} b \mskip -3mu c \rule{1em}{2em}", "abc"),
        (r"\color{red} a \textcolor{blue}{b} \colorbox{red}{c}", "ab"),
        (r"\htmlClass{c}{a} \htmlData{sym=b}{d}", "ad"),
        (r"\sqrt[n]{a} \overset{b}{c} \underbrace{d}_{\text{e}}", "abcd"),
        (r"\newcommand{\R}[1]{b#1} \def\x#1{c} \let\y=d a", "a"),
        (r"\tag{a} b \label{c}", "b"),
        (r"{\bf a b} c", "c"),
        (r"\genfrac{(}{)}{0pt}{}{a}{b}", "ab"),
        (r"\verb|a| b \not= c", "bc"),
    ],
)
def test_what_is_opaque(tex: str, letters: str) -> None:
    assert plain_letters(tex) == letters


@pytest.mark.parametrize(
    ("tex", "position", "message"),
    [
        ("{a", 2, "the end of the formula where '}' is wanted"),
        ("a}", 1, "'}' closes nothing"),
        ("x_", 2, "an argument is missing"),
        ("x_a_b", 3, "a second '_'"),
        (r"\frac{a}", 8, "an argument is missing"),
        (r"\left( a", 8, "is wanted"),
        (r"a \right)", 2, "closes nothing"),
        (r"\begin{a} x \end{b}", 19, "closed by another"),
        (r"\kern x", 6, "a length"),
    ],
)
def test_what_is_refused(tex: str, position: int, message: str) -> None:
    with pytest.raises(TexSyntaxError, match=message.replace("(", r"\(")) as caught:
        parse(tex)
    assert caught.value.position == position


def test_spans() -> None:
    tex = r"a \mathbf q_{ij}^\top b"
    atom = parse(tex)[1]
    assert tex[atom.start : atom.nucleus_end] == r"\mathbf q"
    assert tex[atom.start : atom.end] == r"\mathbf q_{ij}^\top"
    assert atom.sub is not None
    assert tex[atom.sub.start : atom.sub.end] == "{ij}"
