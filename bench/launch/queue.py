"""Slurm's queue, read from `squeue` (`sacct` needs accounting, which some clusters lack), and the job of each run.

A launcher writes the job that it submits for a run into the run's folder (`job.json`), so that no other launcher
submits a run that waits in the queue.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.records.schema import RecordError
from bench.records.store import RunFolder, read_json, write_json

# one line for each job of this user that is pending, running, completing or being requeued
COMMAND = ("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r")


@dataclass(frozen=True)
class QueuedJob:
    """A job in Slurm's queue.

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
    """This user's jobs by number; None where Slurm is missing or does not answer."""
    if shutil.which(COMMAND[0]) is None:
        return None
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
    return read_queue(done.stdout) if done.returncode == 0 else None


def read_queue(output: str) -> dict[str, QueuedJob]:
    """Parse the output of `COMMAND`."""
    rows = (line.split("|", 2) for line in output.splitlines() if line.count("|") >= 2)
    return {number: QueuedJob(number, state, reason) for number, state, reason in rows}


JOB = {"cluster": str, "job": str}


def submitted(folder: Path, cluster: str, job: str) -> None:
    """Record the job that was submitted for a run."""
    write_json(RunFolder(folder).job, {"cluster": cluster, "job": job}, JOB)


def last_job(folder: Path) -> dict[str, str] | None:
    """The job submitted last for a run; None where there is no readable record of one."""
    try:
        return read_json(RunFolder(folder).job, JOB)
    except (OSError, RecordError):
        return None


def queued_jobs(folders: Iterable[Path]) -> dict[str, QueuedJob] | None:
    """Run -> its job, for runs whose last job is still in Slurm's queue; None if Slurm does not answer."""
    jobs = {folder.name: job["job"] for folder in folders if (job := last_job(folder)) and job["cluster"] == "slurm"}
    if not jobs:
        return {}
    known = queue()
    return None if known is None else {run: known[job] for run, job in jobs.items() if job in known}
