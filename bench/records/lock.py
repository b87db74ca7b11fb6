"""Locks on files that die with their process, and who holds one.

POSIX record locks: they work on network file systems, a crash leaves none behind, and children (a pool that scores) do
not inherit them. Two traps: they hold between processes, not within one, and a process that closes any handle of the
file gives its lock up, so the holder must not open the file a second time.

Whoever holds a lock writes into the file who it is; the line stays when the lock is gone and then says who was there
last.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

from bench.records.store import writing

# struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid
FLOCK = "hhqqi"


class BusyError(RuntimeError):
    """Another process is working on this run."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock, or held it last.

    Attributes:
        job: submitit's number of the job that the process belongs to, or None.
        slurm: whether that is a number of Slurm's.
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


@contextlib.contextmanager
def hold(path: Path) -> Iterator[FileIO]:
    """Hold a lock file, whose first line then says who does; yields it for more lines.

    Raises:
        BusyError: another process holds it.
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:  # 'w' would wipe what a holder wrote
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BusyError(f"{path.parent} is being worked on by another process") from None
        file.truncate(0)
        write_line(file, asdict(this_process()))
        yield file


def write_line(file: FileIO, record: dict[str, Any]) -> None:
    """Write a line of JSON into a file that is held; without a buffer, which closing the file would try to write again.

    Raises:
        OSError: there is no room for it.
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
    with hold(folder / "lock"):
        yield


def last_holder(path: Path) -> Holder | None:
    """Who wrote the file's first line: who holds the lock, or held it last; None where nobody did so legibly."""
    try:
        with path.open() as file:
            return Holder(**json.loads(file.readline(4096)))
    except (OSError, ValueError, TypeError):
        return None


def holder(path: Path) -> Holder | None:
    """Who holds a lock file now, or None. On Linux asking takes no lock, so it disturbs nobody."""
    try:
        pid = _asked(path) if sys.platform == "linux" else _tried(path)
    except FileNotFoundError:
        return None
    if pid is None:
        return None
    written = last_holder(path)
    # between taking the lock and writing, the file names the one before, or nobody; the kernel knows better
    if written is None or (written.is_here and pid > 0 and pid != written.pid):
        return Holder(socket.gethostname(), pid, "")
    return written


def _asked(path: Path) -> int | None:
    """Process that the kernel names (0 or below: of another machine or container), None where the lock is free."""
    with path.open("rb") as file:
        query = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, query))
    return None if kind == fcntl.F_UNLCK else pid


def _tried(path: Path) -> int | None:
    """The same where `struct flock` is laid out otherwise: take the lock for a moment."""
    with path.open("r+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return 0
    return None
