"""Training losses and gradient norms are those from before the networks were made fast."""

import json

import pytest
from support import fitting_pairs

from reference.golden_losses import STORED, losses

GOLDEN = json.loads(STORED.read_text())
TOLERANCE = 1e-5


@pytest.mark.parametrize("pair", fitting_pairs(), ids="-".join)
def test_losses_are_the_stored_ones(pair):
    name = " on ".join(pair)
    if name not in GOLDEN:
        pytest.skip(f"{name} is newer than the stored losses")
    for found, stored in zip(losses(*pair), GOLDEN[name], strict=True):
        assert found == pytest.approx(stored, rel=TOLERANCE)


def test_one_pairs_losses_are_not_anothers():
    """Control: the stored losses tell pairings apart by far more than they allow."""
    found = losses("haar", "dit")
    for stored in GOLDEN["plain on dit"]:
        assert all(row != pytest.approx(stored, rel=100 * TOLERANCE) for row in found)
