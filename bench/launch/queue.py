"""Slurm's queue (standard library alone), from `squeue`: not every cluster keeps the accounts that `sacct` shows."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

# a line for each job of this user that waits, runs, ends or is about to be queued again
COMMAND = ("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r")


@dataclass(frozen=True)
class QueuedJob:
    """A job that Slurm still has.

    Attributes:
        number: of a task in an array, as in 12_3.
        state: PENDING, RUNNING, COMPLETING, ...
        reason: why it waits; 'None' where it does not.
    """

    number: str
    state: str
    reason: str

    def __str__(self) -> str:
        why = "" if self.reason == "None" else f" ({self.reason})"
        return f"Slurm job {self.number}, {self.state.lower()}{why}"


def queue() -> dict[str, QueuedJob] | None:
    """This user's jobs by their number; None where Slurm does not answer, or is not here."""
    if shutil.which(COMMAND[0]) is None:
        return None
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
    return read_queue(done.stdout) if done.returncode == 0 else None


def read_queue(output: str) -> dict[str, QueuedJob]:
    """What `COMMAND` prints."""
    rows = (line.split("|", 2) for line in output.splitlines() if line.count("|") >= 2)
    return {number: QueuedJob(number, state, reason) for number, state, reason in rows}
