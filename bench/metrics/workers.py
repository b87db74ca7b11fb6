"""Work on many molecules, in worker processes where it is worth it."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Found = TypeVar("Found")


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_workers(function: Callable[[Task], Found], tasks: Iterable[Task], n_workers: int) -> Iterator[Found]:
    """`function` of each task, in their order; in this process where `n_workers` is 1."""
    if n_workers <= 1:
        yield from map(function, tasks)
        return
    # fork where it is safe: it starts fast and needs no importable __main__
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(n_workers, mp_context=context) as pool:
        yield from pool.map(function, tasks)
