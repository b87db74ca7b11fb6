"""Worker processes: a plain ordered map, and one for libraries that may take for ever or crash.

In the latter every call has a limit of processor time (RLIMIT_CPU), not of the clock, so that what is lost does not
depend on what else runs on the machine. The kernel ends a worker that exceeds it, also inside of C++; another takes its
place.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from enum import StrEnum
from math import ceil
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

Task = TypeVar("Task")
Found = TypeVar("Found")


class MissingPackageError(ValueError):
    """An optional package that is not installed; the message says how to get it."""


def require(package: str, what: str, extra: str = "chemistry") -> None:
    """Raise MissingPackageError, which names the extra, unless the package is installed. It is not imported: workers do
    that, each for itself, so that threads and settings of one library are not inherited by processes that use another.
    """
    if importlib.util.find_spec(package) is None:
        raise MissingPackageError(f"{what} needs the package {package!r}; pip install 'equibench[{extra}]'")


class Lost(StrEnum):
    """Why a call has no result."""

    TIMEOUT = "timeout"
    CRASH = "crash"


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def context() -> Any:
    """Of multiprocessing: fork where it is safe, since it starts fast and needs no importable __main__."""
    return multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def in_workers(function: Callable[[Task], Found], tasks: Iterable[Task], n_workers: int) -> Iterator[Found]:
    """`function` of each task, in their order; in this process where `n_workers` is 1."""
    if n_workers <= 1:
        yield from map(function, tasks)
        return
    with ProcessPoolExecutor(n_workers, mp_context=context()) as pool:
        yield from pool.map(function, tasks)


def bounded_map(
    function: Callable[[Any], Any], items: Sequence[Any], cpu_seconds: int, n_workers: int | None = None
) -> list[Any]:
    """The function of each item, or `Lost`, in the order of the items.

    Args:
        function: of a module, as all that processes exchange; it runs with one OpenMP thread.
        cpu_seconds: of processor time for one item; rounded up to the next full second of the worker's life.
        n_workers: by default one per core that this process may use.
    Raises:
        Exception: whatever the function raises.
    """
    found: list[Any] = [None] * len(items)
    left = iter(range(len(items)))
    busy: dict[Connection, tuple[BaseProcess, int]] = {}

    def give(pipe: Connection | None, process: BaseProcess | None) -> None:
        """The next item to a worker, a new one if there is none; without items left, the worker ends."""
        index = next(left, None)
        if index is None:
            if pipe is not None:
                pipe.send(None)
            return
        if pipe is None or process is None:
            pipe, process = _start(function, cpu_seconds)
        busy[pipe] = process, index
        pipe.send((items[index],))

    try:
        for _ in range(min(n_workers or n_cores(), len(items))):
            give(None, None)
        while busy:
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                process, index = busy.pop(pipe)
                try:
                    error, found[index] = pipe.recv()
                except EOFError:
                    process.join()
                    found[index] = Lost.TIMEOUT if process.exitcode == -signal.SIGXCPU else Lost.CRASH
                    pipe.close()
                    give(None, None)
                    continue
                if error is not None:
                    process.kill()
                    raise error
                give(pipe, process)
    finally:
        for process, _ in busy.values():
            process.kill()
    return found


def _start(function: Callable[[Any], Any], cpu_seconds: int) -> tuple[Connection, BaseProcess]:
    ours, theirs = multiprocessing.Pipe()
    process = context().Process(target=_serve, args=(function, theirs, cpu_seconds), daemon=True)
    process.start()
    theirs.close()  # so that its end is seen here as the end of the file
    return ours, process


def _serve(function: Callable[[Any], Any], pipe: Connection, cpu_seconds: int) -> None:
    import resource  # Unix alone

    os.environ["OMP_NUM_THREADS"] = "1"  # for libraries that load here; the workers share the cores already
    parent = multiprocessing.parent_process()
    assert parent is not None
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    while True:
        if parent.sentinel in wait([pipe, parent.sentinel]):
            return
        asked = pipe.recv()
        if asked is None:  # not the end of the file: forked workers hold copies of one another's pipes
            return
        resource.setrlimit(resource.RLIMIT_CPU, (ceil(time.process_time() + cpu_seconds), hard))
        try:
            answer = (None, function(*asked))
        except Exception as error:  # our own bug, which surfaces in the parent
            answer = (error, None)
        pipe.send(answer)
