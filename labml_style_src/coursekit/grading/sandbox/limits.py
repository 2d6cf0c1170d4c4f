"""What one submission may use, and the names of the walls around it."""

from dataclasses import dataclass

# The walls, outermost first. Every result records which of them stood.
LAYERS = ("clock", "namespaces", "rlimits", "uid", "landlock", "seccomp")


@dataclass(frozen=True)
class Limits:
    """What one submission may use. `call_seconds` are for one question, `submission_seconds` for all together:
    what others take of the processor meanwhile does not count. `memory_mb` is what it may take beyond PyTorch and
    itself."""

    call_seconds: float = 2.0
    submission_seconds: float = 30.0
    memory_mb: int = 2048
