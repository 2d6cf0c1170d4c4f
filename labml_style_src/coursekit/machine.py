"""The machine that something is measured on, and the processes that measure."""

import multiprocessing
import os
import platform
import threading
from importlib.metadata import version


def cores() -> int:
    """How many processors this process may use."""
    known = getattr(os, "sched_getaffinity", None)
    return len(known(0)) if known else os.cpu_count() or 1


def machine() -> dict[str, str | int]:
    """The hardware."""
    import torch

    found: dict[str, str | int] = {"system": f"{platform.system()} {platform.machine()}", "cores": cores()}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_device_name()
    return found


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in ("torch", "numpy")}


def die_with_parent() -> None:
    """Let this process end as soon as the one that started it has ended, whatever it is busy with then."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
