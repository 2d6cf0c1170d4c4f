"""The second process: runs one submission and answers requests until its input ends.

Started as `python -I -m coursekit.grading.child`. Requests come and answers go through private copies of the
standard streams; the student's code finds an empty input, and what it prints is kept up to a limit.
"""

import io
import os
import sys
from typing import Any

from coursekit.grading import wire
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
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        os.dup2(os.open(os.devnull, mode), descriptor)
    printed = Printed()
    session = Session()
    # Not the student's time: their file will want it, and random numbers are seeded before it begins.
    import torch  # noqa: F401

    while True:
        try:
            request = wire.receive(requests, inputs=True)
        except EOFError:
            # Not sys.exit: threads and exit handlers of the student's have no say.
            os._exit(0)
        sys.stdout = sys.stderr = printed
        answer = answer_to(session, request)
        answer["printed"] = printed.taken()
        try:
            wire.send(answers, answer)
        except (wire.WireError, ValueError) as error:
            problem = {"type": "WireError", "bases": [], "message": str(error), "lines": [], "raised": False}
            wire.send(answers, {"error": problem, "printed": ("", 0)})


def answer_to(session: Session, request: dict[str, Any]) -> dict[str, Any]:
    try:
        if request["verb"] == "load":
            return {"value": session.load(request["text"], request["filename"], request["cells"])}
        return {"value": session.run(request)}
    except BaseException as error:
        return {"error": describe_error(error, session.filename)}


if __name__ == "__main__":
    main()
