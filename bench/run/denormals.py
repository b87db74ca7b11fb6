"""Flush denormals to zero while sampling; denormal arithmetic is about ten times slower on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def denormals_are_zero() -> Iterator[None]:
    """Treat numbers below the smallest normal one (1e-38 in float32) as zero within this context.

    Networks produce denormals on inputs far from their data, as at the beginning of sampling. The setting belongs to
    the calling thread and does nothing on processors without it. It is not set globally, since matrix decompositions
    need denormals.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
