"""What a class hands in: made up as a folder or a zip, and read."""

import io
import zipfile
from pathlib import Path

from coursekit.grading.batch.archive import HandedIn, handed_in

ANSWER_NOTEBOOK = b'{"cells": [{"cell_type": "code", "source": "def centre(x): return x"}]}'
ANSWER = b"def centre(x):\n    return x\n"


def zipped(files: dict[str, bytes], **options: int) -> bytes:
    """A zip of these files; a name that ends with / is a folder."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, (2026, 12, 1, 10, 0, 0))
            info.compress_type = options.get("method", zipfile.ZIP_DEFLATED)
            info.external_attr = options.get("mode", 0) << 16
            archive.writestr(info, data)
    return buffer.getvalue()


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(data)
    return folder


def both(tmp_path: Path, files: dict[str, bytes]) -> list[Path]:
    """The same submissions as a folder and as a zip."""
    folder = lay(tmp_path / "in", files)
    (tmp_path / "in.zip").write_bytes(zipped(files))
    return [folder, tmp_path / "in.zip"]


def by_student(path: Path, lesson) -> dict[str, HandedIn]:
    return {each.student: each for each in handed_in(path, lesson)}
