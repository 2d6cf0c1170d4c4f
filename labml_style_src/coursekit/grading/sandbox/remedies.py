"""What each wall keeps from whom, and what to do on a machine that lacks one: for `attn doctor`."""

import platform
import sys
from pathlib import Path

MEANING = {
    "clock": "a submission's time is measured and ended from outside",
    "namespaces": "a submission sees no network and no process but its own",
    "rlimits": "its memory, threads and files are limited",
    "uid": "it runs as a user without rights",
    "landlock": "it reads installed modules and no other file, and writes none",
    "seccomp": "it may ask the kernel for what calculating needs, and for nothing else",
}
CONTAINER = "grade in a Linux container or virtual machine"
DOCKER = "docker run --cap-add SYS_ADMIN --security-opt seccomp=unconfined --security-opt apparmor=unconfined"
# What keeps plain users from namespaces, the value that does, and the one that lets them.
SWITCHES = (
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("user.max_user_namespaces", "0", "15000"),
)


def remedy(layer: str, reason: str) -> str:
    """What to do so that a layer stands here; `reason` is what `layers.available()` said."""
    if sys.platform != "linux":
        return CONTAINER
    match layer:
        case "namespaces":
            return switched_off() or (DOCKER if in_container() else f"grade as root, or {CONTAINER}")
        case "uid" if "closed to other users" in reason:
            return "install Python and the packages where every user can read them, not in a closed home"
        case "uid":
            return "grade as root in a container: only root can make a process another user's"
        case "landlock" if in_container():
            return (
                "docker run --security-opt seccomp=unconfined, on Linux 5.13 or later with lsm=landlock,..."
            )
        case "landlock":
            return "Linux 5.13 or later, started with landlock among the modules of its parameter lsm="
        case "seccomp" if "no list" in reason:
            return f"grade on x86-64 or arm64: {platform.machine()} has no list of calls here"
        case "seccomp":
            return "a kernel with CONFIG_SECCOMP_FILTER"
        case _:
            return "mount /proc, and grade where another process's clock and limits can be set"


def switched_off(root: Path = Path("/proc/sys")) -> str:
    """The command that lets plain users have namespaces, if a switch of this machine forbids them."""
    for name, closing, opening in SWITCHES:
        try:
            value = root.joinpath(*name.split(".")).read_text("ascii").strip()
        except OSError:
            continue
        if value == closing:
            return f"sudo sysctl -w {name}={opening}, or grade as root"
    return ""


def in_container(root: Path = Path("/")) -> bool:
    """Whether this is a container of Docker's or Podman's."""
    return any((root / name).exists() for name in (".dockerenv", "run/.containerenv"))
