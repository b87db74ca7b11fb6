"""`bench.run.check`: what it says of plug-ins that the battery does not fit."""

from bench.registry import backbones
from bench.run.check import check


def test_a_backbone_for_states_of_one_size_is_not_failed_for_it():
    """Control: one that fits is checked."""
    made = list(check(backbones, backbones["equinet"]))
    assert [line.passed for line in made] == [True, None]
    assert "states of one size" in str(made[1])
    assert "states of one size" not in str(
        next(line for line in check(backbones, backbones["gdm"]) if line.what != "is cited")
    )
