"""Orbit averaging: any trained denoiser, averaged over K Haar draws at inference.

    D(z) = (1/K) sum_k R_k k(R_k^-1 z),   R_1, ..., R_K ~ Haar, independent, fresh at every call.
Replace z by Q z and couple R_k to Q R_k, which is Haar again: every term turns by Q, so D is equivariant in law for
every K and any weights. The mean over draws is the group average E[R k(R^-1 z)], which is equivariant exactly; D
differs from it by an error of variance 1/K times that of one draw, so the equivariance error |D(Qz) - Q D(z)| of
independent draws falls as 1/sqrt(K). K = 1 is SymDiff-H.

It never worsens the expected error on data whose law is invariant: by Jensen, E|eps - D|^2 falls monotonically with K,
by the variance that the draws no longer carry.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from bench.diffusion.parametrisation import Predict
from bench.geometry.noised import Level
from bench.geometry.state import State
from bench.references import ZHANG_2024, Reference
from bench.registry import methods
from bench.symmetry.contract import Guarantee, Method, Setting
from bench.symmetry.symmetrise import TURNED_BACK, symmetrised_mean


@dataclass
class OrbitAverageConfig:
    """Options: number of draws, and the method (a name, or a name with options) whose trained denoiser is averaged.

    The default costs as much as the mean over the eight PCA frames of O(3).
    """

    n_draws: int = 8  # Haar draws of each prediction
    # the method whose trained denoiser is averaged: a name, or a mapping with its name and options
    weights_of: dict[str, Any] = field(default_factory=lambda: {"name": OrbitAverage.weights_of})

    def __post_init__(self) -> None:
        if self.n_draws < 1:
            raise ValueError(f"'n_draws' of orbit_average is {self.n_draws}, expected at least 1")


@methods.register("orbit_average", OrbitAverageConfig)
class OrbitAverage(Method):
    """A trained denoiser averaged over K Haar draws at each sampling step; trains nothing."""

    guarantee = Guarantee.IN_LAW
    on_equivariant_backbone = TURNED_BACK
    weights_of = "haar"
    references = (
        ZHANG_2024,  # K = 1: SymDiff-H
        Reference(
            "kim2023learning",
            "Learning Probabilistic Symmetrization for Architecture Agnostic Equivariance",
            ("Kim, Jinwoo", "Nguyen, Tien Dat", "Suleymanzade, Ayhan", "An, Hyeokjun", "Hong, Seunghoon"),
            2023,
            arxiv="2306.02866",
        ),
    )

    def __init__(self, cfg: OrbitAverageConfig, setting: Setting) -> None:
        super().__init__(cfg, setting)
        self.n_draws = cfg.n_draws

    def predict(self, denoiser: Predict, z_t: State, level: Level, rng: torch.Generator) -> State:
        draws = (self.group.haar(len(z_t), rng, z_t.dtype) for _ in range(self.n_draws))
        return symmetrised_mean(self.group, draws, denoiser, z_t, level)
