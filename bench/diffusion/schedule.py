"""Noise schedule: t -> NoiseLevel, for z_t = alpha_t x0 + sigma_t eps with alpha_t^2 + sigma_t^2 = 1.

t = i / T with i = 0..T. t = 0 is the least noise (the decoder's level, sigma_0 = 0.003), t = 1 is nearly pure noise.
log_snr = log(alpha^2 / sigma^2). Schedule: `polynomial_2` of Hoogeboom et al., Equivariant diffusion for molecule
generation in 3D (arXiv:2203.17003), appendix B.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class NoiseLevel:
    """Noise level of each of B molecules; every field is [B]."""

    t: Float[Tensor, "B"]
    alpha: Float[Tensor, "B"]
    sigma: Float[Tensor, "B"]
    log_snr: Float[Tensor, "B"]


def polynomial_2(n_levels: int, precision: float = 1e-5) -> np.ndarray:
    """-log_snr at i = 0..T of the polynomial schedule alpha_t ~ 1 - t^2.

    alpha^2 falls by at most a factor 1000 in a step (only the last step is clipped) and is squeezed into
    [precision, 1 - precision].

    Args:
        n_levels: T.
        precision: s.
    Returns:
        gamma [T + 1], float64, strictly increasing.
    """
    t = np.linspace(0.0, 1.0, n_levels + 1)
    alpha2 = np.square(1.0 - np.square(t))
    ratio = np.clip(alpha2[1:] / alpha2[:-1], 1e-3, 1.0)
    alpha2 = np.cumprod(np.concatenate([alpha2[:1], ratio]))
    alpha2 = (1.0 - 2.0 * precision) * alpha2 + precision
    return -(np.log(alpha2) - np.log1p(-alpha2))


class NoiseSchedule(nn.Module):
    """Table of T + 1 noise levels, looked up by integer index."""

    gamma: Tensor

    def __init__(self, n_levels: int = 1000, precision: float = 1e-5) -> None:
        super().__init__()
        self.n_levels = n_levels
        # kept out of checkpoints: it follows from the configuration
        self.register_buffer("gamma", torch.from_numpy(polynomial_2(n_levels, precision)), persistent=False)

    def at(self, i: Int[Tensor, "B"], dtype: torch.dtype = torch.float32) -> NoiseLevel:
        """Levels of indices i in 0..T (evaluated in float64, returned in `dtype`)."""
        gamma = self.gamma[i]
        return NoiseLevel(
            t=(i.to(torch.float64) / self.n_levels).to(dtype),
            alpha=torch.sigmoid(-gamma).sqrt().to(dtype),
            sigma=torch.sigmoid(gamma).sqrt().to(dtype),
            log_snr=-gamma.to(dtype),
        )

    def draw(self, n: int, rng: torch.Generator, lowest: int = 0, dtype: torch.dtype = torch.float32) -> NoiseLevel:
        """n independent levels, uniform on {lowest, ..., T}."""
        i = torch.randint(lowest, self.n_levels + 1, (n,), generator=rng, device=rng.device)
        return self.at(i, dtype)

    def step(self, s: Int[Tensor, "B"], t: Int[Tensor, "B"]) -> tuple[Tensor, Tensor]:
        """Coefficients of q(z_t | z_s) for s < t: alpha_{t|s} and sigma^2_{t|s}, each [B], float64.

        sigma^2_{t|s} = -expm1(softplus(gamma_s) - softplus(gamma_t)), free of cancellation.
        """
        gamma_s, gamma_t = self.gamma[s], self.gamma[t]
        alpha_ts = torch.exp(0.5 * (F.logsigmoid(-gamma_t) - F.logsigmoid(-gamma_s)))
        sigma2_ts = -torch.expm1(F.softplus(gamma_s) - F.softplus(gamma_t))
        return alpha_ts, sigma2_ts
