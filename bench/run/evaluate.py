"""Evaluation of a trained run: its samples, and their values in eval.json.

Sampling and measuring (`bench.run.measure`) need the model, evaluating molecules needs RDKit: each part writes its own
files, so that they can run on different machines.
"""

from __future__ import annotations

import logging
import platform
import shutil
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.config.run import RunConfig, Weights
from bench.measure.contract import Subject, mean_and_sem
from bench.records import schema
from bench.records import store as records
from bench.records.items import items_of, write_items
from bench.records.store import RunFolder, StudyFolder
from bench.records.values import Better, Kind, Value
from bench.run.model import Model, make_task
from bench.run.sample import in_order, sample_prompt
from bench.run.train import Validation, example, training_loss
from bench.structures import files
from bench.structures.dataset import DataSet
from bench.structures.structures import Structures
from bench.tasks.contract import N_DRAWN

log = logging.getLogger("equibench.evaluate")

N_VALIDATION = 2048  # validation molecules of the final loss, whatever `train.n_valid` says of the curves
FAILED = "failed_samples"


class SamplingError(RuntimeError):
    """No sample has finite positions."""


def sample_run(
    cfg: RunConfig,
    model: Model,
    folder: Path,
    data: DataSet | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> tuple[Structures, dict[str, Any]]:
    """The run's samples, drawn prompt by prompt; finished prompts are kept, so that an interrupted run resumes.

    Writes samples.npz and samples.json (their cost); if both exist, they are read instead.

    Returns:
        molecules in the order of the prompts' `places`, and their cost (keys of the manifest's 'cost').
    Raises:
        SamplingError: no sample has finite positions. One that has not is kept, and counts as a failed one.
    """
    settings, whole, costs = cfg.sample, RunFolder(folder).samples, RunFolder(folder).sample_costs
    if whole.exists() and costs.exists():
        return files.read_samples(whole), records.read_json(costs)
    prompts = model.task.prompts(settings.n_molecules, settings.batch_size, settings.seed, data)
    parts, seconds, calls = [], 0.0, 0
    for prompt in prompts:
        path = RunFolder(folder).chunk(prompt.number)
        clock = path.with_suffix(".json")
        if not (path.exists() and clock.exists()):
            started, before = time.perf_counter(), model.denoiser.n_calls
            part = sample_prompt(model, prompt, settings, cfg.train.device, on_step)
            spent = time.perf_counter() - started
            files.write_samples(path, part)
            records.write_json(clock, {"seconds": spent, "calls": model.denoiser.n_calls - before})
        parts.append(files.read_samples(path))
        costs_of_prompt = records.read_json(clock)
        seconds, calls = seconds + costs_of_prompt["seconds"], costs_of_prompt["calls"]
    samples = in_order(prompts, parts)
    finite_of(samples)
    cost = {
        "sample_seconds_per_molecule": seconds / len(samples),
        "sample_network_calls": calls,
    }
    files.write_samples(whole, samples)
    records.write_json(costs, cost)
    shutil.rmtree(RunFolder(folder).chunks, ignore_errors=True)
    return samples, cost


def finite_of(samples: Structures) -> Structures:
    """The samples with finite positions; raises SamplingError where there is none."""
    finite = samples.is_finite()
    if not finite.any():
        raise SamplingError(f"none of {len(samples)} samples has finite positions: the run has diverged")
    return samples.select(finite)


def subject_of(
    cfg: RunConfig,
    model: Model,
    data: DataSet,
    samples: Structures | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> Subject:
    """A trained model as the subject of measures."""
    return Subject(
        process=model.process,
        method=model.method,
        denoiser=model.denoiser,
        group=model.task.group,
        predict=model.predict,
        example=partial(example, model),
        losses=partial(training_loss, model),
        weights=model.named_weights(),
        trains=model.method.weights_of is None,
        encode=model.task.encode,
        data=data,
        facts=data.facts,
        device=torch.device(cfg.train.device),
        seed=cfg.sample.seed,
        samples=samples,
        on_batch=on_batch,
    )


def evaluate_run(cfg: RunConfig, data: DataSet, folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Evaluate the run's samples and write eval.json, costs included, sample_items.npz and drawn.sdf.

    Needs no model.
    """
    samples = files.read_samples(RunFolder(folder).samples)
    finite = samples.is_finite()
    found = make_task(cfg, data.facts).evaluate(samples, data, StudyFolder(folder.parent).cache)
    if found.bonds is not None:
        first = np.flatnonzero(finite[:N_DRAWN])
        bonds = [found.bonds[k] for k in first] if found.bonds else None
        files.write(RunFolder(folder).drawn, samples.select(first), bonds=bonds)
    values = found.values
    if all(value.name != FAILED for value in values):  # unless the task has its own
        values = [*values, failed_samples(finite)]
    if items := items_of(values):
        write_items(RunFolder(folder).sample_items, items)
    record = {
        "schema": schema.SCHEMA_VERSION,
        "run": folder.name,
        "step": manifest["weights_step"],
        "weights": "ema (best)" if cfg.sample.weights is Weights.BEST else "ema",
        "n_sampling_steps": cfg.sample.n_steps,
        "sampling_seed": cfg.sample.seed,
        "n_samples": len(samples),
        "values": [value.to_dict() for value in values] + costs(manifest),
        "data_values": [value.to_dict() for value in found.data_values],
        "versions": versions(),
        "written_by": schema.package_version(),
    }
    records.write_json(RunFolder(folder).eval, record, schema.EVALUATION)
    return record


def failed_samples(finite: np.ndarray) -> Value:
    """The share of samples [S] that are not finite."""
    about = "samples with a position that is not finite; they count as failures in every rate"
    failed = 1 - float(finite.mean())
    return Value(FAILED, "Failed samples", failed, "fraction", Better.LOWER, Kind.DIAGNOSTIC, definition=about)


def validation_loss(cfg: RunConfig, model: Model, data: DataSet) -> list[Value]:
    """The validation loss of the weights evaluated, a primary outcome: the same error, molecules, times and noise for
    every method and seed. None without a validation split."""
    if not len(data.valid):
        return []
    losses = Validation(model, data.valid, N_VALIDATION, cfg.train.device).per_molecule().cpu().numpy()
    model.eval()
    if not np.isfinite(losses).all():
        return []
    mean, sem = mean_and_sem(losses)
    about = f"error of the prediction on {len(losses)} validation molecules, same times and noise for all runs"
    kind = {"better": Better.LOWER, "kind": Kind.LIKELIHOOD, "definition": about}
    return [Value("validation_loss", "Validation loss", mean, sem=sem, items=losses, **kind)]


COSTS = {
    "step_seconds": ("Training step", "s"),
    "train_seconds": ("Training", "s"),
    "sample_seconds_per_molecule": ("Sampling per molecule", "s"),
    "peak_memory_mb": ("Peak memory", "MB"),
}


def costs(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The costs in a manifest, as values."""
    found = [Value("parameters", "Parameters", float(manifest["parameters"]["total"]), "count", kind=Kind.COST)]
    for key, (label, unit) in COSTS.items():
        if (cost := manifest["cost"].get(key)) is not None:
            found.append(Value(key.removesuffix("_mb"), label, cost, unit, Better.LOWER, Kind.COST))
    return [value.to_dict() for value in found]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can affect results."""
    found = {"python": platform.python_version()}
    for package in ("torch", "numpy", "rdkit", "e3nn", "torch-geometric", "safetensors"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
