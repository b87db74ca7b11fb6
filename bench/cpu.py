"""How a process computes on its CPU."""

from __future__ import annotations

import torch


def use_cpu(n_threads: int | None = None) -> None:
    """So many threads (None: as they are), and numbers below 1e-38 are zero.

    Arithmetic on such numbers takes many times as long, and a network far from its data, as at the beginning of
    sampling, makes them in every activation. Only the calling thread is told; with several, the others keep them.
    """
    if n_threads is not None:
        torch.set_num_threads(n_threads)
    torch.set_flush_denormal(True)  # False where the processor cannot: the same numbers, more slowly
