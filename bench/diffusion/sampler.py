"""Ancestral sampling of the learned reverse process, with any number of steps.

z_s = z_t / alpha_{t|s} - sigma^2_{t|s} / (alpha_{t|s} sigma_t) eps_hat + (sigma_{t|s} sigma_s / sigma_t) eps'
(arXiv:2203.17003, algorithm 2), on S + 1 levels spread evenly over the T + 1 of the schedule, then one decoder step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.diffusion.process import Diffusion, Predict
from bench.molecules import Layout, Molecules


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
) -> Molecules:
    """Draw molecules of given sizes; n_steps + 1 calls of `predict`.

    Args:
        predict: (z_t, level) -> eps_hat.
        layout: sizes of the molecules wanted.
        n_steps: reverse steps S; T reproduces the published sampler.
        rng: source of all noise here (a stochastic method draws its own).
        on_step: called after each network call, for progress.
    Returns:
        final state: x = (z_0 - sigma_0 eps_hat) / alpha_0 + (sigma_0 / alpha_0) eps'_x, h = z_0's (see
        `Diffusion.decode`), still in scaled units.
    """
    schedule = diffusion.schedule
    indices = torch.tensor(time_grid(schedule.n_levels, n_steps), device=layout.device)
    alpha_ts, sigma2_ts = schedule.step(indices[1:], indices[:-1])
    sigma = torch.sigmoid(schedule.gamma[indices]).sqrt()
    keep = (1 / alpha_ts).tolist()
    remove = (sigma2_ts / (alpha_ts * sigma[:-1])).tolist()
    spread = (sigma2_ts.sqrt() * sigma[1:] / sigma[:-1]).tolist()

    B = len(layout.sizes)
    z = diffusion.noise(layout, rng)
    for k in range(n_steps):
        eps_hat = predict(z, schedule.at(indices[k].expand(B)))
        eps = diffusion.noise(layout, rng)
        # projecting again keeps rounding from letting the centre of mass drift over a thousand steps
        z = Molecules(
            keep[k] * z.x - remove[k] * eps_hat.x + spread[k] * eps.x,
            keep[k] * z.h - remove[k] * eps_hat.h + spread[k] * eps.h,
            layout,
        ).centred()
        on_step()
    level = schedule.at(indices[-1].expand(B))
    alpha_0, sigma_0 = level.alpha[0], level.sigma[0]
    eps_hat, eps = predict(z, level), diffusion.noise(layout, rng)
    on_step()
    return z.replace(x=(z.x - sigma_0 * eps_hat.x + sigma_0 * eps.x) / alpha_0)
