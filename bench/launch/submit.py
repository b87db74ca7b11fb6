"""The launcher: submits the runs of a study through submitit, resumes interrupted ones and reports failures.

Several launchers may work on one study: a lock gives each run to one worker at a time (`bench.records.lock`), and
launchers use each other's results. On Slurm a launcher also waits for jobs that others have left in the queue.
"""

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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.config.run import ConfigError, LaunchConfig, RunConfig, reason_to_skip, weights_run
from bench.config.study import StudyConfig
from bench.launch.job import BUSY, Job
from bench.launch.queue import COMMAND, queued_jobs, read_queue, submitted
from bench.launch.status import position
from bench.records import schema
from bench.records import store as records
from bench.records.inputs import truncate
from bench.records.lock import BusyError, Holder, holder, locked
from bench.records.store import RunFolder, StudyFolder
from bench.run.batches import load_data
from bench.run.execute import Until, is_done
from bench.run.interpreter import environment
from bench.run.provenance import describe, now, planned
from bench.structures.dataset import DataSet

log = logging.getLogger("equibench")

POLL_SECONDS = 0.5
LINE_SECONDS = 30.0  # between progress lines where there is no terminal
QUEUE_SECONDS = 15.0  # between calls of squeue
AGAIN_SECONDS = 60.0  # before refused runs are submitted again
LITTLE = 1 << 16  # bytes of free space below which a job may have failed to write its result
MAX_TIMEOUTS = 100  # time limits of one job, after each of which it is requeued


@dataclass
class Item:
    """One run of a study: its configuration, its folder, its data and the item whose weights it needs.

    Attributes:
        data: `DataSet.record()` of its data set.
        outcome: one line on how its last job ended, if it ended without a result.
        shared: whether another launcher was seen working on it.
        until: the stage at which it stops.
    """

    cfg: RunConfig
    folder: Path
    data: dict[str, Any] = field(repr=False)
    needs: Item | None = None
    job: Any = field(default=None, repr=False)
    outcome: str | None = None
    shared: bool = False
    until: Until = Until.EVALUATED

    @property
    def status(self) -> str:
        """done | skipped | failed | running | new, according to the records."""
        if reason_to_skip(self.cfg):
            return "skipped"
        if is_done(self.folder):
            return "done"
        try:
            status = str(records.read_json(RunFolder(self.folder).manifest)["status"])
        except (FileNotFoundError, schema.RecordError):
            return "new"
        if status == self.until.value:
            return "done"
        return status if status in ("failed", "running") else "new"

    @property
    def reason(self) -> str:
        """Why it failed, according to its record."""
        try:
            return str(records.read_json(RunFolder(self.folder).manifest)["reason"])
        except (FileNotFoundError, schema.RecordError):
            return "no record"

    def record(self, status: str, reason: str) -> None:
        """Write a manifest for a run that has none."""
        manifest = describe(self.cfg, self.folder.name, self.data, 1) | {"status": status, "reason": reason}
        records.write_yaml(RunFolder(self.folder).config, self.cfg.to_dict())
        records.write_json(RunFolder(self.folder).manifest, manifest, schema.MANIFEST)

    def record_failure(self, reason: str, status: str = "failed") -> None:
        """If possible, write a manifest for a job that failed before writing one."""
        path = RunFolder(self.folder).manifest
        with contextlib.suppress(BusyError, OSError), locked(self.folder):
            if not path.exists():
                self.record(status, reason)

    def record_stop(self, reason: str) -> None:
        """The same for a run that could not be started, or whose job was killed, and which the same command starts."""
        self.record_failure(reason, "running")


def plan(study: StudyConfig, runs_root: Path, until: Until = Until.EVALUATED) -> list[Item]:
    """The items of a study, parents before the runs that depend on them. Writes nothing.

    Raises:
        DataError, ConfigError: the data set is not available, or a configuration is wrong.
    """
    items: dict[Path, Item] = {}
    loaded: dict[str, DataSet] = {}
    trained: dict[str, Item] = {}  # training identity -> the item that trains these weights; others reuse them

    def add(cfg: RunConfig) -> Item:
        key = repr(cfg.data)
        if key not in loaded:
            loaded[key] = load_data(cfg)
        data, reason, parent = loaded[key], reason_to_skip(cfg), weights_run(cfg)
        folder = runs_root / study.name / cfg.run_name(data.fingerprint)
        if folder in items:
            return items[folder]
        if reason:
            items[folder] = Item(cfg, folder, data.record(), until=until)
        elif parent:
            items[folder] = Item(cfg, folder, data.record(), add(parent), until=until)
        else:
            identity = cfg.training_identity(data.fingerprint)
            items[folder] = Item(cfg, folder, data.record(), trained.get(identity), until=until)
            trained.setdefault(identity, items[folder])
        return items[folder]

    for cfg in study.runs:
        add(cfg)
    return list(items.values())


