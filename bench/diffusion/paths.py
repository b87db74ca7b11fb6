"""Paths: t -> Level(t, alpha, sigma), for z_t = alpha_t x0 + sigma_t eps.

t = 0 is the least noise and t = 1 nearly or exactly pure noise, on every path (papers on flow matching count t the
other way). Discrete paths are tables of levels, looked up by an index that grows with the noise; `LinearPath` is
continuous. Parts of a state may have discrete paths of their own (`ByPart`), at one index.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from bench.geometry.noised import Level
from bench.geometry.spaces import Torus


class PathName(StrEnum):
    """Paths by their name in a configuration."""

    POLYNOMIAL = "polynomial"  # variance preserving, of EDM (arXiv:2203.17003)
    LINEAR_SIGMA = "linear_sigma"  # variance preserving, sigma in equal steps (toy of arXiv:2502.09890)
    LINEAR = "linear"  # flow matching (Lipman et al., arXiv:2210.02747)
    VARIANCE_EXPLODING = "variance_exploding"  # alpha = 1, for a torus (DiffCSP, arXiv:2309.04475)
    COSINE = "cosine"  # variance preserving (Nichol & Dhariwal, arXiv:2102.09672)


class Prior(StrEnum):
    """The law of pure noise, from which sampling starts."""

    GAUSSIAN = "gaussian"  # standard normal
    HARMONIC = "harmonic"  # bonded atoms near one another (`bench.geometry.harmonic`); path 'linear', given bonds


class Path(nn.Module, ABC):
    """Interface of a path, as the process and the sampler use it.

    Attributes:
        prior_sigma: standard deviation of the state from which sampling starts.
    """

    prior_sigma: float = 1.0

    def of(self, part: str) -> Path:
        """The path of a part."""
        del part
        return self

    @abstractmethod
    def draw(
        self, n: int, rng: torch.Generator, lowest: int = 0, dtype: torch.dtype = torch.float32, power: float = 1.0
    ) -> Level:
        """n independent levels to train on, at t = u^power for uniform u.

        Args:
            lowest: smallest index drawn, on discrete paths.
        """

    @abstractmethod
    def quantile(
        self,
        share: Float[Tensor, "B"],
        lowest: int = 0,
        dtype: torch.dtype = torch.float32,
        power: float = 1.0,
    ) -> Level:
        """The levels below which these shares (0 to 1) of those that `draw` gives lie.

        Args:
            share: float64.
        """

    @abstractmethod
    def grid(self, n_steps: int, device: torch.device | str) -> Tensor:
        """n_steps + 1 places (arguments of `at`), from the most noise to the least.

        Raises:
            ValueError: the path does not support this number of steps.
        """

    @abstractmethod
    def at(self, place: Tensor, dtype: torch.dtype = torch.float32) -> Level:
        """Levels of places [B], evaluated in float64 and returned in `dtype`."""

    @abstractmethod
    def step(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of q(z_t | z_s) for s < t: alpha_{t|s} and sigma^2_{t|s}, each [B], float64."""


