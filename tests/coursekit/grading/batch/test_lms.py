"""Scores in the rosters of Canvas and Moodle: who gets which, and what stays as it came."""

import re

import pytest
from tests.coursekit.grading.batch.made_up import NASTY, report, result

from coursekit.grading.batch.lms import CANVAS, MOODLE, OURS, merge
from coursekit.grading.batch.result import ERROR, UNREADABLE
from coursekit.grading.submission import ExerciseError

# As Canvas exports it: CRLF or LF, blanks before "Points Possible", a row about posting, totals, the test student.
GRADEBOOK = (
    b"\xef\xbb\xbfStudent,ID,SIS User ID,SIS Login ID,Section,Notes,Problem Set 1 (208548),ALiBi (210268),"
    b"Assignments Current Score,Unposted Final Score\r\n"
    b",,,,,,,Manual Posting,,\r\n"
    b"    Points Possible,,,,,,40.00,6.00,(read only),(read only)\r\n"
    b'"Doe, Jane",4521,U77,jdoe@uni.example,"Section A, Section B",,35.50,,0.0,0.0\r\n'
    b'"=""=cmd|x""",4522,U78,roe,Section A,=1+1,,4.00,0.0,0.0\r\n'
    b'"O\'Neil, Se\xc3\xa1n",4523,U79,soneil,Section A,,,EX,0.0,0.0\r\n'
    b'"Poe, Edgar Allan",4524,,epoe,Section A,,,N/A,,\r\n'
    b'"\xe9\x99\x88, \xe4\xbc\x9f",4525,U81,chenw,Section A,,,,0.0,0.0\r\n'
    b'"Student, Test",4600,,f3c9,Section A,,,,0.0,0.0\r\n'
)
WORKSHEET = (
    b'\xef\xbb\xbfIdentifier,"Full name","ID number","Email address",Status,Grade,"Maximum grade",'
    b'"Grade can be changed","Last modified (submission)","Last modified (grade)","Feedback comments"\n'
    b'"Participant 901","Jane Doe",77,jane.doe@uni.example,"Submitted for grading - ",,6.00,Yes,'
    b'"Saturday, 21 November 2026, 9:03 PM",-,\n'
    b'"Participant 902","Richard Roe",78,roe@uni.example,"No submission - ",,6.00,Yes,-,-,"<p>See me.</p>"\n'
    b'"Participant 903","Edgar Poe",79,poe@uni.example,"Submitted for grading - ",5.00,6.00,No,-,-,\n'
)


def canvas(*results, roster=GRADEBOOK, **options):
    return merge(roster, results, CANVAS, **options)


def lines_that_differ(before: bytes, after: bytes) -> list[tuple[bytes, bytes]]:
    pairs = zip(before.splitlines(True), after.splitlines(True), strict=True)
    return [pair for pair in pairs if pair[0] != pair[1]]


def test_canvas_gets_one_cell_a_student_and_nothing_else_changes():
    merged = canvas(result("jdoe", 4.25), result("chenw", 6))
    assert lines_that_differ(GRADEBOOK, merged.content) == [
        (
            b'"Doe, Jane",4521,U77,jdoe@uni.example,"Section A, Section B",,35.50,,0.0,0.0\r\n',
            b'"Doe, Jane",4521,U77,jdoe@uni.example,"Section A, Section B",,35.50,4.25,0.0,0.0\r\n',
        ),
        (
            b'"\xe9\x99\x88, \xe4\xbc\x9f",4525,U81,chenw,Section A,,,,0.0,0.0\r\n',
            b'"\xe9\x99\x88, \xe4\xbc\x9f",4525,U81,chenw,Section A,,,6,0.0,0.0\r\n',
        ),
    ]
    assert merged.filled == 2
    assert merged.column == "ALiBi (210268)"


@pytest.mark.parametrize(
    "student",
    [
        *("jdoe@uni.example", "JDOE@UNI.example", "jdoe", "U77", "4521", "Doe, Jane", "Jane Doe", "jane_doe"),
        *(
            "doejane_4521_998877_alibi",
            "doejane_LATE_4521_998877_alibi-1",
            "doejane_4521_998877",
            "doejane",
            "doejane_4521",
        ),
    ],
)
def test_a_student_of_canvas_is_found_by_every_name_that_canvas_gives(student):
    assert b",35.50,1,0.0" in canvas(result(student, 1)).content


def test_an_address_fits_the_login_without_its_domain():
    assert b",=1+1,,5,0.0" in canvas(result("roe@uni.example", 5)).content


def test_a_computed_column_takes_no_scores_even_where_canvas_does_not_say_so():
    roster = b'Student,ID,SIS Login ID,Section,alibi (1),Alibi Unposted Final Score\n"Doe, J",1,jd,A,,\n'
    assert (
        canvas(result("jd", 5), roster=roster.replace(b"alibi (1)", b"Alibi resit (1)")).column
        == "Alibi resit (1)"
    )
    with pytest.raises(ExerciseError, match=r"take scores: 'alibi \(1\)'$"):
        canvas(result("jd", 5), roster=roster, column="Alibi Unposted Final Score")


