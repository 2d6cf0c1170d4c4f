"""Every attack of this folder, run for real: behind every wall none does harm, and each wall is worth its place.

A new attack is a file of this folder with a docstring and a `SUBMISSION`; README.md says what else it may have.
"""

import sys
from collections.abc import Generator

import pytest
from tests.coursekit.attacks.ground.lesson import LIMITS
from tests.coursekit.attacks.ground.scene import Attack, Ground, attacks
from tests.coursekit.attacks.ground.table import TABLE, as_text, read

from coursekit.grading.sandbox import LAYERS, landlock
from coursekit.grading.sandbox.host import open_sandbox

ATTACKS = attacks()
NEED_WALLS = [attack for attack in ATTACKS if attack.stopped_by]
LINUX = pytest.mark.skipif(
    sys.platform != "linux", reason="the attacks are run where the walls are: on Linux"
)


@pytest.fixture(scope="module")
def ground() -> Generator[Ground]:
    ground = Ground(lambda off: open_sandbox(off=off, limits=LIMITS))
    yield ground
    ground.close()


def without(ground: Ground, *layers: str) -> tuple[str, ...]:
    """The configuration in which only these layers stand; the test is skipped where one cannot."""
    off = tuple(layer for layer in LAYERS if layer not in layers)
    host = ground.host(off)
    if missing := [layer for layer in layers if layer not in host.layers]:
        pytest.skip(f"{', '.join(missing)} cannot stand alone here: {host.missing[missing[0]]}")
    return off


def test_there_are_attacks_enough_and_each_says_what_it_tries():
    assert len(ATTACKS) >= 40
    assert all(len(attack.about) > 30 for attack in ATTACKS)


@LINUX
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_behind_every_wall_no_attack_does_harm(ground: Ground, attack: Attack):
    layers = set(ground.host(()).layers)
    if attack.stopped_by and not any(set(name.split("+")) <= layers for name in attack.stopped_by):
        pytest.skip(
            f"this machine has none of the walls that stop it: {', '.join(sorted(attack.stopped_by))}"
        )
    scene = ground.run(attack)
    assert scene.harm == []
    assert scene.points == attack.points
    assert attack.told in scene.told


@LINUX
def test_without_a_wall_each_attack_that_needs_one_does_harm(ground: Ground):
    """What is stopped above is stopped by the walls, not because the attack is none."""
    without(ground)
    harmless = [attack for attack in NEED_WALLS if not ground.run(attack, LAYERS).harm]
    ground.close_host(LAYERS)
    assert [attack.name for attack in harmless if not attack.power] == []
    if harmless:
        names = ", ".join(attack.name for attack in harmless)
        pytest.skip(f"this user lacks the power to do what some attacks need walls against: {names}")


@LINUX
@pytest.mark.parametrize("layer", LAYERS)
def test_a_wall_alone_stops_what_it_is_said_to_stop(ground: Ground, layer: str):
    off = without(ground, layer)
    meant = [attack for attack in NEED_WALLS if layer in attack.stopped_by]
    able = [attack for attack in meant if layer != "landlock" or attack.landlock <= landlock.version()]
    told = {attack.name: ground.run(attack, off).harm for attack in able}
    ground.close_host(off)
    assert told
    assert {attack: harm for attack, harm in told.items() if harm} == {}
    if able != meant:
        pytest.skip(
            f"Landlock {landlock.version()} here does not stop {len(meant) - len(able)} of these attacks"
        )


def test_the_table_says_what_the_attacks_say():
    table = read(TABLE.read_text("utf-8"))
    assert list(table) == [attack.name for attack in ATTACKS]
    for attack in ATTACKS:
        row = table[attack.name]
        alone = {layer for layer in LAYERS if not row[f"only {layer}"]}
        assert alone == (attack.stopped_by & set(LAYERS) if row["none"] else set(LAYERS)), attack.name
        assert row["none"] == bool(attack.stopped_by), attack.name
        # Of walls that stop it together none may be missing.
        together = [layer for name in attack.stopped_by if "+" in name for layer in name.split("+")]
        assert all(row[f"no {layer}"] for layer in together), attack.name
        assert not row["all"], attack.name


def test_no_wall_can_be_spared():
    """For each layer the table has an attack that does harm where it is missing from walls that are otherwise
    whole; namespaces and the other user are the second line behind seccomp and Landlock, and have one that none
    but they and those stop."""
    table = read(TABLE.read_text("utf-8"))
    for layer in LAYERS:
        pairs = [{layer}, {layer, "seccomp"}, {layer, "landlock"}]
        assert any(attack.stopped_by in pairs for attack in ATTACKS), layer
    for layer in ("clock", "rlimits", "landlock", "seccomp"):
        assert any(row[f"no {layer}"] for row in table.values()), layer


def test_the_table_is_read_as_it_was_written():
    names = [attack.name for attack in ATTACKS]
    table = read(TABLE.read_text("utf-8"))
    harm = {(name, configuration): cell for name in names for configuration, cell in table[name].items()}
    assert read(as_text(ATTACKS, harm)) == table
