"""The machine that something is measured on, and the processes that measure."""

import multiprocessing
import os
import platform
import threading
from importlib.metadata import version
from pathlib import Path


def cores() -> int:
    """How many processors this process may use."""
    known = getattr(os, "sched_getaffinity", None)
    return len(known(0)) if known else os.cpu_count() or 1


def machine() -> dict[str, str | int]:
    """The hardware, and how many threads PyTorch would use of it."""
    import torch

    found: dict[str, str | int] = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
    }
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        found["ram_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_device_name()
    return found


def cpu() -> str:
    """The processor's name, as far as the system tells it."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text("utf-8", "replace").splitlines() if known.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


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
