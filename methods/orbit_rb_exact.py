"""Orbit Rao-Blackwellisation in closed form: regress on the posterior mean of x0 over its rotations.

Augmentation makes x_t = alpha R x0 + sigma eps with R ~ Haar. Given x_t and the orbit of x0, the clean data are known
but for R, and the target R x0 may be replaced by its mean under p(R | x_t, x0) without changing the expected gradient
(Rao-Blackwell; Tong et al., Orbit Diffusion, arXiv:2502.09890, theorem 1). Because |x_t - alpha R x0|^2 depends on R
through one inner product,

    p(R | x_t, x0) ~ exp(tr(F^T R)),   F = (alpha / sigma^2) sum_n x_{t,n} x_{0,n}^T,

a matrix-Fisher distribution, whose mean M is a 3x3 quadrature (`bench.geometry.matrix_fisher`): the target is T = M x0,
with no Monte Carlo. Other groups have closed forms of their own (`bench.geometry.groups`). That paper estimates T by
sampling group elements; we know of no publication of the closed form for de novo generation. It lowers the variance of
the target by at most dim SO(3) = 3 of the 3(N-1) units of noise.
"""

from __future__ import annotations

import torch

from bench.geometry.noised import Noised
from bench.geometry.state import State
from bench.references import TONG_2025
from bench.registry import methods
from bench.symmetry.contract import Guarantee, Method, NoOptions


@methods.register("orbit_rb_exact", NoOptions)
class OrbitRBExact(Method):
    """Haar augmentation with the exact orbit average as target; the features' target is unchanged by rotations."""

    guarantee = Guarantee.AT_OPTIMUM
    references = (TONG_2025,)

    def augment(self, clean: State, rng: torch.Generator) -> State:
        return self.group.act(self.group.haar(len(clean), rng, clean.dtype), clean)

    def target(self, noised: Noised, rng: torch.Generator) -> State:
        del rng
        return self.group.posterior_mean(noised)
