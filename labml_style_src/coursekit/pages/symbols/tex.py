r"""TeX formulas as atoms: enough structure to find a symbol in a formula, with the place where it stands.

An atom is a nucleus with its subscript and superscript. A font or accent command is one nucleus with its
argument, so `\mathbf q` and `\mathbf{q}` are the same atom, and the `d` inside `\mathrm{d}` is none. Commands
that set out mathematics (`\frac`, `\sqrt`, `\left..\right`, `aligned`) are atoms that contain sequences of
atoms; arguments that are no mathematics (text, colours, column specifications, lengths, definitions) are
opaque.

KaTeX is the judge of what is valid TeX; this reader only has to agree with it on where an argument ends.
"""

import re
from dataclasses import dataclass, replace

# What a command takes, a letter an argument: `m` mathematics, `f` mathematics fused with the command into one
# symbol, `o` an opaque group, `O` an optional opaque `[..]`, `d` a delimiter, `s` a length, `*` an optional
# star.
_COMMANDS = {
    "f": """mathbf mathrm mathit mathsf mathtt mathcal mathscr mathfrak mathbb mathnormal boldsymbol bm bold
        Bbb frak pmb hat bar tilde vec dot ddot acute grave check breve mathring widehat widetilde widecheck
        overline underline overrightarrow overleftarrow""",
    "o": """text textrm textbf textit texttt textsf textnormal textup textmd mbox hbox label ref eqref url
        phantom hphantom vphantom color operatornamewithlimits""",
    "*o": "operatorname tag hspace",
    "oo": "colorbox raisebox",
    "ooo": "fcolorbox",
    "Ooo": "rule",
    "oOo": "newcommand renewcommand providecommand",
    "m": """underbrace overbrace boxed cancel bcancel xcancel mathop mathrel mathbin mathord mathopen
        mathclose mathpunct mathinner substack pmod mod bra ket""",
    "mm": "frac dfrac tfrac cfrac binom dbinom tbinom overset underset stackrel",
    "mmmm": "mathchoice",
    "Om": "sqrt smash xrightarrow xleftarrow xRightarrow xLeftarrow xleftrightarrow xmapsto",
    "om": "textcolor htmlClass htmlId htmlStyle htmlData href",
    "oooomm": "genfrac",
    "d": """big Big bigg Bigg bigl Bigl biggl Biggl bigr Bigr biggr Biggr bigm Bigm biggm Biggm middle""",
    "s": "kern mkern hskip mskip above",
}
ARGUMENTS = {f"\\{name}": kinds for kinds, names in _COMMANDS.items() for name in names.split()}
FONT_SWITCHES = {"\\rm", "\\sf", "\\tt", "\\bf", "\\it", "\\cal"}  # they hold to the end of their group
DEFINITIONS = {"\\def", "\\gdef", "\\edef", "\\xdef"}
ENVIRONMENT_ARGUMENTS = {
    **dict.fromkeys(["array", "darray", "subarray", "alignat", "alignat*", "alignedat"], "o"),
    **dict.fromkeys([f"{kind}matrix*" for kind in ("", "p", "b", "B", "v", "V")], "O"),
}

TOKEN = re.compile(
    r"""(?P<skip> \s+ | %[^\n]*(?:\n|\Z) )
      | \\verb\*?(?P<quote>[^a-zA-Z*\s]).*?(?P=quote)
      | \\\\(?:\s*\[\s*-?[\d.]+\s*[a-z]{2}\s*\])?      # a line break, with its optional extra space
      | \\[a-zA-Z@]+ | \\.
      | .""",
    re.VERBOSE | re.DOTALL,
)
LENGTH = re.compile(r"\s*(?:\{[^{}]*\}|[-+]?\s*(?:\d+\.?\d*|\.\d+)\s*[a-z]{2})")


