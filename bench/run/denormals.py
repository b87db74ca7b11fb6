"""Flush denormals to zero while sampling; denormal arithmetic is about ten times slower on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def denormals_are_zero() -> Iterator[None]:
    """Numbers below the smallest normal one (1e-38 in float32) are zero within this context.

    A network far from its data, as at the beginning of sampling, makes them in every activation. The setting is that of
    the calling thread; on a processor without it nothing changes. Not for a whole process: matrix decompositions need
    denormals.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
