"""A study's runs through submitit: what is missing is executed, what was cut is resumed, what failed is reported.

Several launchers may work on one study: each run is held by one process at a time (`bench.locks`), and a launcher takes
what others have finished.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from bench import records
from bench.config import ConfigError, LaunchConfig, RunConfig, StudyConfig, reason_to_skip, weights_run
from bench.data.dataset import DataSet
from bench.evaluate import package_version
from bench.execute import is_done, load_data
from bench.launches import Register, registered
from bench.locks import BusyError, Holder, holder, locked
from bench.provenance import describe, now, planned
from bench.status import position
from bench.worker import BUSY, CONTINUES, Job

log = logging.getLogger("equibench")

POLL_SECONDS = 0.5
LINE_SECONDS = 30.0  # between progress lines where there is no terminal


@dataclass
class Item:
    """One run of a study: its configuration, its folder, its data and the item whose weights it needs.

    Attributes:
        data: `DataSet.record()` of its data set.
        outcome: one line on how its last job ended, where that was not with a result.
        shared: another launcher was seen at work on it.
    """

    cfg: RunConfig
    folder: Path
    data: dict[str, Any] = field(repr=False)
    needs: Item | None = None
    job: Any = field(default=None, repr=False)
    outcome: str | None = None
    shared: bool = False

    @property
    def status(self) -> str:
        """done | skipped | failed | running | new, as far as the records tell."""
        if reason_to_skip(self.cfg):
            return "skipped"
        if is_done(self.cfg, self.folder):
            return "done"
        try:
            status = str(records.read_json(self.folder / "manifest.json")["status"])
        except (FileNotFoundError, records.RecordError):
            return "new"
        return status if status in ("failed", "running") else "new"

    @property
    def reason(self) -> str:
        """Why it failed, as its record says."""
        try:
            return str(records.read_json(self.folder / "manifest.json")["reason"])
        except (FileNotFoundError, records.RecordError):
            return "no record"

    def record(self, status: str, reason: str) -> None:
        """Write a manifest of a run that has none of its own."""
        manifest = describe(self.cfg, self.folder.name, self.data, 1) | {"status": status, "reason": reason}
        config = yaml.safe_dump(self.cfg.page(), sort_keys=False).encode()
        records.write_atomically(self.folder / "config.yaml", config)
        records.write_json(self.folder / "manifest.json", manifest, records.MANIFEST)

    def record_failure(self, reason: str) -> None:
        """Where a job failed before it came to its record, or could not write it, say so in its place."""
        path = self.folder / "manifest.json"
        with contextlib.suppress(BusyError), locked(self.folder):
            if not path.exists():
                self.record("failed", reason)


def plan(study: StudyConfig, runs_root: Path) -> list[Item]:
    """The items of a study, runs that others depend on before them. Writes nothing.

    Raises:
        DataError, ConfigError: the data set cannot be had, or a configuration is wrong.
    """
    items: dict[Path, Item] = {}
    loaded: dict[str, DataSet] = {}

    def add(cfg: RunConfig) -> Item:
        key = repr(cfg.data)
        if key not in loaded:
            loaded[key] = load_data(cfg)
        data, reason, parent = loaded[key], reason_to_skip(cfg), weights_run(cfg)
        folder = runs_root / study.name / cfg.run_name(data.fingerprint)
        if folder in items:
            return items[folder]
        needs = add(parent) if parent and not reason else None
        items[folder] = Item(cfg, folder, data.record(), needs)
        return items[folder]

    for cfg in study.runs:
        add(cfg)
    return list(items.values())


def write_plan(study: StudyConfig, items: list[Item], study_folder: Path, argument: str) -> None:
    """What `status` and `report` need to know of runs that have not begun, and the records of skipped cells."""
    records.write_atomically(study_folder / "study.yaml", yaml.safe_dump(study.page, sort_keys=False).encode())
    record = {
        "schema": records.SCHEMA_VERSION,
        "written_by": package_version(),
        "study": study.name,
        "argument": argument,
        "created": now(),
        "runs": [planned(i.cfg, i.folder.name, i.data) | {"config": i.cfg.page()} for i in items],
    }
    records.write_json(study_folder / "runs.json", record, records.PLAN)
    for item in items:
        reason = reason_to_skip(item.cfg)
        if reason and not (item.folder / "manifest.json").exists():
            item.record("skipped", reason)


class CancelledError(KeyboardInterrupt):
    """`equibench cancel` wants this launcher to end."""


def run_study(study: StudyConfig, runs_root: Path, retry: bool = False, argument: str | None = None) -> list[Item]:
    """Execute what is missing; returns all items. Failures are recorded and do not stop the others.

    Args:
        retry: also what has failed before.
        argument: the study as the user named it.
    Raises:
        KeyboardInterrupt: interrupted or cancelled; jobs that run may still be running.
    """
    items = plan(study, runs_root)
    study_folder = runs_root / study.name
    write_plan(study, items, study_folder, argument or study.name)
    # a failed run stays failed until someone asks: its cause is seldom gone by itself
    wanted = ("new", "running", "failed") if retry else ("new", "running")
    waiting: list[Item] = []
    for item in items:  # parents come first; a result on weights that are about to be made again is made again
        if item.status in wanted or (item.needs in waiting and item.status == "done"):
            waiting.append(item)
    log.info("%s: %d runs, %d to do", study.name, len(items), len(waiting))
    if waiting:
        executor = make_executor(study.launch, study_folder / ".submitit", any_on_gpu(waiting))
        with registered(study_folder, study.launch.cluster) as register, Progress(len(waiting)) as progress:
            work_off(waiting, study.launch, executor, register, progress)
    return items


def work_off(waiting: list[Item], launch: LaunchConfig, executor: Any, register: Register, progress: Progress) -> None:
    """Submit what can start as places come free, until nothing waits or runs."""
    at_a_time = {"debug": 1, "local": launch.n_parallel, "slurm": launch.slurm_array_parallelism}[launch.cluster]
    sharing = launch.n_parallel if launch.cluster == "local" else 1
    running: list[Item] = []
    while waiting or running:
        if register.cancelled:
            raise CancelledError
        for item in [i for i in running if i.job.done()]:
            running.remove(item)
            item.outcome = outcome(item)
            if item.outcome == BUSY:  # another launcher was faster; its result is taken when it is there
                item.shared = True
                waiting.append(item)
                continue
            progress.finished(item, item.outcome or "done")
        ready, elsewhere = sort_waiting(waiting)
        # two launchers on one machine share its places; one on another machine has places of its own
        taken = len(running) + sum(launch.cluster == "slurm" or who.is_here for who in elsewhere.values())
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
                item.job = executor.submit(
                    Job(here=launch.cluster == "debug"), item.cfg.page(), str(item.folder.absolute()), sharing
                )
                register.submitted(item.folder.name, item.job.job_id)
                running.append(item)
        progress.show([*running, *(item for item in waiting if item.folder in elsewhere)])
        if waiting or running:
            time.sleep(0.0 if launch.cluster == "debug" else POLL_SECONDS)


def sort_waiting(waiting: list[Item]) -> tuple[list[Item], dict[Path, Holder]]:
    """Items that can be started, and who works on which other folder; the others wait for their parent."""
    ready, elsewhere = [], {}
    for item in waiting:
        needs = item.needs
        if needs is not None and (needs in waiting or (needs.job is not None and not needs.job.done())):
            continue
        who = holder(item.folder / "lock")
        if who is None:
            ready.append(item)
        else:
            item.shared, elsewhere[item.folder] = True, who
    return ready, elsewhere


def any_on_gpu(items: list[Item]) -> bool:
    return any(item.cfg.train.device != "cpu" for item in items)


def make_executor(launch: LaunchConfig, folder: Path, on_gpu: bool) -> Any:
    """submitit's executor for the cluster named; runs on a GPU get one each, also where the page does not say so."""
    import submitit

    try:
        executor = submitit.AutoExecutor(folder=folder / "%j", cluster=launch.cluster)
    except RuntimeError as error:  # no such cluster here
        line = f"launch.cluster={launch.cluster}: {error} Use launch.cluster=local on one machine"
        raise ConfigError(line) from error
    gpus = max(launch.gpus_per_node, int(on_gpu))
    parameters: dict[str, Any] = {"timeout_min": launch.timeout_min, "name": "equibench", "gpus_per_node": gpus}
    if launch.cluster == "slurm":
        parameters["cpus_per_task"] = launch.cpus_per_task
        if launch.slurm_partition:
            parameters["slurm_partition"] = launch.slurm_partition
    executor.update_parameters(**parameters)
    # each run computes with its own number of threads; libraries that start earlier must not take all cores
    os.environ.setdefault("OMP_NUM_THREADS", str(launch.cpus_per_task))
    return executor


def outcome(item: Item) -> str | None:
    """None where a job ended with a result; else one line. A job killed as a whole is no failure of the run."""
    try:
        line = item.job.result()
    except Exception as error:  # killed, lost by the cluster
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return f"ended without a word ({reason}); {CONTINUES}"
    if line and line != BUSY and not line.endswith(CONTINUES):
        item.record_failure(line)
    return line


class Progress:
    """Bars on a terminal, plain lines elsewhere; all from the runs' own records."""

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
        """`running`: here, and by another process."""
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
            for item in running:
                tqdm.write(f"{item.folder.name}: {position(item.folder)}", file=sys.stderr)
