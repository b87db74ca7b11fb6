"""Numbers next to zero, on whose arithmetic a CPU spends many times as long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def denormals_are_zero() -> Iterator[None]:
    """Numbers below the smallest normal one (1e-38 in float32) are zero in here; afterwards they are kept.

    A network far from its data, as at the beginning of sampling, makes them in every activation. Only the calling
    thread is told (those of `bench.kernels.threads`, where networks alone run, always do so); on a processor that cannot,
    nothing changes. Not for a whole process: a decomposition of matrices of every size needs its small numbers.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