class TexSyntaxError(ValueError):
    """A formula that cannot be read: the message says what is wrong, `position` where."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True)
class Script:
    """A subscript or superscript: its normal form, its atoms, and its span without `_` or `^`."""

    key: str
    atoms: tuple["Atom", ...]
    start: int
    end: int


@dataclass(frozen=True)
class Atom:
    r"""A nucleus and its scripts.

    `key` is the nucleus in normal form with its primes (`\mathbf{q}`, `x'`), `inner` the sequences of atoms
    inside it. The nucleus lies in `start:nucleus_end`, all of it with scripts in `start:end`.
    """

    key: str
    start: int
    nucleus_end: int
    end: int
    inner: tuple[tuple["Atom", ...], ...] = ()
    sub: Script | None = None
    sup: Script | None = None

    @property
    def normal(self) -> str:
        """The atom with its scripts in normal form."""
        sub = f"_{{{self.sub.key}}}" if self.sub else ""
        sup = f"^{{{self.sup.key}}}" if self.sup else ""
        return self.key + sub + sup


def parse(tex: str) -> tuple[Atom, ...]:
    r"""The atoms of a formula.

    Raises `TexSyntaxError` for an unbalanced group, a lone `\right`, a missing script or argument, or two
    subscripts on one nucleus.
    """
    return _Parser(tex).sequence(until=None)


def normalise(tex: str) -> str:
    """One text for all ways to write a formula that differ in braces and spaces only."""
    return _normal(parse(tex))


def _normal(atoms: tuple[Atom, ...]) -> str:
    return " ".join(atom.normal for atom in atoms)


class _Parser:
    """A recursive descent over the tokens; `self.tokens[self.at]` is the next one."""

    def __init__(self, tex: str) -> None:
        self.tex = tex
        self.tokens = [match for match in TOKEN.finditer(tex) if match["skip"] is None]
        self.at = 0

    def peek(self) -> str:
        """The next token's text, empty at the end."""
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def here(self) -> int:
        return self.tokens[self.at].start() if self.at < len(self.tokens) else len(self.tex)

    def last_end(self) -> int:
        return self.tokens[self.at - 1].end() if self.at else 0

    def take(self, wanted: str = "") -> str:
        """The next token, which must be `wanted` if that is given."""
        token = self.peek()
        if not token or (wanted and token != wanted):
            found = f"'{token}'" if token else "the end of the formula"
            raise TexSyntaxError(
                f"{found} where {f'{wanted!r}' if wanted else 'more'} is wanted", self.here()
            )
        self.at += 1
        return token

    def sequence(self, until: str | None) -> tuple[Atom, ...]:
        """Atoms up to the closing token, which is taken; to the end of the formula if that is None."""
        atoms: list[Atom] = []
        opaque = False
        while (token := self.peek()) and token != until:
            if token in ("}", "\\right", "\\end"):
                raise TexSyntaxError(f"'{token}' closes nothing", self.here())
            atom = self.atom()
            opaque = opaque or token in FONT_SWITCHES
            atoms.append(replace(atom, key="", inner=(), sub=None, sup=None) if opaque else atom)
        if until is not None:
            self.take(until)
        return tuple(atoms)

    def atom(self) -> Atom:
        """A nucleus with the primes and scripts that follow it."""
        start = self.here()
        # A script may stand on nothing, as in `{}^2` or at the start of a formula.
        key, inner = ("", ()) if self.peek() in ("_", "^", "'") else self.nucleus()
        nucleus_end, sub, sup, primes = self.last_end(), None, None, ""
        while (token := self.peek()) in ("_", "^", "'", "\\limits", "\\nolimits"):
            position = self.here()
            self.take()
            if token == "'":
                primes += token
            elif token in ("_", "^"):
                if (sub if token == "_" else sup) is not None:
                    raise TexSyntaxError(f"a second '{token}' on one nucleus", position)
                script = self.script()
                prime = token == "^" and re.fullmatch(r"\\prime(?: \\prime)*", script.key)
                if prime:
                    primes += "'" * script.key.count("\\prime")
                elif token == "_":
                    sub = script
                else:
                    sup = script
            if sub is None and sup is None:
                nucleus_end = self.last_end()
        return Atom(key + primes, start, nucleus_end, self.last_end(), inner, sub, sup)

    def script(self) -> Script:
        start = self.here()
        atoms = self.argument()
        return Script(_normal(atoms), atoms, start, self.last_end())

    def argument(self) -> tuple[Atom, ...]:
        """A braced sequence, or the one nucleus that TeX takes in its place."""
        if self.peek() == "{":
            self.take()
            return self.sequence("}")
        if self.peek() in ("", "}", "&", "_", "^", "\\\\", "\\right", "\\end"):
            raise TexSyntaxError("an argument is missing", self.here())
        start = self.here()
        key, inner = self.nucleus()
        return (Atom(key, start, self.last_end(), self.last_end(), inner),)

    def nucleus(self) -> tuple[str, tuple[tuple[Atom, ...], ...]]:
        """The normal form of the next nucleus and the sequences inside it."""
        token = self.take()
        if token == "{":
            atoms = self.sequence("}")
            # Braces around one nucleus change nothing; around more they make a group.
            plain = len(atoms) == 1 and atoms[0].normal == atoms[0].key
            return (atoms[0].key if plain else f"{{{_normal(atoms)}}}"), (atoms,)
        if token == "\\left":
            opening = self.take()
            atoms = self.sequence("\\right")
            return f"\\left{opening}{_normal(atoms)}\\right{self.take()}", (atoms,)
        if token == "\\begin":
            return self.environment()
        if token in DEFINITIONS:
            while self.peek() not in ("{", ""):
                self.take()
            return token + self.opaque(), ()
        if token == "\\let":
            return token + self.take() + (self.take() if self.peek() == "=" else "") + self.take(), ()
        return self.command(token, ARGUMENTS.get(token, ""))

    def environment(self) -> tuple[str, tuple[tuple[Atom, ...], ...]]:
        name = self.opaque()
        key, _ = self.command("", ENVIRONMENT_ARGUMENTS.get(name.strip("{}"), ""))
        atoms = self.sequence("\\end")
        if self.opaque() != name:
            raise TexSyntaxError(f"\\begin{name} is closed by another \\end", self.last_end())
        return f"\\begin{name}{key}{_normal(atoms)}\\end{name}", (atoms,)

    def command(self, name: str, kinds: str) -> tuple[str, tuple[tuple[Atom, ...], ...]]:
        """A command's normal form and the sequences among its arguments."""
        key, inner = name, []
        for kind in kinds:
            if kind in "mf":
                atoms = self.argument()
                key += f"{{{_normal(atoms)}}}"
                inner += [atoms] if kind == "m" else []
            elif kind == "o":
                key += self.opaque()
            elif kind == "O" and self.peek() == "[":
                start = self.here()
                while self.take() != "]":
                    pass
                key += self.tex[start : self.last_end()]
            elif kind == "d" or (kind == "*" and self.peek() == "*"):
                key += self.take()
            elif kind == "s":
                key += self.length()
        return key, tuple(inner)

    def opaque(self) -> str:
        """The text of a braced group, or of the one token in its place."""
        start, depth = self.here(), 0
        while True:
            token = self.take()
            depth += (token == "{") - (token == "}")
            if depth <= 0:
                return self.tex[start : self.last_end()]

    def length(self) -> str:
        """A length such as `{1em}` or `-3mu`."""
        match = LENGTH.match(self.tex, self.last_end())
        if match is None:
            raise TexSyntaxError("a length such as '1em' is wanted", self.here())
        while self.at < len(self.tokens) and self.here() < match.end():
            self.at += 1
        return match[0]
