"""Samplers: from the most noised state to data, with any number of steps.

ancestral   z_s = z_t / alpha_{t|s} - sigma^2_{t|s} / (alpha_{t|s} sigma_t) eps_hat
                  + (sigma_{t|s} sigma_s / sigma_t) eps'                     (arXiv:2203.17003, algorithm 2)
predictor_corrector
            before each such step, a step of Langevin dynamics for the parts on a torus, of size h = h_0 (sigma_t /
            sigma_0)^2: z <- z - h eps_hat / sigma_t + sqrt(2 h) eps'       (DiffCSP, arXiv:2309.04475, algorithm 2)
euler       z_s = alpha_s x0_hat + sigma_s eps_hat: DDIM (arXiv:2010.02502); on the linear path Euler's method for
                  dz/dt = E[eps - x0 | z_t]. With bridge noise it is exact where the data are one point, as DDIM is
heun        on the linear path: such a step, then the mean of the velocities at both its ends
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.diffusion.parametrisation import Predict, velocity
from bench.diffusion.paths import LinearPath, Path
from bench.diffusion.process import Process
from bench.geometry.layout import Layout
from bench.geometry.noised import Level
from bench.geometry.state import State


class Sampler(StrEnum):
    """Rules for a reverse step."""

    ANCESTRAL = "ancestral"
    EULER = "euler"
    HEUN = "heun"
    PREDICTOR_CORRECTOR = "predictor_corrector"


WITH_NOISE = (Sampler.ANCESTRAL, Sampler.PREDICTOR_CORRECTOR)


@torch.no_grad()
def sample(
    process: Process,
    predict: Predict,
    layout: Layout,
    n_steps: int,
    rng: torch.Generator,
    on_step: Callable[[], None] = lambda: None,
    sampler: Sampler = Sampler.ANCESTRAL,
    context: Any = None,
    start: State | None = None,
) -> State:
    """Draw states of given sizes, with `n_calls` calls of `predict`.

    Args:
        predict: (z_t, level) -> what the process's parametrisation estimates.
        layout: sizes of the molecules wanted.
        n_steps: reverse steps S; T and `ancestral` reproduce the published sampler of EDM.
        rng: source of all noise here (a stochastic method draws its own).
        on_step: called after each network call, for progress.
        start: initial state at t = 1; by default drawn from the prior.
    Returns:
        final state, still in scaled units; the task's `decode` makes structures of it.
    Raises:
        ValueError: the path does not support the sampler or the number of steps.
    """
    require_sampler(process, sampler, n_steps)
    path, dtype = process.path, torch.float32
    places, B = path.grid(n_steps, layout.device), len(layout.sizes)
    levels = [path.at(place.expand(B)) for place in places]

    def output(z: State, level: Level) -> State:
        answer = predict(z, level)
        on_step()
        return answer

    z = start
    if z is None:
        z = process.prior(process.noise(layout, rng, dtype, context))
    if sampler in WITH_NOISE:
        corrected = sampler is Sampler.PREDICTOR_CORRECTOR
        columns = {part: reverse_coefficients(path.of(part), places[1:], places[:-1]) for part in process.spaces}
        for k, level in enumerate(levels[:-1]):
            if corrected:
                z = corrector_step(process, z, output(z, level), level, process.noise(layout, rng, dtype, context))
            noise_hat = process.parametrisation.noise(output(z, level), z, level)
            step = {part: steps[k] for part, steps in columns.items()}
            z = process.spaces.wrap(reverse_step(z, noise_hat, process.noise(layout, rng, dtype, context), step))
        if corrected:
            z = corrector_step(process, z, output(z, levels[-1]), levels[-1])
    elif sampler is Sampler.EULER:
        for t, s in pairwise(levels):
            z = process.spaces.wrap(euler_step(process, z, output(z, t), t, s))
    else:
        for t, s in pairwise(levels):
            z = process.spaces.wrap(heun_step(process, z, output, t, s))
    last = levels[-1]
    if (last.sigma == 0).all():
        return z
    answer = output(z, last)
    if process.decoder is not None:
        return process.decoder.step(z, answer, process.noise(layout, rng, dtype, context), last)
    return process.spaces.wrap(process.parametrisation.clean(answer, z, last))


def require_sampler(process: Process, sampler: Sampler, n_steps: int) -> None:
    """Raise ValueError for a sampler, or a number of steps, that the process does not have."""
    linear = isinstance(process.path, LinearPath)
    if linear and sampler in WITH_NOISE:
        raise ValueError(f"sampler {sampler.value!r} needs a path of levels; choose 'euler' or 'heun' on path 'linear'")
    if sampler is Sampler.PREDICTOR_CORRECTOR and process.corrector_step is None:
        raise ValueError("sampler 'predictor_corrector' needs a task that has a corrector's step; choose 'ancestral'")
    if not linear and sampler is Sampler.HEUN:
        raise ValueError("sampler 'heun' needs path 'linear'; choose 'euler' or 'ancestral'")
    if sampler not in WITH_NOISE:
        process.spaces.require_linear(f"sampler {sampler.value!r}")
    process.path.grid(n_steps, "cpu")


def n_calls(path: Path, sampler: Sampler, n_steps: int) -> int:
    """Predictions of one sampling run: one per step and, except on the linear path, which ends without noise, a last
    one; Heun's method makes two per step but the last, a corrector doubles them."""
    if not isinstance(path, LinearPath):
        return (n_steps + 1) * (2 if sampler is Sampler.PREDICTOR_CORRECTOR else 1)
    return 2 * n_steps - 1 if sampler is Sampler.HEUN else n_steps


