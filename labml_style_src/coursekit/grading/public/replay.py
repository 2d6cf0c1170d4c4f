"""Asking and judging what was recorded: a public check, run on a student's code.

The questions go through the same `Student`, the demands through the same `Expect` as in the lesson's own
checks, so that what a student reads is the same.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from coursekit.grading.expect import Expect
from coursekit.grading.public.origins import reached
from coursekit.grading.values import Reference, walk
from coursekit.grading.verbs import Handle, Student


def replay(steps: list[dict[str, Any]], student: Student, expect: Expect, lenient: bool = False) -> None:
    """Run the steps of one check. What is not met is raised, as in any check."""
    answers: list[Any] = []
    for step in steps:
        filled = {name: value for name, value in step.items() if name not in ("links", "judged")}
        for place, origin in step["links"]:
            filled = placed(filled, place, reached(answers, origin, lenient))
        if "demand" not in step:
            answers.append(asked(student, answers, filled["ask"]))
        elif "ask" in step:
            question = partial(asked, student, answers, filled["ask"])
            expect.raises(*filled["args"], question, **filled["options"])
            # There was no answer, but it has a number.
            answers.append(None)
        else:
            options = filled["options"]
            if "explain" in options:
                options = options | {"explain": told(**options["explain"])}
            judged = reached(answers, step["judged"], lenient)
            getattr(expect, filled["demand"])(judged, *filled["args"], **options)


def asked(student: Student, answers: list[Any], request: dict[str, Any]) -> Any:
    """The answer to a question; what is `new` stays a handle."""

    def handle(part: Any) -> Any:
        return handles[part.number] if isinstance(part, Reference) else part

    handles = [answer for answer in answers if isinstance(answer, Handle)]
    request = walk(request, handle)
    owner: Any
    owner, verb, name = request["target"] or student, request["verb"], request["name"]
    if verb == "get":
        return owner.get(name)
    if verb == "vjp":
        return owner.vjp(name, request["args"], request["grad"], **request["kwargs"])
    return getattr(owner, verb)(name, *request["args"], **request["kwargs"])


def told(remarks: list[str | None], table: Any) -> Callable[[dict[str, int]], str | None]:
    """What `explain` said when the check was recorded."""
    return lambda index: remarks[table[tuple(index.values())]]


def placed(value: Any, place: tuple[Any, ...], part: Any) -> Any:
    """The value with `part` at a place in it."""
    if not place:
        return part
    first, *rest = place
    if isinstance(value, dict):
        return value | {first: placed(value[first], tuple(rest), part)}
    parts = list(value)
    parts[first] = placed(parts[first], tuple(rest), part)
    return type(value)(parts)
