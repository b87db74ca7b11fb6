"""Settings of all tests. Shared helpers are in `support.py`, which test files import.

Nothing of ours is imported here: jaxtyping's shape checks must be installed before `bench` is.
"""

import signal
from typing import Any

import pytest
import torch

# the machine's cores are shared, and OpenMP threads that wait for one another cost more than they give
torch.set_num_threads(1)


SCORES = "scores"  # what a test records under this name (`record_property`) is printed at the end of every run


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Standard scores that a test was asked to show, which the capture of its output would hide."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    properties = [pair for report in reports for pair in getattr(report, "user_properties", [])]
    lines = sorted({line for name, line in properties if name == SCORES})
    if lines:
        terminalreporter.section("standard scores; below 5 no difference is seen")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(params=["float64", "float32"])
def precision(request: pytest.FixtureRequest) -> torch.dtype:
    """Both precisions in which a guarantee is required."""
    return getattr(torch, request.param)


# a shell starts background jobs with SIGINT ignored, and what tests start would inherit that
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
