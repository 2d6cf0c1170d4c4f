"""How long a writer waits: for a build from nothing, with nothing changed, and from a save to its page."""

import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from coursekit.course import Course, environment_of, find_course

NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "build", "work", "dist", "__pycache__")
SAVES = 3

# A build from nothing runs every notebook.
LONG = True


def run() -> list[dict]:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "course"
        shutil.copytree(find_course().root, root, ignore=NOT_COPIED)
        course = Course(root)
        return [
            {"what": "build from nothing", "seconds": build(course)},
            {"what": "build with nothing changed", "seconds": build(course)},
            {"what": "from saving a mechanism to its page", "seconds": save_to_page(course)},
        ]


def build(course: Course) -> float:
    """Seconds of a whole `attn build`, the start of Python included."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "coursekit", "build"]
    subprocess.run(command, cwd=course.root, env=environment_of(course), check=True, capture_output=True)
    return time.perf_counter() - began


def save_to_page(course: Course) -> float:
    """The median of some saves, from the write until the server answers with the new page."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lesson = course.lessons[-1]
    command = [sys.executable, "-m", "coursekit", "serve", "--port", str(port)]
    server = subprocess.Popen(command, cwd=course.root, env=environment_of(course), stdout=subprocess.DEVNULL)
    page = f"http://127.0.0.1:{port}/mechanisms/{lesson.slug}/"
    try:
        wait_for(page, lesson.title)
        time.sleep(3)
        waits = []
        for number in range(SAVES):
            text = lesson.source.read_text("utf-8")
            # The end of the first paragraph after the title.
            at = text.index("\n\n", text.index("\n\n") + 2)
            began = time.perf_counter()
            lesson.source.write_text(f"{text[:at]} Saved {number}.{text[at:]}", encoding="utf-8")
            wait_for(page, f"Saved {number}.")
            waits.append(time.perf_counter() - began)
            time.sleep(1)
        return sorted(waits)[len(waits) // 2]
    finally:
        server.terminate()
        server.wait()


def wait_for(page: str, text: str, timeout_s: float = 120) -> None:
    began = time.perf_counter()
    while time.perf_counter() - began < timeout_s:
        try:
            with urllib.request.urlopen(page, timeout=timeout_s) as answer:
                if text in answer.read().decode():
                    return
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.02)
    raise TimeoutError(f"{page} does not show '{text}' after {timeout_s:g} s")
