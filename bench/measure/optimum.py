"""Errors of a denoiser and of its training target against the exact optimum, for a few shapes under a group.

With x_1..x_M the distinct structures of the training set, p_m their shares and G the group, the law of the clean data
is that of g x_m, g uniform on G, and the expected noise given z_t is

    eps*(z_t) = sum_m r_m E[eps | z_t, orbit of x_m],   r_m ~ p_m int_G p(z_t | g x_m) dg,

both in closed form or by quadrature (`Group.posterior_mean`, `Group.log_evidence`). Errors are in units of the noise,
per degree of freedom: for a clean state they are (alpha / sigma)^2 times its squared error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.geometry.groups import Group
from bench.geometry.layout import Layout
from bench.geometry.noised import Level, Noised
from bench.geometry.spaces import Spaces
from bench.geometry.state import State
from bench.measure.contract import Subject
from bench.measure.examples import GRADIENT_VARIANCE, clean_states, gradient
from bench.measure.nested import components
from bench.records.values import Better, Kind, Value
from bench.references import TONG_2025
from bench.registry import measures
from bench.streams import Streams

MAX_SHAPES = 64
ABOUT = {
    "denoising_error": (
        "Error against the optimal denoiser",
        "mean square difference of the model's expected noise from the exact one, per degree of freedom",
    ),
    "target_error": (
        "Error of the target",
        "mean square difference of the regression target from its exact mean, per degree of freedom",
    ),
    "gradient_variance": ("Gradient variance", GRADIENT_VARIANCE),
}


@dataclass
class OptimumConfig:
    """Options: steps between noise levels from one end of the path to the other (an end where the clean state or the
    noise does not exist is left out), noised states at each level, batches of gradients at each (0: no gradient
    variance) and their size."""

    n_levels: int = 10  # steps between noise levels from one end of the path to the other
    n_states: int = 1024  # noised states at each level
    n_gradients: int = 64  # batches of gradients at each level; 0: no gradient variance
    batch_size: int = 64  # of a gradient

    def __post_init__(self) -> None:
        for key, least in {"n_levels": 2, "n_states": 2, "n_gradients": 0, "batch_size": 1}.items():
            if getattr(self, key) < least:
                raise ValueError(f"'{key}' of optimum is {getattr(self, key)}, expected at least {least}")
        if self.n_gradients == 1:
            raise ValueError("'n_gradients' of optimum is 1, which has no variance; expected 0, or at least 2")
        if self.n_gradients and self.batch_size > self.n_states:
            raise ValueError(f"'batch_size' of optimum is {self.batch_size}, more than its n_states {self.n_states}")


class Optimum:
    """The optimal denoiser: z_t -> E[eps | z_t] for data g x_m.

    Args:
        shapes: the clean states x_m, all of one size; computed in their precision.
        shares: p_m [M].
    """

    def __init__(self, shapes: State, shares: Tensor, group: Group, spaces: Spaces) -> None:
        self.shapes, self.log_shares, self.group, self.spaces = shapes, shares.log(), group, spaces

    def candidate(self, m: int, layout: Layout) -> State:
        """x_m, once for each molecule of a layout."""
        B, M = layout.n_molecules, len(self.shapes)

        def rows(part: Tensor) -> Tensor:
            own = part.unflatten(0, (M, -1))[m]
            return own.repeat(B, 1)

        return State({name: rows(part) for name, part in self.shapes.parts.items()}, layout)

    @torch.no_grad()
    def __call__(self, z_t: State, level: Level) -> State:
        noises, log_r = [], []
        for m in range(len(self.shapes)):
            clean = self.candidate(m, z_t.layout)
            noised = Noised(clean, self.spaces.displacement(z_t, clean, level), z_t, level, self.spaces)
            noises.append(self.group.posterior_mean(noised))
            if len(self.shapes) > 1:
                log_r.append(self.log_shares[m] + self.group.log_evidence(noised))
        if len(noises) == 1:
            return noises[0]
        r = torch.stack(log_r).softmax(0).to(z_t.dtype)
        total = noises[0].map(torch.zeros_like)
        for weight, noise in zip(r, noises, strict=True):
            total = total.combine(noise, lambda a, b, w=weight, n=noise: a + n.spread(w, b) * b)
        return total


def optimum_of(subject: Subject) -> Optimum:
    """The optimal denoiser for the training set of a subject, in float64.

    Raises:
        ValueError: too many shapes, or of several sizes.
    """
    distinct, counts = subject.data.train.distinct()
    if len(distinct) > MAX_SHAPES or len(set(distinct.n_atoms.tolist())) > 1:
        raise ValueError(
            f"measure 'optimum' takes at most {MAX_SHAPES} shapes of one size, got {len(distinct)} of sizes "
            f"{sorted(set(distinct.n_atoms.tolist()))[:5]}; leave it out (measures.optimum=null)"
        )
    shapes = subject.encode(distinct, subject.device).to(dtype=torch.float64)
    shares = torch.from_numpy(counts / counts.sum()).to(subject.device)
    return Optimum(shapes, shares, subject.group, subject.process.spaces)


@measures.register("optimum", OptimumConfig, references=(TONG_2025,))
def measure(subject: Subject, cfg: OptimumConfig) -> list[Value]:
    """Error of the model, and of its method's target, against the exact optimal denoiser; and gradient variance.

    Each at several noise levels, and its mean over levels.

    The model is evaluated at states of the symmetrised law. The target is the method's own, at states as in
    training; with several shapes, or a sampled average, it scatters around the optimum. Methods that train nothing have
    the first error alone.
    """
    optimum, streams = optimum_of(subject), Streams(subject.seed, subject.device)
    path, found = subject.process.path, {name: [] for name in ABOUT}
    times = []
    for i, place in enumerate(path.grid(cfg.n_levels, subject.device)):
        level = path.at(place.expand(cfg.n_states), torch.float64)
        if (level.sigma == 0).any() or (level.alpha == 0).any():
            continue  # an end of the linear path, where one of the two estimates does not exist
        subject.on_batch()
        times.append(level.t[0].item())
        found["denoising_error"].append(denoising_error(subject, optimum, level, streams, i))
        if subject.trains:
            found["target_error"].append(target_error(subject, optimum, level, streams, i))
            if cfg.n_gradients > 1:
                found["gradient_variance"].append(gradient_variance(subject, cfg, level, streams, i))
    made = []
    for name, errors in found.items():
        if not errors:
            continue
        label, definition = ABOUT[name]
        kind = Kind.QUALITY if name == "denoising_error" else Kind.DIAGNOSTIC
        mean = float(np.mean(errors))
        made.append(Value(f"{name}_mean", f"{label}, mean", mean, "", Better.LOWER, kind, definition=definition))
        made += [
            Value(name, label, error, "", Better.LOWER, Kind.DIAGNOSTIC, at={"t": round(t, 6)}, definition=definition)
            for t, error in zip(times, errors, strict=True)
        ]
    return made


@torch.no_grad()
def denoising_error(subject: Subject, optimum: Optimum, level: Level, streams: Streams, place: int) -> float:
    """Error of the model against the optimum, at states of the symmetrised law."""
    rng, process = streams.at(2_000_000 + place), subject.process
    clean = clean_states(subject, subject.data.test, len(level.t), place).to(dtype=torch.float64)
    clean = subject.group.act(subject.group.haar(len(clean), rng.data, clean.dtype), clean)
    noised = process.noised(clean, process.noise(clean.layout, rng.noise, clean.dtype, clean.context), level)
    output = subject.predict(noised.z_t.to(dtype=torch.float32), level.to(dtype=torch.float32), rng.method)
    noise = process.parametrisation.noise(output.to(dtype=torch.float64), noised.z_t, level)
    return per_dimension(subject, noise, optimum(noised.z_t, level))


@torch.no_grad()
def target_error(subject: Subject, optimum: Optimum, level: Level, streams: Streams, place: int) -> float:
    """Error of the method's regression target against the optimum, at states as in training."""
    clean = clean_states(subject, subject.data.test, len(level.t), place).to(dtype=torch.float64)
    noised, target = subject.example(clean, streams.at(3_000_000 + place), level)
    noise = subject.process.parametrisation.noise(target, noised.z_t, level)
    return per_dimension(subject, noise, optimum(noised.z_t, level))


def gradient_variance(subject: Subject, cfg: OptimumConfig, level: Level, streams: Streams, place: int) -> float:
    """Variance of the gradient of one training example's loss at a level, which the measure `variance` splits in parts;
    here from the means of batches, whose variance is batch_size times smaller."""
    some = level[: cfg.batch_size].to(dtype=torch.float32)
    gradients = []
    for i in range(cfg.n_gradients):
        clean = clean_states(subject, subject.data.train, len(some.t), 10_000 * (place + 1) + i)
        losses = subject.losses(clean, streams.at(4_000_000 + 10_000 * place + i), some)
        gradients.append(gradient(subject, losses.mean()).double())
    return len(some.t) * components(torch.stack(gradients))[0].mean().item()


def per_dimension(subject: Subject, a: State, b: State) -> float:
    """Mean over molecules of |a - b|^2 per degree of freedom."""
    error = a.combine(b, torch.sub).squared_norm() / subject.process.spaces.dimension(a.layout)
    return error.mean().item()
