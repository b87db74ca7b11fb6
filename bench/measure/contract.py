"""What a measure is: a function of a trained model that returns values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.diffusion.parametrisation import Predict
from bench.diffusion.process import Process
from bench.geometry.groups import Group
from bench.geometry.noised import Level, Noised
from bench.geometry.state import State
from bench.streams import StepStreams
from bench.structures.dataset import DataSet, Facts
from bench.structures.structures import Structures
from bench.symmetry.contract import Method

Encode = Callable[[Structures, torch.device], State]
ROUNDING = 1e-4  # relative difference of two predictions in float32 that only rounding tells apart


@dataclass(frozen=True)
class Subject:
    """A trained model as measures see it.

    Attributes:
        process: the diffusion process.
        method: the equivariance strategy; it estimates with averaged weights.
        denoiser: (z_t, level) -> the estimate of the backbone alone, without the method.
        group: symmetry group of the data.
        predict: (z_t, level, rng) -> the model's estimate, with averaged weights; a stochastic method draws from `rng`.
        example: (clean, rng, level) -> a noised batch and its regression target, as the method makes them in training.
        losses: (clean, rng, level) -> training loss of each molecule [B].
        weights: all trained weights, by name.
        trains: whether the method trained these weights itself; otherwise another method did.
        encode: structures -> clean states.
        data: with the split that is measured on.
        facts: facts about the training set.
        device: where the model and its inputs are.
        seed: seed of all draws.
        samples: what the model has generated; None where nothing was sampled. A measure with an option `n_samples` gets
            the first n of them, drawn anew where a run has none.
        timed: (training steps, sampling steps) -> what they cost in a model of this configuration, timed with the code
            and batches of a run (`bench.run.timing.time_steps`); None where no configuration is known.
        on_batch: to be called before each batch, for progress and deadlines.
    """

    process: Process
    method: Method
    denoiser: Predict
    group: Group
    predict: Callable[[State, Level, torch.Generator], State]
    example: Callable[[State, StepStreams, Level], tuple[Noised, State]]
    losses: Callable[[State, StepStreams, Level], Tensor]
    weights: Mapping[str, nn.Parameter]
    trains: bool
    encode: Encode
    data: DataSet
    facts: Facts
    device: torch.device
    seed: int
    samples: Structures | None = None
    timed: Callable[[int, int], Mapping[str, Any]] | None = None
    on_batch: Callable[[], None] = lambda: None


def mean_and_sem(per_molecule: np.ndarray) -> tuple[float, float]:
    """Mean over molecules and its standard error, 0 for one molecule."""
    n = len(per_molecule)
    return float(per_molecule.mean()), float(per_molecule.std(ddof=1) / n**0.5) if n > 1 else 0.0


@torch.no_grad()
def is_stochastic(subject: Subject, z_t: State, level: Level) -> bool:
    """Whether predictions at one state differ between two generators, by more than rounding.

    Drawing alone says nothing: the mean over all frames draws, and does not depend on what it drew.
    """
    here, there = (
        subject.predict(z_t, level, torch.Generator(subject.device).manual_seed(seed)).to(dtype=torch.float64)
        for seed in (1, 2)
    )
    return bool(here.combine(there, torch.sub).squared_norm().sum() > ROUNDING**2 * here.squared_norm().sum())