class TablePath(Path):
    """A discrete path: a table of levels, drawn uniformly.

    Attributes:
        gamma: -log_snr = log(sigma^2 / alpha^2) of each level, strictly increasing.
        n_levels: T, in which t = i / T.
        last: index of the noisiest level.
        start: index of the level at which sampling in fewer steps than `last` starts.

    Args:
        jump: the step to the last level is a jump, after which next to nothing of the data is left. The reverse step
            multiplies by 1 / alpha_{t|s}, and so do a network's errors: by 100 on the published cosine path, by 500
            where a step also spans four levels more. Fewer steps start before the jump, where with 1000 levels alpha is
            1.6e-3.
    """

    gamma: Tensor

    def __init__(self, gamma: np.ndarray, n_levels: int, jump: bool = False) -> None:
        super().__init__()
        self.n_levels, self.last = n_levels, len(gamma) - 1
        self.start = self.last - jump
        # kept out of checkpoints: it follows from the configuration
        self.register_buffer("gamma", torch.from_numpy(gamma), persistent=False)

    def draw(
        self, n: int, rng: torch.Generator, lowest: int = 0, dtype: torch.dtype = torch.float32, power: float = 1.0
    ) -> Level:
        if power == 1:
            return self.at(torch.randint(lowest, self.last + 1, (n,), generator=rng, device=rng.device), dtype)
        u = torch.rand(n, generator=rng, device=rng.device, dtype=torch.float64)
        return self.quantile(u, lowest, dtype, power)

    def quantile(
        self,
        share: Float[Tensor, "B"],
        lowest: int = 0,
        dtype: torch.dtype = torch.float32,
        power: float = 1.0,
    ) -> Level:
        i = lowest + ((self.last + 1 - lowest) * share**power).long()
        return self.at(i.clamp(max=self.last), dtype)

    def grid(self, n_steps: int, device: torch.device | str) -> Int[Tensor, "S_plus_1"]:
        first = self.start if 1 <= n_steps < self.last else self.last
        return torch.tensor(time_grid(first, n_steps), device=device)


class VariancePreserving(TablePath):
    """alpha^2 + sigma^2 = 1: alpha^2 = sigmoid(-gamma), sigma^2 = sigmoid(gamma)."""

    def at(self, place: Int[Tensor, "B"], dtype: torch.dtype = torch.float32) -> Level:
        gamma = self.gamma[place]
        return Level(
            t=(place.to(torch.float64) / self.n_levels).to(dtype),
            alpha=torch.sigmoid(-gamma).sqrt().to(dtype),
            sigma=torch.sigmoid(gamma).sqrt().to(dtype),
        )

    def step(self, s: Int[Tensor, "B"], t: Int[Tensor, "B"]) -> tuple[Tensor, Tensor]:
        """sigma^2_{t|s} = -expm1(softplus(gamma_s) - softplus(gamma_t)), free of cancellation."""
        gamma_s, gamma_t = self.gamma[s], self.gamma[t]
        alpha_ts = torch.exp(0.5 * (F.logsigmoid(-gamma_t) - F.logsigmoid(-gamma_s)))
        sigma2_ts = -torch.expm1(F.softplus(gamma_s) - F.softplus(gamma_t))
        return alpha_ts, sigma2_ts


class VarianceExploding(TablePath):
    """alpha = 1, sigma^2 = exp(gamma); its levels tell the root mean square of the expected noise on a torus."""

    rms: Tensor

    def __init__(self, gamma: np.ndarray, n_levels: int) -> None:
        super().__init__(gamma, n_levels)
        self.prior_sigma = float(np.exp(0.5 * gamma[-1]))
        self.register_buffer("rms", torch.from_numpy(wrapped_rms(np.exp(0.5 * gamma))), persistent=False)

    def at(self, place: Int[Tensor, "B"], dtype: torch.dtype = torch.float32) -> Level:
        gamma = self.gamma[place]
        return Level(
            t=(place.to(torch.float64) / self.n_levels).to(dtype),
            alpha=torch.ones_like(gamma).to(dtype),
            sigma=torch.exp(0.5 * gamma).to(dtype),
            noise_rms=self.rms[place].to(dtype),
        )

    def step(self, s: Int[Tensor, "B"], t: Int[Tensor, "B"]) -> tuple[Tensor, Tensor]:
        gamma_s, gamma_t = self.gamma[s], self.gamma[t]
        return torch.ones_like(gamma_t), torch.exp(gamma_t) * -torch.expm1(gamma_s - gamma_t)


