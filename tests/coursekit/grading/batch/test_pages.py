"""The pages of a class as text: what they say, and that no student's text is anything but text there.

`tests/site/test_grading_pages.py` looks at them in a browser.
"""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.coursekit.grading.batch.made_up import NASTY, report, result

from coursekit.course import Lesson
from coursekit.grading import feedback
from coursekit.grading.batch import pages
from coursekit.grading.batch.assignment import Assignment, Late
from coursekit.grading.batch.result import ERROR, NOT_RUN, UNREADABLE, Result
from coursekit.grading.batch.similar import Group, Pair
from coursekit.grading.report import Check, Report, Task

RULES = Assignment("tiny")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Page(HTMLParser):
    """A page taken apart: its tags, its addresses, its policy, and its text as it is read."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text("utf-8")
        self.tags: list[str] = []
        self.links: list[str] = []
        self.policy = ""
        self.style = False
        self.parts: list[str] = []
        self.row = 0
        self.rows: list[str] = []
        self.feed(self.html)
        self.text = " ".join("".join(self.parts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        known = dict(attrs)
        self.links += [known[name] or "" for name in ("href", "src") if name in known]
        assert not [name for name in known if name.startswith("on")]
        if known.get("http-equiv") == "Content-Security-Policy":
            self.policy = known["content"] or ""
        self.style = tag == "style"
        if tag == "tr":
            self.row = len(self.parts)

    def handle_data(self, data: str) -> None:
        if not self.style:
            self.parts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self.style = False
        if tag not in ("a", "bdi", "code", "span", "i", "b"):
            self.parts.append(" ")
        if tag == "tr":
            self.rows.append(" ".join("".join(self.parts[self.row :]).split()))


def student_page(out: Path, lesson: Lesson, found: Result, rules: Assignment = RULES) -> Page:
    return Page(pages.write_feedback(out, lesson, rules, found))


def class_page(out: Path, lesson: Lesson, *found: Result, alike: list[Group] | None = None) -> Page:
    return Page(pages.write_report(out, lesson, RULES, list(found), alike or []))


def test_a_student_reads_what_attn_check_says(tmp_path: Path, lesson: Lesson):
    page = student_page(tmp_path, lesson, result("ada"))
    terminal = " ".join(feedback.plain(report(), 500).split())
    said = [text for section in feedback.sections(report()) for _, text in section.texts]
    assert len(said) == 4
    for text in said:
        for line in text.removeprefix("printed: ").split("\n"):
            assert line in page.text
            assert line in terminal
    for section in feedback.sections(report()):
        assert section.title in page.text
    assert "the file calls exit()" in page.text
    assert "0 of 3 points, 0 of 1 check" in page.text


def test_the_first_hint_of_what_is_unsolved_is_folded(tmp_path: Path, lesson: Lesson):
    tasks = [Task("A", "A", ["look `here`", "look there"], [Check("test_a", 1, "failed")])]
    tasks += [Task("B", "B", ["no need"], [Check("test_b", 1)])]
    page = student_page(tmp_path, lesson, result("ada", report=Report("tiny", tasks)))
    assert re.findall(r"<details>.*?</details>", page.html, re.DOTALL) == [
        "<details><summary>A hint</summary><p>look <code>here</code></p></details>"
    ]
    assert "look there" not in page.html
    assert "no need" not in page.html


def test_the_arithmetic_of_a_score_is_shown(tmp_path: Path, lesson: Lesson):
    rules = Assignment("tiny", late=Late(per_day=0.1, days=5), weights={"TestSlopes": 5})
    page = student_page(tmp_path, lesson, result("ada", 4.0, earned=5.0, max_score=9.0, late_days=2), rules)
    assert page.rows == [
        "Task Checks Their points Points",
        "✓passed: 1. Slopes 1 of 1 2 of 2 5 of 5",
        "✗failed: 2. Bias 0 of 1 0 of 3 0 of 3",
        "·not done: 3. Cache 0 of 1 0 of 1 0 of 1",
        "2 days late: 20 % less −1",
        "Score 4 of 9",
    ]
    too_late = student_page(tmp_path, lesson, result("ada", 0.0, earned=5.0, late_days=6), rules)
    assert "6 days late: after 5 days nothing is kept −5" in too_late.text


def test_what_was_taken_off_for_ready_made_attention_is_a_row(tmp_path: Path, lesson: Lesson):
    rules = Assignment("tiny", fused="fail")
    page = student_page(
        tmp_path, lesson, result("ada", 0.5, evidence=["line 3 calls sdpa", "TestBias: no points"]), rules
    )
    assert "calls a ready-made attention earns nothing (see below) −1.5" in page.text
    assert "By the rules of this assignment" in page.text
    assert "2. Bias: no points" in page.text
    thirds = Assignment("tiny", fused="fail", weights={"TestSlopes": 1 / 3})
    rounded = student_page(tmp_path, lesson, result("ada", 0.3333), thirds)
    assert "earns nothing" not in rounded.text
    kind = student_page(tmp_path, lesson, result("ada", evidence=["line 3 calls sdpa"]))
    assert "line 3 calls sdpa" in kind.text
    assert "This alone costs no points" in kind.text
    assert "earns nothing" not in kind.text


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (UNREADABLE, ["could not be read", "two files in the zip", "Wanted is one file", "0 of 6 points"]),
        (NOT_RUN, ["could not be run", "two files in the zip", "attn check alibi", "0 of 6 points"]),
        (ERROR, ["The grader failed, not you", "Not graded yet", "nothing for you to do"]),
    ],
)
def test_who_was_not_graded_reads_why_and_what_to_do(
    tmp_path: Path, lesson: Lesson, status: str, said: list[str]
):
    found = result("ada", 0.0, status=status, message="two files in the zip", report=None)
    page = student_page(tmp_path, lesson, found)
    for sentence in said:
        assert sentence in page.text
    # The grader's own trouble is not the student's to read, and zero points would not be true.
    assert ("two files" in page.text, "of 6 points" in page.text) == ((status != ERROR,) * 2)


def test_the_problem_of_a_file_that_does_not_run_is_quoted(tmp_path: Path, lesson: Lesson):
    problem = "x.py is not valid Python: invalid syntax\nline 2:\n      def f(:\n            ^"
    found = result("ada", 0.0, status=NOT_RUN, report=Report("tiny", [], problem), message=problem)
    page = student_page(tmp_path, lesson, found)
    assert "<pre>def f(:\n      ^</pre>" in page.html
    assert page.text.count("invalid syntax") == 1


HOSTILE = [
    "<script>document.title = 'x'</script>",
    "</style></title><img src=x onerror=alert(1)>",
    "&lt;script&gt; &#60;b&#62; {{ 7 * 7 }} {% raw %}",
    "\u202egnp.exe\u2066 \u200b\u200d\ufeff",
    "\x1b[31mred\x07\x00\x9b",
    "javascript:alert(1)",
    "\ud800 lone",
    "x" * 1_000_000,
    "\n" * 100_000,
    NASTY,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_text_and_little_of_it(tmp_path: Path, lesson: Lesson, text: str):
    nasty = report(message=text)
    nasty.notes = [text]
    case = nasty.tasks[1].checks[0].cases[0]
    case.name, case.printed = text, text
    known = {"message": text, "submission": text, "events": [text] * 1000, "evidence": [text] * 1000}
    found = result(text, report=nasty, sandbox=[text], **known)
    plain = student_page(tmp_path, lesson, result("ada"))
    page = student_page(tmp_path, lesson, found)
    assert set(page.tags) <= set(plain.tags) | {"ul", "li", "pre", "code"}
    assert page.html.count("</style>") == page.html.count("</title>") == 1
    pair = [Group((text, "ada"), (Pair(text, "ada", 1.0, 99.0),))]
    unreadable = result(text + "2", status=UNREADABLE, message=text, report=None)
    everyone = class_page(tmp_path, lesson, found, unreadable, result("ada"), alike=pair)
    assert "script" not in everyone.tags
    assert "img" not in everyone.tags
    for each in (page, everyone):
        assert len(each.html) < 50_000
        assert [c for c in each.html if not c.isprintable() and c != "\n"] == []
        assert each.policy == POLICY
        assert not [
            link for link in each.links if not re.match(r"#[\w-]+$|feedback/[\w.~%-]+\.html$|data:,$", link)
        ]


@pytest.mark.parametrize(
    "student", ["../../ada", "/etc/ada", "a/b", "..", "", "nul", "Zoë \u202e", "x" * 5000]
)
def test_a_page_lies_in_the_folder_and_is_linked(tmp_path: Path, lesson: Lesson, student: str):
    out = tmp_path / "out"
    path = pages.write_feedback(out, lesson, RULES, result(student))
    assert path.parent == out / "feedback"
    assert [each for each in out.rglob("*") if each.is_file()] == [path]
    page = class_page(out, lesson, result(student))
    assert f"feedback/{path.name}" in page.links


def test_a_page_is_the_same_whatever_the_order(tmp_path: Path, lesson: Lesson):
    found = [result(f"s{i}", float(i % 3), late_days=i % 2, events=["slow"] * (i % 2)) for i in range(9)]
    first = class_page(tmp_path, lesson, *found).html
    assert class_page(tmp_path, lesson, *reversed(found)).html == first


def test_the_report_names_whom_a_misconception_struck(tmp_path: Path, lesson: Lesson):
    page = class_page(
        tmp_path, lesson, result("ada"), result("ben"), result("eve", report=None, status=ERROR)
    )
    section = page.html[page.html.index('id="misconceptions"') :]
    assert "Your slopes are positive." in section
    assert "2 students" in section
    assert re.findall(r'"(feedback/\w+\.html)"', section[: section.index("</section>")]) == [
        "feedback/ada.html", "feedback/ben.html"
    ]  # fmt: skip
    assert "3 handed in: 2 graded, 1 to be graded again." in page.text


def test_groups_are_shown_without_a_verdict(tmp_path: Path, lesson: Lesson):
    group = Group(("ada", "ben", "eve"), (Pair("ada", "ben", 0.999, 90.0), Pair("ben", "eve", 0.7, 50.0)))
    page = class_page(tmp_path, lesson, *map(result, ("ada", "ben", "eve")), alike=[group])
    assert "ada and ben: 99 %" in page.text
    assert "70 % to 99 %" in page.text
    assert "not why" in page.text
    like = Group(("ada", "eve"), (Pair("eve", "", 0.9, 90.0), Pair("ada", "", 0.8, 90.0)), True)
    page = class_page(tmp_path, lesson, *map(result, ("ada", "ben", "eve")), alike=[like, group])
    assert (
        "Like the course's own solution: ada eve How much each shares eve: 90 % ada: 80 % 80 % to 90 %"
        in page.text
    )
    assert not re.search(r"plagiar|cheat|copied|suspect", page.text, re.IGNORECASE)


def test_a_report_of_a_thousand_is_small(tmp_path: Path, lesson: Lesson):
    found = [result(f"A student with a longer name {i}", i % 7, late_days=i % 3) for i in range(1000)]
    names = tuple(each.student for each in found)
    every_pair = tuple(Pair(names[0], name, 1.0, 99.0) for name in names[1:])
    page = class_page(tmp_path, lesson, *found, alike=[Group(names, every_pair)])
    assert len(page.html.encode()) < 2_000_000
    for name in names:
        assert page.text.count(name) >= 2
    assert "... and 979 more" in page.text


def test_an_empty_class_has_a_report(tmp_path: Path, lesson: Lesson):
    assert "0 handed in: nothing to grade." in class_page(tmp_path, lesson).text
