"""`equibench status` and `logs`: the state of a study's runs, from their records and locks, also while they run.

Reads only: no torch, no writing, no lock taken.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.launch.queue import QueuedJob, last_job, queued_jobs
from bench.records import schema
from bench.records import store as records
from bench.records.inputs import printable
from bench.records.lock import holder, last_holder
from bench.records.store import RunFolder, StudyFolder

# in the order of the totals
STATES = ("done", "sampled", "running", "queued", "killed", "failed", "skipped", "imported", "unreadable")


@dataclass(frozen=True)
class Position:
    """Progress of a run within its stage.

    Attributes:
        seconds_left: of this stage, at its pace so far; None if not known yet.
    """

    stage: str
    at: int
    of: int
    unit: str = ""
    seconds_left: float | None = None

    def __str__(self) -> str:
        if not self.of:
            return self.stage
        left = "" if self.seconds_left is None else f", about {duration(self.seconds_left)} left of it"
        return f"{self.stage}, {self.unit} {self.at} of {self.of}{left}"


@dataclass(frozen=True)
class State:
    """State of one run: one of STATES, and a line on it."""

    run: str
    status: str
    detail: str = ""


def position(folder: Path) -> Position:
    """Progress of a run, from its records."""
    try:
        config = records.read_config(RunFolder(folder))
        manifest = records.read_json(RunFolder(folder).manifest)
        trains = manifest["n_steps"] > 0 and manifest["weights_from"] is None
        sample, train = config["sample"], config["train"]
    except (OSError, KeyError, TypeError, schema.RecordError):
        return Position("starting", 0, 0)
    if RunFolder(folder).sample_costs.exists():
        return Position("evaluating", 0, 0)
    chunks = sorted(RunFolder(folder).chunks.glob("*.json"))
    n_chunks = -(-sample["n_molecules"] // sample["batch_size"])
    steps = records.last_steps(RunFolder(folder).steps) if trains else []
    trained = bool(steps) and progress(steps[-1], train) >= 1
    if chunks or trained or not trains:
        pace = sum(records.read_json(path)["seconds"] for path in chunks) / len(chunks) if chunks else None
        left = None if pace is None else pace * (n_chunks - len(chunks))
        return Position("sampling", len(chunks), n_chunks, "chunk", left)
    if not steps:
        return Position("training", 0, train["n_steps"], "step")
    first, last = ({"step": 0, "seconds": 0.0}, *steps)[-2:]
    pace = (last["seconds"] - first["seconds"]) / max(1, last["step"] - first["step"])
    left = pace * (train["n_steps"] - last["step"])
    if train["max_seconds"] is not None:
        left = min(left, train["max_seconds"] - last["seconds"])
    loss = last.get("loss", math.nan)
    return Position(f"training, loss {loss:.4f}", last["step"], train["n_steps"], "step", max(0.0, left))


def progress(line: dict[str, Any], train: dict[str, Any]) -> float:
    """Fraction of the training that is done, by steps or by seconds, whichever is larger."""
    by_clock = line["seconds"] / train["max_seconds"] if train["max_seconds"] else 0.0
    return max(line["step"] / train["n_steps"], by_clock)


def states(study_folder: Path) -> list[State]:
    """States of the runs in the study's newest plan, then of other runs in its folder."""
    planned = [run["run"] for run in read_plan(study_folder)["runs"]]
    others = sorted(folder.name for folder in StudyFolder(study_folder).runs() if folder.name not in planned)
    waiting = queued_jobs(study_folder / run for run in planned) or {}
    return [state(study_folder / run, waiting.get(run)) for run in (*planned, *others)]


def read_plan(study_folder: Path) -> dict[str, Any]:
    """The newest plan; an empty one where none was written (published studies)."""
    path = StudyFolder(study_folder).plan
    return records.read_json(path, schema.PLAN) if path.exists() else {"runs": [], "argument": ""}


def state(folder: Path, slurm_job: QueuedJob | None = None) -> State:
    """State of one run; `slurm_job`: its job in Slurm's queue."""
    who = holder(RunFolder(folder).lock)
    try:
        manifest = records.read_json(RunFolder(folder).manifest, schema.MANIFEST)
    except FileNotFoundError:
        manifest = {"status": "queued"}
    except (schema.RecordError, OSError) as error:
        return State(folder.name, "unreadable", str(error))
    status = manifest["status"]
    if who is not None:
        at = position(folder) if status == "running" else Position("starting", 0, 0)
        return State(folder.name, "running", f"{at}; {who}")
    if slurm_job is not None and status in ("queued", "running"):
        return State(folder.name, "queued", str(slurm_job))
    if status == "running":
        last = last_holder(RunFolder(folder).lock)
        why = manifest.get("reason") or "no worker holds it" + (f", last held by {last}" if last else "")
        return State(folder.name, "killed", f"{why}; was at: {position(folder)}")
    if status == "done":
        return State(folder.name, status, took(manifest))
    return State(folder.name, status, manifest.get("reason") or "")


