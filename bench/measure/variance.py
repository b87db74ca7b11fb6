"""Variance of the training gradient and of the regression target, by what draws it; and what orbit averages remove.

Draws are nested as in training: a training molecule (`data`), its pose (`group`: the draws of the method's `augment`),
the noise (`noise`), and what the method draws besides (`method`: candidates of a sampled target, rotations of a
stochastic prediction). Components are those of `bench.measure.nested`. Weights are held fixed.

Noise levels are the midpoints of equal shares of the law of times that training draws from, so plain means over
levels are means over that law, and what the means of levels differ by is the part of `time`.

Targets are compared as expected noise, in units of the noise, summed over the coordinates of a molecule (standard
normal noise has one unit for each degree of freedom), whatever the parametrisation. Gradients are compared by count
sketches of fixed size (`Sketch`), which keep their variances without bias.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from bench.geometry.noised import Level
from bench.geometry.state import State
from bench.measure.contract import Subject
from bench.measure.examples import DATA, clean_states, gradient, hooks, of_all, one_by_one, sketch_of, unchanged
from bench.measure.nested import between_strata, components
from bench.measure.orbit_averages import costs, orbit_gradients, orbit_targets
from bench.measure.variance_values import curve, value
from bench.nn.padded import slots_of
from bench.records.values import Value
from bench.references import TONG_2025, Reference
from bench.registry import measures
from bench.streams import StepStreams, Streams

PARTS = ("data", "group", "noise", "method")
N_PROBE = 8  # molecules by which it is found out what the method draws
POSE, NOISE, METHOD, PROBE = (20_000_000 + 1_000_000 * i for i in range(4))  # places of the streams

SEARLE_1992 = Reference(
    "searle1992variance",
    "Variance Components",
    ("Searle, Shayle R.", "Casella, George", "McCulloch, Charles E."),
    1992,
    doi="10.1002/9780470316856",
)


@dataclass
class VarianceConfig:
    """Options: noise levels, and training molecules at each whose targets and gradients are drawn."""

    n_levels: int = 20  # noise levels, at equal shares of the law of training's times
    n_targets: int = 128  # training molecules at each level whose targets are drawn
    n_gradients: int = 12  # training molecules at each level whose gradients are drawn; 0: targets alone
    n_draws: int = 64  # candidates of sampled orbit averages, the generating element included

    def __post_init__(self) -> None:
        for key, least in {"n_levels": 2, "n_targets": 3, "n_gradients": 0, "n_draws": 2}.items():
            if getattr(self, key) < least:
                raise ValueError(f"'{key}' of variance is {getattr(self, key)}, expected at least {least}")
        if 0 < self.n_gradients < 3:
            raise ValueError(f"'n_gradients' of variance is {self.n_gradients}, expected 0, or at least 3")


@measures.register("variance", VarianceConfig, references=(TONG_2025, SEARLE_1992))
def measure(subject: Subject, cfg: VarianceConfig) -> list[Value]:
    """Variance of gradient and target by what draws it, what orbit averages of the target remove, and biases.

    Nothing for a method that trains nothing. Without a known posterior mean of the group, the first alone.
    """
    if not subject.trains:
        return []
    shares = (torch.arange(cfg.n_levels, dtype=torch.float64, device=subject.device) + 0.5) / cfg.n_levels
    levels = subject.process.quantile(shares, torch.float64)
    replicates = what_varies(subject, levels)
    made, _ = parts("target_variance", targets(subject, cfg.n_targets, levels, replicates), levels)
    made += orbit_targets(subject, cfg.n_targets, cfg.n_draws, levels)
    if not cfg.n_gradients:
        return made
    found, within = parts("gradient_variance", gradients(subject, cfg.n_gradients, levels, replicates), levels)
    compared, variances = orbit_gradients(subject, cfg.n_gradients, cfg.n_draws, levels)
    return [*made, *found, *compared, *costs(subject, cfg.n_draws, {"as_trained": within, **variances})]


# ---------------------------------------------------------------------- what training draws


def what_varies(subject: Subject, levels: Level) -> tuple[int, int, int]:
    """Draws of pose, noise and method below one another: 2 of what changes an example, 1 of what does not."""
    streams, method = Streams(subject.seed, subject.device), subject.method
    clean = clean_states(subject, subject.data.train, N_PROBE, PROBE)
    posed = [method.augment(clean, streams.at(PROBE, k).method) for k in range(2)]
    turned = any(not torch.equal(part, posed[1].parts[name]) for name, part in posed[0].parts.items())

    def losses(k: int, level: Level) -> Tensor:
        with hooks(method, augment=unchanged), torch.no_grad():
            return subject.losses(clean, streams.at(PROBE, k).with_noise_of(streams.at(PROBE)), level)

    each = [of_all(levels, j, N_PROBE).to(dtype=clean.dtype) for j in range(len(levels.t))]
    stochastic = any(not torch.equal(losses(0, level), losses(1, level)) for level in each)
    return 1 + turned, 2, 1 + stochastic


def drawn(
    subject: Subject,
    batches: list[State],
    levels: Level,
    j: int,
    replicates: tuple[int, int, int],
    of: Callable[[State, StepStreams, Level], Float[Tensor, "B D"]],
) -> Float[Tensor, "M J K L D"]:
    """A vector of each molecule, drawn in a tree: J poses, K times the noise for each, L times the rest for each."""
    streams, augment, units = Streams(subject.seed, subject.device), subject.method.augment, []
    n_poses, n_noises, n_rest = replicates
    for b, clean in enumerate(batches):
        subject.on_batch()
        level, cells = of_all(levels, j, len(clean)).to(dtype=clean.dtype), []
        for a in range(n_poses):
            posed = augment(clean, streams.at(POSE + j, 2 * b + a).method)
            for e, k in itertools.product(range(n_noises), range(n_rest)):
                place = 4 * b + 2 * a + e
                rng = streams.at(METHOD + j, 2 * place + k).with_noise_of(streams.at(NOISE + j, place))
                with hooks(subject.method, augment=unchanged):
                    cells.append(of(posed, rng, level))
        units.append(torch.stack(cells, dim=1).unflatten(1, replicates))
    return torch.cat(units)


@torch.no_grad()
def targets(
    subject: Subject, n: int, levels: Level, replicates: tuple[int, int, int]
) -> list[Float[Tensor, "M J K L D"]]:
    """Regression targets at each level, as expected noise, padded to the size of the largest molecule."""
    n_largest = max(subject.facts.sizes)

    def of(posed: State, rng: StepStreams, level: Level) -> Tensor:
        noised, target = subject.example(posed, rng, level)
        return as_rows(subject.process.parametrisation.noise(target, noised.z_t, level), n_largest)

    def at(j: int) -> Tensor:
        clean = clean_states(subject, subject.data.train, n, DATA + j).to(dtype=torch.float64)
        return drawn(subject, [clean], levels, j, replicates, of)

    return [at(j) for j in range(len(levels.t))]


def as_rows(state: State, n_largest: int) -> Float[Tensor, "B D"]:
    """All parts of each molecule as one vector; atoms that it lacks are zero."""
    made = []
    for part in state.parts.values():
        if len(part) == state.layout.n_total:
            part = slots_of(state.layout).pad(part)
            part = F.pad(part, (0, 0, 0, n_largest - part.shape[1]))
        made.append(part.reshape(len(state), -1))
    return torch.cat(made, dim=1)


def gradients(
    subject: Subject, n: int, levels: Level, replicates: tuple[int, int, int]
) -> list[Float[Tensor, "M J K L D"]]:
    """Sketches of the gradient of one example's loss, at each level."""
    sketch = sketch_of(subject)

    def of(posed: State, rng: StepStreams, level: Level) -> Tensor:
        return sketch(gradient(subject, subject.losses(posed, rng, level).sum()))[None]

    def at(j: int) -> Tensor:
        return drawn(subject, one_by_one(subject, n, DATA + j), levels, j, replicates, of)

    return [at(j) for j in range(len(levels.t))]


def parts(name: str, by_level: list[Float[Tensor, "M J K L D"]], levels: Level) -> tuple[list[Value], float]:
    """Components at each level, their means over levels, and the part of time.

    Returns:
        values, and the mean over levels of the variance at a level.
    """
    found, made = [components(y) for y in by_level], list[Value]()
    for k, part in enumerate(PARTS):
        made += curve(name, [items[k] for items in found], levels, part=part)[0]
    totals, (within, sem) = curve(name, [items.sum(0) for items in found], levels, part="total")
    of_time, sem_of_time = between_strata(torch.stack([y.mean((1, 2, 3)) for y in by_level]))
    made += [*totals[:-1], value(name, of_time, sem_of_time, part="time")]
    made.append(value(name, within + of_time, (sem**2 + sem_of_time**2) ** 0.5, part="total"))
    return made, within
