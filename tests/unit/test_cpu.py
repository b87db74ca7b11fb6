"""Numbers next to zero, as one process computes with them."""

import pytest
import torch

from bench.cpu import use_cpu

NEAR_ZERO = 1e-40


@pytest.fixture(autouse=True)
def _restored():
    yield
    torch.set_flush_denormal(False)


def halves() -> float:
    return (torch.tensor([NEAR_ZERO], dtype=torch.float32) * 0.5).item()


def test_numbers_next_to_zero_are_zero():
    torch.set_flush_denormal(False)
    assert halves() > 0  # control: by themselves they are kept
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    torch.set_flush_denormal(False)
    threads = torch.get_num_threads()
    use_cpu()
    assert halves() == 0
    assert torch.get_num_threads() == threads
