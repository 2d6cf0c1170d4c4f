"""The server: the way out of a taken port, and what a reader sees while a source has a fault."""

import socket

import pytest
from watchdog.events import FileModifiedEvent

from coursekit.course import EnvironmentFault
from coursekit.pages.site import serve


@pytest.fixture
def taken_port():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_taken_port_names_the_way_out(small_course, taken_port):
    with pytest.raises(EnvironmentFault, match=f"make serve PORT={taken_port + 1}"):
        serve.serve(small_course, taken_port, print)
    assert not (small_course.root / "build").exists()


@pytest.fixture
def server(warm_course):
    said = []
    server = serve.CourseServer(warm_course, 0, said.append)
    server.said = said
    yield server
    server.worker.close()
    server.server_close()


def test_a_fault_is_shown_on_the_last_good_page_until_it_is_mended(server):
    page = b"<html><body>text</body></html>"
    server.rebuild()
    assert "nothing has changed" in server.said[-1]
    assert b"alert" not in server._inject_js_into_html(page, 1)

    source = server.course.lesson("gated").source
    good = source.read_text("utf-8")
    source.write_text(good.replace("[check:test_agrees", "[check:<test>_agrees"), "utf-8")
    server.rebuild()
    assert "the last good site stays" in server.said[-1]
    shown = server._inject_js_into_html(page, 1)
    assert b'role="alert"' in shown
    assert b"gated.py:" in shown
    assert b"<test>" not in shown
    assert (server.course.root / "build" / "site" / "index.html").exists()

    source.write_text(good.replace("The idea, in another.", "Mended."), "utf-8")
    server.rebuild()
    assert "built 9 pages" in server.said[-1]
    assert b"alert" not in server._inject_js_into_html(page, 1)
    site = server.course.root / "build" / "site"
    assert "Mended." in (site / "mechanisms" / "gated" / "index.html").read_text("utf-8")


def test_the_page_for_missing_pages_reloads_too(server):
    shown = server.error_page(404)
    assert b"livereload" in shown


@pytest.mark.parametrize(
    ("path", "wanted"),
    [("lessons/01_gated/lesson.py", True), ("labml_style_src/__pycache__/gated.pyc", False)],
)
def test_what_python_writes_for_itself_builds_nothing(server, path, wanted):
    server.noticed(FileModifiedEvent(path))
    assert server._want_rebuild == wanted
