"""What a file depends on, and its text without prose: the keys of caches and records."""

from coursekit.imports import closure, code_key, code_text, imported_modules

SOURCE = '''r"""A module."""

import torch  # trailing


def f(x):
    """Prose with "quotes",

    and a blank line."""
    # A reason.
    text = "# no comment"
    return x  # noqa


class C:
    "Ünïcode before the end."; y = 1
'''


def test_prose_goes_and_code_stays():
    assert code_text(SOURCE) == (
        'import torch\ndef f(x):\n    text = "# no comment"\n    return x\nclass C:\n    ; y = 1\n'
    )


def test_a_string_that_is_no_docstring_is_code():
    assert code_text('x = 1\n"""not a docstring"""\n') == 'x = 1\n"""not a docstring"""\n'


def test_imports_are_found_anywhere():
    text = "import a.b\ndef f():\n    from c import d\nfrom . import e\nfrom ..g import h\n"
    assert imported_modules(text, "p.q") == {"a.b", "c", "c.d", "p.q", "p.q.e", "p.g", "p.g.h"}


def course(tmp_path):
    package = tmp_path / "labml_style_src" / "annotated_attention"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "first.py").write_text("import torch\nx = 1\n")
    (package / "second.py").write_text("def f():\n    from annotated_attention.first import x\n")
    (package / "third.py").write_text("from annotated_attention import second\n")
    (package / "alone.py").write_text("x = 1\n")
    return package


def test_the_closure_follows_imports_through_the_course(tmp_path):
    package = course(tmp_path)
    found = {path.name for path in closure(tmp_path, [package / "third.py"])}
    assert found == {"__init__.py", "first.py", "second.py", "third.py"}


def test_a_key_changes_with_code_however_far_and_not_with_prose(tmp_path):
    package = course(tmp_path)
    before = code_key(tmp_path, [package / "third.py"])
    (package / "first.py").write_text('"""Now with prose."""\n\nimport torch\n# A reason.\nx = 1\n')
    (package / "alone.py").write_text("x = 2\n")
    assert code_key(tmp_path, [package / "third.py"]) == before
    (package / "first.py").write_text("import torch\nx = 2\n")
    assert code_key(tmp_path, [package / "third.py"]) != before
