"""`attn bench`: what there is, what it found, and that a result is whole or not there."""

import datetime
import json
import sys

import pytest

from coursekit import __main__, benchmarks
from coursekit.course import Course

QUICK = '''"""Something quick: two cases."""


def run():
    print("a word on the way")
    yield {"what": "one", "ours_ms": 1.5}
    yield {"what": "two", "exponent_of": {"ours_ms": 2.0}}
'''
BROKEN = '''"""It breaks. After a case."""


def run():
    yield {"what": "one"}
    raise ValueError("no more")
'''
LONG = '"""It takes a day."""\n\nLONG = True\n\n\ndef run():\n    return [{"what": "all"}]\n'


@pytest.fixture
def course(small_course, monkeypatch) -> Course:
    folder = small_course.root / "benchmarks"
    folder.mkdir()
    (folder / "__init__.py").write_text("", "utf-8")
    for name, text in (("quick", QUICK), ("broken", BROKEN), ("day", LONG)):
        (folder / f"bench_{name}.py").write_text(text, "utf-8")
    monkeypatch.chdir(small_course.root)
    return small_course


@pytest.fixture
def attn(course, monkeypatch, capfd):
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["attn", *arguments])
        with pytest.raises(SystemExit) as caught:
            __main__.main()
        printed = capfd.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    return run


def test_the_list_says_what_each_is_about_and_how_old_its_result_is(attn, course):
    code, out, _ = attn("bench")
    assert code == 0
    assert out.splitlines() == [
        "broken  It breaks (never run)",
        "day     It takes a day (never run, runs only by name)",
        "quick   Something quick (never run)",
    ]
    path = course.benchmark("quick").result
    path.parent.mkdir()
    for days, words in ((0, "of today"), (1, "1 day old"), (12, "12 days old")):
        date = datetime.date.today() - datetime.timedelta(days)
        path.write_text(json.dumps({"date": date.isoformat(), "cases": []}), "utf-8")
        assert f"Something quick ({words})" in attn("bench")[1]


def test_an_unknown_name_is_one_line_with_the_nearest(attn):
    assert attn("bench", "quik") == (2, "", "attn: no benchmark is called 'quik': did you mean 'quick'?\n")
    assert "there are: broken, day, quick" in attn("bench", "xyz")[2]


def test_a_result_is_whole_and_one_that_breaks_leaves_its_last(attn, course):
    path = course.benchmark("broken").result
    path.parent.mkdir()
    last = '{"cases": [1]}'
    path.write_text(last, "utf-8")
    code, out, err = attn("bench", "--all")
    assert code == 1
    assert "attn: broken ended with an error; its last result stays" in err
    assert "ValueError: no more" in err
    assert path.read_text("utf-8") == last

    assert "  what two, exponent_of ours_ms 2" in out
    assert "a word on the way" in err
    # Neither a result of the long one, nor half a file.
    assert {each.name for each in path.parent.iterdir()} == {"broken.json", "quick.json"}
    result = json.loads(course.benchmark("quick").result.read_text("utf-8"))
    assert list(result) == ["benchmark", "date", "seconds", "machine", "versions", "cases"]
    assert (result["benchmark"], result["date"]) == ("quick", datetime.date.today().isoformat())
    assert {"system", "cpu", "cores", "threads"} <= set(result["machine"])
    assert {"python", "torch", "numpy"} <= set(result["versions"])
    assert result["cases"] == [
        {"what": "one", "ours_ms": 1.5},
        {"what": "two", "exponent_of": {"ours_ms": 2.0}},
    ]


def test_what_is_stopped_leaves_nothing(course):
    class Stopped(Exception):
        pass

    def stop(case):
        raise Stopped

    with pytest.raises(Stopped):
        benchmarks.measure(course.benchmark("quick"), stop)
    assert not course.benchmark("quick").result.parent.exists()