def write_plan(study: StudyConfig, items: list[Item], study_folder: Path, argument: str) -> None:
    """Write the plan, from which `status` and `report` know runs that have not begun, and records of skipped cells."""
    records.write_yaml(StudyFolder(study_folder).study, study.page)
    record = {
        "schema": schema.SCHEMA_VERSION,
        "written_by": schema.package_version(),
        "study": study.name,
        "argument": argument,
        "created": now(),
        "runs": [planned(i.cfg, i.folder.name, i.data) | {"config": i.cfg.to_dict()} for i in items],
    }
    records.write_json(StudyFolder(study_folder).plan, record, schema.PLAN)
    for item in items:
        reason = reason_to_skip(item.cfg)
        if reason and not RunFolder(item.folder).manifest.exists():
            item.record("skipped", reason)


def run_study(
    study: StudyConfig,
    runs_root: Path,
    retry: bool = False,
    argument: str | None = None,
    until: Until = Until.EVALUATED,
) -> list[Item]:
    """Execute the missing runs; returns all items. Failures are recorded and do not stop other runs.

    Args:
        retry: also retry failed runs.
        argument: the study as the user named it.
        until: the stage at which each run stops.
    Raises:
        KeyboardInterrupt: interrupted. Jobs on this machine are stopped; those in Slurm continue.
    """
    items = plan(study, runs_root, until)
    study_folder = runs_root / study.name
    write_plan(study, items, study_folder, argument or study.name)
    # failed runs are repeated only on request: their cause seldom goes away by itself
    wanted = ("new", "running", "failed") if retry else ("new", "running")
    waiting = [item for item in items if item.status in wanted]  # parents come first
    log.info("%s: %d runs, %d to do", study.name, len(items), len(waiting))
    if waiting:
        with Progress(len(waiting)) as progress:
            try:
                work_off(waiting, study.launch, Submission(study.launch, study_folder), progress)
            except KeyboardInterrupt:
                if study.launch.cluster == "local":  # SIGINT to the launcher alone does not reach its jobs
                    for item in items:
                        if item.job is not None and not item.job.done():
                            item.job.cancel()
                raise
    return items


def work_off(waiting: list[Item], launch: LaunchConfig, submit: Submission, progress: Progress) -> None:
    """Submit runs as slots become free, until none is waiting or running."""
    at_a_time = {"debug": 1, "local": launch.n_parallel, "slurm": launch.slurm_array_parallelism}[launch.cluster]
    running: list[Item] = []
    while waiting or running:
        for item in [i for i in running if i.job.done()]:
            running.remove(item)
            item.outcome = outcome(item)
            if item.outcome == BUSY:  # another launcher was faster: use its result when it is done
                item.shared = True
                waiting.append(item)
                continue
            progress.finished(item, item.outcome or "done")
        ready, elsewhere = sort_waiting(waiting, submit.by_others(waiting))
        # launchers on one machine share its slots; one on another machine has its own
        taken = len(running) + sum(
            launch.cluster == "slurm" or (who is not None and who.is_here) for who in elsewhere.values()
        )
        starting: list[Item] = []
        for item in ready[: max(0, at_a_time - taken)]:
            waiting.remove(item)
            if item.status == "done":
                progress.finished(item, "done by another launcher")
            elif item.shared and item.status == "failed":
                item.outcome = f"failed under another launcher: {item.reason}"
                progress.finished(item, item.outcome)
            elif item.needs is not None and item.needs.status != "done":
                item.outcome = f"not started: it needs {item.needs.folder.name}, which is {item.needs.status}"
                progress.finished(item, item.outcome)
            else:
                starting.append(item)
        refused = submit(starting)
        waiting += refused
        running += [item for item in starting if item not in refused]
        progress.show([*running, *(item for item in waiting if item.folder in elsewhere)])
        if waiting or running:
            time.sleep(0.0 if launch.cluster == "debug" else POLL_SECONDS)


