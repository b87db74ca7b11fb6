"""Numbers next to zero are zero within a block, and kept around it."""

import pytest
import torch

from bench.run.denormals import denormals_are_zero

NEAR_ZERO = 1e-40


def halves() -> float:
    return (torch.tensor([NEAR_ZERO], dtype=torch.float32) * 0.5).item()


def test_numbers_next_to_zero_are_zero_within_and_kept_around():
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot")
    assert halves() > 0
    with denormals_are_zero():
        assert halves() == 0
    assert halves() > 0
    with pytest.raises(ZeroDivisionError), denormals_are_zero():
        raise ZeroDivisionError
    assert halves() > 0
