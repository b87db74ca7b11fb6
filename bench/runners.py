"""A study's runs through submitit: what is missing is executed, what was cut is resumed, what failed is reported."""

from __future__ import annotations

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
from bench.config import ConfigError, LaunchConfig, RunConfig, StudyConfig, build, reason_to_skip, weights_run
from bench.data.dataset import DataSet
from bench.execute import BusyError, execute, is_done, load_data, locked
from bench.provenance import describe

log = logging.getLogger("equibench")

POLL_SECONDS = 0.5
LINE_SECONDS = 30.0  # between progress lines where there is no terminal


@dataclass
class Item:
    """One run of a study: its configuration, its folder, and the item whose weights it needs.

    Attributes:
        outcome: one line on how its last job ended, where that was not with a result.
    """

    cfg: RunConfig
    folder: Path
    needs: Item | None = None
    job: Any = field(default=None, repr=False)
    outcome: str | None = None

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


def plan(study: StudyConfig, runs_root: Path) -> list[Item]:
    """The items of a study, runs that others depend on before them; skipped cells get their record here.

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
        items[folder] = Item(cfg, folder, needs)
        if reason:
            record = describe(cfg, folder.name, data.record(), 1) | {"status": "skipped", "reason": reason}
            if not (folder / "manifest.json").exists():
                records.write_atomically(folder / "config.yaml", yaml.safe_dump(cfg.page(), sort_keys=False).encode())
                records.write_json(folder / "manifest.json", record, records.MANIFEST)
        return items[folder]

    for cfg in study.runs:
        add(cfg)
    return list(items.values())


def run_study(study: StudyConfig, runs_root: Path, retry_failed: bool = False) -> list[Item]:
    """Execute what is missing; returns all items. Failures are recorded and do not stop the others."""
    items = plan(study, runs_root)
    study_folder = runs_root / study.name
    records.write_atomically(study_folder / "study.yaml", yaml.safe_dump(study.page, sort_keys=False).encode())
    # a failed run stays failed until someone asks: its cause is seldom gone by itself
    wanted = ("new", "running", "failed") if retry_failed else ("new", "running")
    waiting: list[Item] = []
    for item in items:  # parents come first; a result on weights that are about to be made again is made again
        if item.status in wanted or (item.needs in waiting and item.status == "done"):
            waiting.append(item)
    log.info("%s: %d runs, %d to do", study.name, len(items), len(waiting))
    if not waiting:
        return items
    launch = study.launch
    executor = make_executor(launch, study_folder / ".submitit", any(i.cfg.train.device != "cpu" for i in waiting))
    at_a_time = {"debug": 1, "local": launch.n_parallel, "slurm": launch.slurm_array_parallelism}[launch.cluster]
    sharing = launch.n_parallel if launch.cluster == "local" else 1
    running: list[Item] = []
    with Progress(len(waiting)) as progress:
        while waiting or running:
            for item in [i for i in running if i.job.done()]:
                running.remove(item)
                item.outcome = outcome(item)
                if item.outcome == BUSY:  # another launcher was faster; its result is taken when it is there
                    waiting.append(item)
                else:
                    progress.finished(item, item.outcome or "done")
            ready, elsewhere = sort_waiting(waiting)
            for item in ready[: max(0, at_a_time - len(running) - len(elsewhere))]:
                waiting.remove(item)
                if item.status == "done":
                    progress.finished(item, "done by another process")
                elif item.needs is not None and item.needs.status != "done":
                    item.outcome = f"not started: it needs {item.needs.folder.name}, which is {item.needs.status}"
                    progress.finished(item, item.outcome)
                else:
                    item.job = executor.submit(Job(), item.cfg.page(), str(item.folder), sharing)
                    running.append(item)
            progress.show(running, elsewhere)
            if waiting or running:
                time.sleep(0.0 if launch.cluster == "debug" else POLL_SECONDS)
    return items


def sort_waiting(waiting: list[Item]) -> tuple[list[Item], list[Item]]:
    """Items that can be started, and items that another process is working on; the others wait for their parent."""
    ready, elsewhere = [], []
    for item in waiting:
        needs = item.needs
        if needs is not None and (needs in waiting or (needs.job is not None and not needs.job.done())):
            continue
        try:
            with locked(item.folder):
                ready.append(item)
        except BusyError:
            elsewhere.append(item)
    return ready, elsewhere


BUSY = "another process is working on it"


class Job:
    """What submitit executes: one run. A failure is in the manifest already, so it is returned, not raised."""

    def __call__(self, page: dict[str, Any], folder: str, n_parallel: int) -> str | None:
        """None, or a line on why there is no result."""
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stdout)
        try:
            execute(build(RunConfig, page), Path(folder), n_parallel)
        except BusyError:
            return BUSY
        except Exception as error:  # a run must not take the study down
            return f"{type(error).__name__}: {error}"
        return None

    def checkpoint(self, *args: Any) -> Any:
        """On a time limit or a preemption: the same job once more, which goes on from the run's own checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *args)


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
    """None where a job ended with a result; else one line. A job that was killed can go on at the next call."""
    try:
        return item.job.result()
    except Exception as error:  # killed, out of memory, lost by the cluster
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return f"ended without a word ({reason}); the same command continues it"


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

    def show(self, running: list[Item], elsewhere: list[Item]) -> None:
        """`elsewhere`: runs that another process is working on."""
        running = [*running, *elsewhere]
        if self.terminal:
            for item in running:
                at, total, stage = position(item)
                if item.folder not in self.bars:
                    self.bars[item.folder] = tqdm(desc=item.folder.name, total=total, leave=False)
                bar = self.bars[item.folder]
                bar.total, bar.n = total, at
                bar.set_postfix_str(stage)
        elif time.monotonic() - self.last_line > LINE_SECONDS:
            self.last_line = time.monotonic()
            for item in running:
                at, total, stage = position(item)
                tqdm.write(f"{item.folder.name}: {stage} {at}/{total}", file=sys.stderr)


def position(item: Item) -> tuple[int, int, str]:
    """How far a run is: done, of how many, at what."""
    sample = item.cfg.sample
    n_chunks = -(-sample.n_molecules // sample.batch_size)
    sampled = len(list((item.folder / "chunks").glob("*.json")))
    if (item.folder / "samples.npz").exists():
        return n_chunks, n_chunks, "scoring, chunk"
    if item.needs is not None or sampled:
        return sampled, n_chunks, "sampling, chunk"
    steps = records.read_steps(item.folder / "steps.jsonl")
    if not steps:
        return 0, item.cfg.train.n_steps, "starting"
    if steps[-1]["step"] >= item.cfg.train.n_steps:
        return 0, n_chunks, "sampling, chunk"
    return steps[-1]["step"], item.cfg.train.n_steps, f"loss {steps[-1]['loss']:.4f}, step"
