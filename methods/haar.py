"""Symmetry from the data: every molecule is turned by a Haar-random group element before it is noised."""

from __future__ import annotations

import torch

from bench.geometry.state import State
from bench.references import ZHANG_2024
from bench.registry import methods
from bench.symmetry.contract import Guarantee, Method, NoOptions


@methods.register("haar", NoOptions)
class Haar(Method):
    """Haar augmentation: one uniform rotation (and reflection, for O(3)) per molecule and step.

    The law of (z_t, x0) is invariant, so the minimiser of the loss is equivariant; a trained network is so only
    approximately. 'DiT-Aug' of the SymDiff paper, whose code draws from the Haar measure since 2024-09-23; the three
    uniform Euler angles of EDM's `random_rotation` are not Haar.
    """

    guarantee = Guarantee.AT_OPTIMUM
    on_equivariant_backbone = "rotating an example together with its noise leaves its loss unchanged"
    references = (ZHANG_2024,)  # DiT-Aug

    def augment(self, clean: State, rng: torch.Generator) -> State:
        return self.group.act(self.group.haar(len(clean), rng, clean.dtype), clean)
