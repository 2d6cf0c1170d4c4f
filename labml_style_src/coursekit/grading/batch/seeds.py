"""A batch's secret, and the seeds that are drawn from it.

A student's seed is an HMAC of the secret: it does not depend on the others, so that a batch that was stopped, or
split over machines, draws the same inputs, and nobody without the secret can work out the inputs of anybody.
"""

import hashlib
import hmac
import os
import secrets
import tempfile
from pathlib import Path

from coursekit.grading.submission import ExerciseError

SECRET_BYTES = 32


def seed_of_student(secret: bytes, slug: str, student: str) -> int:
    """The seed of one student's inputs in one lesson: 63 bits."""
    return _number(secret, "student", slug, student)


def seed_of_bank(secret: bytes, slug: str) -> int:
    """The seed on which a failed check is run again to name the mistake: one for the whole batch."""
    return _number(secret, "bank", slug)


def shard_of(student: str, parts: int) -> int:
    """To which of so many parts, from 1, a student belongs."""
    number = hashlib.sha256(student.encode("utf-8", "surrogatepass")).digest()[:8]
    return int.from_bytes(number, "big") % parts + 1


def fingerprint(secret: bytes) -> str:
    """Says whether two secrets are the same, and nothing else of them."""
    return _digest(secret, "fingerprint").hex()[:16]


def read_secret(path: Path) -> bytes:
    """The secret in a file. Raises `ExerciseError` if there is none."""
    try:
        secret = bytes.fromhex(path.read_text("ascii").strip())
    except (ValueError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not hexadecimal"
        raise ExerciseError(f"the secret {path} cannot be read: {why}") from None
    if len(secret) < SECRET_BYTES:
        raise ExerciseError(f"the secret {path} has {len(secret)} bytes: at least {SECRET_BYTES} are wanted")
    return secret


def make_secret(path: Path) -> bytes:
    """The secret in a file, which is made if need be, for its owner alone (0600). Of several processes that make
    it at once one wins, and all return the same."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Files made by mkstemp are for their owner alone.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="ascii", newline="\n") as file:
                file.write(f"{secrets.token_hex(SECRET_BYTES)}\n")
            try:
                os.link(name, path)
            except FileExistsError:
                pass
            except OSError:
                # No links here (FAT, some network drives): the last one wins.
                os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
    return read_secret(path)


def _number(secret: bytes, *parts: str) -> int:
    return int.from_bytes(_digest(secret, *parts)[:8], "big") >> 1


def _digest(secret: bytes, *parts: str) -> bytes:
    # Each part behind its length: no two lists of parts are the same message.
    known = [part.encode("utf-8", "surrogatepass") for part in parts]
    message = b"".join(len(part).to_bytes(8, "big") + part for part in known)
    return hmac.new(secret, message, hashlib.sha256).digest()
