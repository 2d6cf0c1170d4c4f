"""Run every attack in every configuration and write the table: `python -m tests.coursekit.attacks [NAME ...]`.

With names only those attacks are run, what they did is printed, and no table is written.
"""

import sys

from tests.coursekit.attacks.ground.lesson import LIMITS
from tests.coursekit.attacks.ground.scene import Ground, attacks
from tests.coursekit.attacks.ground.table import CONFIGURATIONS, TABLE, as_text, tried

from coursekit.files import write_text
from coursekit.grading.sandbox.host import open_sandbox


def main(names: list[str]) -> None:
    chosen = [attack for attack in attacks() if not names or attack.name in names]
    ground = Ground(lambda off: open_sandbox(off=off, limits=LIMITS))
    harm = {}
    try:
        for attack, configuration, found in tried(ground, chosen, CONFIGURATIONS):
            harm[attack, configuration] = bool(found)
            print(f"{configuration:16} {attack:34} {'; '.join(found) or '-'}", flush=True)
    finally:
        ground.close()
    if not names:
        write_text(TABLE, as_text(chosen, harm))


if __name__ == "__main__":
    main(sys.argv[1:])
