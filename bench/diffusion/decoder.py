"""The decoder p(x, h | z_0) of EDM: a Gaussian for positions, and for integer features the mass of their unit bins.

Features h [A, F] are one channel per element (one-hot, divided by `scale_onehot`) and, with `include_charges`, one with
the nuclear charge (divided by `scale_charge`). Source: Hoogeboom et al. (arXiv:2203.17003), equations 10-12.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bench.geometry.noised import Level, Noised
from bench.geometry.state import State


@dataclass(frozen=True)
class Decoder:
    """The step from z_0 to data.

    Attributes:
        n_elements: channels of the one-hot part of h.
        include_charges: whether the last channel of h holds the nuclear charge.
        scale_position: angstrom per unit of the scaled positions, which enters the likelihood as a change of volume.
        scale_onehot, scale_charge: what features were divided by.
    """

    n_elements: int
    include_charges: bool
    scale_position: float
    scale_onehot: float
    scale_charge: float

    def check(self, sigma_0: float) -> None:
        """Raise ValueError where features would drown in the noise at t = 0."""
        if 8 * sigma_0 > 1 / max(self.scale_onehot, self.scale_charge):
            raise ValueError(
                f"features scaled by {self.scale_onehot} and {self.scale_charge} drown in the decoder's noise; "
                "scales must stay below 1 / (8 sigma_0)"
            )

    def reconstruction(self, noise_hat: State, noise: State) -> Float[Tensor, "B"]:
        """-log p(x | z_0) up to its constants: 0.5 |eps_hat - eps|^2 of the positions."""
        return 0.5 * noise.sum_over_atoms((noise_hat.x - noise.x).square().sum(1))

    def feature_log_likelihood(self, clean: State, z_0: State, level: Level) -> Float[Tensor, "B"]:
        """log p(h | z_0): Gaussian mass in the unit bin around each integer (arXiv:2203.17003, eq. 12).

        It depends on z_0 alone, not on the network.
        """
        sigma = clean.per_atom(level.sigma)[:, None]
        onehot, scale = clean.h[:, : self.n_elements], self.scale_onehot
        log_mass = _log_bin_mass(z_0.h[:, : self.n_elements] * scale - 1.0, sigma * scale)
        per_atom = (log_mass * onehot * scale).sum(1) - torch.logsumexp(log_mass, dim=1)
        if self.include_charges:
            scale = self.scale_charge
            per_atom = per_atom + _log_bin_mass((clean.h[:, -1:] - z_0.h[:, -1:]) * scale, sigma * scale)[:, 0]
        return clean.sum_over_atoms(per_atom)

    def terms(self, noise_hat: State, target: State, noised: Noised) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        """Terms of the loss at t = 0, each [B]: reconstruction of positions, and of features."""
        features = -self.feature_log_likelihood(noised.clean, noised.z_t, noised.level)
        return self.reconstruction(noise_hat, target), features

    def log_scale(self) -> float:
        """log of the change of volume per dimension, from scaled units to angstrom."""
        return math.log(self.scale_position)

    def step(self, z_0: State, noise_hat: State, noise: State, level: Level) -> State:
        """x = (z_0 - sigma_0 eps_hat) / alpha_0 + (sigma_0 / alpha_0) eps'_x; h is that of z_0; `level`: at t = 0."""
        alpha_0, sigma_0 = level.alpha[0], level.sigma[0]
        return z_0.replace(x=(z_0.x - sigma_0 * noise_hat.x + sigma_0 * noise.x) / alpha_0)


def _log_bin_mass(centre: Tensor, sigma: Tensor) -> Tensor:
    """log of the N(0, sigma^2) mass of [centre - 1/2, centre + 1/2], floored at log 1e-10 as in the published code."""
    upper = torch.special.ndtr((centre + 0.5) / sigma)
    lower = torch.special.ndtr((centre - 0.5) / sigma)
    return torch.log(upper - lower + 1e-10)
