"""One run from configuration to evaluation: train, sample, measure, evaluate; each stage resumes where it was cut."""

from __future__ import annotations

import contextlib
import logging
import platform
import shutil
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from bench.config.run import ConfigError, RunConfig, read_run, weights_run
from bench.records import schema
from bench.records import store as records
from bench.records.lock import locked
from bench.records.store import RunFolder
from bench.run.acceleration import accelerate
from bench.run.batches import load_data
from bench.run.checkpoint import STATE, load_average
from bench.run.compile import compile_networks
from bench.run.evaluate import evaluate_run, measure_run, sample_run, versions
from bench.run.model import Model
from bench.run.provenance import code_version, describe, now, peak_memory_mb, training_cost
from bench.run.sample import weights_file
from bench.run.spawn import train_on_ranks
from bench.run.train import train
from bench.structures.dataset import DataError, DataSet

log = logging.getLogger("equibench")


class Until(StrEnum):
    """How far a run is executed."""

    SAMPLED = "sampled"  # trained, sampled and measured; needs no RDKit
    EVALUATED = "evaluated"


def is_done(cfg: RunConfig, folder: Path, until: Until = Until.EVALUATED) -> bool:
    """Whether exactly this configuration was executed so far, on the newest weights."""
    try:
        manifest = records.read_json(RunFolder(folder).manifest)
        evaluated = manifest["status"] == "done" and RunFolder(folder).eval.exists()
        if not evaluated and (manifest["status"], until) != ("sampled", Until.SAMPLED):
            return False
        if read_run(folder).page() != cfg.page():  # options that came later have their defaults
            return False
    except (FileNotFoundError, schema.RecordError, KeyError, ConfigError):
        return False
    return not samples_are_older(folder, manifest["weights_from"])


def samples_are_older(folder: Path, weights_from: str | None) -> bool:
    """Whether the run whose weights are used has been trained again since these samples were drawn."""
    if weights_from is None:
        return False
    samples, weights = RunFolder(folder).samples, weights_file(folder, weights_from)
    return samples.exists() and weights.exists() and weights.stat().st_mtime > samples.stat().st_mtime


def execute(
    cfg: RunConfig,
    folder: Path,
    n_parallel: int = 1,
    until: Until = Until.EVALUATED,
) -> None:
    """Do what is missing of one run. The outcome, also of a failure, stands in its manifest and log.

    A run that is interrupted (signal, time limit, lost machine) or meets a full disk stays 'running' in its record, and
    the next call continues it; one that any other error stops is 'failed'.

    Args:
        n_parallel: runs that share the machine.
        until: where to stop; evaluating needs RDKit and no model, so it may be done elsewhere.
    Raises:
        BusyError: another process has the run.
        Exception: whatever stopped the run, after it was recorded.
    """
    with locked(folder):
        if is_done(cfg, folder, until):
            return
        for leftover in RunFolder(folder).leftovers():  # of a write that was cut
            leftover.unlink()
        torch.set_num_threads(cfg.train.n_threads)
        handler = logging.FileHandler(RunFolder(folder).log)
        handler.handleError = lambda _: None  # type: ignore[method-assign] # a full disk stops the run where it matters
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        loggers = [logging.getLogger(name) for name in ("equibench", "bench")]
        for logger in loggers:
            logger.addHandler(handler)
        try:
            _execute(cfg, folder, n_parallel, until)
        except Exception as error:
            reason = reason_of(error)
            log.error("%s", reason, exc_info=records.disk_error(error) is None)
            raise
        finally:
            for logger in loggers:
                logger.removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()


def _execute(cfg: RunConfig, folder: Path, n_parallel: int, until: Until) -> None:
    check_device(cfg)
    data = load_data(cfg)
    check_data(cfg, data, folder)
    model = Model.build(cfg, data.facts).to(cfg.train.device)
    manifest = describe(cfg, folder.name, data.record(), n_parallel)
    manifest["parameters"] = model.count_parameters()
    if RunFolder(folder).manifest.exists() and RunFolder(folder).steps.exists():
        # the weights are, at least in part, those of an earlier call: its code and costs stay in the record
        before = records.read_json(RunFolder(folder).manifest, schema.MANIFEST)
        manifest |= {key: before[key] for key in ("code", "cost", "created")}

    def save(status: str, reason: str | None = None) -> None:
        manifest.update(status=status, reason=reason, updated=now())
        records.write_json(RunFolder(folder).manifest, manifest, schema.MANIFEST)

    save("running")  # before anything is changed, so that a crash cannot leave an old result looking new
    try:
        forget_other_settings(cfg, folder)
        records.write_yaml(RunFolder(folder).config, cfg.page())
        about = {
            "elements": list(data.elements),
            "mean_atoms": data.mean_atoms,
            "sizes": {str(n): c for n, c in data.size_histogram.items()},
        }
        records.write_json(RunFolder(folder).data, about)
        manifest["environment"]["kernels"] = accelerate(model, cfg.train)
        if cfg.train.compile:
            manifest["environment"]["compile"] = compile_networks(model, data)
        step = obtain_weights(cfg, model, data, folder, manifest)
        save("running")
        _, cost = sample_run(cfg, model, folder)
        manifest["cost"] |= cost
        measure_run(cfg, model, step, data, folder)
        if until is Until.SAMPLED:
            save("sampled")
            return
        evaluate_run(cfg, data, folder, manifest)
    except Exception as error:
        reason = reason_of(error)
        with contextlib.suppress(OSError):  # a full disk must not hide what went wrong
            save("running" if records.disk_error(error) else "failed", reason)
        raise
    save("done")
    log.info("done")


