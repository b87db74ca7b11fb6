"""Evaluation of a trained run: metrics of its samples, likelihood of the test split, and the data's own score.

Samples and likelihood need the model, scores need RDKit: both parts leave their files, so that one machine can do the
first and another the second.
"""

from __future__ import annotations

import logging
import platform
import shutil
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.config.run import RunConfig
from bench.diffusion.schedule import NoiseLevel
from bench.geometry.state import State
from bench.kernels.native import compiler_version
from bench.records import store as records
from bench.run.model import Model
from bench.run.sample import in_order, plan_chunks, sample_chunk
from bench.streams import Streams
from bench.structures import files
from bench.structures.dataset import DataSet
from bench.structures.sizes import SizeDistribution, size_histogram
from bench.structures.structures import Structures

log = logging.getLogger("equibench.evaluate")

N_DRAWN = 8  # samples kept for figures: the first ones, whatever they look like
NLL_BATCH = 128


class SamplingError(RuntimeError):
    """A sample has a position that is not finite."""


def sample_run(
    cfg: RunConfig, model: Model, sizes: SizeDistribution, folder: Path, on_step: Callable[[], None] = lambda: None
) -> tuple[Structures, dict[str, Any]]:
    """The run's samples, drawn chunk by chunk; finished chunks are kept, so a killed run goes on where it was.

    Writes samples.npz and, beside it, what the samples cost; where both lie already, they are read.

    Returns:
        molecules in the order in which their sizes were drawn, and what they cost (keys of the manifest's 'cost').
    Raises:
        SamplingError: some molecule has diverged; the message says how many.
    """
    settings, whole, costs = cfg.sample, folder / "samples.npz", folder / "samples.json"
    if whole.exists() and costs.exists():
        return files.read(whole), records.read_json(costs)
    chunks = plan_chunks(sizes, settings.n_molecules, settings.batch_size, settings.seed)
    parts, seconds, calls = [], 0.0, 0
    for chunk in chunks:
        path = folder / "chunks" / f"{chunk.number:05d}.npz"
        clock = path.with_suffix(".json")
        if not (path.exists() and clock.exists()):
            started, before = time.perf_counter(), model.denoiser.n_calls
            part = sample_chunk(model, chunk, settings.n_steps, settings.seed, cfg.train.device, on_step)
            spent = time.perf_counter() - started
            broken = np.count_nonzero(~np.isfinite(part.positions).all(1))
            if broken:
                raise SamplingError(
                    f"{broken} atoms of {len(part.numbers)} have positions that are not finite; the run has diverged"
                )
            files.write(path, part)
            records.write_json(clock, {"seconds": spent, "calls": model.denoiser.n_calls - before})
        parts.append(files.read(path))
        costs_of_chunk = records.read_json(clock)
        seconds, calls = seconds + costs_of_chunk["seconds"], costs_of_chunk["calls"]
    cost = {
        "sample_seconds_per_molecule": seconds / settings.n_molecules,
        "sample_network_calls": calls,
    }
    samples = in_order(chunks, parts)
    files.write(whole, samples)
    records.write_json(costs, cost)
    shutil.rmtree(folder / "chunks", ignore_errors=True)
    return samples, cost


