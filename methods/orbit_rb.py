"""Orbit Rao-Blackwellisation: Haar augmentation whose target is averaged over sampled rotations.

Estimator, options and proof of unbiasedness: `bench.symmetry.orbit`. Tong et al., Orbit Diffusion, arXiv:2502.09890.
"""

from __future__ import annotations

import torch

from bench.geometry.noised import Noised
from bench.geometry.state import State
from bench.references import TONG_2025
from bench.registry import methods
from bench.symmetry.contract import Guarantee, Method
from bench.symmetry.orbit import OrbitTargetConfig, orbit_target


@methods.register("orbit_rb", OrbitTargetConfig)
class OrbitRB(Method):
    """Haar augmentation with the orbit average as target, sampled; unbiased for every number of draws."""

    guarantee = Guarantee.AT_OPTIMUM
    references = (TONG_2025,)

    cfg: OrbitTargetConfig

    def augment(self, clean: State, rng: torch.Generator) -> State:
        return self.group.act(self.group.haar(len(clean), rng, clean.dtype), clean)

    def target(self, noised: Noised, rng: torch.Generator) -> State:
        average = orbit_target(noised, self.group, rng, self.cfg)
        self.diagnostics["effective_sample_size"] = average.effective_sample_size.mean()
        return average.noise
