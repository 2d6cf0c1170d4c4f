"""Every attack of this folder, run for real: with every wall up none does harm, and each wall is needed.

A new attack is a file with a docstring and a `SUBMISSION`; `ground/scene.py` says what else it may have.
"""

from collections.abc import Generator

import pytest

from coursekit.grading.sandbox import LAYERS
from coursekit.grading.sandbox.host import open_sandbox
from tests.coursekit.attacks.ground.scene import LIMITS, Attack, Ground, attacks

ATTACKS = attacks()
NEED_WALLS = [attack for attack in ATTACKS if attack.stopped_by]
named = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)


@pytest.fixture(scope="module")
def ground() -> Generator[Ground]:
    ground = Ground(lambda off: open_sandbox(off=off, limits=LIMITS))
    yield ground
    ground.close()


def test_there_are_attacks_enough_and_each_says_what_it_tries():
    assert len(ATTACKS) >= 40
    assert all(len(attack.about) > 20 for attack in ATTACKS)


@named
def test_no_attack_does_harm(ground: Ground, attack: Attack):
    scene = ground.run(attack)
    assert scene.harm == []
    assert scene.points == attack.points
    assert attack.told in scene.told
