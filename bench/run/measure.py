"""Measuring a model: within its run, or any time after it, from a run's folder (`equibench measure`).

What a measure finds is kept by the weights and the options that it depends on, and not found again.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.config.run import PlugIn, RunConfig, read_run, resolve
from bench.records.lock import locked
from bench.records.measured import read_measurement, write_measurement
from bench.records.schema import INITIAL, MANIFEST, TRAINED, RecordError
from bench.records.store import RunFolder, read_json
from bench.records.values import Value
from bench.registry import measures
from bench.run.acceleration import accelerate
from bench.run.batches import load_data
from bench.run.checkpoint import hash_of_model, hash_of_weights, load_average
from bench.run.code import code_version
from bench.run.evaluate import N_VALIDATION, finite_of, subject_of, validation_loss, versions
from bench.run.model import Model
from bench.run.provenance import device_name, now
from bench.run.sample import in_order, sample_prompt, weights_file
from bench.run.timing import time_steps
from bench.structures import files
from bench.structures.dataset import DataError, DataSet
from bench.structures.structures import Structures

log = logging.getLogger("equibench.measure")


@dataclass
class Bench:
    """A model with all that measuring it takes.

    Attributes:
        run: where its measurements are kept.
        model: with the weights to measure.
        weights: TRAINED or INITIAL (`bench.records.schema`); sha256, step: of these weights.
        samples: what the run has generated; None where there are none, or none of these weights.
    """

    run: RunFolder
    cfg: RunConfig
    model: Model
    data: DataSet
    weights: str
    sha256: str
    step: int
    samples: Structures | None = None
    _drawn: dict[int, Structures] = field(default_factory=dict)

    def measure(self, chosen: PlugIn, on_batch: Callable[[], None] = lambda: None) -> None:
        """Find and keep what a measure says of the model.

        Raises:
            ValueError: the measure does not apply to it.
        """

        def find() -> list[Value]:
            samples = self._samples_for(chosen.options, on_batch)
            subject = subject_of(self.cfg, self.model, self.data, samples, on_batch)
            subject = replace(subject, timed=partial(timed, self.cfg, self.data, on_batch))
            return measures[chosen.name].build(subject, chosen.options)

        self.keep(chosen.name, _options(chosen), find)

    def is_measured(self, chosen: PlugIn) -> bool:
        """Whether what it would find is there already, whatever the times of the files."""
        return self.is_kept(chosen.name, _options(chosen))

    def is_kept(self, name: str, options: Mapping[str, Any]) -> bool:
        """The same, by name and options."""
        try:
            record = read_measurement(self.run.measurement(name, self.weights)).record
        except FileNotFoundError:
            return False
        except RecordError as error:
            log.warning("%s; it is measured again", error)
            return False
        return (record["weights_sha256"], record["options"]) == (self.sha256, options)

    def keep(self, name: str, options: Mapping[str, Any], find: Callable[[], list[Value]]) -> None:
        """Write what `find` returns."""
        started = time.perf_counter()
        self.model.eval()
        values = find()
        settings = self.cfg.train
        record = {
            "measure": name,
            "options": dict(options),
            "weights": self.weights,
            "weights_sha256": self.sha256,
            "step": self.step,
            "seconds": round(time.perf_counter() - started, 3),
            "code": code_version(),
            "environment": {
                "device": device_name(settings.device),
                "n_threads": settings.n_threads,
                "platform": platform.platform(),
                "versions": versions(),
            },
            "created": now(),
        }
        write_measurement(self.run, record, values)
        log.info("%s: %s, %d values in %.1f s", self.run.path.name, name, len(values), record["seconds"])

    def _samples_for(self, options: Any, on_batch: Callable[[], None]) -> Structures | None:
        """The run's samples; for a measure with an option `n_samples` the first n of them, drawn anew where the run has
        none: a sample does not depend on how many are drawn."""
        n = getattr(options, "n_samples", None)
        if n is None:
            return self.samples
        if self.samples is not None:
            return self.samples.select(np.arange(min(n, len(self.samples))))
        if n not in self._drawn:
            settings = self.cfg.sample
            prompts = self.model.task.prompts(n, settings.batch_size, settings.seed, self.data)
            parts = [sample_prompt(self.model, p, settings, self.cfg.train.device, on_batch) for p in prompts]
            self._drawn[n] = finite_of(in_order(prompts, parts))
        return self._drawn[n]


def timed(
    cfg: RunConfig, data: DataSet, on_step: Callable[[], None], n_steps: int, n_sampling_steps: int
) -> dict[str, Any]:
    """What steps of a run cost (`bench.run.timing.time_steps`)."""
    return time_steps(cfg, n_steps, data=data, n_sampling_steps=n_sampling_steps, on_step=on_step)


def _options(chosen: PlugIn) -> dict[str, Any]:
    return {key: value for key, value in chosen.to_plain().items() if key != "name"}


def active_measures(cfg: RunConfig) -> dict[str, PlugIn]:
    """The measures that the configuration asks for."""
    return {name: given for name, given in cfg.measures.items() if given is not None}


def measure_run(
    cfg: RunConfig,
    model: Model,
    data: DataSet,
    folder: Path,
    samples: Structures | None,
    sha256: str,
    step: int,
    on_batch: Callable[[], None] = lambda: None,
) -> None:
    """The validation loss and the measures of a run's configuration, each unless it is there for these weights.

    Args:
        sha256, step: of the model's weights.
    """
    bench = Bench(RunFolder(folder), cfg, model, data, TRAINED, sha256, step, samples)
    loss = ("validation_loss", {"n_molecules": N_VALIDATION})
    if not bench.is_kept(*loss):
        bench.keep(*loss, lambda: validation_loss(cfg, model, data))
    for chosen in active_measures(cfg).values():
        if not bench.is_measured(chosen):
            bench.measure(chosen, on_batch)


# ---------------------------------------------------------------------- from a run's folder


def has_weights(folder: Path) -> bool:
    """Whether the weights of a run are in its folder, or in that of the run that trained them."""
    weights_from = read_json(RunFolder(folder).manifest, MANIFEST)["weights_from"]
    return weights_file(folder, weights_from, read_run(folder).sample.weights).exists()


@contextlib.contextmanager
def opened(folder: Path, weights: str = TRAINED, device: str | None = None) -> Iterator[Bench]:
    """A run to measure; its folder is locked meanwhile.

    Args:
        weights: TRAINED or INITIAL: those that training began with, which follow from the seed.
        device: by default that of training, where it is here.
    Raises:
        BusyError: another worker holds the run. DataError: its data are not here.
        ConfigError, RecordError, CheckpointError: no run, a damaged record, or no weights.
    """
    run, cfg = RunFolder(folder), read_run(folder)
    cfg.train.device = device or (cfg.train.device if torch.cuda.is_available() else "cpu")
    with locked(folder):
        manifest = read_json(run.manifest, MANIFEST)
        data = load_data(cfg)
        if data.fingerprint != manifest["data"]["fingerprint"]:
            raise DataError(f"{folder} is of other data than {data.label} ({data.source}), which is here now")
        torch.set_num_threads(cfg.train.n_threads)
        model, step, samples = Model.build(cfg, data.facts), 0, None
        if weights == INITIAL:
            sha256 = hash_of_model(model.named_weights())
        else:
            path = weights_file(folder, manifest["weights_from"], cfg.sample.weights)
            step, sha256 = load_average(path, model.named_weights()), hash_of_weights(path)
            if run.samples.exists() and manifest.get("weights_sha256", sha256) == sha256:
                samples = finite_of(files.read_samples(run.samples))  # eval.json counts the others
        model.to(cfg.train.device).eval()
        accelerate(model, cfg.train)
        yield Bench(run, cfg, model, data, weights, sha256, step, samples)


def chosen_measures(cfg: RunConfig, only: Sequence[str], given: Mapping[str, Mapping[str, Any]]) -> list[PlugIn]:
    """Measures to apply to a run.

    Args:
        only: their names; none: all but those that the run's configuration leaves out.
        given: options by name of the measure; the others are those of the run's configuration, or defaults.
    Raises:
        ConfigError: an unknown name or option.
    """
    names = only or [name for name in measures if cfg.measures.get(name, name) is not None]
    found = []
    for name in names:
        configured = cfg.measures.get(name)
        options = configured.to_plain() if configured is not None else {}
        found.append(resolve(measures, {**options, **given.get(name, {}), "name": name}, f"measures.{name}"))
    return found
