"""A thread pool whose workers each run torch on one core.

Splitting every operation of a few microseconds over all cores spends more time in synchronisation than in arithmetic,
above all on a shared machine; splitting the batch once does not.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock
from typing import TypeVar

import torch

SHARED = 2**15  # below this many elements one thread finishes before others would have started

Part = TypeVar("Part")
Result = TypeVar("Result")

_one_caller = Lock()  # makes a pool


def on_threads(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """Map `work` over `parts` in parallel, without gradients; a single part runs on the caller's thread.

    Exceptions propagate to the caller. Must not be called from a worker thread.

    Args:
        parts: at most as many as torch has threads.
    """
    if len(parts) == 1:
        return [work(parts[0])]
    return list(_pool(torch.get_num_threads()).map(functools.partial(_without_gradients, work), parts))


def n_threads(n_numbers: int) -> int:
    """Threads worth using for this many elements: all of torch's, or one."""
    return 1 if n_numbers < SHARED else torch.get_num_threads()


def shares(items: Sequence[Part]) -> list[list[Part]]:
    """Deal items round-robin to torch's threads; one each if there are fewer items than threads."""
    n = min(torch.get_num_threads(), len(items))
    return [list(items[k::n]) for k in range(n)]


@torch.no_grad()
def _without_gradients(work: Callable[[Part], Result], part: Part) -> Result:
    return work(part)  # grad mode is thread-local


def _pool(n: int) -> ThreadPoolExecutor:
    with _one_caller:
        return _started(n)


@functools.cache
def _started(n: int) -> ThreadPoolExecutor:
    pool, all_started = ThreadPoolExecutor(n, "equibench", initializer=_start), Barrier(n)
    list(pool.map(lambda _: all_started.wait(), range(n)))
    torch.set_num_threads(n)  # also the default of threads started later
    return pool


def _start() -> None:
    torch.get_num_threads()  # initialise the new thread's setting now; lazily it would overwrite the next line's
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as `bench.run.denormals`; only networks run on these threads


os.register_at_fork(after_in_child=_started.cache_clear)  # threads do not survive a fork
