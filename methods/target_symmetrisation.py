"""Target symmetrisation: the weighted average of x0 over sampled rotations as target, on the data as stored.

Estimator, options and proof of unbiasedness: `bench.symmetry.orbit`. Tong et al., arXiv:2502.09890 (version 1 has this
name).

Why an equivariant backbone. For D(Qz) = Q D(z) the loss is the same, draw by draw, for (x0, eps, R_k) and for
(Q x0, Q eps, Q R_k Q^-1): turning the data first would change nothing, so the average over the orbit may be taken about
the stored orientation, and the expected gradient is that of the plain loss. For any other network the minimiser on the
data as stored is

    D*(z) = sum_m r_m(z) T_m(z),   r_m(z) ~ p_m q(z | x_m),

over molecules m. Each T_m turns with z, but the weights r_m do not: they ask how near z is to x_m in its stored
orientation. D* is neither equivariant nor the posterior mean of the symmetrised data, and away from stored orientations
no example teaches it. Such a backbone is refused; `orbit_rb` is the same target on turned data.
"""

from __future__ import annotations

import torch

from bench.geometry.noised import Noised
from bench.geometry.state import State
from bench.references import TONG_2025
from bench.registry import methods
from bench.symmetry.contract import Guarantee, Method
from bench.symmetry.orbit import OrbitTargetConfig, orbit_target


@methods.register("target_symmetrisation", OrbitTargetConfig)
class TargetSymmetrisation(Method):
    """The orbit-averaged target, sampled, for an equivariant network on the data as stored."""

    guarantee = Guarantee.EXACT
    needs_equivariant_backbone = True
    otherwise = "orbit_rb"
    references = (TONG_2025,)

    cfg: OrbitTargetConfig

    def target(self, noised: Noised, rng: torch.Generator) -> State:
        average = orbit_target(noised, self.group, rng, self.cfg)
        self.diagnostics["effective_sample_size"] = average.effective_sample_size.mean()
        return average.noise
