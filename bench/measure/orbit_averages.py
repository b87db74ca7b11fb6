"""What orbit averages of the target remove of its variance, and of the gradient's, at the weights of any trained model.

All estimators see the same uniformly turned training molecules, noise and levels. The comparison needs the exact
posterior mean of the group.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from bench.geometry.groups import Group
from bench.geometry.noised import Level, Noised
from bench.geometry.state import State
from bench.measure.contract import Subject
from bench.measure.estimators import Estimator, exact, sampled_kinds, single, squared_biases
from bench.measure.examples import DATA, clean_states, gradient, hooks, of_all, one_by_one, sketch_of
from bench.measure.nested import components
from bench.measure.variance_values import curve, value
from bench.records.values import Value
from bench.streams import StepStreams, Streams

N_TIMED = 64  # molecules of a timed batch
N_REPEATS = 3  # of it; the fastest counts
ORBIT, TIMED = 25_000_000, 26_000_000  # places of the streams


@torch.no_grad()
def orbit_targets(subject: Subject, n: int, n_draws: int, levels: Level) -> list[Value]:
    """Estimators of the target at the same uniformly turned data, noise and level; none without a posterior mean."""
    group, process, streams = subject.group, subject.process, Streams(subject.seed, subject.device)
    if not has_posterior_mean(group):
        return []
    kinds = sampled_kinds(group, n_draws)
    removed, sizes, biases = (dict[str, list[Tensor]]() for _ in range(3))
    for j in range(len(levels.t)):
        subject.on_batch()
        rng = streams.at(ORBIT + j)
        clean = clean_states(subject, subject.data.train, n, DATA + j).to(dtype=torch.float64)
        clean = group.act(group.haar(len(clean), rng.data, clean.dtype), clean)
        noise = process.noise(clean.layout, rng.noise, clean.dtype, clean.context)
        noised = process.noised(clean, noise, of_all(levels, j, len(clean)))
        mean = group.posterior_mean(noised)
        removable = distance(noised.noise, mean)
        removed.setdefault("exact", []).append(removable)
        for kind, average in kinds.items():
            found = average(noised, rng.method)
            removed.setdefault(kind, []).append(removable - distance(found.noise, mean))
            sizes.setdefault(kind, []).append(found.effective_sample_size.double())
        for kind, squared in squared_biases(noised, group, n_draws, rng.sampling).items():
            biases.setdefault(kind, []).append(squared)
    made = [value("target_variance_removed_limit", float(group.dimension))]
    for name, found in (
        ("target_variance_removed", removed),
        ("effective_sample_size", sizes),
        ("target_bias", biases),
    ):
        for kind, items in found.items():
            made += curve(name, items, levels, estimator=kind)[0]
    return made


def has_posterior_mean(group: Group) -> bool:
    """Whether the exact orbit average is known."""
    return type(group).posterior_mean is not Group.posterior_mean


def distance(a: State, b: State) -> Float[Tensor, "B"]:
    """Squared distance of two states of each molecule."""
    return a.combine(b, torch.sub).squared_norm()


def estimators(subject: Subject, n_draws: int) -> dict[str, Estimator]:
    """Those that training is compared under: a single draw, the published average of uniform draws, the exact one."""
    uniform = sampled_kinds(subject.group, n_draws)["uniform"]
    return {
        "single": single,
        "uniform": lambda noised, rng: uniform(noised, rng).noise,
        "exact": exact(subject.group),
    }


def trained_with(subject: Subject, estimate: Estimator, rng: StepStreams) -> AbstractContextManager[None]:
    """The subject's method on uniformly turned data, with another target.

    The estimator draws from a stream of its own, so that the method's other draws stay the same.
    """

    def augment(clean: State, rng: torch.Generator) -> State:
        return subject.group.act(subject.group.haar(len(clean), rng, clean.dtype), clean)

    def couple(clean: State, noise: State, _: torch.Generator) -> State:
        del clean
        return noise

    def target(noised: Noised, _: torch.Generator) -> State:
        return estimate(noised, rng.sampling)

    return hooks(subject.method, augment=augment, couple=couple, target=target)


def orbit_gradients(subject: Subject, n: int, n_draws: int, levels: Level) -> tuple[list[Value], dict[str, float]]:
    """Gradients under several estimators of the target at the same weights, uniformly turned data, noise and level.

    A posterior mean as target is a conditional mean of the gradient under a single draw (Rao-Blackwell), so what it
    removes is the mean squared difference of the two, free of the scatter of their variances.

    Returns:
        values, and the mean over levels of the variance under each estimator; both empty without a posterior mean.
    """
    if not has_posterior_mean(subject.group):
        return [], {}
    streams, sketch = Streams(subject.seed, subject.device), sketch_of(subject)
    kinds = estimators(subject, n_draws)
    by_kind: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
    for j in range(len(levels.t)):
        level, found = of_all(levels, j, 1).to(dtype=torch.float32), {kind: [] for kind in kinds}
        for i, clean in enumerate(one_by_one(subject, n, DATA + j)):
            subject.on_batch()
            for kind, estimate in kinds.items():
                rng = streams.at(ORBIT + j, i + 1)
                with trained_with(subject, estimate, rng):
                    found[kind].append(sketch(gradient(subject, subject.losses(clean, rng, level).sum())))
        for kind, each in found.items():
            by_kind[kind].append(torch.stack(each))
    made, total = list[Value](), [components(y)[0] for y in by_kind["single"]]
    means = {}
    for kind, found in by_kind.items():
        of_kind, (means[kind], _) = curve(
            "gradient_variance", [components(y)[0] for y in found], levels, estimator=kind
        )
        made += of_kind
    for kind in kinds:
        if kind == "single":
            continue
        removed = [
            (one - mean).square().sum(1) - (some - mean).square().sum(1)
            for one, some, mean in zip(by_kind["single"], by_kind[kind], by_kind["exact"], strict=True)
        ]
        made += curve("gradient_variance_removed", removed, levels, total, estimator=kind)[0]
    return made, means


def costs(subject: Subject, n_draws: int, variances: Mapping[str, float]) -> list[Value]:
    """Seconds of a gradient under each estimator, and the variance times them.

    Estimators take turns, and the fastest of several batches counts. On a CPU processor time, which other work on the
    machine hardly changes.
    """
    streams, kinds = Streams(subject.seed, subject.device), estimators(subject, n_draws)
    clean = clean_states(subject, subject.data.train, N_TIMED, TIMED)
    shares = (torch.arange(N_TIMED, dtype=torch.float64, device=subject.device) + 0.5) / N_TIMED
    level = subject.process.quantile(shares)
    clock = time.process_time if subject.device.type == "cpu" else time.perf_counter

    def seconds(kind: str) -> float:
        rng = streams.at(TIMED, 1)
        with trained_with(subject, kinds[kind], rng) if kind in kinds else nullcontext():
            started = clock()
            gradient(subject, subject.losses(clean, rng, level).mean()).sum().item()  # waits for the device
            return (clock() - started) / N_TIMED

    found: dict[str, list[float]] = {kind: [] for kind in variances}
    for kind in itertools.chain.from_iterable([list(variances)] * N_REPEATS):
        subject.on_batch()
        found[kind].append(seconds(kind))
    made = list[Value]()
    for kind, each in found.items():
        made.append(value("gradient_seconds", min(each), estimator=kind))
        made.append(value("gradient_variance_seconds", variances[kind] * min(each), estimator=kind))
    return made
