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

from bench.geometry.harmonic import scaled
from bench.geometry.noised import Level, Noised
from bench.geometry.state import State


class Parametrisation(StrEnum):
    """What the network estimates."""

    NOISE = "noise"  # eps
    CLEAN = "clean"  # x0 (x1 in papers on flow matching)
    VELOCITY = "velocity"  # dz/dt = alpha' x0 + sigma' eps
    SCORE = "score"  # -eps / sigma
    # eps over its root mean square at each level: on a torus the score normalised as in DiffCSP, elsewhere the noise
    UNIT = "unit"

    def target(self, noise: State, noised: Noised) -> State:
        """Regression target, from an expected noise at fixed z_t."""
        level = noised.level
        if self is Parametrisation.NOISE:
            return noise
        if self is Parametrisation.SCORE:
            return scaled(noise, level, lambda level: -1 / level.sigma)
        if self is Parametrisation.UNIT:
            return scaled(noise, level, lambda level: 1 / _rms(level))
        clean = noised.clean_of(noise)
        return clean if self is Parametrisation.CLEAN else velocity(clean, noise, level)

    def noise(self, output: State, z_t: State, level: Level) -> State:
        """Noise estimate implied by a network's output."""
        if self is Parametrisation.NOISE:
            return output
        if self is Parametrisation.SCORE:
            return scaled(output, level, lambda level: -level.sigma)
        if self is Parametrisation.UNIT:
            return scaled(output, level, _rms)
        if self is Parametrisation.CLEAN:
            difference = z_t.combine(scaled(output, level, lambda level: level.alpha), torch.sub)
            return scaled(difference, level, lambda level: 1 / level.sigma)
        # v = alpha' x + sigma' n and z = alpha x + sigma n
        of_output = scaled(output, level, lambda level: level.alpha / _determinant(level))
        of_z = scaled(z_t, level, lambda level: -_d_alpha(level) / _determinant(level))
        return of_output.combine(of_z, torch.add)

    def clean(self, output: State, z_t: State, level: Level) -> State:
        """Clean state implied by a network's output (linear spaces)."""
        if self is Parametrisation.CLEAN:
            return output
        if self is Parametrisation.VELOCITY:
            of_z = scaled(z_t, level, lambda level: _d_sigma(level) / _determinant(level))
            of_output = scaled(output, level, lambda level: level.sigma / _determinant(level))
            return of_z.combine(of_output, torch.sub)
        noise = scaled(self.noise(output, z_t, level), level, lambda level: level.sigma)
        return scaled(z_t.combine(noise, torch.sub), level, lambda level: 1 / level.alpha)


def velocity(clean: State, noise: State, level: Level) -> State:
    """dz/dt = alpha' x0 + sigma' eps, of estimates of both."""
    return scaled(clean, level, _d_alpha).combine(scaled(noise, level, _d_sigma), torch.add)


class LossWeight(StrEnum):
    """Weight of each level in the training error."""

    ONE = "one"
    SNR = "snr"  # alpha^2 / sigma^2: makes the error of the clean state that of the noise

    def of(self, level: Level) -> Tensor | float:
        return 1.0 if self is LossWeight.ONE else (level.alpha / level.sigma).square()


Predict = Callable[[State, Level], State]


def _rms(level: Level) -> Tensor:
    return torch.ones_like(level.sigma) if level.noise_rms is None else level.noise_rms


def _determinant(level: Level) -> Tensor:
    """alpha sigma' - alpha' sigma."""
    return level.alpha * _d_sigma(level) - _d_alpha(level) * level.sigma


def _d_alpha(level: Level) -> Tensor:
    return _derivative(level.d_alpha)


def _d_sigma(level: Level) -> Tensor:
    return _derivative(level.d_sigma)


def _derivative(value: Tensor | None) -> Tensor:
    if value is None:
        raise ValueError("parametrisation 'velocity' needs a path with derivatives; choose path 'linear'")
    return value
