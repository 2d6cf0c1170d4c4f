"""Writing files so that nobody ever reads half of one, and so that what did not change keeps its time."""

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> bool:
    """Write a file through a temporary one beside it, unless it holds that content already."""
    if path.is_file() and path.read_bytes() == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        # mkstemp makes files that only their owner may read.
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return True


def write_text(path: Path, text: str) -> bool:
    r"""Write UTF-8 with `\n` line ends on every system, unless the file holds that text already."""
    return write_bytes(path, text.encode())


def mirror(source: Path, target: Path) -> None:
    """Make `target` hold exactly the files of `source`, touching only those that differ."""
    wanted = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    for relative in wanted:
        write_bytes(target / relative, (source / relative).read_bytes())
    remove_others(target, wanted)


def remove_others(folder: Path, wanted: Iterable[Path]) -> None:
    """Remove every file under `folder` that is not among the `wanted` relative paths, and empty folders."""
    keep = {folder / relative for relative in wanted}
    keep |= {parent for path in keep for parent in path.parents}
    for path in sorted(folder.rglob("*"), reverse=True):
        if path in keep or not path.exists():
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
