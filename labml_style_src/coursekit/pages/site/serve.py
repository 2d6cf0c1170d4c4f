"""`attn serve`: build, serve, and build again on every edit.

MkDocs' server brings the live reload. While a source has a fault, the last good site stays, and every page
says what is wrong, as the terminal does.
"""

import html
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from mkdocs.livereload import LiveReloadServer
from watchdog.events import FileSystemEvent, FileSystemEventHandler

from coursekit.course import Course, EnvironmentFault
from coursekit.pages import inputs, site
from coursekit.pages.worker import Worker

HOST = "127.0.0.1"
POLL_S = 0.25
BANNER = (
    '<pre role="alert" style="position:fixed;inset:auto 0 0 0;z-index:99;margin:0;padding:1rem;'
    "max-height:50vh;overflow:auto;background:#7d1128;color:#fff;font:14px/1.5 monospace;"
    'white-space:pre-wrap">{}</pre>'
)


class CourseServer(LiveReloadServer):
    """Serves `build/site`; shows on each page what keeps the course from being built."""

    def __init__(self, course: Course, port: int, say: Callable[[str], None]) -> None:
        self.course = course
        self.say = say
        self.worker = Worker(course.root)
        self.fault = ""
        self.outdated = False
        super().__init__(
            self.rebuild, HOST, port, str(course.root / "build" / "site"), polling_interval=POLL_S
        )

    def rebuild(self) -> None:
        """Build, and say how it went. A fault ends nothing: the browser reloads and shows it."""
        began = time.monotonic()
        if not self.outdated and inputs.engine_changed():
            self.outdated = True
            self.say("coursekit itself has changed: end `attn serve` and start it again to see it")
        try:
            built = site.build(Course(self.course.root), self.say, self.worker)
            self.fault = ""
            done = f"built {built.pages} pages" if built.changed else "nothing has changed"
            self.say(f"{done} in {time.monotonic() - began:.1f} s")
        except site.BuildError as error:
            self.fault = str(error)
            self.say(f"{self.fault}\n{len(error.problems)} to mend; the last good site stays")
        except Exception as error:
            # Whatever else an edit breaks, the next edit may mend.
            self.fault = f"{type(error).__name__}: {error}"
            self.say(f"the build failed: {self.fault}")

    def watch(self, path: str, func: None = None, *, recursive: bool = True) -> None:
        """Build when a file under `path` changes, but for those that Python and Jupyter keep for themselves."""
        handler = FileSystemEventHandler()
        handler.on_any_event = self.noticed  # type: ignore[method-assign]
        self._watched_paths[path] = 1
        self.observer.schedule(handler, path, recursive=recursive)

    def noticed(self, event: FileSystemEvent) -> None:
        path = Path(os.fsdecode(event.dest_path or event.src_path))
        if not event.is_directory and not inputs.IGNORED & set(path.parts):
            with self._rebuild_cond:
                self._want_rebuild = True
                self._rebuild_cond.notify_all()

    def _inject_js_into_html(self, content: bytes, epoch: int) -> bytes:
        page: bytes = super()._inject_js_into_html(content, epoch)
        if not self.fault:
            return page
        banner = BANNER.format(html.escape(self.fault)).encode()
        at = page.rfind(b"</body>")
        return page[:at] + banner + page[at:] if at >= 0 else page + banner

    def error_page(self, code: int) -> bytes | None:
        path = Path(self.root) / f"{code}.html"
        if path.is_file():
            return self._inject_js_into_html(path.read_bytes(), self._visible_epoch)
        return self._inject_js_into_html(b"<!doctype html><body></body>", self._visible_epoch)


def serve(course: Course, port: int, say: Callable[[str], None]) -> None:
    """Serve until interrupted. Raises `EnvironmentFault` before anything is built."""
    check_port(port)
    logging.getLogger("mkdocs").setLevel(logging.ERROR)
    server = CourseServer(course, port, say)
    server.error_handler = server.error_page
    # Importing torch takes seconds: let it happen beside the first build.
    server.worker.start()
    try:
        server.rebuild()
        for path in inputs.watched(course):
            server.watch(str(path))
        say(f"serving at {server.url}  (Ctrl-C ends it)")
        server.serve()
    except KeyboardInterrupt:
        say("stopped")
    finally:
        server.shutdown()
        server.worker.close()


def check_port(port: int) -> None:
    """Raise `EnvironmentFault` if something listens there already."""
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex((HOST, port)) == 0:
            raise EnvironmentFault(
                f"port {port} is taken by another program: try `make serve PORT={port + 1}` or "
                f"`attn serve --port {port + 1}`"
            )
