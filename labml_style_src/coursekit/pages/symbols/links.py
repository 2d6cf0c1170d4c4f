r"""Links from every place where a symbol is written to the symbol: in formulas, and in prose.

A formula is searched for sequences of atoms, never for substrings: longest first, braces normalised. A symbol
written without an index matches any index. A superscript stays outside, `{\htmlData{sym=key}{K}}^\top`,
unless there is a subscript too: taken apart, the two would no longer stand one above the other.
"""

import re
from collections.abc import Iterable, Iterator

from coursekit.pages.markdown import FORMULA
from coursekit.pages.symbols.notation import CODE_SPAN, NAME, Scope, Symbol, cells, notation_rows, prose_lines
from coursekit.pages.symbols.tex import Atom, Script, TexSyntaxError, parse

Edit = tuple[int, int, str]  # put a text in the place of tex[start:end]


def link_tex(tex: str, scope: Scope) -> str:
    r"""The formula with each symbol wrapped, `{\htmlData{sym=slopes,role=bias}{m_h}}`; nothing else changes.

    A formula that cannot be read comes back as it is: KaTeX will say what is wrong with it.
    """
    try:
        atoms = parse(tex)
    except TexSyntaxError:
        return tex
    return _splice(tex, 0, len(tex), _edits(tex, atoms, scope))


def _splice(tex: str, start: int, end: int, edits: Iterable[Edit]) -> str:
    """`tex[start:end]` after the edits, which lie in it, in order."""
    parts, at = [], start
    for left, right, text in edits:
        parts += [tex[at:left], text]
        at = right
    return "".join([*parts, tex[at:end]])


def _edits(tex: str, atoms: tuple[Atom, ...], scope: Scope) -> Iterator[Edit]:
    """Wraps the symbols of a sequence, in order; a symbol in the index of another is wrapped inside it."""
    place = 0
    while place < len(atoms):
        rest = atoms[place:]
        found = next(((p, s) for p, s in scope.patterns if _matches(rest, p)), None)
        if found is None:
            for sequence in rest[0].inner:
                yield from _edits(tex, sequence, scope)
            yield from _script_edits(tex, rest[0], None, scope)
            place += 1
            continue
        pattern, symbol = found
        last, stop = rest[len(pattern) - 1], rest[len(pattern) - 1].end
        if last.sup and not last.sub and not pattern[-1].sup:
            stop = last.nucleus_end
        scripts = [_script_edits(tex, a, p, scope) for a, p in zip(rest, pattern, strict=False)]
        edits = [edit for group in scripts for edit in group]
        inside = _splice(tex, rest[0].start, stop, [edit for edit in edits if edit[1] <= stop])
        yield rest[0].start, stop, _wrap(symbol, inside)
        yield from (edit for edit in edits if edit[0] >= stop)
        place += len(pattern)


def _matches(atoms: tuple[Atom, ...], pattern: tuple[Atom, ...]) -> bool:
    """Whether a sequence begins with the pattern, but for a superscript on the last atom."""
    if len(atoms) < len(pattern):
        return False
    return all(
        atom.key == wanted.key
        and (wanted.sub is None or _key(atom.sub) == wanted.sub.key)
        and (_key(atom.sup) == _key(wanted.sup) or (wanted is pattern[-1] and wanted.sup is None))
        for atom, wanted in zip(atoms, pattern, strict=False)
    )


def _key(script: Script | None) -> str | None:
    return script.key if script else None


def _script_edits(tex: str, atom: Atom, pattern: Atom | None, scope: Scope) -> list[Edit]:
    """Wraps the symbols in those scripts of an atom that its own pattern does not spell out, in order."""
    scripts = [] if atom.sub is None or (pattern and pattern.sub) else [atom.sub]
    scripts += [] if atom.sup is None or (pattern and pattern.sup) else [atom.sup]
    scripts.sort(key=lambda script: script.start)
    return [edit for script in scripts for edit in _edits(tex, script.atoms, scope)]


def _wrap(symbol: Symbol, tex: str) -> str:
    role = f",role={symbol.role}" if symbol.role else ""
    return f"{{\\htmlData{{sym={symbol.id}{role}}}{{{tex}}}}}"


def link_prose(markdown: str, scope: Scope) -> str:
    """Markdown with its formulas linked, and each code span that is a symbol's name marked as that symbol.

    Code fences are left alone. In a Notation table the names of the code cell can be focused (`tabindex`).
    """
    lines = markdown.split("\n")
    prose, rows = set(prose_lines(lines)), set(notation_rows(lines))
    done: list[str] = []
    pending: list[str] = []
    for index, line in enumerate([*lines, ""]):
        if index in prose and index not in rows:
            pending.append(line)
            continue
        # A formula may run over lines, so what stands between fences and rows is linked as one text.
        done += _link_text("\n".join(pending), scope).split("\n") if pending else []
        pending = []
        done.append(_link_row(line, scope) if index in rows else line)
    return "\n".join(done[:-1])


def _link_row(row: str, scope: Scope) -> str:
    extras = ["", ' tabindex="0"', "", ""]
    parts = cells(row)
    if len(parts) != len(extras):
        return row
    linked = [_link_text(cell, scope, extra) for cell, extra in zip(parts, extras, strict=True)]
    return f"| {' | '.join(linked)} |"


def _link_text(text: str, scope: Scope, extra: str = "") -> str:
    """Text with its formulas and code spans linked; the spans also get the HTML attributes `extra`."""

    def link(match: re.Match[str]) -> str:
        if match["literal"] is None:
            mark, tex = ("$$", match["display"]) if match["inline"] is None else ("$", match["inline"])
            return mark + link_tex(tex, scope) + mark
        span = CODE_SPAN.fullmatch(match["literal"])
        attributes = scope.attributes(span["code"]) if span and NAME.fullmatch(span["code"]) else ""
        return f"<code{attributes}{extra}>{span['code']}</code>" if span and attributes else match["literal"]

    return FORMULA.sub(link, text)
