"""One run from configuration to evaluation: train, sample, measure, evaluate. Every stage can resume."""

from __future__ import annotations

import contextlib
import logging
import platform
import shutil
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from bench.config.run import ConfigError, RunConfig, Weights, read_run, weights_run
from bench.diffusion.sampler import require_sampler
from bench.records import schema
from bench.records import store as records
from bench.records.lock import locked
from bench.records.measured import of_other_weights
from bench.records.store import RunFolder, StudyFolder
from bench.run.acceleration import accelerate
from bench.run.batches import load_data
from bench.run.checkpoint import STATE, CheckpointError, about_of, hash_of_weights, load_average, trained_by
from bench.run.code import code_version
from bench.run.compile import compile_networks
from bench.run.evaluate import evaluate_run, sample_run, versions
from bench.run.measure import measure_run
from bench.run.model import Model
from bench.run.optimiser import progress
from bench.run.provenance import describe, now, peak_memory_mb, training_cost
from bench.run.sample import weights_file
from bench.run.spawn import train_on_ranks
from bench.run.train import train
from bench.structures.dataset import DataError, DataSet

log = logging.getLogger("equibench")


def is_done(folder: Path) -> bool:
    """Whether the folder holds a finished evaluation; its name identifies the configuration."""
    try:
        manifest = records.read_json(RunFolder(folder).manifest)
        return manifest["status"] == "done" and RunFolder(folder).eval.exists() and not is_outdated(folder, manifest)
    except (FileNotFoundError, schema.RecordError, KeyError):
        return False


def is_outdated(folder: Path, manifest: dict[str, Any]) -> bool:
    """Whether the run that a result took its weights from has other weights now: by their content, whatever the times
    of the files. A published or early record, or a run that is away, says nothing about it."""
    known, weights_from = manifest.get("weights_sha256"), manifest["weights_from"]
    if known is None or weights_from is None:
        return False
    try:
        which = Weights(records.read_config(RunFolder(folder))["sample"]["weights"])
        return hash_of_weights(weights_file(folder, weights_from, which)) != known
    except (CheckpointError, schema.RecordError, OSError, KeyError, TypeError, ValueError):
        return False


class Until(StrEnum):
    """How far a run is executed."""

    SAMPLED = "sampled"  # trained, sampled and measured; needs no RDKit
    EVALUATED = "evaluated"