def took(manifest: dict[str, Any]) -> str:
    """Training time and end of a finished run."""
    trained = manifest["cost"].get("train_seconds")
    words = [] if trained is None else [f"trained {duration(trained)}"]
    return ", ".join([*words, f"ended {manifest['updated'][:16].replace('T', ' ')}"])


def status(study_folder: Path) -> str:
    """The display of `equibench status`."""
    found, plan = states(study_folder), read_plan(study_folder)
    width = max((len(one.run) for one in found), default=0)
    lines = [printable(f"{one.run:{width}}  {one.status:10}  {one.detail}".rstrip()) for one in found]
    counts = Counter(one.status for one in found)
    totals = ", ".join(f"{counts[name]} {name}" for name in STATES if counts[name]) or "none"
    lines += ["", f"{study_folder.name}: {len(found)} runs: {totals}"]
    name = plan["argument"] or study_folder.name
    if counts["failed"]:
        lines.append(f"failed runs are not retried; `equibench run {name} --retry` retries them")
    left = [one for one in found if one.status == "killed" or (one.status == "queued" and not one.detail)]
    if left and not counts["running"]:  # runs queued in Slurm need no launcher
        lines.append(f"nothing runs; `equibench run {name}` does the rest")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds in a readable unit."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}" if unit == "h" else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


# ---------------------------------------------------------------------- logs


def find_run(name: str, roots: list[Path]) -> Path:
    """A run's folder by its path, its name, or a unique prefix among the runs of all studies.

    Raises:
        ValueError: no run or several runs match.
    """
    if RunFolder(Path(name)).log.exists() or RunFolder(Path(name)).manifest.exists():
        return Path(name)
    folders = [folder for root in roots for folder in sorted(root.glob("*/*/")) if RunFolder(folder).lock.exists()]
    exact = [folder for folder in folders if folder.name == name]
    fitting = exact or [folder for folder in folders if folder.name.startswith(name)]
    if len(fitting) == 1:
        return fitting[0]
    where = " or ".join(f"{root}/" for root in roots)
    if not fitting:
        raise ValueError(f"no run {name!r} in {where}; `equibench status STUDY` names them")
    listed = ", ".join(str(folder) for folder in fitting[:4]) + (", ..." if len(fitting) > 4 else "")
    raise ValueError(f"{name!r} may be any of {len(fitting)} runs: {listed}; give more of the name")


def logs(folder: Path, n_lines: int) -> str:
    """The end of a run's log and of its last job's standard error."""
    parts = [f"--- {RunFolder(folder).log}", tail(RunFolder(folder).log, n_lines)]
    for path in job_errors(folder):
        parts += [f"--- {path}", tail(path, n_lines)]
    return "\n".join(parts)


def job_errors(folder: Path) -> list[Path]:
    """Standard error of the job that last held the run, and of the one submitted last."""
    submitted, last = last_job(folder), last_holder(RunFolder(folder).lock)
    jobs = [job for job in (submitted and submitted["job"], last and last.job) if job]
    found = StudyFolder(folder.parent).jobs.glob("*/*_log.err")
    return sorted(path for path in found if any(path.name.startswith(f"{job}_") for job in jobs))


def tail(path: Path, n_lines: int) -> str:
    """Last lines of a file, read from its end."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 1000 * n_lines))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError as error:
        return f"({error.strerror})"
    return "\n".join(map(_shown, lines[-n_lines:])) or "(empty)"


def _shown(line: str) -> str:
    """A line of a log without what a terminal would obey, but for tabs."""
    return "\t".join(map(printable, line.split("\t")))


def follow(folder: Path, poll: float = 0.5, sleep: Callable[[float], None] = time.sleep) -> Iterator[str]:
    """Yield text appended to a run's log, until no worker holds the run."""
    path = RunFolder(folder).log
    seen = path.stat().st_size if path.exists() else 0
    while True:
        working = holder(RunFolder(folder).lock) is not None  # before reading, so that the last lines are not missed
        if path.exists() and path.stat().st_size > seen:
            with path.open("rb") as file:
                file.seek(seen)
                new = file.read()
            seen += len(new)
            yield "\n".join(map(_shown, new.decode(errors="replace").split("\n")))
        if not working:
            return
        sleep(poll)
