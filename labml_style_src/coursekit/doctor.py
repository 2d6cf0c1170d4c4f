"""`attn doctor`: what this machine has and lacks, each lack with its remedy."""

import importlib.util
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

OLDEST_PYTHON = (3, 11)
EXTRAS = {
    "grading": ["typer", "rich", "pytest", "jupytext"],
    "cluster": ["distributed"],
    "notebooks": ["jupytext", "nbformat", "nbclient", "ipykernel", "matplotlib"],
    "models": ["transformers"],
    "triton": ["triton"],
    "site": ["mkdocs", "material", "pygments", "py_mini_racer"],
    "dev": ["beartype", "hypothesis", "xdist", "playwright"],
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIGNS = {"ok": "✓", "missing": "·", "problem": "✗"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `state` is "ok", "missing" (some command needs it) or "problem" (the
    course cannot be used as it is)."""

    name: str
    state: str
    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{SIGNS[self.state]} {self.name:<12} {self.detail}"
        return f"{line}\n  {'':<12} {self.remedy}" if self.remedy else line


def examine(port: int = 8000) -> list[Finding]:
    """Look at everything. It takes about as long as importing torch."""
    return [python(), *torch(), *extras(), *sandbox(), browser(), free_port(port)]


def python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info >= OLDEST_PYTHON:
        return Finding("Python", "ok", found)
    wanted = ".".join(map(str, OLDEST_PYTHON))
    return Finding("Python", "problem", found, f"install Python {wanted} or later and make .venv with it")


def torch() -> Iterator[Finding]:
    """The version, the devices, and per device whether its attention agrees with float64."""
    try:
        import torch
    except Exception as error:
        remedy = "pip install torch (for the CPU alone: --index-url https://download.pytorch.org/whl/cpu)"
        yield Finding("torch", "problem", f"cannot be imported: {error}", remedy)
        return
    yield Finding("torch", "ok", f"{version('torch')}, {torch.get_num_threads()} threads")
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices.append("cuda")
        yield Finding("CUDA", "ok", torch.cuda.get_device_name())
    else:
        yield Finding("CUDA", "missing", "no device: tests that need one are skipped, and say so")
    if torch.backends.mps.is_available():
        yield Finding("MPS", "missing", "there, and not used: it has no float64 to prove against")
    for device in devices:
        yield parity(device)


def parity(device: str) -> Finding:
    """PyTorch's own attention on a device in each dtype, held against float64 by the rule of the proofs. If
    this fails, no mechanism can be proven on the machine."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from coursekit.numerics import measure

    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(3, 2, 3, 64, 16, generator=generator, dtype=torch.float64)
    oracle = scaled_dot_product_attention(exact[0], exact[1], exact[2])
    good, bad = [], []
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        try:
            query, key, value = exact.to(device, dtype)
            ours = scaled_dot_product_attention(query, key, value)
            # Below float32 the plain formula is computed in float32 and rounded once.
            query, key, value = exact.to(dtype).to(torch.promote_types(dtype, torch.float32))
            peer = ((query @ key.mT * query.shape[-1] ** -0.5).softmax(-1) @ value).to(dtype)
            good.append(name) if measure(ours, peer, oracle).passed else bad.append(f"{name} is inexact")
        except RuntimeError as error:
            bad.append(f"{name}: {str(error).splitlines()[0]}")
    if bad:
        remedy = "another version of torch: constraints.txt has one that works"
        return Finding("parity", "problem", f"{device}: {'; '.join(bad)}", remedy)
    return Finding("parity", "ok", f"{device}: {', '.join(good)} agree with float64")


def extras() -> Iterator[Finding]:
    for extra, modules in EXTRAS.items():
        absent = [module for module in modules if importlib.util.find_spec(module) is None]
        if absent:
            remedy = (
                f'pip install "annotated-attention[{extra}]" (in a checkout: pip install -e ".[{extra}]")'
            )
            yield Finding(f"[{extra}]", "missing", f"without {', '.join(absent)}", remedy)
        else:
            yield Finding(f"[{extra}]", "ok", "installed")


def sandbox() -> Iterator[Finding]:
    """The walls around a submission that `attn grade` runs: each is tried, none is taken on trust."""
    from coursekit.grading.sandbox import layers, remedies

    for layer, reason in layers.available().items():
        if reason:
            yield Finding(layer, "missing", f"grading: {reason}", remedies.remedy(layer, reason))
        else:
            yield Finding(layer, "ok", f"grading: {remedies.MEANING[layer]}")


def browser() -> Finding:
    """The Chromium of the browser tests: that of the variable CHROMIUM, or the first on the path."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found:
        return Finding("Chromium", "ok", found)
    remedy = "apt-get install chromium, or set CHROMIUM to its path"
    return Finding("Chromium", "missing", "the tests in a browser are skipped", remedy)


def free_port(port: int) -> Finding:
    with socket.socket() as probe:
        probe.settimeout(1)
        taken = probe.connect_ex(("127.0.0.1", port)) == 0
    if taken:
        return Finding("port", "missing", f"{port} is taken", f"make serve PORT={port + 1}")
    return Finding("port", "ok", f"{port} is free for `attn serve`")
