r"""What is left of a text when everything is gone that is changed without thought: its fingerprints.

Of the tokens go comments, docstrings, line ends, indentation, round brackets, commas, imports, decorators, the heads
of functions and classes, and whatever stands in the stub. A literal counts by its kind. A name of the student's own
counts by how far back it was used last (Baker, 1993: parameterized pattern matching), so that renaming changes
nothing and using another variable does; what cannot be renamed (keywords, builtins,
`.softmax`, `dim=`) counts as it is.
Every `LENGTH` tokens in a row are hashed, and of each `WINDOW` neighbouring hashes the least is kept: winnowing
(Schleimer, Wilkerson and Aiken, 2003), which finds every match of `LENGTH + WINDOW - 1` tokens wherever it stands.

Nothing is parsed, so that a file that is not valid Python has fingerprints too, and none can stall this: the lexer
is one regular expression that never goes back.
"""

import builtins
import keyword
import re
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b

import numpy as np

# Tokens of one fingerprint.
LENGTH = 8
WINDOW = 4
# So many tokens in a row of the stub are the stub's.
STUB_LENGTH = 8
# Of a longer text the rest is not read: the longest solution of the course has 15,000 characters.
TEXT_LIMIT = 200_000

TOKEN = re.compile(
    r"""
      (?P<skip> [^\S\n]++ | \\\n | \#[^\n]*+ )
    | (?P<newline> \n )
    | (?P<string> [rbuftRBUFT]{0,2}+ (?:
          \"{3} (?: [^"\\]++ | \\(?:.|\Z) | "(?!"") )*+ (?: \"{3} | \Z )
        | '{3}  (?: [^'\\]++ | \\(?:.|\Z) | '(?!'') )*+ (?: '{3}  | \Z )
        | "  (?: [^"\\\n] | \\. )*+ "?
        | '  (?: [^'\\\n] | \\. )*+ '? ) )
    | (?P<number> \.?\d (?: [eE][+-] | [\w.] )*+ )
    | (?P<name> [^\W\d]\w*+ )
    | (?P<sign> -> | := | \.\.\. | (?: \*\* | // | >> | << | [-+*/%@&|^=<>!] ) =?+ | . )
    """,
    re.VERBOSE | re.DOTALL,
)
FIXED = {*keyword.kwlist, *dir(builtins)}
OPENING, CLOSING = "([{", ")]}"
HEADS, LINES = ("def", "class"), ("import", "from", "@")
# Signs that a formatter puts in and takes away.
UNTOLD = {"(", ")", ",", ";"}
# These words begin a line and stand in no brackets.
NEVER_INSIDE = {"def", "class", "import", "return", "raise", "while", "with"}
ASSIGNING = {"=", "+=", "-=", "*=", "/=", "@="}
BREAK = ("", "")


def fingerprints(text: str, stub: frozenset[int] = frozenset()) -> set[int]:
    """The fingerprints of a submission. `stub` has the runs of tokens that are not the student's (`stub_runs`)."""
    tokens = own_tokens(text)
    runs = hashes(tokens, STUB_LENGTH)
    given = np.isin(runs, np.array(sorted(stub), np.uint64))
    of_stub = np.zeros(len(tokens), bool)
    for place in np.flatnonzero(given):
        of_stub[place : place + STUB_LENGTH] = True
    kept: list[tuple[str, str]] = []
    for token, drop in zip(tokens, of_stub.tolist(), strict=True):
        if not drop:
            kept.append(token)
        elif kept and kept[-1] != BREAK:
            kept.append(BREAK)
    return winnowed(hashes(kept, LENGTH))


def stub_runs(stub: str) -> frozenset[int]:
    """Every run of tokens of the stub that is known again in a submission."""
    return frozenset(hashes(own_tokens(stub), STUB_LENGTH).tolist()) - {0}


def own_tokens(text: str) -> list[tuple[str, str]]:
    """Kind and text of each token that could be the student's own; `BREAK` where something was left out."""
    kept: list[tuple[str, str]] = []
    for line in logical_lines(text[:TEXT_LIMIT]):
        if all(kind == "string" for kind, _ in line):
            continue
        first = next((token for kind, token in line if token != "async"), "")
        if first in LINES:
            continue
        if first in HEADS:
            line = [BREAK, *after_colon(line)]
        kept += [token for token in line if token[1] not in UNTOLD]
    return kept