def test_everyone_who_gets_no_score_is_named():
    results = [
        result("jdoe", 1),
        *(result(name, 3) for name in ("nobody", "soneil", "epoe", "f3c9")),
        result("chenw", 0, status=ERROR, message="the disk is full"),
    ]
    merged = canvas(*results)
    assert merged.strangers == ["nobody", "f3c9"]
    assert merged.absent == ['="=cmd|x"']
    assert merged.left == [
        "O'Neil, Seán: the roster has 'EX'",
        "Poe, Edgar Allan: the roster has 'N/A'",
        "陈, 伟: the grader failed, grade again (the disk is full)",
    ]
    assert len(lines_that_differ(GRADEBOOK, merged.content)) == 1
    assert "in no row of the roster: nobody" in merged.lines()
    assert 'without a result: ="=cmd|x"' in merged.lines()


def test_a_score_that_is_there_already_keeps_its_bytes_and_another_is_told():
    assert canvas(result("roe", 4)).content == GRADEBOOK
    merged = canvas(result("roe", 0, status=UNREADABLE, report=None, message="not UTF-8"))
    assert b",=1+1,,0,0.0" in merged.content
    assert merged.replaced == ['="=cmd|x": 0 for 4.00']


def test_the_roster_of_a_german_spreadsheet_keeps_its_delimiter_and_comma():
    text = GRADEBOOK.decode("utf-8-sig").replace('"Section A, Section B"', "A").replace(", ", "@@")
    text = re.sub(r"(\d)\.(\d)", r"\1,\2", text.replace(",", ";")).replace("@@", ", ")
    merged = canvas(result("jdoe", 4.25), roster=text.encode("cp1252", "replace"))
    assert b";35,50;4,25;0,0;0,0\r\n" in merged.content
    assert not merged.content.startswith(b"\xef\xbb\xbf")


def test_a_swedish_roster_with_commas_in_both_places():
    # From an export of Canvas in Swedish: the delimiter is a comma, and so is the decimal mark.
    roster = (
        b"Student,ID,SIS User ID,SIS Login ID,Section,alibi (23769),Current Score\n"
        b'    Points Possible,,,,,"6,0",(l\xc3\xa4s endast)\n'
        b'"Sinclair, Lord Brett",12345,brettid,sinclair@x.example,Section,,0.0\n'
    )
    assert b',Section,"2,5",0.0\n' in canvas(result("brettid", 2.5), roster=roster).content


def test_first_and_last_name_in_columns_of_their_own():
    roster = (
        b"LastName,FirstName,ID,SIS Login ID,Section,alibi (1)\n    Points Possible,,,,,6\n"
        b"Doe,Jane,1,a,S,\nStudent,Test,2,b,S,\n"
    )
    merged = canvas(result("Jane Doe", 5), result("b", 1), roster=roster)
    assert b"Doe,Jane,1,a,S,5\nStudent,Test,2,b,S,\n" in merged.content
    assert merged.strangers == ["b"]


@pytest.mark.parametrize("column", ["Problem Set 1 (208548)", "Problem Set 1", "208548"])
def test_the_column_can_be_named(column):
    merged = canvas(result("roe", 38.5, max_score=40), column=column)
    assert b"=1+1,38.5,4.00" in merged.content


@pytest.mark.parametrize("column", ["Alibi", "Assignments Current Score", "ID", "Section"])
def test_a_column_that_takes_no_scores_is_refused_and_those_that_do_are_listed(column):
    said = r"no column named .*take scores: 'Notes'; 'Problem Set 1 \(208548\)'; 'ALiBi \(210268\)'$"
    with pytest.raises(ExerciseError, match=said):
        canvas(result("jdoe"), column=column)


def test_a_slug_that_two_columns_have_is_no_choice():
    roster = GRADEBOOK.replace(b"Problem Set 1", b"Alibi resit").replace(b"ALiBi (", b"Alibi first try (")
    with pytest.raises(ExerciseError, match="more than one column for 'alibi'"):
        canvas(result("jdoe"), roster=roster)
    # One that is exactly the slug is.
    assert canvas(result("jdoe"), roster=GRADEBOOK.replace(b"Problem Set 1", b"Alibi resit")).filled == 1


def test_other_points_than_the_rosters_are_never_written_unasked():
    with pytest.raises(ExerciseError, match=r"40 points where the results have 6 \(Doe, Jane\).*--scale"):
        canvas(result("jdoe", 3), column="208548")
    merged = canvas(result("jdoe", 1), column="208548", scale=True)
    assert b",6.67,,0.0" in merged.content
    assert merged.replaced == ["Doe, Jane: 6.67 for 35.50"]


