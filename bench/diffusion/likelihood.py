"""The variational bound of -log p(x, h | N), and by how much more draws of a stochastic prediction lower it.

For variance-preserving tables with EDM's decoder. Source: Hoogeboom et al. (arXiv:2203.17003), equations 7-12 and
appendix A; Kingma et al., Variational diffusion models (arXiv:2107.00630). Unit: nats per molecule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.diffusion.decoder import Decoder
from bench.diffusion.parametrisation import Parametrisation, Predict
from bench.diffusion.paths import VariancePreserving
from bench.diffusion.process import Process
from bench.geometry.layout import Layout
from bench.geometry.state import State


def has_bound(process: Process) -> bool:
    """Whether the bound is defined: a variance-preserving table, a decoder, and a network that estimates the noise."""
    return (
        isinstance(process.path, VariancePreserving)
        and process.decoder is not None
        and process.parametrisation is Parametrisation.NOISE
    )


def _parts(process: Process) -> tuple[VariancePreserving, Decoder]:
    path, decoder = process.path, process.decoder
    if not (has_bound(process) and isinstance(path, VariancePreserving) and decoder):
        raise ValueError("the variational bound needs a variance-preserving table and a decoder; flows have none")
    return path, decoder


class Times(StrEnum):
    """How the times of the bound are drawn."""

    IMPORTANCE = "importance"  # more often where terms are large (`time_probabilities`)
    UNIFORM = "uniform"


@dataclass(frozen=True)
class DrawnTimes:
    """Times of the bound, one per molecule.

    Attributes:
        i: times in 1..T [B].
        weight: 1 / (T p(i)) [B], float64: the mean of weight f(i) is that of f over 1..T.
    """

    i: Int[Tensor, "B"]
    weight: Float[Tensor, "B"]


UNIFORM_SHARE = 0.2  # of the times are drawn uniformly, so that no weight exceeds 1 / 0.2


def time_probabilities(path: VariancePreserving, times: Times) -> Float[Tensor, "T"]:
    """p(i) of the times 1..T, float64.

    `importance` draws in proportion to the terms of the optimal denoiser of data of unit variance, whose squared error
    per dimension is alpha_i^2: (e^{gamma_i - gamma_{i-1}} - 1) alpha_i^2, mixed with uniform draws. This follows from
    the noise schedule alone, so that all runs of a study have the same times and their differences are paired.
    """
    uniform = torch.full_like(path.gamma[1:], 1 / path.last)
    if times is Times.UNIFORM:
        return uniform
    size = torch.expm1(path.gamma.diff()) * torch.sigmoid(-path.gamma[1:])
    return (1 - UNIFORM_SHARE) * size / size.sum() + UNIFORM_SHARE * uniform


def times_at(path: VariancePreserving, times: Times, u: Float[Tensor, "B"]) -> DrawnTimes:
    """Times from numbers u [B], uniform on [0, 1), by the inverse of their distribution function."""
    p = time_probabilities(path, times)
    place = torch.searchsorted(p.cumsum(0), u.to(p), right=True).clamp_max(path.last - 1)
    return DrawnTimes(place + 1, 1 / (path.last * p[place]))


def stratified(n: int, rng: torch.Generator) -> Float[Tensor, "n"]:
    """n numbers, each uniform on [0, 1), one in each of n equal parts, in random order; float64."""
    order = torch.randperm(n, generator=rng, device=rng.device)
    return (order + torch.rand(n, generator=rng, device=rng.device, dtype=torch.float64)) / n


def log_constants(process: Process, layout: Layout) -> Float[Tensor, "B"]:
    """C0 = 3(N-1) (gamma_0 + log 2 pi) / 2, the normalisation of the decoder on U, plus the change of
    volume 3(N-1) log(scale) from scaled units to angstrom."""
    path, decoder = _parts(process)
    dims = process.spaces["x"].dimension(layout)
    return dims * (0.5 * path.gamma[0] + 0.5 * math.log(2 * math.pi) + decoder.log_scale())


def prior_kl(process: Process, x0: State) -> Float[Tensor, "B"]:
    """KL(q(z_T | x0) || N(0, I)), 3(N-1) dimensions for positions and N F for features."""
    path, _ = _parts(process)
    alpha2, sigma2 = torch.sigmoid(-path.gamma[-1]), torch.sigmoid(path.gamma[-1])
    dims = process.spaces.dimension(x0.layout)
    return 0.5 * (dims * (sigma2 - 1 - torch.log(sigma2)) + alpha2 * x0.squared_norm().double())


def bound(
    process: Process, x0: State, predict: Predict, times: DrawnTimes, noise_rng: torch.Generator
) -> dict[str, Tensor]:
    """One draw of the variational bound of -log p(x, h | N), unbiased over t and noise.

    NLL = KL_T + T E_{t ~ U{1..T}} [ (e^{gamma_t - gamma_s} - 1) |eps - eps_hat|^2 / 2 ] + L0 + C0, s = t - 1
    (arXiv:2203.17003, eqs. 7-12). For a stochastic `predict` it is the single-draw upper bound, and `jensen_gap`
    says by how much more draws lower it.

    Args:
        x0: clean scaled molecules.
        predict: (z_t, level) -> eps_hat, with evaluation weights.
    Returns:
        terms 'diffusion', 'reconstruction', 'features', 'prior', 'constants', each [B], nats; their sum is the
        bound, to which -log p(N) is to be added.
    """
    terms = bound_terms(process, x0, predict, times.i, *_noise(process, x0, noise_rng))
    return terms | {"diffusion": times.weight * terms["diffusion"]}


def _noise(process: Process, x0: State, rng: torch.Generator) -> tuple[State, State]:
    """Noise of z_t and of z_0."""
    eps_t = process.noise(x0.layout, rng, x0.dtype)
    return eps_t, process.noise(x0.layout, rng, x0.dtype)


def bound_terms(
    process: Process, x0: State, predict: Predict, i: Tensor, eps_t: State, eps_0: State
) -> dict[str, Tensor]:
    """The terms of `bound` at given times i [B] in 1..T and noise; it is their mean over uniform times."""
    path, decoder = _parts(process)
    level = path.at(i, x0.dtype)
    eps_hat = predict(process.noising(x0, eps_t, level), level)
    weight = torch.expm1(path.gamma[i] - path.gamma[i - 1])
    error = eps_hat.combine(eps_t, torch.sub).squared_norm().double()

    level_0 = path.at(torch.zeros_like(i), x0.dtype)
    z_0 = process.noising(x0, eps_0, level_0)
    eps_hat_0 = predict(z_0, level_0)
    return {
        "diffusion": path.last * 0.5 * weight * error,
        "reconstruction": decoder.reconstruction(eps_hat_0, eps_0).double(),
        "features": -decoder.feature_log_likelihood(x0, z_0, level_0).double(),
        "prior": prior_kl(process, x0),
        "constants": log_constants(process, x0.layout),
    }


def jensen_gap(
    process: Process,
    x0: State,
    predict: Predict,
    n_draws: int,
    times: DrawnTimes,
    noise_rng: torch.Generator,
) -> dict[str, Tensor]:
    """How far the mixture bound over M draws of a stochastic `predict` lies below `bound`: one unbiased estimate.

    Such a method's reverse kernel is a mixture, p(z_s | z_t) = E_R N(z_s; mu_R, s^2 I), and so is its decoder.
    `bound` takes -log inside the mean over R. With z_s ~ q(z_s | z_t, x0) and M independent draws,

        E [ log q(z_s | z_t, x0) - log (1/M) sum_m N(z_s; mu_{R_m}, s^2 I) ]

    is an upper bound too, for every M; it does not increase in M, is that of `bound` for M = 1 and exact as M goes
    to infinity (the argument of importance-weighted bounds, Burda et al., arXiv:1509.00519). With
    z_s = mu_q + s xi and d_m = (mu_q - mu_{R_m}) / s the bracket is -log mean_m exp(-a_m) for
    a_m = |d_m|^2 / 2 + <xi, d_m>, where E <xi, d_m> = 0 leaves the term of `bound`. So the gap is

        mean_m a_m + log mean_m exp(-a_m) >= 0   (Jensen),

    zero where the prediction does not depend on R, and half the trace of the covariance of d over R where that
    is small. In the decoder's term x0 is given, so there is no xi.

    The gap of fewer draws is estimated from the same ones, as the mean over blocks of them. As a block of 2 M holds two
    of M, and the logarithm is concave, no estimate falls where M rises.

    Args:
        n_draws: M; 2 M calls of `predict`, whose draws must be independent.
        noise_rng: in the state in which `bound` is called, it gives the same noise.
    Returns:
        'diffusion' and 'reconstruction', nats, to be subtracted from those terms of `bound`: a row [B] for each of
        `nested_draws(n_draws)`, the last one for M.
    """
    path, decoder = _parts(process)
    i = times.i
    eps_t, eps_0 = _noise(process, x0, noise_rng)
    xi = process.noise(x0.layout, noise_rng, x0.dtype)
    level, level_0 = path.at(i, x0.dtype), path.at(torch.zeros_like(i), x0.dtype)
    z_t, z_0 = process.noising(x0, eps_t, level), process.noising(x0, eps_0, level_0)
    weight = torch.expm1(path.gamma[i] - path.gamma[i - 1])
    diffusion, reconstruction = [], []
    for _ in range(n_draws):
        error = predict(z_t, level).combine(eps_t, torch.sub)
        along = error.combine(xi, torch.mul)
        inner = x0.sum_over_atoms(along.x.sum(1) + along.h.sum(1)).double()
        diffusion.append(0.5 * weight * error.squared_norm().double() + weight.sqrt() * inner)
        reconstruction.append(decoder.reconstruction(predict(z_0, level_0), eps_0).double())
    return {
        "diffusion": path.last * times.weight * _nested_gaps(torch.stack(diffusion)),
        "reconstruction": _nested_gaps(torch.stack(reconstruction)),
    }


def nested_draws(n_draws: int) -> list[int]:
    """Sizes of blocks into which M draws divide, each of two of the next smaller: M, M/2, .. while even; and 1."""
    sizes = [n_draws]
    while sizes[-1] % 2 == 0:
        sizes.append(sizes[-1] // 2)
    return sorted({1, *sizes})


def _nested_gaps(a: Float[Tensor, "M B"]) -> Float[Tensor, "L B"]:
    """Gaps of blocks of `nested_draws(M)` draws, averaged over blocks."""
    blocks = (a.unflatten(0, (-1, size)) for size in nested_draws(len(a)))
    return torch.stack([_gap_of_mean(block.transpose(0, 1)).mean(0) for block in blocks])


def _gap_of_mean(a: Float[Tensor, "M *B"]) -> Float[Tensor, "*B"]:
    """mean_m a_m + log mean_m exp(-a_m), not negative."""
    return a.mean(0) + torch.logsumexp(-a, dim=0) - math.log(len(a))
