"""SymDiff-H: stochastic symmetrisation with a Haar rotation, on weights that augmentation has trained."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.geometry.noised import Level
from bench.geometry.state import State
from bench.references import ZHANG_2024
from bench.registry import methods
from bench.symmetry.contract import Guarantee, NoOptions
from bench.symmetry.symmetrise import InFrame


@methods.register("symdiff_haar", NoOptions)
class SymDiffHaar(InFrame):
    """SymDiff-H: a fresh Haar element at each sampling step, on the weights of a `haar` run; trains nothing.

    Its training loss equals that of `haar` example by example: |eps - R k(R^-1 z_t)| = |R^-1 eps - k(R^-1 z_t)|, and
    R^-1 z_t is the noised R^-1 x0. So the weights are those of a `haar` run with the same configuration and seed, and
    R D(R^-1 z) with Haar R makes every reverse step equivariant in law, at any weights.
    """

    guarantee = Guarantee.IN_LAW
    weights_of = "haar"
    references = (ZHANG_2024,)  # SymDiff-H

    def frame(self, z_t: State, level: Level, rng: torch.Generator) -> Tensor:
        """A Haar element per molecule."""
        del level
        return self.group.haar(len(z_t), rng, z_t.dtype)
