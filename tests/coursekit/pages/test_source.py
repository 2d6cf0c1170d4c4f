"""The annotated-source parser: what becomes prose, what stays code, and that nothing is lost."""

import textwrap

import pytest

from coursekit.pages.problems import PageError
from coursekit.pages.source import Chapter, Row, read_chapter

HEAD = 'r"""# A title\n\nThe opening.\n"""\n\nimport math\n\n\n'


def chapter(code: str) -> Chapter:
    """The chapter of some code under a title and an import; its first line is line 9."""
    return read_chapter(HEAD + textwrap.dedent(code).lstrip("\n"), "x.py")


def shown(found: Chapter, row: Row) -> str:
    return "\n".join(found.text.split("\n")[line - 1] for line in row.lines)


def parts(code: str) -> list[tuple[str, str]]:
    """The prose and the code of each row."""
    found = chapter(code)
    return [(row.prose, textwrap.dedent(shown(found, row))) for row in found.rows]


def test_module_docstring_is_title_opening_and_body():
    text = 'r"""# Title\n\nOne\ntwo.\n\n```\n## no heading\n```\n\n## Part\n\nMore.\n"""\n'
    found = read_chapter(text, "x.py")
    assert (found.title, found.opening.text, found.opening.line) == (
        "Title",
        "One\ntwo.\n\n```\n## no heading\n```",
        3,
    )
    assert (found.body.text, found.body.line) == ("## Part\n\nMore.", 10)


def test_docstring_is_the_prose_of_its_signature_and_comments_divide_the_body():
    code = '''
        @cache
        def f(
            a,  # trailing
            # inside a bracket
            b,
        ):
            r"""## Head

            Prose of f.

                indented
            """
            x = "# no comment"

            y = (
                # nor this
                x
            )  # type: ignore

            # One thought
            # of two lines.
            for i in x: i; y  # trailing
            # noqa: E501
            return y
        '''
    found = chapter(code)
    first, second = found.rows
    assert first.prose == "Prose of f.\n\n    indented"
    assert (first.prose_line, first.lines[0], first.heading.text) == (17, 9, "Head")
    assert "# inside a bracket" in shown(found, first)
    assert shown(found, first).splitlines()[6:] == [
        '    x = "# no comment"',
        "",
        "    y = (",
        "        # nor this",
        "        x",
        "    )  # type: ignore",
    ]
    assert second.prose == "One thought\nof two lines."
    assert shown(found, second).splitlines()[-2:] == ["    # noqa: E501", "    return y"]
    assert [row.anchor for row in found.rows] == ["f.x", "f.for"]
    assert first.heading.anchor == "f"


def test_comment_at_the_end_of_a_body_belongs_to_the_code_above_it():
    code = '''
        def f(x):
            """Prose."""
            if x:
                a = 1
                # A remark.
            # Otherwise.
            else:
                b = 2
            return a
            # The end.
        '''
    assert parts(code) == [
        ("Prose.\n\n\nA remark.", "def f(x):\n    if x:\n        a = 1"),
        ("Otherwise.\n\n\n\nThe end.", "else:\n    b = 2\nreturn a"),
    ]


def test_try_clauses_async_and_nested_functions():
    code = '''
        async def f(x):
            """Prose."""
            try:
                await x
            # When it fails.
            except ValueError:
                pass

            def inner():
                """Inner prose."""
                return 1

            # Last.
            return inner
        '''
    found = chapter(code)
    assert [row.prose for row in found.rows] == ["Prose.", "When it fails.", "Inner prose.", "Last."]
    assert [row.anchor for row in found.rows] == ["f", "f.pass", "f.inner", "f.return"]
    assert found.rows[2].qualname == "f.inner"


def test_class_rows_belong_to_its_flow():
    code = '''
        class A:
            """Prose of A."""

            size: int = 1

            def __init__(self):
                self.a = 1

            # Above.
            @property
            # Between.
            def b(self):
                """Prose of b."""
                return 2
        '''
    found = chapter(code)
    (section,) = found.sections
    assert (section.qualname, section.kind) == ("A", "class")
    assert [row.qualname for row in section.rows] == ["A", "A.b"]
    assert section.rows[1].prose.split("\n\n") == ["Above.", "Between.", "Prose of b."]
    assert shown(found, section.rows[1]).lstrip().startswith("@property")
    assert "def __init__" in shown(found, section.rows[0])


