"""Parametrisations: what a network regresses on, and the estimates of noise and clean state that its output implies.

At fixed z_t the clean state, the noise, the velocity and the score determine one another, so one implementation of a
target (an expected noise) serves all of them. The error is taken in the parametrisation's own space. Noise is the only
published choice for EDM-like models (arXiv:2203.17003), and the one whose error is safe in float32 at sigma = 0.003.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import torch
from torch import Tensor

from bench.geometry.noised import Level, Noised
from bench.geometry.state import State


class Parametrisation(StrEnum):
    """What the network estimates."""

    NOISE = "noise"  # eps
    CLEAN = "clean"  # x0 (x1 in papers on flow matching)
    VELOCITY = "velocity"  # dz/dt = alpha' x0 + sigma' eps
    SCORE = "score"  # -eps / sigma

    def target(self, noise: State, noised: Noised) -> State:
        """Regression target, from an expected noise at fixed z_t."""
        level = noised.level
        if self is Parametrisation.NOISE:
            return noise
        if self is Parametrisation.SCORE:
            return _scaled(noise, -1 / level.sigma)
        clean = noised.clean_of(noise)
        if self is Parametrisation.CLEAN:
            return clean
        d_alpha, d_sigma = _derivatives(level)
        return _scaled(clean, d_alpha).combine(_scaled(noise, d_sigma), torch.add)

    def noise(self, output: State, z_t: State, level: Level) -> State:
        """Noise estimate implied by a network's output."""
        if self is Parametrisation.NOISE:
            return output
        if self is Parametrisation.SCORE:
            return _scaled(output, -level.sigma)
        if self is Parametrisation.CLEAN:
            difference = z_t.combine(_scaled(output, level.alpha), torch.sub)
            return _scaled(difference, 1 / level.sigma)
        # v = alpha' x + sigma' n and z = alpha x + sigma n
        d_alpha, d_sigma = _derivatives(level)
        determinant = level.alpha * d_sigma - d_alpha * level.sigma
        of_output, of_z = level.alpha / determinant, -d_alpha / determinant
        return _scaled(output, of_output).combine(_scaled(z_t, of_z), torch.add)

    def clean(self, output: State, z_t: State, level: Level) -> State:
        """Clean state implied by a network's output (linear spaces)."""
        if self is Parametrisation.CLEAN:
            return output
        if self is Parametrisation.VELOCITY:
            d_alpha, d_sigma = _derivatives(level)
            determinant = level.alpha * d_sigma - d_alpha * level.sigma
            return _scaled(z_t, d_sigma / determinant).combine(_scaled(output, level.sigma / determinant), torch.sub)
        noise = self.noise(output, z_t, level)
        return _scaled(z_t.combine(_scaled(noise, level.sigma), torch.sub), 1 / level.alpha)


class LossWeight(StrEnum):
    """Weight of each level in the training error."""

    ONE = "one"
    SNR = "snr"  # alpha^2 / sigma^2: makes the error of the clean state that of the noise

    def of(self, level: Level) -> Tensor | float:
        return 1.0 if self is LossWeight.ONE else (level.alpha / level.sigma).square()


Predict = Callable[[State, Level], State]


def _scaled(state: State, factor: Tensor) -> State:
    return state.map(lambda part: state.spread(factor, part) * part)


def _derivatives(level: Level) -> tuple[Tensor, Tensor]:
    if level.d_alpha is None or level.d_sigma is None:
        raise ValueError("parametrisation 'velocity' needs a path with derivatives; choose path 'linear'")
    return level.d_alpha, level.d_sigma
