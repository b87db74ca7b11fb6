"""The runs of a study as items of work: what each needs, and its status according to the records."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.config.run import PlugIn, RunConfig, reason_to_skip, weights_run
from bench.config.study import StudyConfig
from bench.records import schema
from bench.records import store as records
from bench.records.lock import BusyError, locked
from bench.records.store import RunFolder, StudyFolder
from bench.run.batches import load_or_stand_in
from bench.run.execute import Until, is_done
from bench.run.provenance import describe, now, planned
from bench.structures.dataset import DataSet


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
    loaded: dict[str, tuple[PlugIn, DataSet]] = {}
    trained: dict[str, Item] = {}  # training identity -> the item that trains these weights; others reuse them

    def add(cfg: RunConfig) -> Item:
        key = repr(cfg.data)
        if key not in loaded:
            loaded[key] = load_or_stand_in(cfg.data)
        chosen, data = loaded[key]
        loaded[repr(chosen)] = chosen, data
        cfg = dataclasses.replace(cfg, data=chosen)
        reason, parent = reason_to_skip(cfg), weights_run(cfg)
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
