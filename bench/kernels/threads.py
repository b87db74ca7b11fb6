"""Work shared by threads that each run torch on one core, which a CPU does better than many small operations on all.

Operations of a few microseconds on several threads wait for one another more than they work, above all where threads do
not have a core each all the time.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock
from typing import TypeVar

import torch

SHARED = 2**15  # numbers that one thread is done with before others would have started

Part = TypeVar("Part")
Result = TypeVar("Result")

_one_caller = Lock()  # makes a pool


def on_threads(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """work(part) for each part, at the same time, without gradients; a single part on the caller's thread.

    What is raised there is raised here. Not to be called from such a thread.

    Args:
        parts: as many as torch has threads here, or fewer.
    """
    if len(parts) == 1:
        return [work(parts[0])]
    return list(_pool(torch.get_num_threads()).map(functools.partial(_without_gradients, work), parts))


def n_threads(n_numbers: int) -> int:
    """Of torch's threads here, as many as work on so many numbers is worth: all or one."""
    return 1 if n_numbers < SHARED else torch.get_num_threads()


def shares(items: Sequence[Part]) -> list[list[Part]]:
    """Every n-th item for each of torch's n threads here, or one for each where there are fewer."""
    n = min(torch.get_num_threads(), len(items))
    return [list(items[k::n]) for k in range(n)]


@torch.no_grad()
def _without_gradients(work: Callable[[Part], Result], part: Part) -> Result:
    return work(part)  # a thread has modes of its own


def _pool(n: int) -> ThreadPoolExecutor:
    with _one_caller:
        return _started(n)


@functools.cache
def _started(n: int) -> ThreadPoolExecutor:
    pool, all_started = ThreadPoolExecutor(n, "equibench", initializer=_start), Barrier(n)
    list(pool.map(lambda _: all_started.wait(), range(n)))
    torch.set_num_threads(n)  # which also holds for threads that are yet to come
    return pool


def _start() -> None:
    torch.get_num_threads()  # gives a new thread the number that holds elsewhere: now, and not with its first operation
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as `bench.run.denormals`, for networks alone work here


os.register_at_fork(after_in_child=_started.cache_clear)  # threads do not survive a fork
