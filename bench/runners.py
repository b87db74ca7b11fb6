"""A study's runs through submitit: what is missing is executed, what was cut is resumed, what failed is reported."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from bench import records
from bench.config import LaunchConfig, RunConfig, StudyConfig, build, reason_to_skip, weights_run
from bench.execute import BusyError, describe, execute, is_done, load_data, locked

log = logging.getLogger("equibench")

POLL_SECONDS = 0.5
LINE_SECONDS = 30.0  # between progress lines where there is no terminal


@dataclass
class Item:
    """One run of a study: its configuration, its folder, and the item whose weights it needs."""

    cfg: RunConfig
    folder: Path
    needs: Item | None = None
    job: Any = field(default=None, repr=False)

    @property
    def status(self) -> str:
        """done | skipped | failed | running | new, as far as the records tell."""
        if is_done(self.cfg, self.folder):
            return str(records.read_json(self.folder / "manifest.json")["status"])
        try:
            status = str(records.read_json(self.folder / "manifest.json")["status"])
        except (FileNotFoundError, records.RecordError):
            return "new"
        return "new" if status in ("done", "skipped") else status


def plan(study: StudyConfig, runs_root: Path) -> list[Item]:
    """The items of a study in grid order, runs that others depend on first; skipped cells get their record here.

    Raises:
        DataError, ConfigError: the data set cannot be had, or a configuration is wrong.
    """
    items: dict[Path, Item] = {}
    loaded: dict[str, Any] = {}

    def add(cfg: RunConfig) -> Item:
        data = loaded.setdefault(repr(cfg.data), None) or load_data(cfg)
        loaded[repr(cfg.data)] = data
        folder = runs_root / study.name / cfg.run_name(data.fingerprint)
        if folder in items:
            return items[folder]
        parent = weights_run(cfg)
        item = Item(cfg, folder, add(parent) if parent and not reason_to_skip(cfg) else None)
        items[folder] = item
        if (reason := reason_to_skip(cfg)) and item.status != "skipped":
            record = describe(cfg, folder.name, data, 1) | {"status": "skipped", "reason": reason}
            records.write_atomically(folder / "config.yaml", yaml.safe_dump(cfg.page(), sort_keys=False).encode())
            records.write_json(folder / "manifest.json", record, records.MANIFEST)
        return item

    for cfg in study.runs:
        add(cfg)
    return list(items.values())


def run_study(study: StudyConfig, runs_root: Path, retry_failed: bool = False) -> list[Item]:
    """Execute what is missing; returns all items. Failures are recorded and do not stop the others."""
    items = plan(study, runs_root)
    study_folder = runs_root / study.name
    records.write_atomically(study_folder / "study.yaml", yaml.safe_dump(study.page, sort_keys=False).encode())
    # a failed run stays failed until someone asks: its cause is seldom gone by itself
    waiting = [
        item for item in items if item.status in (("new", "running", "failed") if retry_failed else ("new", "running"))
    ]
    log.info("%s: %d runs, %d to do", study.name, len(items), len(waiting))
    if not waiting:
        return items
    executor = make_executor(study.launch, study_folder / ".submitit")
    n_parallel = 1 if study.launch.cluster == "debug" else study.launch.n_parallel
    if study.launch.cluster == "slurm":
        n_parallel = study.launch.slurm_array_parallelism
    shared = n_parallel if study.launch.cluster == "local" else 1
    running: list[Item] = []
    with Progress(len(waiting)) as progress:
        while waiting or running:
            for item in [i for i in running if i.job.done()]:
                running.remove(item)
                progress.finished(item, outcome(item))
            for item in ready(waiting):
                if len(running) >= n_parallel:
                    break
                waiting.remove(item)
                if item.needs is not None and item.needs.status != "done":
                    progress.finished(item, f"not started: it needs {item.needs.folder.name}, which has not finished")
                    continue
                item.job = executor.submit(job, item.cfg.page(), str(item.folder), shared)
                running.append(item)
            progress.show(running)
            if waiting or running:
                time.sleep(0.0 if study.launch.cluster == "debug" else POLL_SECONDS)
    return items


def ready(waiting: list[Item]) -> Iterator[Item]:
    """Items whose dependency is settled and that no other process holds; a held one is looked at again later."""
    for item in list(waiting):
        if item.needs is not None and (
            item.needs in waiting or (item.needs.job is not None and not item.needs.job.done())
        ):
            continue
        try:
            with locked(item.folder):
                pass
        except BusyError:
            continue
        yield item


def job(page: dict[str, Any], folder: str, n_parallel: int) -> str:
    """What submitit executes: one run. A failure is in the manifest already, so it is returned, not raised."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stdout)
    try:
        execute(build(RunConfig, page), Path(folder), n_parallel)
    except Exception as error:  # a run must not take the study down
        return f"{type(error).__name__}: {error}"
    return "done"


def make_executor(launch: LaunchConfig, folder: Path) -> Any:
    """submitit's executor for the cluster named."""
    import submitit

    executor = submitit.AutoExecutor(folder=folder / "%j", cluster=launch.cluster)
    parameters: dict[str, Any] = {"timeout_min": launch.timeout_min, "name": "equibench"}
    if launch.cluster == "slurm":
        parameters |= {"cpus_per_task": launch.cpus_per_task, "gpus_per_node": launch.gpus_per_node}
        if launch.slurm_partition:
            parameters["slurm_partition"] = launch.slurm_partition
    executor.update_parameters(**parameters)
    # each run computes with its own number of threads; libraries that start earlier must not take all cores
    os.environ.setdefault("OMP_NUM_THREADS", str(launch.cpus_per_task))
    return executor


def outcome(item: Item) -> str:
    """One line on how a job ended."""
    try:
        result = item.job.result()
    except Exception as error:  # killed, out of memory, lost by the cluster
        result = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    if result != "done" and item.status == "running":
        mark_failed(item, result)
    return result


def mark_failed(item: Item, reason: str) -> None:
    """Record a job that died without leaving a word."""
    manifest = records.read_json(item.folder / "manifest.json")
    manifest |= {"status": "failed", "reason": reason.splitlines()[0]}
    records.write_json(item.folder / "manifest.json", manifest, records.MANIFEST)


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
        if self.terminal:
            for item in running:
                at, total, stage = position(item)
                bar = self.bars.setdefault(
                    item.folder, tqdm(total=total, desc=item.folder.name, leave=False, position=len(self.bars))
                )
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
