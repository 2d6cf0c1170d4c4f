"""`attn`, also as `python -m coursekit`. What stands here works with the core dependencies alone: it says
which extra a command lacks.

Exit codes: 0 pass, 1 a check failed, 2 usage, 3 environment.
"""

import sys

from coursekit.course import CourseError, EnvironmentFault

# Which extra of pyproject.toml brings a module, where a command may first miss it.
EXTRAS = {
    "typer": "grading",
    "rich": "grading",
    "pytest": "grading",
    "jupytext": "grading",
    "nbformat": "notebooks",
    "nbclient": "notebooks",
    "ipykernel": "notebooks",
    "matplotlib": "notebooks",
    "yaml": "site",
    "mkdocs": "site",
    "material": "site",
    "pygments": "site",
    "py_mini_racer": "site",
}


def missing_extra(module: str) -> str:
    """What to say when a module is missing."""
    name = module.partition(".")[0]
    extra = EXTRAS.get(name)
    if extra is None:
        return f"the package '{name}' is missing: install the course again with its dependencies"
    pip, here = f'pip install "annotated-attention[{extra}]"', f'pip install -e ".[{extra}]"'
    return f"the package '{name}' is missing: {pip} (in a checkout: {here})"


def main() -> None:
    """Run the command line; every expected failure is one line and an exit code."""
    try:
        from coursekit.cli import app

        app(prog_name="attn")
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] in ("coursekit", "annotated_attention"):
            raise
        fail(missing_extra(error.name), 3)
    except EnvironmentFault as error:
        fail(str(error), 3)
    except CourseError as error:
        fail(str(error), 2)


def fail(message: str, code: int) -> None:
    print(f"attn: {message}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
