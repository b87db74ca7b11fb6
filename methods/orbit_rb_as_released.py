"""The orbit average of flows as the released code of Orbit Diffusion computes it: a control, not a strategy to choose.

`compute_target` of vinhsuhi/Orbit-Diffusion (`IEF/etflow/models/model.py`) differs from E[dz/dt | z_t, orbit of x0],
which `orbit_rb` estimates, in four ways. With z_t = (1 - t) x0 + t e + s(t) e', e a draw of the prior and R a rotation:

1. What it calls a rotation multiplies coordinate p by the sum of row p of R: x_n -> diag(R 1) x_n, which changes
   distances. The identity alone is right.
2. Log weights are divided by min(z / t, 1), z = 0.4, which the paper does not mention.
3. They are those of isotropic noise, -|z_t - (1 - t) g x0|^2 / 2 (t^2 + s^2), under a harmonic prior too.
4. The average A takes the place of x0 in h z_t + f x0 + k e = dz/dt, which leaves the e that was drawn: of the straight
   path the target is that for (A + x0) / 2, and half of what the average removes stays.

The error of the network is not part of this file: the release takes the norm |v - u| of each atom, not its square.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from bench.diffusion.parametrisation import Parametrisation
from bench.geometry.automorphisms import RotationsAndAutomorphisms
from bench.geometry.groups import MatrixGroup
from bench.geometry.harmonic import scaled
from bench.geometry.noised import Noised
from bench.geometry.state import State
from bench.references import TONG_2025
from bench.registry import methods
from bench.symmetry.contract import Guarantee, Method


@dataclass
class OrbitAsReleasedConfig:
    """Options; the defaults are the released ones."""

    n_draws: int = 200  # 'rotations' of each molecule, the identity included (the release: the same for a whole batch)
    n_automorphisms: int = 50  # the first of each molecule's list at most, where the group has automorphisms
    sharpness: float = 0.4  # z: log weights are divided by min(z / t, 1)

    def __post_init__(self) -> None:
        for key in ("n_draws", "n_automorphisms"):
            if getattr(self, key) < 1:
                raise ValueError(f"'{key}' of orbit_rb_as_released is {getattr(self, key)!r}, expected at least 1")
        if not self.sharpness > 0:
            raise ValueError(
                f"'sharpness' of orbit_rb_as_released is {self.sharpness!r}, expected a positive number (inf: none)"
            )


@methods.register("orbit_rb_as_released", OrbitAsReleasedConfig)
class OrbitRBAsReleased(Method):
    """The released flow target of Orbit Diffusion, its four defects kept; off the linear path, that of (A + x0) / 2."""

    guarantee = Guarantee.NONE
    needs_group = MatrixGroup
    references = (TONG_2025,)

    cfg: OrbitAsReleasedConfig

    def augment(self, clean: State, rng: torch.Generator) -> State:
        return self.group.act(self.group.haar(len(clean), rng, clean.dtype), clean)

    @torch.no_grad()
    def target(self, noised: Noised, rng: torch.Generator) -> State:
        clean, z_t, level, t = noised.clean, noised.z_t, noised.level, noised.level.t
        average = self.average(noised, rng)
        if level.d_alpha is None:
            return noised.noise_of(clean.combine(average, lambda x0, A: 0.5 * (x0 + A)))
        terms = (
            (z_t, (1 - 2 * t) / (2 * t * (1 - t))),
            (average, -1 / (2 * t)),
            (prior_sample(noised, rng), 1 / (2 * (1 - t))),
        )
        h_z, f_A, k_e = (state.map(lambda part, s=state, c=c: s.spread(c, part) * part) for state, c in terms)
        velocity = h_z.combine(f_A, torch.add).combine(k_e, torch.add)
        return Parametrisation.VELOCITY.noise(velocity, z_t, level)

    def average(self, noised: Noised, rng: torch.Generator) -> State:
        """A = sum_j w_j g_j x0 over automorphisms and 'rotations'; arithmetic in float64."""
        group = cast(MatrixGroup, self.group)
        x0, z_t, level, part = noised.clean, noised.z_t, noised.level.to(dtype=torch.float64), group.part
        B, D, fresh = len(x0), group.size, self.cfg.n_draws - 1
        factors = torch.ones(B, self.cfg.n_draws, D, dtype=torch.float64, device=x0.layout.device)  # of the identity
        if fresh:
            factors[:, 1:] = group.haar(B * fresh, rng, torch.float64).view(B, fresh, D, D).sum(3)  # sums of rows
        order, counts = self._automorphisms(x0)
        x, z = x0.parts[part].double()[order], z_t.parts[part].double()[:, None]  # [A, P, D], [A, 1, D]
        inner = x0.sum_over_atoms(z * x) @ factors.mT  # [B, P, K]
        square = x0.sum_over_atoms(x * x) @ factors.square().mT
        alpha, sigma2 = level.alpha[:, None, None], level.sigma.square()[:, None, None]
        temperature = (self.cfg.sharpness / level.t).clamp_max(1)[:, None, None]
        log_w = (alpha * inner - 0.5 * alpha.square() * square) / (sigma2 * temperature)
        beyond = torch.arange(order.shape[1], device=order.device) >= counts[:, None]
        w = log_w.masked_fill(beyond[:, :, None], -math.inf).flatten(1).softmax(1).view_as(log_w)
        mean = (x0.per_atom(w @ factors) * x).sum(1)
        return x0.replace(**{part: mean.to(x0.dtype)})

    def _automorphisms(self, x0: State) -> tuple[Tensor, Tensor]:
        """The first automorphisms of each molecule [A, P], and how many there are [B]."""
        if not isinstance(self.group, RotationsAndAutomorphisms):
            identity = torch.arange(x0.layout.n_total, device=x0.layout.device)[:, None]
            return identity, torch.ones_like(x0.n_atoms)
        table, counts = self.group.listed(x0)
        return table[:, : self.cfg.n_automorphisms], counts.clamp_max(self.cfg.n_automorphisms)


def prior_sample(noised: Noised, rng: torch.Generator) -> State:
    """A draw of e given z_t and x0, on the linear path: what the prior gave and what bridge noise, z_t does not tell.

    By Matheron's rule: a fresh pair (e, e'), moved by t C S^-2 times what its noise t e + s e' lacks of that in z_t, C
    the prior's covariance and S^2 = t^2 C + s^2. Without bridge noise it is the e that was drawn.
    """
    level, t = noised.level, noised.level.t
    bridge2 = (level.sigma.square() - t.square()).clamp_min(0)  # s^2
    fresh, bridge = (
        noised.spaces.noise(noised.z_t.layout, rng, noised.z_t.dtype, noised.z_t.context) for _ in range(2)
    )
    share = None if level.harmonic_share is None else torch.ones_like(t)
    prior = scaled(fresh, replace(level, sigma=torch.ones_like(t), harmonic_share=share), lambda level: level.sigma)

    def times(state: State, values: Tensor) -> State:
        return state.map(lambda part: state.spread(values, part) * part)

    drawn = times(prior, t).combine(times(bridge, bridge2.sqrt()), torch.add)
    lacking = scaled(noised.noise, level, lambda level: level.sigma).combine(drawn, torch.sub)
    of_bridge = times(scaled(lacking, level, lambda level: 1 / level.sigma.square()), bridge2)
    return prior.combine(times(lacking.combine(of_bridge, torch.sub), 1 / t), torch.add)
