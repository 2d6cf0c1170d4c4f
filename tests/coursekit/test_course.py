"""The naming convention: from a slug to paths, and what is missing or left over."""

from pathlib import Path

import pytest

from coursekit.course import Course, CourseError, Lesson, UnknownSlug, find_course


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def course(tmp_path):
    for folder in ("01_first", "06_alibi", "10_sinks", "notes", "7_short"):
        (tmp_path / "lessons" / folder).mkdir(parents=True)
    (tmp_path / "labml_style_src" / "annotated_attention").mkdir(parents=True)
    return Course(tmp_path)


def test_lessons_are_the_folders_with_a_number_in_order(course):
    assert [(lesson.number, lesson.slug) for lesson in course.lessons] == [
        (1, "first"),
        (6, "alibi"),
        (10, "sinks"),
    ]


def test_every_piece_is_found_by_the_slug(course):
    lesson = course.lesson("alibi")
    assert [path.relative_to(course.root).as_posix() for path in lesson.pieces()] == [
        "labml_style_src/annotated_attention/alibi.py",
        "tests/annotated_attention/test_alibi.py",
        "lessons/06_alibi/figures.py",
        "lessons/06_alibi/lesson.py",
        "lessons/06_alibi/lesson.ipynb",
        "lessons/06_alibi/exercise.py",
        "lessons/06_alibi/test_exercise.py",
        "lessons/06_alibi/misconceptions.py",
    ]
    assert lesson.mechanism.module == "annotated_attention.alibi"


@pytest.mark.parametrize("asked", ["alib", "albi", "06_alibi", "6", "06", "alibi_triton_and_more"])
def test_an_unknown_slug_names_the_nearest(course, asked):
    with pytest.raises(UnknownSlug, match="did you mean 'alibi'"):
        course.lesson(asked)


def test_an_unknown_slug_with_nothing_near_names_all(course):
    with pytest.raises(UnknownSlug, match="the lessons are: first, alibi, sinks"):
        course.lesson("zzz")


def test_neighbours(course):
    first, alibi, sinks = course.lessons
    assert course.neighbours(first) == (None, alibi)
    assert course.neighbours(alibi) == (first, sinks)
    assert course.neighbours(sinks) == (alibi, None)


def test_the_title_is_the_first_heading_of_the_mechanism(course):
    lesson = course.lesson("alibi")
    assert lesson.title == "alibi"
    write(lesson.source, 'r"""# Linear biases\n\nText.\n\n# Not this\n"""\n')
    assert Course(course.root).lesson("alibi").title == "Linear biases"


def test_a_mechanism_without_a_title_says_so(course):
    lesson = course.lesson("alibi")
    write(lesson.source, '"""Text."""\n')
    with pytest.raises(CourseError, match="needs a first line '# Title'"):
        _ = Lesson(course.root, 6, "alibi").title


def test_a_companion_has_no_mechanism(course):
    text = "# %% [markdown]\n# # Real models\n#\n# Companion to the lessons before it.\n"
    write(course.lesson("sinks").notebook, text)
    lesson = Course(course.root).lesson("sinks")
    assert lesson.is_companion
    assert lesson.title == "Real models"
    assert lesson.source not in lesson.pieces()


def test_a_file_belongs_to_the_longest_slug_that_fits(course):
    (course.root / "lessons" / "07_alibi_two").mkdir()
    content, tests = course.lesson("alibi").source.parent, course.lesson("alibi").test.parent
    for stem in ("alibi", "alibi_b", "alibi_a", "alibi_two", "alibi_two_a", "alibi_twofold"):
        write(content / f"{stem}.py")
    for stem in ("alibi", "alibi_a", "alibi_a_more", "alibi_two_more", "alibi_three"):
        write(tests / f"test_{stem}.py")
    course = Course(course.root)
    alibi, two = course.lesson("alibi"), course.lesson("alibi_two")
    assert [part.slug for part in alibi.parts] == ["alibi_a", "alibi_b", "alibi_twofold"]
    assert [part.slug for part in two.parts] == ["alibi_two_a"]
    assert [part.is_part for part in alibi.mechanisms] == [False, True, True, True]
    assert alibi.parts[0].module == "annotated_attention.alibi_a"
    assert course.owner("alibi_two_a") == two
    assert course.owner("alib") is None
    slugs = [mechanism.slug for mechanism in course.mechanisms]
    assert slugs == [
        "first",
        "alibi",
        *(part.slug for part in alibi.parts),
        "alibi_two",
        "alibi_two_a",
        "sinks",
    ]

    def proofs(mechanism):
        return [path.stem for path in mechanism.proofs]

    assert proofs(alibi.mechanism) == ["test_alibi", "test_alibi_three"]
    assert proofs(alibi.parts[0]) == ["test_alibi_a", "test_alibi_a_more"]
    assert proofs(two.mechanism) == ["test_alibi_two", "test_alibi_two_more"]
    assert [problem for problem in course.problems() if "alibi_b" in problem] == [
        "lesson 'alibi' lacks tests/annotated_attention/test_alibi_b.py"
    ]


def test_problems_name_every_missing_piece_and_every_orphan(course):
    content, tests = (
        course.root / "labml_style_src/annotated_attention",
        course.root / "tests/annotated_attention",
    )
    for lesson in course.lessons:
        for path in lesson.pieces():
            write(path)
    write(content / "__init__.py")
    write(content / "alibi_triton.py")
    write(tests / "test_alibi_triton.py")
    assert course.problems() == []
    course.lesson("first").figures.unlink()
    write(content / "lost.py")
    write(tests / "test_lost.py")
    (course.root / "lessons" / "06_again").mkdir()
    problems = Course(course.root).problems()
    assert problems[0] == "lesson 'first' lacks lessons/01_first/figures.py"
    assert sum("'again' lacks" in problem for problem in problems) == 8
    assert problems[-3:] == [
        "labml_style_src/annotated_attention/lost.py belongs to no lesson: no folder lessons/NN_lost/",
        "tests/annotated_attention/test_lost.py belongs to no lesson: no folder lessons/NN_lost/",
        "lesson number 06 is taken by 2 folders",
    ]


def test_the_course_is_found_from_any_folder_inside(course):
    assert find_course(course.root / "lessons" / "06_alibi").root == course.root.resolve()


def test_parts_stand_behind_what_they_need(tmp_path):
    """What the mechanism imports comes first, then no part before another that it imports, then by name."""
    folder = tmp_path / "labml_style_src" / "annotated_attention"
    folder.mkdir(parents=True)
    (tmp_path / "lessons" / "01_gated").mkdir(parents=True)
    needs = {"gated": ["slot"], "gated_all": ["train"], "gated_train": [], "gated_slot": [], "gated_draw": []}
    for stem, others in needs.items():
        lines = [f"from annotated_attention.gated_{other} import x\n" for other in others]
        (folder / f"{stem}.py").write_text("".join(lines), "utf-8")
    parts = Course(tmp_path).lesson("gated").parts
    assert [part.slug for part in parts] == ["gated_slot", "gated_draw", "gated_train", "gated_all"]