def evaluate_folder(folder: Path) -> None:
    """Evaluate a run that was executed `until` sampled, perhaps elsewhere; its record keeps the machine that sampled.

    Raises:
        BusyError: another OS process has the run. ConfigError: it is no run that was sampled. DataError: other data.
    """
    cfg = read_run(folder)
    with locked(folder):
        manifest = records.read_json(RunFolder(folder).manifest, schema.MANIFEST)
        if manifest["status"] not in ("sampled", "done"):
            status = manifest["status"]
            raise ConfigError(f"{folder} is {status}, expected a sampled run; `equibench run --until sampled` first")
        data = load_data(cfg)
        check_data(cfg, data, folder)
        here = {"code": code_version(), "platform": platform.platform(), "versions": versions(), "at": now()}
        evaluate_run(cfg, data, folder, manifest)
        manifest |= {"status": "done", "evaluated": here, "updated": now()}
        records.write_json(RunFolder(folder).manifest, manifest, schema.MANIFEST)


def check_data(cfg: RunConfig, data: DataSet, folder: Path) -> None:
    """Refuse data of another content than those that the folder's run was planned on."""
    if cfg.run_name(data.fingerprint) != folder.name:
        raise DataError(f"{folder.name} was planned on other data than {data.label} ({data.source}), which is here now")


def check_device(cfg: RunConfig) -> None:
    """Refuse a GPU that is not there."""
    if torch.device(cfg.train.device).type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"train.device is {cfg.train.device!r}, but torch sees no GPU here; set train.device=cpu, "
            "or launch.gpus_per_node=1 on a machine that has one"
        )


def reason_of(error: Exception) -> str:
    """A failure in one line, for the record. Memory runs out under several names; all of them read alike."""
    first = str(error).splitlines()[0] if str(error) else ""
    kinds = (MemoryError, torch.OutOfMemoryError)
    # torch's CPU allocator raises a bare RuntimeError, and a reader may say what did not fit
    if isinstance(error, kinds) or isinstance(error.__cause__, kinds) or "DefaultCPUAllocator" in str(error):
        return f"out of memory: {first or 'no more could be had'}; lower train.batch_size or sample.batch_size"
    if records.disk_error(error):
        return first if first.endswith(records.CONTINUES) else f"{first}, {records.CONTINUES}"
    return f"{type(error).__name__}: {first}"


def obtain_weights(cfg: RunConfig, model: Model, data: DataSet, folder: Path, manifest: dict[str, Any]) -> int:
    """Train, or take the weights of the run that this one depends on; returns their optimiser step."""
    parent = weights_run(cfg)
    if parent is None:
        if cfg.train.n_processes > 1:
            train_on_ranks(folder, cfg.train.n_processes, cfg.train.device)
            step = load_average(folder / STATE, model.named_weights())
        else:
            step = train(cfg, model, data.train, data.valid, folder)
        manifest["cost"] |= training_cost(folder)
    else:
        manifest["weights_from"] = parent.run_name(data.fingerprint)
        step = load_average(weights_file(folder, manifest["weights_from"]), model.named_weights())
        if samples_are_older(folder, manifest["weights_from"]):
            forget_samples(folder)
    manifest["cost"]["peak_memory_mb"] = max(
        peak_memory_mb(cfg.train.device), manifest["cost"].get("peak_memory_mb", 0)
    )
    return step


def forget_other_settings(cfg: RunConfig, folder: Path) -> None:
    """Remove samples of other sampling settings, and evaluations with other measures."""
    if not RunFolder(folder).config.exists():
        return
    before = read_run(folder)
    if before.sample != cfg.sample:
        forget_samples(folder)
    if before.measures != cfg.measures:
        for file in (RunFolder(folder).measures, RunFolder(folder).eval):
            file.unlink(missing_ok=True)


def forget_samples(folder: Path) -> None:
    """Remove samples and what was computed from them."""
    shutil.rmtree(RunFolder(folder).chunks, ignore_errors=True)
    run = RunFolder(folder)
    for file in (run.samples, run.sample_costs, run.measures, run.eval):
        file.unlink(missing_ok=True)
