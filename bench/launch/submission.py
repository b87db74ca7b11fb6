"""Submission of runs through submitit: executors, resources, and what became of a job."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.config.run import PLAIN, ConfigError, LaunchConfig, RunConfig
from bench.launch.items import Item
from bench.launch.job import BUSY, Job
from bench.launch.queue import COMMAND, queued_jobs, read_queue, submitted
from bench.records import store as records
from bench.records.inputs import truncate
from bench.records.store import StudyFolder
from bench.run.interpreter import environment

log = logging.getLogger("equibench")

QUEUE_SECONDS = 15.0  # between calls of squeue
AGAIN_SECONDS = 60.0  # before refused runs are submitted again
LITTLE = 1 << 16  # bytes of free space below which a job may have failed to write its result
MAX_TIMEOUTS = 100  # time limits of one job, after each of which it is requeued


def job_name(study: str) -> str:
    return f"equibench-{study}"


@dataclass(frozen=True)
class Needs:
    """Resources that a run requests; runs with equal needs share one Slurm array."""

    cpus: int
    gpus: int


def needs(cfg: RunConfig, launch: LaunchConfig) -> Needs:
    """At least one core for each thread, and one GPU for each rank that uses one."""
    gpus = max(launch.gpus_per_node, cfg.train.n_processes) if cfg.train.device != "cpu" else 0
    return Needs(max(launch.cpus_per_task, cfg.train.n_processes * cfg.train.n_threads), gpus)


class Submission:
    """Submits runs through submitit, grouped by needs, and records the job of each in its folder."""

    def __init__(self, launch: LaunchConfig, study_folder: Path) -> None:
        self.launch, self.study_folder = launch, study_folder
        self.executors: dict[Needs, Any] = {}
        self.not_before = -math.inf
        self.asked, self.queued = -math.inf, set[str]()
        os.environ.update(environment())  # inherited by submitit's children, which start with `python -m`
        # runs set their own number of threads; libraries loaded earlier must not take all cores
        os.environ.setdefault("OMP_NUM_THREADS", str(launch.cpus_per_task))
        if launch.cluster == "slurm":
            watch_queue()

    def __call__(self, items: list[Item]) -> list[Item]:
        """Submit; returns the items that the cluster refuses to queue for now.

        Raises:
            ConfigError: no such cluster, or it refuses the first submission of its kind.
        """
        from submitit.core.utils import FailedJobError

        groups: dict[Needs, list[Item]] = {}
        for item in items:
            groups.setdefault(needs(item.cfg, self.launch), []).append(item)
        refused: list[Item] = []
        for wanted, group in groups.items():
            if time.monotonic() < self.not_before:
                refused += group
                continue
            first = wanted not in self.executors
            if first:
                self.executors[wanted] = make_executor(self.launch, wanted, self.study_folder)
            try:
                self.submit(self.executors[wanted], group)
            except (FailedJobError, OSError) as error:
                for item in group if first or isinstance(error, OSError) else ():
                    item.record_stop(f"not submitted ({last_line(error)}); {records.CONTINUES}")
                if isinstance(error, OSError):
                    raise
                each = f"{wanted.cpus} cores and {wanted.gpus} GPUs each"
                line = f"{self.launch.cluster} refuses {len(group)} runs that need {each}: {last_line(error)}"
                if first:
                    raise ConfigError(line) from error
                log.warning("%s; trying again every %d s", line, AGAIN_SECONDS)
                self.not_before = time.monotonic() + AGAIN_SECONDS
                refused += group
        return refused

    def submit(self, executor: Any, group: list[Item]) -> None:
        sharing = self.launch.n_parallel if self.launch.cluster == "local" else 1
        job = Job(here=self.launch.cluster == "debug")
        # submitit's controllers on this machine end with a traceback when they are interrupted
        messages = StudyFolder(self.study_folder).jobs / "controllers.log" if self.launch.cluster == "local" else None
        try:
            with standard_error_to(messages), executor.batch():  # on Slurm an array
                jobs = [
                    executor.submit(job, i.cfg.to_dict(), str(i.folder.absolute()), sharing, i.until.value)
                    for i in group
                ]
        except OSError as error:
            if records.disk_error(error):
                raise records.not_written(executor.folder, error) from error
            raise  # e.g. a missing command
        for item, item.job in zip(group, jobs, strict=True):
            submitted(item.folder, self.launch.cluster, str(item.job.job_id))

    def by_others(self, waiting: list[Item]) -> set[str]:
        """Names of waiting runs that have a job in Slurm's queue, from another launcher, alive or dead."""
        if self.launch.cluster == "slurm" and time.monotonic() - self.asked > QUEUE_SECONDS:
            jobs = queued_jobs(item.folder for item in waiting)
            if jobs is not None:  # otherwise Slurm does not answer: keep the last answer
                self.queued = set(jobs)
            self.asked = time.monotonic()
        return self.queued


