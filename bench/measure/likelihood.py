"""The variational bound of -log p(x, h, N) on the test split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench.diffusion import likelihood
from bench.geometry.noised import Level
from bench.geometry.state import State
from bench.measure.contract import Subject, mean_and_sem
from bench.records.values import Better, Kind, Value
from bench.references import HOOGEBOOM_2022, Reference
from bench.registry import measures
from bench.streams import Streams
from bench.structures.sizes import SizeDistribution

BATCH = 128
KINGMA_2021 = Reference(
    "kingma2021variational",
    "Variational Diffusion Models",
    ("Kingma, Diederik P.", "Salimans, Tim", "Poole, Ben", "Ho, Jonathan"),
    2021,
    arxiv="2107.00630",
)
TERMS = {
    "diffusion": "bound at t > 0",
    "reconstruction": "positions at t = 0",
    "features": "features at t = 0",
    "prior": "KL to the prior",
    "constants": "constants",
    "size": "size of the molecule",
}


@dataclass
class LikelihoodConfig:
    """Options of the bound."""

    n_molecules: int | None = None  # None: all of the test split
    n_passes: int = 5  # times drawn for each molecule
    # M draws of a stochastic prediction per step, for the mixture bound (`bench.diffusion.likelihood.jensen_gap`), at
    # 2 M extra network calls; 1: the single-draw bound alone
    n_mixture_draws: int = 1

    def __post_init__(self) -> None:
        for key in ("n_molecules", "n_passes", "n_mixture_draws"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"'{key}' of likelihood is {value!r}, expected at least 1")


@measures.register("likelihood", LikelihoodConfig, references=(KINGMA_2021, HOOGEBOOM_2022))
def measure(subject: Subject, cfg: LikelihoodConfig) -> list[Value]:
    """Variational bound of the negative log likelihood on the test split, nats per molecule.

    Molecules are all of the split, or the first of a fixed permutation; a pass draws one time per molecule. The
    standard error is over molecules, each averaged over its passes. Where the prediction draws random numbers and
    `n_mixture_draws` is above 1, the mixture bound is added, at the same times and noise. No values where the bound is
    not defined (`bench.diffusion.likelihood.has_bound`).
    """
    if not likelihood.has_bound(subject.process):
        return []
    test = subject.data.test
    n = min(cfg.n_molecules or len(test), len(test))
    test = test.select(np.sort(np.random.default_rng(0).permutation(len(test))[:n]))
    order = np.argsort(test.n_atoms, kind="stable")
    terms, gaps, stochastic = _draws(subject, cfg, test.select(order), n)

    per_pass = {name: np.concatenate(values).reshape(cfg.n_passes, n) for name, values in terms.items()}
    sizes = SizeDistribution(subject.facts.sizes)
    per_pass["size"] = -np.broadcast_to(sizes.log_prob(test.n_atoms[order]), (cfg.n_passes, n))
    per_molecule = np.sum([values.mean(0) for values in per_pass.values()], axis=0)

    def value(name: str, label: str, mean: float, sem: float | None, kind: Kind, **more: Any) -> Value:
        return Value(name, label, mean, "nats/molecule", kind=kind, sem=sem, **more)

    mean, sem = mean_and_sem(per_molecule)
    about = f"variational bound on {n} test molecules, {cfg.n_passes} times each"
    made = [
        value("nll", "NLL", mean, sem, Kind.LIKELIHOOD, better=Better.LOWER, upper_bound=stochastic, definition=about)
    ]
    made += [
        value(f"nll_{name}", f"NLL, {TERMS[name]}", float(values.mean()), None, Kind.DIAGNOSTIC)
        for name, values in per_pass.items()
    ]
    if gaps:
        gap_per_molecule = np.sum([np.concatenate(v).reshape(cfg.n_passes, n).mean(0) for v in gaps.values()], axis=0)
        mixture, gap = mean_and_sem(per_molecule - gap_per_molecule), mean_and_sem(gap_per_molecule)
        draws = f"over {cfg.n_mixture_draws} draws per step of the bound"
        bound = {"better": Better.LOWER, "upper_bound": True, "definition": draws}
        made.append(value("nll_mixture", "NLL, mixture bound", *mixture, Kind.LIKELIHOOD, **bound))
        made.append(value("jensen_gap", "Jensen gap", *gap, Kind.LIKELIHOOD, definition=draws))
    return made


@torch.no_grad()
def _draws(
    subject: Subject, cfg: LikelihoodConfig, test: Any, n: int
) -> tuple[dict[str, list[np.ndarray]], dict[str, list[np.ndarray]], bool]:
    """Terms of the bound and of its Jensen gap, batch after batch, and whether the prediction drew random numbers."""
    process, streams = subject.process, Streams(subject.seed, subject.device)
    terms: dict[str, list[np.ndarray]] = {}
    gaps: dict[str, list[np.ndarray]] = {}
    stochastic = False
    for i in range(cfg.n_passes):
        for j in range(0, n, BATCH):
            subject.on_batch()
            rng, again = (streams.at(1_000_000 * (i + 1) + j) for _ in range(2))
            x0 = subject.encode(test.select(np.arange(j, min(j + BATCH, n))), subject.device)

            def predict(z_t: State, level: Level, rng=rng) -> State:
                return subject.predict(z_t, level, rng.method)

            for name, values in likelihood.bound(process, x0, predict, rng.time, rng.noise).items():
                terms.setdefault(name, []).append(values.cpu().numpy())
            stochastic = not torch.equal(rng.method.get_state(), again.method.get_state())
            if stochastic and cfg.n_mixture_draws > 1:
                found = likelihood.jensen_gap(process, x0, predict, cfg.n_mixture_draws, again.time, again.noise)
                for name, values in found.items():
                    gaps.setdefault(name, []).append(values.cpu().numpy())
    return terms, gaps, stochastic
