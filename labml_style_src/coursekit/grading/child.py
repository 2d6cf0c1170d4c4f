"""The student's process: runs one submission and answers requests until its input ends.

A child of the zygote calls `serve`; elsewhere `main` runs in a fresh process. Requests come and answers go
through private descriptors; the student's code finds an empty input, and what it prints is kept up to a limit.
"""

import io
import os
import site
import sys
from typing import Any

from coursekit.grading import wire
from coursekit.grading.sandbox import trail, watch
from coursekit.grading.sandbox.blocked import block
from coursekit.grading.session import Session, describe_error

PRINT_LIMIT = 10_000


class Printed(io.TextIOBase):
    """Keeps the first characters that are written, and of the rest the number of lines."""

    def __init__(self) -> None:
        self.kept = ""
        self.more = 0

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        room = PRINT_LIMIT - len(self.kept)
        self.kept += text[:room]
        self.more += text.count("\n", room)
        return len(text)

    def taken(self) -> tuple[str, int]:
        """What was kept and how many lines came after it, once."""
        kept, more = self.kept, self.more
        self.kept, self.more = "", 0
        return kept, more


def main() -> None:
    requests, answers = os.dup(0), os.dup(1)
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        os.dup2(os.open(os.devnull, mode), descriptor)
    site.main()
    # Not the student's time: their file will want it, and random numbers are seeded before it begins.
    import torch  # noqa: F401

    watch.install()
    block()
    serve(requests, answers)


def serve(requests_descriptor: int, answers_descriptor: int) -> None:
    """Answer requests until there are no more, and end this process. Never returns. The course must be out of
    the reach of imports already (`block`)."""
    requests = os.fdopen(requests_descriptor, "rb")
    answers = os.fdopen(answers_descriptor, "wb")
    printed = Printed()
    session = Session()
    while True:
        try:
            request = wire.receive(requests, inputs=True)
        except EOFError:
            # Not sys.exit: threads and exit handlers of the student's have no say.
            os._exit(0)
        sys.stdout = sys.stderr = printed
        answer = answer_to(session, request) | {"number": request["number"]}
        answer |= {"printed": printed.taken(), "called": watch.taken(), "tried": trail.taken()}
        try:
            message = wire.encode(answer)
        except (wire.WireError, ValueError) as error:
            problem = {"type": "WireError", "bases": [], "message": str(error), "lines": [], "raised": False}
            message = wire.encode({"error": problem, "number": request["number"]})
        answers.write(message)
        answers.flush()


def answer_to(session: Session, request: dict[str, Any]) -> dict[str, Any]:
    try:
        if request["verb"] == "load":
            return {"value": session.load(request["text"], request["filename"], request["cells"])}
        if "begin" in request:
            session.run({"verb": "begin", "seed": request["begin"]})
        return {"value": session.run(request)}
    except BaseException as error:
        return {"error": describe_error(error, session.filename)}


if __name__ == "__main__":
    main()
