"""Which attack does harm behind which walls: tried for every attack and configuration, and written as a table."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.coursekit.attacks.ground.scene import Attack, Ground

from coursekit.grading.sandbox import LAYERS

TABLE = Path(__file__).parents[1] / "TABLE.md"
HARM, STOPPED = "✗", "·"

# By name, the layers that are off.
CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "all": (),
    "none": LAYERS,
    **{f"only {layer}": tuple(other for other in LAYERS if other != layer) for layer in LAYERS},
    **{f"no {layer}": (layer,) for layer in LAYERS},
}
HEAD = """# Attacks and the walls that stop them

Each attack is a file of this folder, run for real in every configuration: with every wall, with none, with each
alone and with each missing. ✗: it does harm, ·: it does none. Those that do none without any wall fail at the
way answers come back: there is nothing to steal in the student's process. With every wall none does harm.

Written by `python -m tests.coursekit.attacks`; `test_attacks.py` holds the first three groups of columns true.
"""


def tried(
    ground: Ground, attacks: Iterable[Attack], names: Iterable[str]
) -> Iterator[tuple[str, str, list[str]]]:
    """(attack, configuration, the harm that it did), one configuration after the other."""
    attacks = list(attacks)
    for name in names:
        for attack in attacks:
            yield attack.name, name, ground.run(attack, CONFIGURATIONS[name]).harm
        ground.close_host(CONFIGURATIONS[name])


def as_text(attacks: Iterable[Attack], harm: dict[tuple[str, str], bool]) -> str:
    names = list(CONFIGURATIONS)
    lines = [HEAD, f"| attack | {' | '.join(names)} | what it tries |", "|---" * (len(names) + 2) + "|"]
    for attack in attacks:
        cells = [HARM if harm[attack.name, name] else STOPPED for name in names]
        about = attack.about.replace("|", "\\|")
        lines.append(f"| `{attack.name}` | {' | '.join(cells)} | {about} |")
    return "\n".join([*lines, ""])


def read(text: str) -> dict[str, dict[str, bool]]:
    """The table: for each attack and configuration whether it did harm."""
    rows = [
        [cell.strip() for cell in line.split(" | ")] for line in text.splitlines() if line.startswith("|")
    ]
    head, _, *body = rows
    names = head[1:-1]
    return {
        row[0].strip("| `"): {name: cell == HARM for name, cell in zip(names, row[1:], strict=False)}
        for row in body
    }
