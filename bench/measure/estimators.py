"""Estimators of the regression target E[eps | z_t, orbit of x0]: the unbiased ones, and the biased ones in use.

With `noised` made by a uniformly drawn g, the noise that made z_t is an unbiased estimate, and every other is an
average over candidates for g. Methods train with them; here they are compared at the same z_t and weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from bench.geometry.groups import Group, RotationGroup
from bench.geometry.noised import Noised
from bench.geometry.state import State
from bench.geometry.torus import TorusShift
from bench.symmetry.orbit import OrbitTarget, OrbitTargetConfig, Proposal, orbit_target

Estimator = Callable[[Noised, torch.Generator], State]
TEMPERATURE = 0.4  # default of the released code of Orbit Diffusion (arXiv:2502.09890), not in its text
COLD = 1e-8  # all weight on the mode, to rounding


def single(noised: Noised, rng: torch.Generator) -> State:
    """The noise itself: one draw from the posterior, as augmentation trains with."""
    del rng
    return noised.noise


def exact(group: Group) -> Estimator:
    """The posterior mean (`Group.posterior_mean`)."""
    return lambda noised, _: group.posterior_mean(noised)


def sampled(group: Group, cfg: OrbitTargetConfig) -> Callable[[Noised, torch.Generator], OrbitTarget]:
    """The self-normalised average over sampled candidates, with its effective sample size."""
    return lambda noised, rng: orbit_target(noised, group, rng, cfg)


def sampled_kinds(group: Group, n_draws: int) -> dict[str, Callable[[Noised, torch.Generator], OrbitTarget]]:
    """The unbiased sampled estimators that a group has, by the proposal of their candidates."""
    proposals = [Proposal.UNIFORM, *([Proposal.LOCAL] if isinstance(group, RotationGroup | TorusShift) else [])]
    return {p.value: sampled(group, OrbitTargetConfig(n_draws=n_draws, proposal=p)) for p in proposals}


def tempered(noised: Noised, group: Group, temperature: float) -> State:
    """The average over the orbit with weights p(g | z_t)^(1 / temperature), in the limit of many candidates.

    A Gaussian kernel to this power is one of temperature times the variance. At temperature 0 all weight lies on the
    mode: x0 aligned to z_t (Kabsch 1976 for rotations), as in JODO (arXiv:2305.12347).
    """
    level = replace(noised.level, sigma=noised.level.sigma * max(temperature, COLD) ** 0.5)
    moved = noised.spaces.displacement(noised.z_t, noised.clean, level)
    warmer = Noised(noised.clean, moved, noised.z_t, level, noised.spaces)
    return noised.noise_of(warmer.clean_of(group.posterior_mean(warmer)))


def squared_biases(noised: Noised, group: Group, n_draws: int, rng: torch.Generator) -> dict[str, Float[Tensor, "B"]]:
    """|E[estimate | z_t, orbit] - posterior mean|^2 of biased estimators, in units of the noise.

    'tempered' (weights to the power 1 / TEMPERATURE) and 'aligned' (temperature 0) are functions of z_t, on linear
    spaces alone. 'generator_less' draws all its candidates, without the element that made z_t; 'generator_centred', on
    a torus, draws them about it, as published for crystals. Of these the inner product of the errors of two independent
    sets has the squared bias as its mean, and may be negative.
    """
    mean, found = group.posterior_mean(noised), dict[str, Float[Tensor, "B"]]()
    if noised.spaces.linear:
        for name, temperature in {"tempered": TEMPERATURE, "aligned": 0.0}.items():
            found[name] = tempered(noised, group, temperature).combine(mean, torch.sub).squared_norm()
    drawn = {"generator_less": OrbitTargetConfig(n_draws=n_draws, include_generator=False)}
    if isinstance(group, TorusShift):
        drawn["generator_centred"] = OrbitTargetConfig(n_draws=n_draws, proposal=Proposal.GENERATOR)
    for name, cfg in drawn.items():
        one, other = (sampled(group, cfg)(noised, rng).noise.combine(mean, torch.sub) for _ in range(2))
        found[name] = inner(one, other)
    return found


def inner(a: State, b: State) -> Float[Tensor, "B"]:
    """Inner product of two states of each molecule."""
    plus, minus = a.combine(b, torch.add).squared_norm(), a.combine(b, torch.sub).squared_norm()
    return (plus - minus) / 4
