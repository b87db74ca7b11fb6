"""Launchers of a study and the jobs that they have submitted; `equibench cancel`.

Each `equibench run` holds a file `.launchers/HOST-PID.jsonl` in the study's folder: its first line says who holds it
(`bench.records.lock`), the others name a run and its job. A launcher stops by itself when its file is gone, so a study can be
cancelled from another machine of the same file system. A file whose lock is free belongs to a launcher that died; its
jobs may be alive.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from bench.launch.queue import QueuedJob, queue
from bench.records.lock import Holder, hold, holder, last_holder, write_line

GRACE_SECONDS = 10.0
CONTROLLER = "submitit.local._local"  # as in the command line of submitit's controller


@dataclass(frozen=True)
class Launcher:
    """One call of `equibench run`.

    Attributes:
        jobs: run -> number of the job submitted for it last.
    """

    path: Path
    who: Holder
    alive: bool
    cluster: str
    jobs: dict[str, str]


class Register:
    """A launcher's own file."""

    def __init__(self, path: Path, file: FileIO, cluster: str) -> None:
        self.path, self.file = path, file
        write_line(file, {"cluster": cluster})

    def submitted(self, run: str, job: str) -> None:
        write_line(self.file, {"run": run, "job": job})

    @property
    def cancelled(self) -> bool:
        return not self.path.exists()


@contextlib.contextmanager
def registered(study_folder: Path, cluster: str) -> Iterator[Register]:
    """Enter this launcher; its file goes when it ends with nothing left running, and stays when it is interrupted."""
    path = study_folder / ".launchers" / f"{socket.gethostname()}-{os.getpid()}.jsonl"
    with hold(path) as file:
        yield Register(path, file, cluster)
        for other in path.parent.glob("*.jsonl"):  # a launcher that finds nothing left to do tidies up after the dead
            if other == path or holder(other) is None:  # asking for one's own would give the lock up
                other.unlink(missing_ok=True)


def launchers(study_folder: Path, but: Path | None = None) -> list[Launcher]:
    """Launchers that work, and those that died without tidying up; a launcher must leave out its own file."""
    found = []
    for path in sorted((study_folder / ".launchers").glob("*.jsonl")):
        if path == but:
            continue
        now = holder(path)
        who = now or last_holder(path)
        if who is None:
            continue
        lines = []
        for line in path.read_text().splitlines()[1:]:
            with contextlib.suppress(json.JSONDecodeError):  # a last line cut short
                lines.append(json.loads(line))
        cluster = next((line["cluster"] for line in lines if "cluster" in line), "local")
        jobs = {line["run"]: line["job"] for line in lines if "run" in line}
        found.append(Launcher(path, who, now is not None, cluster, jobs))
    return found


def slurm_jobs(study_folder: Path, but: Path | None = None) -> list[tuple[str, QueuedJob]] | None:
    """Runs and the jobs that launchers of the study have submitted for them and that Slurm still has.

    None where Slurm must be asked and does not answer. `but`: as for `launchers`.
    """
    jobs = [
        (run, job) for one in launchers(study_folder, but) if one.cluster == "slurm" for run, job in one.jobs.items()
    ]
    if not jobs:
        return []
    known = queue()
    return None if known is None else [(run, known[job]) for run, job in jobs if job in known]


def cancel(study_folder: Path, grace: float = GRACE_SECONDS) -> list[str]:
    """Stop launchers and jobs of a study; what they were at stays resumable.

    Launchers first, so that none starts anything again. Local processes are interrupted (submitit ignores SIGTERM) and
    killed after the grace period. Slurm ends its own: those that wait at once, those that run after its KillWait.

    Returns:
        lines on what was stopped; one that begins with 'not stopped' for each process that is out of reach.
    Raises:
        RuntimeError: there are jobs in Slurm, and it does not answer. Nothing was stopped.
    """
    found = launchers(study_folder)
    workers = {
        path.parent.name: who for path in sorted(study_folder.glob("*/lock")) if (who := holder(path)) is not None
    }
    waiting = slurm_jobs(study_folder)
    if waiting is None:
        raise RuntimeError(
            "squeue is not here or does not answer, so Slurm's jobs cannot be cancelled; nothing was stopped"
        )
    on_slurm = {(run, job.number) for run, job in waiting}
    on_slurm |= {(run, who.job) for run, who in workers.items() if who.slurm and who.job}
    here = {one.who.pid for one in found if one.alive and one.who.is_here}
    here |= {who.pid for who in workers.values() if who.is_here and not who.slurm}
    controllers = {
        int(job)
        for one in found
        if one.cluster == "local" and one.who.is_here
        for job in one.jobs.values()
        if is_controller(int(job), study_folder)
    }
    tree = here | controllers | descendants(here | controllers)
    controllers |= {pid for pid in tree if is_controller(pid, study_folder)}

    for one in found:
        one.path.unlink(missing_ok=True)
    for pid in tree - controllers:  # a controller that is interrupted leaves its job one second
        send(pid, signal.SIGINT)
    if on_slurm:
        subprocess.run(["scancel", *sorted({job for _, job in on_slurm})], check=True)
    deadline = time.monotonic() + grace
    while any(map(alive, tree)) and time.monotonic() < deadline:
        time.sleep(0.1)
    late = {pid for pid in tree if alive(pid)}
    for pid in late:
        send(pid, signal.SIGKILL)

    lines = [f"launcher stopped: {one.who}" for one in found if one.alive and one.who.is_here]
    lines += [f"launcher told to stop: {one.who}" for one in found if one.alive and not one.who.is_here]
    lines += [f"run stopped: {run}" for run, who in workers.items() if who.is_here and not who.slurm]
    lines += [f"Slurm job cancelled: {job}, {run}" for run, job in sorted(on_slurm)]
    if late:
        lines.append(f"killed after {grace:g} s: {len(late)} processes that did not end")
    lines += [
        f"not stopped: {run}, by {who}; call cancel there"
        for run, who in workers.items()
        if not who.is_here and not who.slurm
    ]
    return lines


def is_controller(pid: int, study_folder: Path) -> bool:
    """Whether a process is a controller of this study's jobs: a process number alone may have been given again."""
    line, folders = command_line(pid), {str(study_folder.absolute()), str(study_folder.resolve())}
    return CONTROLLER in line and any(f"{folder}{os.sep}" in word for word in line for folder in folders)


def descendants(roots: set[int]) -> set[int]:
    """Processes started by those given, and by these, and so on."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # the name in brackets may hold anything; after it, state and parent
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = set(roots)
    while new := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= new
    return found - roots


def command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be noticed does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
