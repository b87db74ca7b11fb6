"""Sampling from a trained run, and `load_run`, which loads a run's model in Python."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.config.run import RunConfig, SampleConfig, Weights, read_run
from bench.diffusion.process import Process
from bench.diffusion.sampler import sample
from bench.geometry.layout import Layout
from bench.geometry.noised import Level
from bench.geometry.state import State, context_to
from bench.records.inputs import is_folder_name, truncate
from bench.records.schema import DATA, MANIFEST, RecordError
from bench.records.store import RunFolder, read_json
from bench.run.acceleration import accelerate
from bench.run.checkpoint import about_of, load_average
from bench.run.denormals import denormals_are_zero
from bench.run.model import Model
from bench.run.molecules import Molecules
from bench.streams import MoleculeGenerator, Stream, seed_of
from bench.structures.dataset import Facts
from bench.structures.elements import MAX_NUMBER
from bench.structures.sizes import SizeDistribution
from bench.structures.structures import Structures
from bench.tasks.contract import Prompt

log = logging.getLogger("equibench.sample")


def sample_prompt(
    model: Model,
    prompt: Prompt,
    settings: SampleConfig,
    device: str = "cpu",
    on_step: Callable[[], None] = lambda: None,
) -> Structures:
    """The molecules of one prompt, each a function of (weights, its place, size and context, steps, sampler, seed).

    Every molecule has random streams of its own, named by its place, so that neither the number of molecules nor the
    batch that it is drawn in changes it, except by rounding.
    """

    def streams(of: Stream) -> MoleculeGenerator:
        seeds = [seed_of(settings.seed, of, place + 1) for place in prompt.places.tolist()]  # 0 draws the sizes
        return MoleculeGenerator(seeds, prompt.sizes.tolist(), device)

    noise, own = streams(Stream.SAMPLING), streams(Stream.METHOD)

    def predict(z_t: State, level: Level) -> State:
        return model.predict(z_t, level, own)

    model.eval()
    layout = Layout(prompt.sizes.tolist(), device, prompt.n_padded)
    with denormals_are_zero():
        state = sample(
            model.process,
            predict,
            layout,
            settings.n_steps,
            noise,
            on_step,
            settings.sampler,
            context_to(prompt.context, device),
        )
        state = model.method.finish(state, own)
    return model.task.decode(state)


def in_order(prompts: list[Prompt], parts: list[Structures]) -> Structures:
    """Samples of all prompts as one list, in the order of their `places`."""
    places = np.concatenate([prompt.places for prompt in prompts])
    return Structures.concatenate(parts).select(np.argsort(places, kind="stable"))


@dataclass(frozen=True)
class Run:
    """A trained run in memory.

    Attributes:
        cfg: its configuration.
        model: `model.denoiser` is the network's estimate, `model.predict` the method's.
        step: optimiser step of the (averaged) weights.
    """

    cfg: RunConfig
    model: Model
    step: int

    @property
    def process(self) -> Process:
        return self.model.process

    def denoiser(self, z_t: State, level: Level, seed: int = 0) -> State:
        """The method's estimate at scaled states z_t; `seed` fixes the draws of a stochastic method."""
        return self.model.predict(z_t, level, torch.Generator(device=z_t.layout.device).manual_seed(seed))

    def sample(
        self, n: int, n_steps: int | None = None, seed: int = 0, on_step: Callable[[], None] = lambda: None
    ) -> Molecules:
        """n molecules, the first ones the same for every n; `n_steps` defaults to the run's own sampling setting."""
        settings = replace(self.cfg.sample, n_steps=self.cfg.sample.n_steps if n_steps is None else n_steps, seed=seed)
        prompts, device = self.model.task.prompts(n, settings.batch_size, seed), self.cfg.train.device
        parts = [sample_prompt(self.model, p, settings, device, on_step) for p in prompts]
        return Molecules.of(in_order(prompts, parts))


def load_run(folder: str | Path, device: str = "cpu") -> Run:
    """A trained run from its folder under `runs/` or `results/`.

    Args:
        device: where to compute, regardless of the training device.
    Raises:
        ConfigError, RecordError, CheckpointError: the folder holds no run, a damaged record, or no weights.
    """
    folder = Path(folder)
    cfg = read_run(folder)
    cfg.train.device = device
    manifest = read_json(RunFolder(folder).manifest, MANIFEST)
    about = read_json(RunFolder(folder).data, DATA)
    model = Model.build(cfg, facts_of(about, RunFolder(folder).data))
    weights = weights_file(folder, manifest["weights_from"], cfg.sample.weights)
    step = load_average(weights, model.named_weights())
    if stored := about_of(weights).get("stored"):
        log.info("weights of %s were published in %s; they are used in float32", folder, stored)
    model.to(device).eval()
    accelerate(model, cfg.train)
    return Run(cfg, model, step)


def facts_of(about: dict[str, Any], path: Path) -> Facts:
    """The content of data.json; raises RecordError if elements, mean or sizes are impossible."""
    elements, counts = about["elements"], about["sizes"]
    if not elements or not all(type(z) is int and 1 <= z <= MAX_NUMBER for z in elements):
        raise RecordError(f"{path}: 'elements' is {truncate(str(elements))}, expected nuclear charges")
    if not about["mean_atoms"] > 0:
        raise RecordError(f"{path}: 'mean_atoms' is {about['mean_atoms']}, expected a positive number")
    if not all(n.isascii() and n.isdigit() and len(n) <= 6 and type(count) is int for n, count in counts.items()):
        raise RecordError(f"{path}: 'sizes' is {truncate(str(counts))}, expected numbers of atoms -> molecules")
    sizes = {int(n): count for n, count in counts.items()}
    try:
        SizeDistribution(sizes)
    except ValueError as error:
        raise RecordError(f"{path}: 'sizes': {truncate(str(error))}") from error
    return Facts(tuple(elements), float(about["mean_atoms"]), sizes)


def weights_file(folder: Path, weights_from: str | None, which: Weights = Weights.LAST) -> Path:
    """Path of a run's averaged weights: its own state, published weights, or those of the run it depends on."""
    if weights_from is not None and not is_folder_name(weights_from):
        raise RecordError(
            f"{folder}: 'weights_from' is {truncate(weights_from)!r}, expected the name of a folder beside it"
        )
    home = folder if weights_from is None else folder.parent / weights_from
    if which is Weights.BEST:
        return RunFolder(home).best
    published = RunFolder(home).weights
    return published if published.exists() else RunFolder(home).state