class ReverseCoefficients(NamedTuple):
    """z_s = keep z_t - remove eps_hat + spread eps', Python floats, so that no step waits for the device."""

    keep: float
    remove: float
    spread: float


def reverse_coefficients(path: Path, s: Tensor, t: Tensor) -> list[ReverseCoefficients]:
    """Coefficients of the ancestral steps from places t to s < t."""
    alpha_ts, sigma2_ts = path.step(s, t)
    sigma_s, sigma_t = path.at(s, torch.float64).sigma, path.at(t, torch.float64).sigma
    columns = (1 / alpha_ts, sigma2_ts / (alpha_ts * sigma_t), sigma2_ts.sqrt() * sigma_s / sigma_t)
    return [ReverseCoefficients(*row) for row in torch.stack(columns, dim=1).tolist()]


def reverse_step(
    z_t: State, noise_hat: State, noise: State, steps: ReverseCoefficients | Mapping[str, ReverseCoefficients]
) -> State:
    """z_s, from the noise estimate at z_t and a fresh draw; not yet wrapped into its space.

    Args:
        steps: of all parts, or of each.
    """
    of = dict.fromkeys(z_t.parts, steps) if isinstance(steps, ReverseCoefficients) else steps
    made = {
        part: of[part].keep * z - of[part].remove * noise_hat.parts[part] + of[part].spread * noise.parts[part]
        for part, z in z_t.parts.items()
    }
    return z_t.replace(**made)


def corrector_step(process: Process, z_t: State, answer: State, level: Level, noise: State | None = None) -> State:
    """A Langevin step of the parts on a torus at their own level, from the network's output; without noise at the end,
    as published."""
    assert process.corrector_step is not None  # else the sampler is refused
    noise_hat, made = process.parametrisation.noise(answer, z_t, level), {}
    for part, z in z_t.parts.items():
        if process.spaces[part].linear:
            continue
        sigma = level.of(part).sigma
        least = process.path.of(part).at(torch.zeros(1, dtype=torch.long, device=sigma.device), sigma.dtype).sigma
        size = process.corrector_step * (sigma / least).square()
        moved = z - z_t.spread(size / sigma, z) * noise_hat.parts[part]
        made[part] = moved if noise is None else moved + z_t.spread((2 * size).sqrt(), z) * noise.parts[part]
    return process.spaces.wrap(z_t.replace(**made))


def euler_step(process: Process, z_t: State, answer: State, t: Level, s: Level) -> State:
    """alpha_s x0_hat + sigma_s eps_hat, from the network's output at z_t."""
    noise_hat = process.parametrisation.noise(answer, z_t, t)
    clean_hat = process.parametrisation.clean(answer, z_t, t)
    return process.noising(clean_hat, noise_hat, s)


def heun_step(process: Process, z_t: State, output: Predict, t: Level, s: Level) -> State:
    """z_t + (s - t) (v(z_t, t) + v(z_s, s)) / 2, z_s from Euler's method, which alone makes the step to t = 0."""
    answer = output(z_t, t)
    z_s = euler_step(process, z_t, answer, t, s)
    if (s.sigma == 0).all():
        return z_s
    return z_t.combine(
        velocity_at(process, z_t, answer, t).combine(velocity_at(process, z_s, output(z_s, s), s), torch.add),
        lambda z, v: z + z_t.spread(0.5 * (s.t - t.t), v) * v,
    )


def velocity_at(process: Process, z_t: State, answer: State, level: Level) -> State:
    """dz/dt = E[alpha' x0 + sigma' eps | z_t], from the network's output at z_t."""
    parametrisation = process.parametrisation
    return velocity(parametrisation.clean(answer, z_t, level), parametrisation.noise(answer, z_t, level), level)