def execute(
    cfg: RunConfig,
    folder: Path,
    n_parallel: int = 1,
    until: Until = Until.EVALUATED,
) -> None:
    """Execute the missing stages of one run; manifest and log record the outcome, failures included.

    A run stopped by a signal, a time limit, a lost machine or a full disk stays 'running' in its manifest, and the next
    call resumes it. After any other error it is 'failed'.

    Args:
        n_parallel: runs that share the machine.
        until: where to stop; evaluation needs RDKit and no model, so it may run elsewhere.
    Raises:
        BusyError: another worker holds the run.
        Exception: the error that stopped the run, after it was recorded.
    """
    with locked(folder):
        if is_done(folder):
            return
        for leftover in RunFolder(folder).leftovers():  # temporary files of interrupted writes
            leftover.unlink()
        torch.set_num_threads(cfg.train.n_threads)
        handler = logging.FileHandler(RunFolder(folder).log)
        handler.handleError = lambda _: None  # type: ignore[method-assign] # a full disk is reported by the writers of results
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
    require_sampler(model.process, cfg.sample.sampler, cfg.sample.n_steps)  # before hours of training
    manifest = describe(cfg, folder.name, data.record(), n_parallel)
    manifest["parameters"] = model.count_parameters()
    if RunFolder(folder).manifest.exists():
        before = records.read_json(RunFolder(folder).manifest, schema.MANIFEST)
        if RunFolder(folder).samples.exists():
            manifest["weights_from"] = before["weights_from"]
        manifest |= {key: before[key] for key in ("weights_sha256", "weights_step") if key in before}
        if RunFolder(folder).steps.exists():
            # an earlier call has trained, at least partly: keep its code and costs
            manifest |= {key: before[key] for key in ("code", "sources", "cost", "created") if key in before}

    def save(status: str, reason: str | None = None) -> None:
        manifest.update(status=status, reason=reason, updated=now())
        records.write_json(RunFolder(folder).manifest, manifest, schema.MANIFEST)

    save("running")  # before anything else changes: a crash must not leave an old result that looks new
    try:
        records.write_yaml(RunFolder(folder).config, cfg.to_dict())
        about = {
            "elements": list(data.elements),
            "mean_atoms": data.mean_atoms,
            "sizes": {str(n): c for n, c in data.size_histogram.items()},
        }
        records.write_json(RunFolder(folder).data, about)
        manifest["environment"]["kernels"] = accelerate(model, cfg.train)
        if cfg.train.compile:
            manifest["environment"]["compile"] = compile_networks(model, data)
        manifest["weights_step"] = obtain_weights(cfg, model, data, folder, manifest)
        sha256 = match_results(cfg, folder, manifest)
        save("running")
        model.eval()
        samples, cost = sample_run(cfg, model, folder, data)
        manifest["cost"] |= cost
        measure_run(cfg, model, data, folder, samples, sha256, manifest["weights_step"])
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
    """Evaluate a sampled run, perhaps on another machine; the manifest keeps the environment that sampled.

    Raises:
        BusyError: another worker holds the run. ConfigError: no sampled run. DataError: the data set differs.
    """
    cfg = read_run(folder)
    with locked(folder):
        manifest = records.read_json(RunFolder(folder).manifest, schema.MANIFEST)
        if manifest["status"] not in ("sampled", "done"):
            status = manifest["status"]
            raise ConfigError(f"{folder} is {status}, expected a sampled run; `equibench run --until sampled` first")
        if "weights_step" not in manifest:
            raise ConfigError(
                f"{folder} was sampled by an early version; `equibench run` evaluates it where its model is"
            )
        data = load_data(cfg)
        check_data(cfg, data, folder)
        here = {"code": code_version(), "platform": platform.platform(), "versions": versions(), "at": now()}
        evaluate_run(cfg, data, folder, manifest)
        manifest |= {"status": "done", "evaluated": here, "updated": now()}
        records.write_json(RunFolder(folder).manifest, manifest, schema.MANIFEST)


def check_data(cfg: RunConfig, data: DataSet, folder: Path) -> None:
    """Raise DataError unless the data set is the one that the run was planned for."""
    if cfg.run_name(data.fingerprint) != folder.name:
        raise DataError(f"{folder.name} was planned on other data than {data.label} ({data.source}), which is here now")


def check_device(cfg: RunConfig) -> None:
    """Raise ConfigError if the configured GPU is missing."""
    if torch.device(cfg.train.device).type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"train.device is {cfg.train.device!r}, but torch sees no GPU here; set train.device=cpu, "
            "or launch.gpus_per_node=1 on a machine that has one"
        )


def reason_of(error: Exception) -> str:
    """A failure in one line, for the record; all kinds of out-of-memory errors give the same line."""
    first = str(error).splitlines()[0] if str(error) else ""
    kinds = (MemoryError, torch.OutOfMemoryError)
    # torch's CPU allocator raises a bare RuntimeError; readers wrap MemoryError
    if isinstance(error, kinds) or isinstance(error.__cause__, kinds) or "DefaultCPUAllocator" in str(error):
        return f"out of memory: {first or 'allocation failed'}; lower train.batch_size or sample.batch_size"
    if records.disk_error(error):
        return first if first.endswith(records.CONTINUES) else f"{first}, {records.CONTINUES}"
    return f"{type(error).__name__}: {first}"


