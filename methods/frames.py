"""Frames: the network is asked in the molecule's own principal axes, so that any network becomes equivariant.

    D(z) = mean over R in F(z) of  R k(R^-1 z),    F(z) = {orthonormal eigenvectors of C(z) as columns of R},
C(z) = sum_n x_n x_n^T with eigenvalues in decreasing order (Puny et al., Frame averaging, arXiv:2110.03336). Where the
eigenvalues differ, only the signs of the columns are free: |F| = 8 in O(3), 4 in SO(3). C(Q z) = Q C(z) Q^T makes
F(Q z) = Q F(z), and with it D(Q z) = mean of Q R k((Q R)^-1 Q z) = Q D(z), at any weights. One member of F drawn at
random instead of the mean ('stochastic frame averaging' of FAENet, arXiv:2305.05577) gives a D that is equivariant in
law.

How a member is drawn, and what happens at ties: `bench.symmetry.frames`.
"""

from __future__ import annotations

import itertools
import math
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from bench.diffusion.parametrisation import Predict
from bench.geometry.groups import RotationGroup
from bench.geometry.noised import Level
from bench.geometry.state import State
from bench.references import Reference
from bench.registry import methods
from bench.symmetry.contract import Guarantee, NoOptions, Setting
from bench.symmetry.frames import pca_frame
from bench.symmetry.symmetrise import InFrame, symmetrised_mean

PUNY_2021 = Reference(
    "puny2021frame",
    "Frame Averaging for Invariant and Equivariant Network Design",
    (
        *("Puny, Omri", "Atzmon, Matan", "Ben-Hamu, Heli", "Misra, Ishan", "Grover, Aditya", "Smith, Edward J."),
        "Lipman, Yaron",
    ),
    2021,
    arxiv="2110.03336",
)
DUVAL_2023 = Reference(  # stochastic frame averaging
    "duval2023faenet",
    "FAENet: Frame Averaging Equivariant GNN for Materials Modeling",
    (
        *("Duval, Alexandre", "Schmidt, Victor", "Hernandez Garcia, Alex", "Miret, Santiago"),
        *("Malliaros, Fragkiskos D.", "Bengio, Yoshua", "Rolnick, David"),
    ),
    2023,
    arxiv="2305.05577",
)
DYM_2024 = Reference(
    "dym2024equivariant",
    "Equivariant Frames and the Impossibility of Continuous Canonicalization",
    ("Dym, Nadav", "Lawrence, Hannah", "Siegel, Jonathan W."),
    2024,
    arxiv="2402.16077",
)


@methods.register("frames", NoOptions)
class Frames(InFrame):
    """One of the molecule's PCA frames, drawn at random at every call; equivariant in law at any weights."""

    guarantee = Guarantee.IN_LAW
    needs_group = RotationGroup
    references = (PUNY_2021, DUVAL_2023)

    def frame(self, z_t: State, level: Level, rng: torch.Generator) -> Float[Tensor, "B 3 3"]:
        """R in F(z_t), one per molecule."""
        del level
        return pca_frame(cast(RotationGroup, self.group), z_t, rng)


@methods.register("frames_averaged", NoOptions)
class FramesAveraged(Frames):
    """Mean over all 8 (O3) or 4 (SO3) PCA frames; equivariant except on a null set, at 8 or 4 network calls."""

    guarantee = Guarantee.EXACT
    references = (PUNY_2021, DYM_2024)
    signs: Tensor

    def __init__(self, cfg: NoOptions, setting: Setting) -> None:
        super().__init__(cfg, setting)
        signs = itertools.product((1.0, -1.0), repeat=3)
        inside = [s for s in signs if math.prod(s) > 0 or not cast(RotationGroup, self.group).proper]
        self.register_buffer("signs", torch.tensor(inside), persistent=False)

    def predict(self, denoiser: Predict, z_t: State, level: Level, rng: torch.Generator) -> State:
        R = self.frame(z_t, level, rng)
        return symmetrised_mean(self.group, (R * s for s in self.signs), denoiser, z_t, level)
