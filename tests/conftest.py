"""Settings of all tests. Shared helpers are in `support.py`, which test files import.

Nothing of ours is imported here: jaxtyping's shape checks must be installed before `bench` is.
"""

import pytest
import torch

# the machine's cores are shared, and OpenMP threads that wait for one another cost more than they give
torch.set_num_threads(1)


@pytest.fixture(params=["float64", "float32"])
def precision(request: pytest.FixtureRequest) -> torch.dtype:
    """Both precisions in which a guarantee is required."""
    return getattr(torch, request.param)