@torch.no_grad()
def likelihood(
    cfg: RunConfig, model: Model, data: DataSet, on_batch: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Variational bound of -log p(x, h, N) on the test split, nats per molecule (`Diffusion.bound` and p(N)).

    State are all of the split or, of a fixed permutation, the first; a pass draws one time per molecule. The
    standard error is over molecules, each averaged over its passes. Where the prediction draws random numbers and
    `n_mixture_draws` asks for it, the mixture bound stands beside, at the same times and noise
    (`Diffusion.jensen_gap`).
    """
    n = min(cfg.evaluate.n_nll_molecules or len(data.test), len(data.test))
    test = data.test.select(np.sort(np.random.default_rng(0).permutation(len(data.test))[:n]))
    sizes = SizeDistribution(size_histogram(data.train))
    device = torch.device(cfg.train.device)
    streams = Streams(cfg.sample.seed, device)
    order = np.argsort(test.n_atoms, kind="stable")
    terms: dict[str, list[np.ndarray]] = {}
    gaps: dict[str, list[np.ndarray]] = {}
    n_draws, stochastic = cfg.evaluate.n_mixture_draws, False
    for i in range(cfg.evaluate.n_nll_passes):
        for j in range(0, n, NLL_BATCH):
            on_batch()
            rng, again = (streams.at(1_000_000 * (i + 1) + j) for _ in range(2))
            x0 = model.diffusion.encode(test.select(order[j : j + NLL_BATCH]), device)

            def predict(z_t: State, level: NoiseLevel, rng=rng) -> State:
                return model.predict(z_t, level, rng.method)

            for name, values in model.diffusion.bound(x0, predict, rng.time, rng.noise).items():
                terms.setdefault(name, []).append(values.cpu().numpy())
            stochastic = not torch.equal(rng.method.get_state(), again.method.get_state())
            if stochastic and n_draws > 1:
                for name, values in model.diffusion.jensen_gap(x0, predict, n_draws, again.time, again.noise).items():
                    gaps.setdefault(name, []).append(values.cpu().numpy())

    def by_pass(values: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(values).reshape(cfg.evaluate.n_nll_passes, n)

    def mean_and_sem(per_molecule: np.ndarray) -> tuple[float, float]:
        return float(per_molecule.mean()), float(per_molecule.std(ddof=1) / n**0.5) if n > 1 else 0.0

    per_pass = {name: by_pass(values) for name, values in terms.items()}
    per_pass["size"] = -np.broadcast_to(sizes.log_prob(test.n_atoms[order]), (cfg.evaluate.n_nll_passes, n))
    per_molecule = np.sum([values.mean(0) for values in per_pass.values()], axis=0)
    mean, sem = mean_and_sem(per_molecule)
    record: dict[str, Any] = {
        "split": "test",
        "mean": mean,
        "sem": sem,
        "n_molecules": n,
        "n_passes": cfg.evaluate.n_nll_passes,
        "terms": {name: float(values.mean()) for name, values in per_pass.items()},
        "stochastic": stochastic,
    }
    if gaps:
        gap_per_molecule = np.sum([by_pass(values).mean(0) for values in gaps.values()], axis=0)
        (mean, sem), (gap, gap_sem) = mean_and_sem(per_molecule - gap_per_molecule), mean_and_sem(gap_per_molecule)
        record["mixture"] = {
            "n_draws": n_draws,
            "mean": mean,
            "sem": sem,
            "gap": gap,
            "gap_sem": gap_sem,
            "gap_terms": {name: float(by_pass(values).mean()) for name, values in gaps.items()},
        }
    return record


def bound_run(
    cfg: RunConfig, model: Model, step: int, data: DataSet, folder: Path, on_batch: Callable[[], None] = lambda: None
) -> None:
    """Write the run's likelihood.json, unless that of these weights lies there already."""
    path = folder / "likelihood.json"
    if not path.exists() or records.read_json(path, records.LIKELIHOOD)["step"] != step:
        nll = likelihood(cfg, model, data, on_batch)
        records.write_json(path, {"step": step, "nll": nll}, records.LIKELIHOOD)


def reference(data: DataSet, cache: Path) -> dict[str, Any]:
    """SMILES of the training split and the data's own score on the test split; computed once per data set."""
    from bench.metrics.molecules import evaluate_molecules
    from bench.metrics.validity import smiles_of

    if reason := unscorable(data):
        log.warning("samples are not scored: %s", reason)
        return {"train_smiles": None, "data_row": {**no_metrics(len(data.test)), "split": "test"}}
    # another RDKit can judge another set of molecules valid
    path = cache / f"reference-{data.fingerprint}-rdkit{metadata.version('rdkit')}.json"
    if path.exists():
        return records.read_json(path)
    log.info("scoring the data set itself (once)")
    train_smiles = sorted({s for s in smiles_of(data.train) if s is not None})
    made = {
        "train_smiles": train_smiles,
        "data_row": {**evaluate_molecules(data.test, train_smiles).summary(), "split": "test"},
    }
    records.write_json(path, made)
    return made


def unscorable(data: DataSet) -> str | None:
    """Why samples of this data set have no stability and no validity: an element without bond lengths; or None."""
    from bench.metrics.stability import BondTable, UnknownElementError

    try:
        BondTable.load().check(data.train)
    except UnknownElementError as error:
        return f"{data.label}: {error}"
    return None


def no_metrics(n_molecules: int) -> dict[str, Any]:
    """`bench.records.store.METRICS` of molecules that cannot be scored."""
    return {**dict.fromkeys(records.METRICS), "n_molecules": n_molecules}


def score_run(cfg: RunConfig, data: DataSet, folder: Path) -> dict[str, Any]:
    """Score the run's samples and write eval.json, with its likelihood, and the drawn samples; needs no model."""
    from bench.metrics.molecules import evaluate_molecules

    samples = files.read(folder / "samples.npz")
    made = records.read_json(folder / "likelihood.json", records.LIKELIHOOD)
    known = reference(data, folder.parent / ".cache")
    metrics, intervals, bonds = no_metrics(len(samples)), {}, None
    first = np.arange(min(N_DRAWN, len(samples)))
    if known["train_smiles"] is not None:
        scores = evaluate_molecules(samples, known["train_smiles"])
        metrics, intervals = scores.summary(), scores.intervals(seed=0)
        bonds = [scores.bonds[int(i)] for i in first]
    files.write(folder / "drawn.sdf", samples.select(first), bonds=bonds)
    record = {
        "schema": records.SCHEMA_VERSION,
        "run": folder.name,
        "step": made["step"],
        "weights": "ema",
        "n_sampling_steps": cfg.sample.n_steps,
        "sampling_seed": cfg.sample.seed,
        "metrics": metrics,
        "intervals": intervals,
        "nll": made["nll"],
        "data_row": known["data_row"],
        "versions": versions(),
        "written_by": package_version(),
    }
    records.write_json(folder / "eval.json", record, records.EVALUATION)
    return record


def package_version() -> str:
    """Of equibench itself."""
    try:
        return metadata.version("equibench")
    except metadata.PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """Of Python, of the packages and of the C compiler (`bench.kernels.native`) that can move a number."""
    found = {"python": platform.python_version()}
    for package in ("torch", "numpy", "rdkit", "e3nn", "torch-geometric", "safetensors"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if compiler := compiler_version():
        found["c compiler"] = compiler
    return found