def logical_lines(text: str) -> Iterator[list[tuple[str, str]]]:
    """The tokens of each line that is not empty; a bracket holds lines together."""
    line: list[tuple[str, str]] = []
    depth = 0
    for match in TOKEN.finditer(text):
        kind, token = match.lastgroup or "", match[0]
        if kind == "skip":
            continue
        if kind == "newline":
            if line and depth <= 0:
                yield line
                line, depth = [], 0
            continue
        if depth > 0 and token in NEVER_INSIDE:
            # A bracket was left open, which must not make one line of the rest of the file.
            yield line
            line, depth = [], 0
        depth += (token in OPENING) - (token in CLOSING)
        if (
            token == "="
            and depth > 0
            and len(line) > 1
            and line[-1][0] == "name"
            and line[-2][1] in ("(", ",")
        ):
            # The name of an argument is not the caller's to choose.
            line[-1] = ("argument", line[-1][1])
        line.append((kind, token))
    if line:
        yield line


def after_colon(line: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What stands on the line of a function or class behind its head."""
    depth = 0
    for place, (_, token) in enumerate(line):
        depth += (token in OPENING) - (token in CLOSING)
        if token == ":" and depth <= 0:
            return line[place + 1 :]
    return []


def hashes(tokens: list[tuple[str, str]], length: int) -> np.ndarray:
    """The hash of each `length` tokens in a row; 0 where a break lies among them."""
    if len(tokens) < length:
        return np.zeros(0, np.uint64)
    codes, back = encoded(tokens)
    count = len(tokens) - length + 1
    total = np.zeros(count, np.uint64)
    broken = np.zeros(count, bool)
    for offset in range(length):
        code, since = codes[offset : offset + count], back[offset : offset + count]
        # A name last used before these tokens began is new to them.
        total = (
            total * np.uint64(0x9E3779B97F4A7C15)
            + code
            + np.where(since > offset, 0, since).astype(np.uint64)
        )
        total ^= total >> np.uint64(29)
        broken |= code == 0
    total[total == 0] = 1
    total[broken] = 0
    return total


def encoded(tokens: list[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """A number for each token, 0 for a break; and for the student's own names how many tokens ago each was used
    last, 0 for everything else."""
    own = own_attributes(tokens)
    codes, back = np.zeros(len(tokens), np.uint64), np.zeros(len(tokens), np.int64)
    last: dict[str, int] = {}
    before = ""
    for place, (kind, token) in enumerate(tokens):
        word = token if kind in ("sign", "argument") else kind
        if kind == "name":
            fixed = token not in own if before == "." else token in FIXED
            word = token if fixed else kind
            if not fixed:
                back[place] = place - last.get(token, -len(tokens))
                last[token] = place
        if kind:
            codes[place] = number(word)
        before = token
    return codes, back


def own_attributes(tokens: list[tuple[str, str]]) -> set[str]:
    """The attributes that the text itself assigns, or has of `self`: these its author may rename."""
    own = set()
    for place in range(1, len(tokens) - 1):
        (kind, name), (_, sign) = tokens[place], tokens[place + 1]
        if kind == "name" and tokens[place - 1][1] == ".":
            mine = place > 1 and tokens[place - 2][1] == "self"
            if mine or sign in ASSIGNING:
                own.add(name)
    return own


@lru_cache(10_000)
def number(word: str) -> int:
    """The same on every machine and in every run; never 0."""
    return int.from_bytes(blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "big") | 1


def winnowed(hashed: np.ndarray) -> set[int]:
    """Of each `WINDOW` neighbours the least, without the zeros."""
    if not len(hashed):
        return set()
    # Zeros, and what is beyond either end, never win, so that a short run is kept too.
    most = np.iinfo(np.uint64).max
    edge = np.full(WINDOW - 1, most, np.uint64)
    padded = np.concatenate([edge, np.where(hashed == 0, most, hashed), edge])
    least = np.lib.stride_tricks.sliding_window_view(padded, WINDOW).min(axis=1)
    return set(least.tolist()) - {int(most)}