class ByPart(TablePath):
    """Discrete paths of one length: one for all parts of a state but those that have their own.

    Args:
        main: the path whose fields a `Level` holds; `Level.of` has those of a part.
        own: by name of the part.
    """

    def __init__(self, main: TablePath, own: Mapping[str, TablePath]) -> None:
        super().__init__(main.gamma.numpy(), main.n_levels)
        self.main, self.own, self.prior_sigma = main, nn.ModuleDict(own), main.prior_sigma
        self.start = min(path.start for path in (main, *own.values()))

    def of(self, part: str) -> TablePath:
        path = self.own[part] if part in self.own else self.main  # noqa: SIM401 - a ModuleDict has no get
        assert isinstance(path, TablePath)  # a ModuleDict does not know what it holds
        return path

    def at(self, place: Int[Tensor, "B"], dtype: torch.dtype = torch.float32) -> Level:
        return replace(self.main.at(place, dtype), own={part: self.of(part).at(place, dtype) for part in self.own})

    def step(self, s: Int[Tensor, "B"], t: Int[Tensor, "B"]) -> tuple[Tensor, Tensor]:
        """Of the main path; those of a part: `of(part).step`."""
        return self.main.step(s, t)


class LinearPath(Path):
    """z_t = (1 - t) x0 + t e_prior + s(t) e_bridge, s = b sqrt(t (1 - t)). Places are the times themselves.

    With b = 0 this is the straight line between data and a draw of the prior, alpha = 1 - t and sigma = t. With bridge
    noise (Tong et al., arXiv:2502.09890; ET-Flow, arXiv:2410.22388) sigma^2 = t^2 + s^2 in every direction in which the
    prior has variance 1, and dz/dt has the mean alpha' x0 + sigma' eps given z_t and x0: it is averaged over which part
    of the noise is whose, so that no target holds s', which is infinite at both ends. sigma' is so at t = 0 alone.

    Args:
        margin: times are drawn from [margin, 1 - margin], because an expected clean state determines no expected noise
            at t = 0, nor the noise the clean state at t = 1.
        bridge_noise: b.
        prior: of e_prior; e_bridge is standard normal.
    """

    def __init__(self, margin: float = 1e-3, bridge_noise: float = 0.0, prior: Prior = Prior.GAUSSIAN) -> None:
        super().__init__()
        self.margin, self.bridge_noise, self.prior = margin, bridge_noise, prior

    def draw(
        self, n: int, rng: torch.Generator, lowest: int = 0, dtype: torch.dtype = torch.float32, power: float = 1.0
    ) -> Level:
        u = torch.rand(n, generator=rng, device=rng.device, dtype=torch.float64)
        return self.quantile(u, lowest, dtype, power)

    def quantile(
        self,
        share: Float[Tensor, "B"],
        lowest: int = 0,
        dtype: torch.dtype = torch.float32,
        power: float = 1.0,
    ) -> Level:
        del lowest
        return self.at(self.margin + (1 - 2 * self.margin) * share**power, dtype)

    def grid(self, n_steps: int, device: torch.device | str) -> Float[Tensor, "S_plus_1"]:
        if n_steps < 1:
            raise ValueError(f"sampling steps must be at least 1, got {n_steps}")
        return torch.linspace(1, 0, n_steps + 1, dtype=torch.float64, device=device)

    def at(self, place: Float[Tensor, "B"], dtype: torch.dtype = torch.float32) -> Level:
        one, b2 = torch.ones_like(place), self.bridge_noise**2
        sigma, d_sigma, share, d_share = place, one, one, torch.zeros_like(place)
        if b2:
            sigma = (place * (place + b2 * (1 - place))).sqrt()
            d_sigma = (place + 0.5 * b2 * (1 - 2 * place)) / sigma
            share = place / (place + b2 * (1 - place))  # t^2 / sigma^2
            d_share = b2 / (place + b2 * (1 - place)).square()
        fields = [place, 1 - place, sigma, -one, d_sigma]
        if self.prior is Prior.HARMONIC:
            fields += [share, d_share]
        return Level(*(value.to(dtype) for value in fields))

    def step(self, s: Float[Tensor, "B"], t: Float[Tensor, "B"]) -> tuple[Tensor, Tensor]:
        alpha_ts = (1 - t) / (1 - s)
        sigma_s, sigma_t = (self.at(place, torch.float64).sigma for place in (s, t))
        return alpha_ts, sigma_t.square() - (alpha_ts * sigma_s).square()