def sort_waiting(waiting: list[Item], queued: set[str]) -> tuple[list[Item], dict[Path, Holder | None]]:
    """Items that can start, and those held elsewhere: folder -> holder, or None for a job in Slurm's queue.

    Items in neither are waiting for their parents.
    """
    ready: list[Item] = []
    elsewhere: dict[Path, Holder | None] = {}
    for item in waiting:
        needs = item.needs
        if needs is not None and (needs in waiting or (needs.job is not None and not needs.job.done())):
            continue
        who = holder(RunFolder(item.folder).lock)
        if who is None and item.folder.name not in queued:
            ready.append(item)
        else:
            item.shared, elsewhere[item.folder] = True, who
    return ready, elsewhere


# ---------------------------------------------------------------------- submitit


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
        try:
            with executor.batch():  # on Slurm an array
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
        "name": f"equibench-{study_folder.name}",
        "gpus_per_node": gpus,
    }
    if on_slurm:
        options = {"requeue": True, **launch.slurm_options}
        refuse_shell_lines({"partition": launch.slurm_partition or "", **options}, study_folder)
        parameters |= {
            "cpus_per_task": wanted.cpus,
            "mem_gb": launch.mem_gb,
            "slurm_partition": launch.slurm_partition,
            "slurm_array_parallelism": launch.slurm_array_parallelism,
            "slurm_signal_delay_s": launch.slurm_signal_delay_s,
            # requeue preempted jobs and those of lost nodes, whatever the cluster's default
            "slurm_additional_parameters": options,
            "slurm_srun_args": [f"--cpus-per-task={wanted.cpus}"],  # srun does not inherit it from the job
        }
    executor.update_parameters(**parameters)
    return executor


# what sbatch's options need: nodes[1-3], gpu:a100:2, a&b|c, 1-00:00:00, me@home, /path/%j.out
PLAIN = re.compile(r"[\w.,:/=@%+*&|!~()\[\]-]*", re.ASCII)


def refuse_shell_lines(options: Mapping[str, Any], folder: Path) -> None:
    """Raise ConfigError for what a batch file would hand to the shell: submitit writes options into its head, where
    the quotes that it adds end no comment, but a line break does."""
    for name, value in options.items():
        for text, what in ((str(name), "a name"), (str(value), "a value")):
            if not PLAIN.fullmatch(text):
                raise ConfigError(
                    f"launch: Slurm option {truncate(str(name), 40)!r} has {what} {truncate(text)!r}, expected "
                    "letters, digits and any of .,:/=@%+*&|!~()[]-_"
                )
    if not str(folder.absolute()).isprintable():
        raise ConfigError(f"the folder {truncate(str(folder))!r} has a line break or control character in its name")


def watch_queue() -> None:
    """Make submitit ask `squeue` instead of `sacct`, which needs accounting, whether jobs have left the queue."""
    from submitit.slurm import slurm

    class Watcher(slurm.SlurmInfoWatcher):
        def _make_command(self) -> list[str] | None:
            return list(COMMAND) if self._registered - self._finished else None

        def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
            known = read_queue(string if isinstance(string, str) else string.decode())
            return {job: {"State": "PENDING" if job in known else "GONE"} for job in self._registered}

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


class Progress:
    """Progress of runs from their records: bars on a terminal, plain lines elsewhere."""

    def __init__(self, n_runs: int) -> None:
        self.n_runs, self.n_finished = n_runs, 0
        self.terminal = sys.stderr.isatty()
        self.bars: dict[Path, tqdm] = {}
        self.last_line = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        for bar in self.bars.values():
            bar.close()

    def finished(self, item: Item, result: str) -> None:
        self.n_finished += 1
        if item.folder in self.bars:
            self.bars.pop(item.folder).close()
        tqdm.write(f"[{self.n_finished}/{self.n_runs}] {item.folder.name}: {result}", file=sys.stderr)

    def show(self, running: list[Item]) -> None:
        """Show the positions of `running`, items at work here or under another launcher."""
        if self.terminal:
            for item in running:
                at = position(item.folder)
                if item.folder not in self.bars:
                    self.bars[item.folder] = tqdm(desc=item.folder.name, total=at.of, leave=False)
                bar = self.bars[item.folder]
                bar.total, bar.n = at.of, at.at
                bar.set_postfix_str(at.stage)
        elif time.monotonic() - self.last_line > LINE_SECONDS:
            self.last_line = time.monotonic()
            positions = {item.folder.name: position(item.folder) for item in running}
            begun = {name: at for name, at in positions.items() if at.stage != "starting"}
            for name, at in begun.items():
                tqdm.write(f"{name}: {at}", file=sys.stderr)
            if len(begun) < len(positions):  # on Slurm they may be pending for days
                tqdm.write(f"{len(positions) - len(begun)} submitted, not started", file=sys.stderr)
