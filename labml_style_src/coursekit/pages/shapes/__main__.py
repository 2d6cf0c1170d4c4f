"""The shapes of some modules as JSON: `python -m coursekit.pages.shapes annotated_attention.alibi`."""

import argparse
import contextlib
import importlib.util
import json
import sys
from pathlib import Path

from coursekit.pages.shapes import record_shapes


def _module_of(name: str) -> tuple[Path, str]:
    """The path and module name of a module, or of a file in its package's folder."""
    if name.endswith(".py"):
        path = Path(name).resolve()
        return path, f"{path.parent.name}.{path.stem}"
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"no module is called '{name}'")
    return Path(spec.origin), name


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", nargs="+", metavar="MODULE", help="a module's name, or its file")
    names = parser.parse_args().modules
    # What an example prints must not mix with the answer.
    with contextlib.redirect_stdout(sys.stderr):
        records = {name: record_shapes(*_module_of(name)).to_json() for name in names}
    print(json.dumps(records, ensure_ascii=False))


if __name__ == "__main__":
    main()
