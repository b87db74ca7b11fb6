"""Training losses and gradient norms are the stored ones, with kernels and without."""

import json

import pytest
from parity.golden_losses import STORED, losses
from support import fitting_pairs

GOLDEN = json.loads(STORED.read_text())
TOLERANCE = 1e-6


@pytest.mark.parametrize("kernels", [False, True], ids=["plain", "kernels"])
@pytest.mark.parametrize("pair", fitting_pairs(), ids="-".join)
def test_losses_are_the_stored_ones(pair, kernels):
    name = " on ".join(pair)
    if name not in GOLDEN:
        pytest.skip(f"{name} is newer than the stored losses")
    for found, stored in zip(losses(*pair, kernels=kernels), GOLDEN[name], strict=True):
        assert found == pytest.approx(stored, rel=TOLERANCE)


@pytest.mark.parametrize("pair", [("edm", "egnn"), ("symdiff", "dit"), ("plain", "e3"), ("plain", "gdm")], ids="-".join)
def test_weights_off_by_a_thousandth_are_noticed(pair):
    """Control."""
    for found, stored in zip(losses(*pair, factor=1.001), GOLDEN[" on ".join(pair)], strict=True):
        assert found != pytest.approx(stored, rel=TOLERANCE)