def test_a_student_whom_two_rows_fit_is_an_error_that_names_all():
    roster = GRADEBOOK.replace(b"U79", b"4521").replace(b"U81", b"roe")
    with pytest.raises(ExerciseError, match=r"'4521' fits the rows 4, 6 .*\n'roe' fits the rows 5, 8 "):
        canvas(result("4521"), result("roe"), roster=roster)


def test_a_row_that_two_results_fit_is_an_error():
    with pytest.raises(ExerciseError, match="'jdoe' and 'U77' fit the same row 4"):
        canvas(result("jdoe"), result("U77"))


def test_a_key_decides_before_a_name_does():
    roster = GRADEBOOK.replace(b"chenw", b"janedoe")
    assert b"janedoe,Section A,,,1,0.0" in canvas(result("janedoe", 1), roster=roster).content


def test_a_download_whose_number_and_name_are_two_students_is_an_error():
    with pytest.raises(ExerciseError, match="'jdoe_4522' fits the rows 4, 5 "):
        canvas(result("jdoe_4522"))


def test_the_number_in_a_download_tells_namesakes_apart():
    roster = GRADEBOOK.replace("陈, 伟".encode(), b"Doe, Jane")
    merged = canvas(result("doejane_4525", 1), result("doejane_4521", 2), roster=roster)
    assert b"U81,chenw,Section A,,,1,0.0" in merged.content
    assert b"35.50,2,0.0" in merged.content
    with pytest.raises(ExerciseError, match="'Jane Doe' fits the rows 4, 8 "):
        canvas(result("Jane Doe"), roster=roster)


def test_the_number_in_a_download_is_the_id_of_canvas_and_nothing_else():
    roster = GRADEBOOK.replace(b"U81", b"4521").replace(b"chenw", b"x4521")
    assert b"35.50,1,0.0" in canvas(result("doejane_4521_99_alibi", 1), roster=roster).content


def test_moodles_worksheet_gets_grade_and_comment_and_keeps_what_a_teacher_wrote():
    merged = merge(WORKSHEET, [result("77", 4), result("roe@uni.example", 2.5), result("903", 1)], MOODLE)
    first, second, third = (after for _, after in [*lines_of(merged.content)])
    assert first.startswith(
        b'"Participant 901","Jane Doe",77,jane.doe@uni.example,"Submitted for grading - ",4,6.00'
    )
    assert OURS.replace('"', '""').encode() in first
    assert second == (
        b'"Participant 902","Richard Roe",78,roe@uni.example,"No submission - ",2.5,6.00,Yes,-,-,'
        b'"<p>See me.</p>"\n'
    )
    assert third == WORKSHEET.splitlines(True)[-1]
    assert merged.left == ["Richard Roe: the comment, since there is one", "Edgar Poe: the roster has '5.00'"]
    # Doing it again changes nothing.
    again = merge(merged.content, [result("77", 4), result("roe@uni.example", 2.5)], MOODLE)
    assert again.content == merged.content


def lines_of(content: bytes) -> list[tuple[int, bytes]]:
    """The rows of the worksheet; a comment has line ends of its own."""
    places = [found.start() for found in re.finditer(rb'^"Participant', content, re.MULTILINE)]
    return [(a, content[a:b]) for a, b in zip(places, [*places[1:], len(content)], strict=True)]


@pytest.mark.parametrize(
    "student",
    [
        "901",
        "Participant 901",
        "77",
        "jane.doe@uni.example",
        "jane.doe",
        "Jane Doe_901_assignsubmission_file_",
    ],
)
def test_a_student_of_moodle_is_found(student):
    assert merge(WORKSHEET, [result(student, 3)], MOODLE).content.count(b",3,6.00") == 1


def test_a_comment_is_html_in_which_nothing_of_the_students_is_markup():
    bad = report(message="<script>alert(1)</script>" + NASTY)
    merged = merge(WORKSHEET, [result("901", 1, report=bad)], MOODLE)
    text = merged.content.decode()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert not set("\x1b\x00\ufffe") & set(text)


def test_moodles_gradebook_has_the_assignment_in_a_column_of_its_own():
    roster = (
        b'"First name",Surname,"ID number","Email address","Assignment: Alibi (Real)"\nJane,Doe,77,j@x,-\n'
    )
    assert merge(roster, [result("Jane Doe", 5.5)], MOODLE).content.endswith(b"Jane,Doe,77,j@x,5.5\n")


def test_headers_in_another_language_are_named():
    roster = "ID;Vollständiger Name;Bewertung;Bestwertung\nTeilnehmer/in 5;Jo;;6,00\n".encode()
    with pytest.raises(ExerciseError, match="no column for 'alibi'"):
        merge(roster, [result("5", 2.5)], MOODLE)
    merged = merge(roster, [result("5", 2.5)], MOODLE, column="Bewertung", match=["ID"])
    assert merged.content.endswith(b"Teilnehmer/in 5;Jo;2,5;6,00\n")
    with pytest.raises(ExerciseError, match="--match Kennung: the roster has ID, Voll"):
        merge(roster, [result("5")], MOODLE, column="Bewertung", match=["Kennung"])