def obtain_weights(cfg: RunConfig, model: Model, data: DataSet, folder: Path, manifest: dict[str, Any]) -> int:
    """Train, or take the weights of another run; returns their optimiser step."""
    wanted = weights_run(cfg) or cfg
    manifest["weights_from"] = manifest["weights_from"] or trained_run(wanted, folder, data.fingerprint)
    if manifest["weights_from"] is not None:
        step = load_average(weights_file(folder, manifest["weights_from"], cfg.sample.weights), model.named_weights())
    elif came_trained(cfg, folder):
        best = cfg.sample.weights is Weights.BEST
        return load_average(RunFolder(folder).best if best else RunFolder(folder).weights, model.named_weights())
    else:
        if cfg.train.n_processes > 1:
            train_on_ranks(folder, cfg.train.n_processes, cfg.train.device)
            step = load_average(folder / STATE, model.named_weights())
        else:
            step = train(cfg, model, data.train, data.valid, folder)
        if cfg.sample.weights is Weights.BEST:
            step = load_average(RunFolder(folder).best, model.named_weights())
        manifest["cost"] |= training_cost(folder)
        manifest["code"] = {**manifest["code"], "training": trained_by(folder / STATE, manifest["code"])}
    manifest["cost"]["peak_memory_mb"] = max(
        peak_memory_mb(cfg.train.device), manifest["cost"].get("peak_memory_mb", 0)
    )
    return step


def match_results(cfg: RunConfig, folder: Path, manifest: dict[str, Any]) -> str:
    """Set results aside that were made with other weights than the run has now; its manifest names those from here on.

    Results of a record that names no weights are taken as they are.

    Returns:
        the hash of the weights that the run has now.
    """
    run, known = RunFolder(folder), manifest.get("weights_sha256")
    now_there = hash_of_weights(weights_file(folder, manifest["weights_from"], cfg.sample.weights))
    made = [run.samples, run.sample_costs, run.chunks, run.eval, run.drawn]
    made += [run.test_items, run.valid_items, run.sample_items]
    made = [path for path in made if path.exists()]
    outdated = list(of_other_weights(run, now_there))
    if known is not None and known != now_there:
        outdated += made
    aside = run.of_other_weights(str(known or "unknown"))
    if outdated:
        log.warning("the weights have changed since these results were made, which are set aside in %s", aside)
    for path in outdated:
        if path == run.chunks:  # parts of a whole that will not be
            shutil.rmtree(path)
        else:
            there = aside / path.relative_to(folder)
            there.parent.mkdir(parents=True, exist_ok=True)
            path.replace(there)
    if known is not None or not made:
        manifest["weights_sha256"] = now_there
    return now_there


def trained_run(wanted: RunConfig, folder: Path, fingerprint: str) -> str | None:
    """Name of the run whose weights this one uses: `wanted`, or one that differs from it only in sampling and measures.

    None if this run trains its own weights; the name of `wanted` if no such run has finished yet.
    """
    name, training = wanted.run_name(fingerprint), wanted.training_identity(fingerprint)
    if name == folder.name and (RunFolder(folder).state.exists() or RunFolder(folder).weights.exists()):
        return None
    beside = [folder.parent / name] * (name != folder.name)
    for other in [*beside, *StudyFolder(folder.parent).runs()]:
        if other != folder and is_trained(other, training, fingerprint):
            return other.name
    return None if name == folder.name else name


def is_trained(folder: Path, training: str, fingerprint: str) -> bool:
    """Whether a run of this training identity has finished its own training."""
    try:
        manifest = records.read_json(RunFolder(folder).manifest, schema.MANIFEST)
        if manifest["weights_from"] is not None or manifest["status"] not in ("sampled", "done"):
            return False
        found = read_run(folder).training_identity(fingerprint)
    except (OSError, schema.RecordError, ConfigError):  # unusable
        return False
    return found == training and manifest["data"]["fingerprint"] == fingerprint


def came_trained(cfg: RunConfig, folder: Path) -> bool:
    """Whether the folder holds fully trained averaged weights without the optimiser's state.

    Raises:
        ConfigError: they are not fully trained under this configuration.
    """
    if not (RunFolder(folder).weights).exists() or (folder / STATE).exists():
        return False
    about = about_of(RunFolder(folder).weights)
    if progress(about["step"], about["seconds"], cfg.train) < 1:
        raise ConfigError(
            f"{RunFolder(folder).weights} was trained for {about['step']} steps and came without the optimiser's "
            "state, so it cannot be trained further; move the folder away to train anew"
        )
    return True