def test_constants_with_a_comment_are_rows_and_others_join_a_neighbour():
    code = '''
        BARE = 0

        # Why two.
        TWO = 2
        THREE = 3


        def f():
            """Prose."""


        FOUR = 4


        def g():
            """More."""
        '''
    found = chapter(code)
    assert [(row.anchor, shown(found, row)) for row in found.rows] == [
        ("TWO", "BARE = 0\nTWO = 2\nTHREE = 3"),
        ("f", "def f():"),
        ("g", "FOUR = 4\n\ndef g():"),
    ]
    assert [section.kind for section in found.sections] == ["statements", "function", "function"]


def test_code_without_prose_joins_the_thought_before_or_the_first_one_after():
    assert parts("def f():\n    x = 1\n    # Why.\n    return x\n\n\ndef g():\n    return 2\n") == [
        ("Why.", "def f():\n    x = 1\n    return x\n\ndef g():\n    return 2")
    ]
    assert parts("def f():\n    # Why.\n    return 1\n") == [("Why.", "def f():\n    return 1")]
    assert parts("def f():\n    return 1\n") == [("", "def f():\n    return 1")]


def test_imports_all_type_checking_and_example_are_left_out_with_their_comments():
    code = '''
        # About the import.
        import torch

        __all__ = [
            "f",
        ]

        if TYPE_CHECKING:
            from x import y


        def f():
            """Prose."""
            import late


        # About the example.
        def example(axes):
            """Run."""
            # Inside.
            f()
        '''
    found = chapter(code)
    (row,) = found.rows
    assert shown(found, row) == "def f():\n    import late"
    assert {6, 9, 10, 12, 13, 14} <= set(found.omitted)
    assert "example" not in shown(found, row)
    assert not any("About" in prose.text for prose in found.proses)


def test_a_line_that_an_import_shares_with_a_constant_is_shown():
    found = chapter("import torch; SIZE = 2\n")
    assert [shown(found, row) for row in found.rows] == ["import torch; SIZE = 2"]


def test_line_continuations_strings_and_semicolons_stay_whole():
    code = '''
        def f(x):
            """Prose."""; a = 1
            text = """
        # no comment

        """
            total = x + \\
                a; b = 2
            return f"{text}# {total}" # trailing
        '''
    found = read_chapter(HEAD + textwrap.dedent(code).lstrip("\n"), "x.py")
    (row,) = found.rows
    assert row.prose == "Prose."
    assert list(row.lines) == list(range(9, 18))


def test_crlf_tabs_and_a_byte_order_mark_change_nothing():
    plain = HEAD + 'def f(x):\n\t"""Prose.\n\n\tMore.\n\t"""\n\tif x:\n\t\ty = 1\n\t\t# End.\n\treturn x\n'
    unix, windows = read_chapter(plain, "x.py"), read_chapter("\ufeff" + plain.replace("\n", "\r\n"), "x.py")
    assert unix == windows
    assert unix.rows[0].prose == "Prose.\n\nMore.\n\n\n\nEnd."


def test_every_fault_is_collected_with_its_line():
    code = '''
        def f():
            """Prose

            ## Late heading
            """
            # # Title again
            x = 1
            # Underlined
            # ----------
            # $$
            # =
            # $$
            return x
        '''
    found = read_chapter(textwrap.dedent(code).lstrip("\n"), "x.py")
    assert [(problem.line, problem.message.split(":")[0]) for problem in found.problems] == [
        (1, "the module docstring needs a first line '# Title'"),
        (4, "a heading must be the first line of its docstring or comment"),
        (6, "a page has one title, in its module docstring"),
        (9, "a heading must be the first line of its docstring or comment"),
    ]


def test_a_docstring_whose_escapes_move_lines_is_a_fault():
    assert "begin it with r" in chapter('def f():\n    """a\\nb"""\n').problems[0].message


def test_invalid_python_names_file_and_line():
    with pytest.raises(PageError, match=r"^x\.py:2: not valid Python"):
        read_chapter("x = 1\ndef f(:\n", "x.py")


def test_anchors_do_not_depend_on_counts_and_are_unique():
    code = '''
        def f(x):
            """Prose."""
            # One.
            a, self.b = x
            # Two.
            a = 2
            # Three.
            a = 3
            # Four.
            return a
        '''
    assert [row.anchor for row in chapter(code).rows] == ["f", "f.a", "f.a-2", "f.a-3", "f.return"]