def polynomial_2(n_levels: int, precision: float = 1e-5) -> np.ndarray:
    """-log_snr at i = 0..T of the polynomial schedule alpha_t ~ 1 - t^2 (arXiv:2203.17003, appendix B).

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


def linear_sigma(n_levels: int) -> np.ndarray:
    """-log_snr at i = 0..T-1 for sigma from 0.01 to 0.999 in equal steps (1D toy of arXiv:2502.09890)."""
    sigma2 = np.square(np.linspace(0.01, 0.999, n_levels))
    return np.log(sigma2) - np.log1p(-sigma2)


def geometric_sigma(n_levels: int) -> np.ndarray:
    """log sigma^2 at i = 0..T for sigma from 0.005 to 0.5 in equal ratios (DiffCSP, arXiv:2309.04475)."""
    return 2 * np.linspace(np.log(0.005), np.log(0.5), n_levels + 1)


def cosine(n_levels: int, offset: float = 0.008) -> np.ndarray:
    """-log_snr at i = 0..T of alpha^2 ~ cos^2(pi/2 (u + s) / (1 + s)), u = 1/(T + 1), .., 1 in equal steps.

    alpha^2 falls by 1e-4 to 0.9999 of itself in a step (Nichol & Dhariwal, arXiv:2102.09672, equation 17, with the
    bounds of DiffCSP, arXiv:2309.04475).
    """
    u = np.linspace(0.0, 1.0, n_levels + 2)
    alpha2 = np.square(np.cos(0.5 * np.pi * (u + offset) / (1 + offset)))
    log_alpha2 = np.cumsum(np.log1p(-np.clip(1 - alpha2[1:] / alpha2[:-1], 1e-4, 0.9999)))
    return np.log(-np.expm1(log_alpha2)) - log_alpha2


def wrapped_rms(sigma: np.ndarray) -> np.ndarray:
    """Root mean square of E[eps | z_t, x0] for z_t = (x0 + sigma eps) mod 1, one coordinate, to 1e-12; sigma <= 0.5.

    By the rectangle rule, which converges exponentially on a circle; below 0.05 the images do not meet, and it is 1.
    """
    found = np.ones_like(sigma)
    wide = sigma[sigma > 0.05][:, None, None]
    d, k = np.arange(256) / 256 - 0.5, np.arange(-Torus.IMAGES, Torus.IMAGES + 1)
    images = (d[:, None] + k) / wide
    weight = np.exp(-0.5 * np.square(images))
    density = weight.sum(-1)
    square = np.square((weight * images).sum(-1) / density)
    found[sigma > 0.05] = np.sqrt((density * square).sum(-1) / density.sum(-1))
    return found


def make_path(
    name: PathName,
    n_levels: int = 1000,
    precision: float = 1e-5,
    prior: Prior = Prior.GAUSSIAN,
    bridge_noise: float = 0.0,
) -> Path:
    """The path of a configuration; `n_levels` is for discrete paths, `precision` for the polynomial one, `prior` and
    `bridge_noise` for the linear one."""
    if name is PathName.LINEAR:
        return LinearPath(bridge_noise=bridge_noise, prior=prior)
    if name is PathName.VARIANCE_EXPLODING:
        return VarianceExploding(geometric_sigma(n_levels), n_levels)
    if name is PathName.COSINE:
        return VariancePreserving(cosine(n_levels), n_levels, jump=True)
    if name is PathName.LINEAR_SIGMA:
        return VariancePreserving(linear_sigma(n_levels), n_levels)
    if name is PathName.POLYNOMIAL:
        return VariancePreserving(polynomial_2(n_levels, precision), n_levels)
    raise ValueError(f"path {name.value!r} has no branch in make_path")


def time_grid(last: int, n_steps: int) -> list[int]:
    """Indices last = i_S > ... > i_0 = 0, as evenly spaced as integers allow.

    Raises:
        ValueError: more steps than levels, or fewer than one.
    """
    if not 1 <= n_steps <= last:
        raise ValueError(f"sampling steps must lie in 1..{last} (the schedule's levels), got {n_steps}")
    return [round(last * k / n_steps) for k in range(n_steps, -1, -1)]
