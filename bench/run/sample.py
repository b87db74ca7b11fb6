"""Sampling from a trained run, and `load_run`, which gives a run's model to Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.config.run import RunConfig, read_run
from bench.diffusion.process import Diffusion
from bench.diffusion.sampler import sample
from bench.diffusion.schedule import NoiseLevel
from bench.geometry.layout import Layout
from bench.geometry.state import State
from bench.records.inputs import cut, is_folder_name
from bench.records.store import DATA, MANIFEST, RecordError, read_json
from bench.run.acceleration import accelerate
from bench.run.checkpoint import load_average
from bench.run.denormals import denormals_are_zero
from bench.run.model import Model
from bench.streams import Stream, Streams, seed_of
from bench.structures.files import MAX_NUMBER
from bench.structures.sizes import SizeDistribution
from bench.structures.structures import Structures

WEIGHTS = "weights.safetensors"  # averaged weights alone: published, imported, or brought home from a lent machine


@dataclass(frozen=True)
class Chunk:
    """State sampled together: their place in the whole set, their sizes, ascending, and the largest size known,
    to which published code pads all samples."""

    number: int
    places: np.ndarray
    sizes: np.ndarray
    n_padded: int


def plan_chunks(sizes: SizeDistribution, n: int, batch_size: int, seed: int) -> list[Chunk]:
    """Draw n sizes and group like with like, so that dense blocks are large; the set's order is that of the draw."""
    drawn = sizes.draw(n, np.random.default_rng(seed_of(seed, Stream.SAMPLING, 0)))
    order = np.argsort(drawn, kind="stable")
    return [
        Chunk(i // batch_size, order[i : i + batch_size], drawn[order[i : i + batch_size]], int(sizes.sizes[-1]))
        for i in range(0, n, batch_size)
    ]


def sample_chunk(
    model: Model, chunk: Chunk, n_steps: int, seed: int, device: str = "cpu", on_step: Callable[[], None] = lambda: None
) -> Structures:
    """The molecules of one chunk; a function of (weights, chunk, n_steps, seed) alone."""
    streams = Streams(seed, torch.device(device)).at(chunk.number + 1)

    def predict(z_t: State, level: NoiseLevel) -> State:
        return model.predict(z_t, level, streams.method)

    model.eval()
    layout = Layout(chunk.sizes.tolist(), device, chunk.n_padded)
    with denormals_are_zero():
        state = sample(model.diffusion, predict, layout, n_steps, streams.sampling, on_step)
    return model.diffusion.decode(state)


def in_order(chunks: list[Chunk], parts: list[Structures]) -> Structures:
    """Sampled chunks as one list, in the order in which sizes were drawn."""
    places = np.concatenate([chunk.places for chunk in chunks])
    return Structures.concatenate(parts).select(np.argsort(places, kind="stable"))


@dataclass(frozen=True)
class Run:
    """A trained run in memory.

    Attributes:
        cfg: its configuration.
        model: `model.denoiser` is the network's noise estimate, `model.predict` the method's.
        sizes: distribution of molecule sizes of its training set.
        step: optimiser steps of the weights (their moving average).
    """

    cfg: RunConfig
    model: Model
    sizes: SizeDistribution
    step: int

    @property
    def diffusion(self) -> Diffusion:
        return self.model.diffusion

    def denoiser(self, z_t: State, level: NoiseLevel, seed: int = 0) -> State:
        """Noise estimate of the method at scaled states z_t; `seed` fixes a stochastic method's draws."""
        return self.model.predict(z_t, level, torch.Generator(device=z_t.x.device).manual_seed(seed))

    def sample(
        self, n: int, n_steps: int | None = None, seed: int = 0, on_step: Callable[[], None] = lambda: None
    ) -> Structures:
        """n molecules; `n_steps` defaults to the run's own sampling setting."""
        steps = n_steps or self.cfg.sample.n_steps
        chunks = plan_chunks(self.sizes, n, self.cfg.sample.batch_size, seed)
        return in_order(
            chunks, [sample_chunk(self.model, chunk, steps, seed, self.cfg.train.device, on_step) for chunk in chunks]
        )


def load_run(folder: str | Path, device: str = "cpu") -> Run:
    """A trained run from its folder under `runs/` or `results/`.

    Args:
        device: where to compute, whatever the run was trained on.
    Raises:
        ConfigError, RecordError, CheckpointError: the folder holds no run, a damaged record, or no weights.
    """
    folder = Path(folder)
    cfg = read_run(folder)
    cfg.train.device = device
    manifest = read_json(folder / "manifest.json", MANIFEST)
    about = read_json(folder / "data.json", DATA)
    sizes = sizes_of(about, folder / "data.json")
    model = Model.build(cfg, about["elements"], about["mean_atoms"])
    step = load_average(weights_file(folder, manifest["weights_from"]), model.named_weights())
    model.to(device).eval()
    accelerate(model, cfg.train)
    return Run(cfg, model, sizes, step)


def sizes_of(about: dict[str, Any], path: Path) -> SizeDistribution:
    """Sizes that data.json states; RecordError unless they, elements and mean can be those of molecules."""
    elements, counts = about["elements"], about["sizes"]
    if not elements or not all(type(z) is int and 1 <= z <= MAX_NUMBER for z in elements):
        raise RecordError(f"{path}: 'elements' is {cut(str(elements))}, expected nuclear charges")
    if not about["mean_atoms"] > 0:
        raise RecordError(f"{path}: 'mean_atoms' is {about['mean_atoms']}, expected a positive number")
    if not all(n.isascii() and n.isdigit() and len(n) <= 6 and type(count) is int for n, count in counts.items()):
        raise RecordError(f"{path}: 'sizes' is {cut(str(counts))}, expected numbers of atoms -> molecules")
    try:
        return SizeDistribution({int(n): count for n, count in counts.items()})
    except ValueError as error:
        raise RecordError(f"{path}: 'sizes': {cut(str(error))}") from error


def weights_file(folder: Path, weights_from: str | None) -> Path:
    """Where a run's averaged weights lie: its own state, published weights, or those of the run it depends on."""
    if weights_from is not None and not is_folder_name(weights_from):
        raise RecordError(f"{folder}: 'weights_from' is {cut(weights_from)!r}, expected the name of a folder beside it")
    home = folder if weights_from is None else folder.parent / weights_from
    published = home / WEIGHTS
    return published if published.exists() else home / "state.safetensors"
