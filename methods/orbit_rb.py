"""Orbit Rao-Blackwellisation: Haar augmentation whose target is averaged over sampled rotations.

Estimator, options and proof of unbiasedness: `bench.orbit_targets`. Tong et al., Orbit Diffusion, arXiv:2502.09890.
"""

from __future__ import annotations

import torch

from bench.diffusion.schedule import NoiseLevel
from bench.method import Guarantee, Method
from bench.molecules import Molecules
from bench.orbit_targets import OrbitAverageConfig, orbit_average
from bench.registry import methods


@methods.register("orbit_rb", OrbitAverageConfig)
class OrbitRB(Method):
    """Haar augmentation with the orbit average as target, sampled; unbiased for every number of draws."""

    guarantee = Guarantee.AT_OPTIMUM
    references = ("Tong et al., Orbit Diffusion (Rao-Blackwell gradient estimators), arXiv:2502.09890",)

    cfg: OrbitAverageConfig

    def augment(self, x0: Molecules, rng: torch.Generator) -> Molecules:
        return x0.rotate(self.group.haar(len(x0), rng, x0.x.dtype))

    def target(self, x0: Molecules, z_t: Molecules, level: NoiseLevel, rng: torch.Generator) -> Molecules:
        average = orbit_average(x0, z_t, level, self.group, rng, self.cfg)
        self.diagnostics["effective_sample_size"] = average.effective_sample_size.mean()
        return average.target
