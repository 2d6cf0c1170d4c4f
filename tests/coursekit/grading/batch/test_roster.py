"""A roster is kept byte for byte, but for the cells that are set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coursekit.grading.batch.roster import Roster, number_in
from coursekit.grading.submission import ExerciseError

CELLS = st.one_of(
    st.text(alphabet="ab ü=+'.0-\t#", max_size=6),
    st.text(alphabet='ab,;\n\r" ü=', max_size=6).map(lambda text: '"' + text.replace('"', '""') + '"'),
)


@given(
    st.lists(st.lists(CELLS, min_size=3, max_size=3), max_size=5),
    st.sampled_from([",", ";"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
    st.sampled_from(["utf-8", "cp1252"]),
)
def test_what_was_read_is_written_again(rows, delimiter, end, marked, encoding):
    lines = ["Student", "ID", "Score"], *rows
    text = "".join(delimiter.join(row) + end for row in lines)
    content = (b"\xef\xbb\xbf" if marked and encoding == "utf-8" else b"") + text.encode(encoding)
    roster = Roster.read(content)
    assert roster.content == content
    assert roster.delimiter == delimiter
    # The last line ends, so an empty row comes after it.
    assert [len(row) for row in roster.rows] == [3] * len(lines) + [1]


def test_only_the_cell_that_is_set_changes():
    content = b'Student;ID;"Sc""ore"\r\n"Doe; J";7;\r\nRoe ;8;"5,0"'
    roster = Roster.read(content)
    roster.set(1, 2, "7,5")
    roster.set(2, 2, "6,25")
    assert roster.content == b'Student;ID;"Sc""ore"\r\n"Doe; J";7;7,5\r\nRoe ;8;"6,25"'
    assert (roster.value(1, 0), roster.value(1, 2), roster.headers[2]) == ("Doe; J", "7,5", 'Sc"ore')


def test_a_value_that_needs_quotes_gets_them_and_a_short_row_is_filled_up():
    roster = Roster.read(b"a,b,c\n1\n2,3,4\n")
    roster.set(1, 2, '1,5 "x"\ny')
    assert roster.content == b'a,b,c\n1,,"1,5 ""x""\ny"\n2,3,4\n'
    assert roster.value(2, 7) == ""


@pytest.mark.parametrize(
    ("rows", "mark"),
    [
        ("a,b,c\n1,x,2.5\n", "."),
        ('a,b,c\n1,x,"2,5"\n', ","),
        ("a;b;c\n1;x;2.5\n", "."),
        ("a;b;c\n1;x;2\n", ","),
        ("a,b,c\n1,1.2.3,2\n", "."),
    ],
)
def test_the_decimal_mark_is_that_of_the_column_or_goes_with_the_delimiter(rows, mark):
    assert Roster.read(rows.encode()).decimal_mark(2) == mark


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "only one column"),
        (b"just a text\n", "only one column"),
        ("a,b\n1,2\n".encode("utf-16"), "is UTF-16, or no text"),
        (b'a,b\n"open,2\n', "row 2 has a quote that is not closed"),
        (b"a,b\n\x81\x8d,\xff\n", "neither UTF-8 nor Windows"),
    ],
)
def test_what_is_no_csv_file_is_said_so(content, said):
    with pytest.raises(ExerciseError, match=said):
        Roster.read(content)


def test_numbers_are_read_with_either_mark():
    assert [number_in(text) for text in (" 2,5 ", "2.50", "-3", "", "EX", "1.2.3", "nan")] == [
        *(2.5, 2.5, -3.0),
        *[None] * 4,
    ]
