"""Ancestral sampling of the learned reverse process, with any number of steps.

z_s = z_t / alpha_{t|s} - sigma^2_{t|s} / (alpha_{t|s} sigma_t) eps_hat + (sigma_{t|s} sigma_s / sigma_t) eps'
(arXiv:2203.17003, algorithm 2), on S + 1 levels spread evenly over the T + 1 of the schedule, then one decoder step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from bench.diffusion.process import Diffusion, Predict
from bench.diffusion.schedule import NoiseLevel, NoiseSchedule
from bench.geometry.layout import Layout
from bench.geometry.state import State


def time_grid(n_levels: int, n_steps: int) -> list[int]:
    """Indices T = i_S > ... > i_0 = 0, as evenly spaced as integers allow.

    Raises:
        ValueError: more steps than levels, or fewer than one.
    """
    if not 1 <= n_steps <= n_levels:
        raise ValueError(f"sampling steps must lie in 1..{n_levels} (the schedule's levels), got {n_steps}")
    return [round(n_levels * k / n_steps) for k in range(n_steps, -1, -1)]


@torch.no_grad()
def sample(
    diffusion: Diffusion,
    predict: Predict,
    layout: Layout,
    n_steps: int,
    rng: torch.Generator,
    on_step: Callable[[], None] = lambda: None,
) -> State:
    """Draw molecules of given sizes; n_steps + 1 calls of `predict`.

    Args:
        predict: (z_t, level) -> eps_hat.
        layout: sizes of the molecules wanted.
        n_steps: reverse steps S; T reproduces the published sampler.
        rng: source of all noise here (a stochastic method draws its own).
        on_step: called after each network call, for progress.
    Returns:
        final state (`decoder_step`), still in scaled units; `Diffusion.decode` makes molecules of it.
    """
    schedule = diffusion.schedule
    indices = torch.tensor(time_grid(schedule.n_levels, n_steps), device=layout.device)
    steps = reverse_coefficients(schedule, indices[1:], indices[:-1])
    B = len(layout.sizes)
    z = diffusion.noise(layout, rng)
    for i, step in zip(indices, steps, strict=False):
        eps_hat = predict(z, schedule.at(i.expand(B)))
        z = reverse_step(z, eps_hat, diffusion.noise(layout, rng), step)
        on_step()
    level = schedule.at(indices[-1].expand(B))
    z = decoder_step(z, predict(z, level), diffusion.noise(layout, rng), level)
    on_step()
    return z


class ReverseCoefficients(NamedTuple):
    """z_s = keep z_t - remove eps_hat + spread eps', host numbers so that a step waits for nothing."""

    keep: float
    remove: float
    spread: float


def reverse_coefficients(
    schedule: NoiseSchedule, s: Int[Tensor, "S"], t: Int[Tensor, "S"]
) -> list[ReverseCoefficients]:
    """Coefficients of the reverse steps from indices t to s < t."""
    alpha_ts, sigma2_ts = schedule.step(s, t)
    sigma_s, sigma_t = torch.sigmoid(schedule.gamma[s]).sqrt(), torch.sigmoid(schedule.gamma[t]).sqrt()
    columns = (1 / alpha_ts, sigma2_ts / (alpha_ts * sigma_t), sigma2_ts.sqrt() * sigma_s / sigma_t)
    return [ReverseCoefficients(*row) for row in torch.stack(columns, dim=1).tolist()]


def reverse_step(z_t: State, eps_hat: State, eps: State, step: ReverseCoefficients) -> State:
    """z_s, from the noise estimate at z_t and a fresh draw eps."""
    # projecting again keeps rounding from letting the centre of mass drift over a thousand steps
    return State(
        {
            "x": step.keep * z_t.x - step.remove * eps_hat.x + step.spread * eps.x,
            "h": step.keep * z_t.h - step.remove * eps_hat.h + step.spread * eps.h,
        },
        z_t.layout,
    ).centred()


def decoder_step(z_0: State, eps_hat: State, eps: State, level: NoiseLevel) -> State:
    """x = (z_0 - sigma_0 eps_hat) / alpha_0 + (sigma_0 / alpha_0) eps'_x; h stays z_0's. `level` is that of t = 0."""
    alpha_0, sigma_0 = level.alpha[0], level.sigma[0]
    return z_0.replace(x=(z_0.x - sigma_0 * eps_hat.x + sigma_0 * eps.x) / alpha_0)