@contextlib.contextmanager
def standard_error_to(path: Path | None) -> Iterator[None]:
    """Context in which standard error, also that of children started in it, is appended to a file; None: left alone."""
    with contextlib.ExitStack() as at_exit:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # standard error is closed
                before = os.dup(2)
                at_exit.callback(os.close, before)
                at_exit.callback(os.dup2, before, 2)
                with path.open("ab") as file:
                    os.dup2(file.fileno(), 2)
        yield


def make_executor(launch: LaunchConfig, wanted: Needs, study_folder: Path) -> Any:
    """submitit's executor for the cluster named.

    Raises:
        ConfigError: this cluster is not available here.
    """
    import submitit

    on_slurm = launch.cluster == "slurm"
    more: dict[str, Any] = {"slurm_max_num_timeout": MAX_TIMEOUTS} if on_slurm else {}
    if launch.cluster in ("local", "slurm"):  # workers start with `-m`, perhaps without this environment
        more[f"{launch.cluster}_python"] = shlex.join([sys.executable, "-P"])
    try:
        executor = submitit.AutoExecutor(folder=StudyFolder(study_folder).jobs / "%j", cluster=launch.cluster, **more)
    except RuntimeError as error:
        line = f"launch.cluster={launch.cluster}: {error} Use launch.cluster=local on one machine"
        raise ConfigError(line) from error
    gpus = wanted.gpus or None  # None: no request; a cluster without GPUs refuses even a request for 0
    parameters: dict[str, Any] = {
        "timeout_min": launch.timeout_min,
        "name": job_name(study_folder.name),
        "gpus_per_node": gpus,
    }
    if on_slurm:
        refuse_shell_lines({"partition": launch.slurm_partition or "", **launch.sbatch_options}, study_folder)
        parameters |= {
            "cpus_per_task": wanted.cpus,
            "mem_gb": launch.mem_gb,
            "slurm_partition": launch.slurm_partition,
            "slurm_array_parallelism": launch.slurm_array_parallelism,
            "slurm_signal_delay_s": launch.slurm_signal_delay_s,
            "slurm_additional_parameters": launch.sbatch_options,
            "slurm_srun_args": [f"--cpus-per-task={wanted.cpus}"],  # srun does not inherit it from the job
        }
    executor.update_parameters(**parameters)
    return executor


def refuse_shell_lines(options: Mapping[str, Any], folder: Path) -> None:
    """Raise ConfigError for what a batch file would hand to the shell: submitit writes options into its head, where
    the quotes that it adds end no comment, but a line break does."""
    for name, value in options.items():
        for text, what in ((str(name), "a name"), (str(value), "a value")):
            if text and not PLAIN.fullmatch(text):
                raise ConfigError(
                    f"launch: Slurm option {truncate(str(name), 40)!r} has {what} {truncate(text)!r}, expected "
                    "letters, digits and .,:/@%+=*&|!^~()[]_- alone"
                )
    if not str(folder.absolute()).isprintable():
        raise ConfigError(f"the folder {truncate(str(folder))!r} has a line break or control character in its name")


def watch_queue() -> None:
    """Make submitit ask `squeue` instead of `sacct`, which needs accounting, whether jobs have left the queue.

    A job that is requeued can be missing from one answer, so it takes two to believe that it has left.
    """
    from submitit.slurm import slurm

    class Watcher(slurm.SlurmInfoWatcher):
        missing: frozenset[str] = frozenset()  # from the last answer

        def _make_command(self) -> list[str] | None:
            return list(COMMAND) if self._registered - self._finished else None

        def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
            known = read_queue(string if isinstance(string, str) else string.decode())
            before, self.missing = self.missing, frozenset(self._registered - known.keys())
            return {job: {"State": "GONE" if job in before & self.missing else "PENDING"} for job in self._registered}

    slurm.SlurmJob.watcher = Watcher(int(QUEUE_SECONDS))


# most informative line first: node daemon, sbatch or srun, traceback, any; the last match counts
TELLING = (r"^slurmstepd\S*: error: (.+)", r"^\w+: error: (.+)", r"^[\w.]+(?:Error|Exception): .+", r"^.+")


def last_line(error: Exception) -> str:
    """The most informative line of submitit's error, which may contain all output of a job."""
    for kind in TELLING:
        if found := re.findall(kind, str(error), flags=re.MULTILINE):
            return found[-1].strip("* ")
    return type(error).__name__


def outcome(item: Item) -> str | None:
    """None if the job ended with a result, else one line. A job killed as a whole is not a failure of its run."""
    try:
        line = item.job.result()
    except Exception as error:  # killed, lost by the cluster, or no space for its result
        left = shutil.disk_usage(item.folder.parent).free
        why = last_line(error) if left > LITTLE else f"{os.strerror(errno.ENOSPC)}: {left} bytes for {item.folder}"
        line = f"ended without a result ({why}); {records.CONTINUES}"
        item.record_stop(line)
        return line
    if line and line != BUSY and not line.endswith(records.CONTINUES):
        item.record_failure(line)
    return line
