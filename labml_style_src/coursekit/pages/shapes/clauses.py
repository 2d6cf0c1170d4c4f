"""The grammar of a **Shapes.** paragraph: which clauses say that a value has a shape.

    `query` is `b h t d`                              also: are, has shape, of shape, a colon, or nothing
    `key` and `value` are `b g s d` and `b g s e`     one shape for all, or one for each
    the result is `... s`                             `...` or `*batch` stands for any axes before
    the results are `b h t d` and `b h t s`           a tuple
    the output is `b t m` and the weights `b h t s`   "the" and a name of the function
    `mask` is `t s` or `b h t s`                      either
    `mask` broadcasts to `b h t s`                    by PyTorch's rules

Everything else is prose, but for a code span of several axes that belongs to no such clause: it is a fault,
because nobody would notice that it is not checked. An axis is a letter, a name of the signature, a number, or
an expression without spaces: `2d`, `h·d`, `d/2`, `s+1`.
"""

import ast
import keyword
import re
from dataclasses import dataclass

from coursekit.pages.shapes.agreement import Stated, read_shape
from coursekit.pages.symbols.notation import CODE_SPAN, NAME

RESULT = "the result"
PARAGRAPH = re.compile(r"\*\*Shapes?\.?\*\*\.?(?P<text>.*?)(?=\n[ \t]*\n|\Z)", re.DOTALL)

# The patterns are for a text whose code spans are replaced by marks such as ⟨S3⟩: the number of the span and
# its kind, N a name, S a shape of several axes, A what may be either (`t`), X anything else. A space stands
# for any white space.
JOIN = r"(?:,? and |, )"
VERB = r"(?: (?:is|are|has|have|of)(?: both| all)?(?: the)?(?: shapes?)?(?: an?)?|:)"
BROADCAST = r"(?: (?:is |are |can be |must be )?broadcast(?:s|able)? (?:to|against|with))"
SHAPES = rf"⟨[SA]\d+⟩(?:(?:,? (?:and|or) |, )⟨[SA]\d+⟩(?!{VERB}))*"
PREDICATE = rf"(?:(?:(?P<broadcast>{BROADCAST})|{VERB}) | \(?(?=⟨S))(?P<shapes>{SHAPES})"


@dataclass(frozen=True)
class Claim:
    """A value has one of the shapes `options`; `subject` is a name of the function or `RESULT`, with `index`
    if a member of the tuple that is returned is meant."""

    subject: str
    options: tuple[Stated, ...]
    line: int
    broadcast: bool = False
    index: int | None = None


def read_claims(docstring: ast.Constant, names: frozenset[str]) -> tuple[list[Claim], list[tuple[int, str]]]:
    """The claims of a docstring about a function with these names; and what cannot be read, with its line."""
    claims: list[Claim] = []
    faults: list[tuple[int, str]] = []
    text = str(docstring.value)
    for paragraph in PARAGRAPH.finditer(text):
        line = docstring.lineno + text[: paragraph.start("text")].count("\n")
        reader = _Reader(paragraph["text"], line, names)
        claims += reader.claims
        faults += reader.faults
    return claims, faults


def _spaced(pattern: str) -> str:
    return pattern.replace(" ", r"\s+")


class _Reader:
    """Reads one paragraph into `claims` and `faults`."""

    def __init__(self, text: str, line: int, names: frozenset[str]) -> None:
        self.line = line
        self.names = names
        self.spans: list[str] = []
        self.claims: list[Claim] = []
        self.faults: list[tuple[int, str]] = []
        self.text = CODE_SPAN.sub(self.mark, text)
        words = "|".join(["results?", "outputs?", *sorted(name for name in names if name.isalpha())])
        item = rf"(?:(?:both )?⟨[NA]\d+⟩|\b[Tt]he (?:{words})\b)"
        read: set[str] = set()
        for match in re.finditer(_spaced(rf"(?P<items>{item}(?:{JOIN}{item})*){PREDICATE}"), self.text):
            read |= set(re.findall(r"⟨S\d+⟩", match["shapes"]))
            self.clause(match)
        for place in re.finditer(r"⟨S(\d+)⟩", self.text):
            if place[0] not in read:
                span = self.spans[int(place[1])]
                self.fault(place, f"what has the shape `{span}`? It is read as in: `name` is `{span}`")

    def mark(self, match: re.Match[str]) -> str:
        """The mark of a code span, with the line breaks that were in it."""
        words = match["code"].split()
        text = " ".join(words)
        self.spans.append(text)
        is_shape = read_shape(text) is not None and not any(keyword.iskeyword(word) for word in words)
        if is_shape and (len(words) > 1 or text.startswith(("...", "*"))):
            kind = "S"
        elif NAME.fullmatch(text) and len(text) > 1:
            kind = "N"
        else:
            kind = "A" if is_shape else "X"
        return f"⟨{kind}{len(self.spans) - 1}⟩" + "\n" * match[0].count("\n")

    def clause(self, match: re.Match[str]) -> None:
        words = re.split(_spaced(JOIN), match["items"])
        subjects = [self.subject(word, match) for word in words]
        places = [int(number) for number in re.findall(r"\d+", match["shapes"])]
        shapes = tuple(shape for place in places if (shape := read_shape(self.spans[place])))
        line = self.line_of(match)
        if len(shapes) == 1 or re.search(r"\bor\b", match["shapes"]):
            wide = match["broadcast"] is not None
            self.claims += [Claim(subject, shapes, line, wide) for subject in subjects]
        elif len(shapes) == len(subjects):
            self.claims += [Claim(s, (shape,), line) for s, shape in zip(subjects, shapes, strict=True)]
        elif subjects == [RESULT]:
            self.claims += [Claim(RESULT, (shape,), line, index=place) for place, shape in enumerate(shapes)]
        else:
            self.fault(
                match, f"{len(subjects)} values have {len(shapes)} shapes here: say one each, or one for all"
            )

    def subject(self, word: str, match: re.Match[str]) -> str:
        span = re.fullmatch(r"(?:both\s+)?⟨.(\d+)⟩", word)
        name = self.spans[int(span[1])] if span else word.split()[-1]
        if not span and name not in self.names:
            return RESULT
        if name not in self.names and f"self.{name}" not in self.names:
            self.fault(match, f"`{name}` is given a shape here, but the code has no such name")
        return name

    def line_of(self, match: re.Match[str]) -> int:
        return self.line + self.text[: match.start()].count("\n")

    def fault(self, match: re.Match[str], message: str) -> None:
        self.faults.append((self.line_of(match), message))
