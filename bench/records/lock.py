"""Locks of runs, released as soon as the holding process ends, however it ends.

The lock is `filelock`'s (flock). Its holder identifies itself in the first line of the file, which stays after
release and then names the last holder.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bench.records.store import RunFolder, writing

# `holder` probes a free lock by taking it for a moment; a process that wants it meanwhile waits this long
PATIENCE_SECONDS = 1.0


class BusyError(RuntimeError):
    """Another process is working on this run."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock, or held it last.

    Attributes:
        job: submitit's id of the job that the process belongs to, or None.
        slurm: whether `job` is a Slurm job id.
    """

    host: str
    pid: int
    since: str
    job: str | None = None
    slurm: bool = False

    @property
    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    def __str__(self) -> str:
        if not self.pid:
            return "an unidentified process"
        job = f", Slurm job {self.job}" if self.slurm else ""
        return f"process {self.pid} on {self.host}{job}"


def this_process() -> Holder:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    slurm = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID")
    # a launcher may itself run inside an allocation; only what submitit started there is one of its jobs
    on_slurm = slurm is not None and os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    job = slurm if on_slurm else os.environ.get("SUBMITIT_LOCAL_JOB_ID")
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return Holder(socket.gethostname(), os.getpid(), since, job, on_slurm)


def _lock(path: Path, timeout: float) -> FileLock:
    # no fallback to a soft lock where flock is missing: it would outlive a killed process
    return FileLock(path, timeout=timeout, mode=0o644, fallback_to_soft=False, poll_interval=0.02)


@contextlib.contextmanager
def hold(path: Path) -> Iterator[FileIO]:
    """Hold a lock file and identify the holder in its first line; yields the open file for more lines.

    Raises:
        BusyError: another process holds it.
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_lock(path, PATIENCE_SECONDS))
        except Timeout:
            by = last_holder(path) or "another process"
            raise BusyError(f"{path.parent} is being worked on by {by}") from None
        file = stack.enter_context(path.open("wb", buffering=0))
        write_line(file, asdict(this_process()))
        yield file


def write_line(file: FileIO, record: dict[str, Any]) -> None:
    """Write a line of JSON into a held file; unbuffered, because closing a buffered file would retry a failed write.

    Raises:
        OSError: it could not be written, e.g. because the disk is full.
    """
    content = (json.dumps(record) + "\n").encode()
    with writing(Path(file.name)):
        while content:
            content = content[file.write(content) :]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder.

    Raises:
        BusyError: another process has the run.
    """
    with hold(RunFolder(folder).lock):
        yield


def last_holder(path: Path) -> Holder | None:
    """The holder, or the last one, as the file's first line names it; None if the line is missing or unreadable."""
    try:
        with path.open() as file:
            return Holder(**json.loads(file.readline(4096)))
    except (OSError, ValueError, TypeError):
        return None


def holder(path: Path) -> Holder | None:
    """Who holds a lock file now, or None."""
    if not path.exists():
        return None
    try:
        with _lock(path, 0.0):
            return None
    except Timeout:
        return last_holder(path) or Holder("", 0, "")
    except PermissionError:  # another user's folder: the line in the file is all there is to go by
        return last_holder(path)
