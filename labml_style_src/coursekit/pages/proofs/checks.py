"""Claims with their proof: `[check:test_name]` in prose becomes a badge that opens the test's record."""

import difflib
import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from coursekit.pages.inserts import CODE
from coursekit.pages.problems import Problem
from coursekit.pages.proofs.records import Record

# In a table the bar before a label is written `\|`. The mark that closes the claim stays on the line of its badge.
CHECK = re.compile(
    rf"""
    {CODE}
    | \[check:\s*(?P<name>[^]|\\]*?)\s*(?:\\?\|(?P<label>[^]]*))?\](?P<mark>[.,;:!?)]*)
    """,
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)


@dataclass
class Checks:
    """Writes the badges of one page and collects what is wrong with its claims.

    `tests` are the known tests with the address of each, `lookup(test)` their records; on a page of no mechanism
    a test's name is `slug.test_name`. An unknown or a failed test is a problem; a test without a fresh record
    shows as stale.
    """

    path: str
    tests: Mapping[str, str]
    lookup: Callable[[str], Sequence[Record]]
    problems: list[Problem] = field(default_factory=list)
    count: int = 0

    def replace(self, markdown: str, line: int) -> str:
        """The Markdown with a badge for each check; `line` is the file's line of the first of its lines."""

        def badge(match: re.Match[str]) -> str:
            if match["code"]:
                return match["code"]
            shown = self._badge(match["name"], match["label"], line + markdown.count("\n", 0, match.start()))
            return f'<span class="claim">{shown}{match["mark"]}</span>' if match["mark"] else shown

        return CHECK.sub(badge, markdown)

    def _badge(self, name: str, label: str | None, line: int) -> str:
        if name not in self.tests:
            near = difflib.get_close_matches(name, self.tests, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "its test file has no such test"
            self.problems.append(Problem(self.path, line, f"unknown check '{name}': {hint}"))
            return ""
        records = self.lookup(name)
        for record in records:
            if record.outcome == "failed":
                message = f"check '{name}' failed on {record.device}: mend it and run 'attn verify'"
                self.problems.append(Problem(self.path, line, message))
        self.count += 1
        text = html.escape(" ".join((label or _claim(name)).split()), quote=False)
        fresh = any(record.outcome == "passed" and not record.stale for record in records)
        shown = f"✓ {text}" if fresh else f"{text} · stale"
        said = [_said(record) for record in records] or ["no record yet"]
        link = f'<a href="{self.tests[name]}"><code>{name}</code></a>'
        return (
            f'<button type="button" class="check {"passed" if fresh else "stale"}" '
            f'popovertarget="check-{self.count}">{shown}</button>'
            f'<span popover class="record" id="check-{self.count}" data-search-exclude>{link}'
            f"{''.join(f'<small>{html.escape(one, quote=False)}</small>' for one in said)}</span>"
        )


def _claim(name: str) -> str:
    """What a test says in its name: `sliding_window.test_memory_is_linear` says 'memory is linear'."""
    return name.rpartition(".")[2].removeprefix("test_").replace("_", " ")


def _said(record: Record) -> str:
    """One device's record in a line: passed · error 2.2e-16, bound 1.1e-15 (0.20 of it) · 12 cases · ..."""
    parts = [f"{record.outcome}, before the code changed" if record.stale else record.outcome]
    if record.error is not None and record.bound is not None:
        share = f" ({record.error / record.bound:.2f} of it)" if record.bound > 0 else ""
        parts.append(f"error {_number(record.error)}, bound {_number(record.bound)}{share}")
    parts.append(f"{record.cases} case{'s' * (record.cases != 1)}")
    names = {"torch": "torch", "python": "Python"}
    versions = [
        f"{shown} {record.versions[name]}" for name, shown in names.items() if name in record.versions
    ]
    return " · ".join(filter(None, [*parts, record.device, ", ".join(versions)]))


def _number(value: float) -> str:
    return f"{value:.1e}" if value else "0"
