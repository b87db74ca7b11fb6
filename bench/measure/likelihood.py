"""The variational bound of -log p(x, h, N) on the test split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from bench.diffusion import likelihood
from bench.diffusion.likelihood import Times, nested_draws, stratified, times_at
from bench.diffusion.paths import VariancePreserving
from bench.geometry.noised import Level
from bench.geometry.state import State
from bench.measure.contract import Subject, is_stochastic, mean_and_sem
from bench.records.values import Better, Kind, Value
from bench.references import HOOGEBOOM_2022, Reference
from bench.registry import measures
from bench.streams import StepStreams, Streams
from bench.structures.sizes import SizeDistribution
from bench.structures.structures import Structures

BATCH = 128
N_STRATA = 100  # intervals of u within which draws are compared, of 20 draws at least
UNIT = "nats/molecule"
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
    times: Times = Times.IMPORTANCE  # how they are drawn
    # M draws of a stochastic prediction per step, for the mixture bound (`bench.diffusion.likelihood.jensen_gap`), at
    # 2 M extra network calls; 1: the single-draw bound alone. Gaps of fewer come along, by halves: best a power of 2
    n_mixture_draws: int = 1

    def __post_init__(self) -> None:
        for key in ("n_molecules", "n_passes", "n_mixture_draws"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"'{key}' of likelihood is {value!r}, expected at least 1")


@measures.register("likelihood", LikelihoodConfig, references=(KINGMA_2021, HOOGEBOOM_2022))
def measure(subject: Subject, cfg: LikelihoodConfig) -> list[Value]:
    """Variational bound of the negative log likelihood on the test split, nats per molecule.

    Molecules are all of the split, or the first of a fixed permutation; a pass draws one time per molecule, stratified
    over the molecules. Molecules of a size that training lacks have likelihood zero and are left out. The standard
    error is over molecules, each averaged over its passes. Where the prediction draws random numbers and
    `n_mixture_draws` is above 1, the mixture bound is added, at the same times and noise, and its gap by the number of
    draws. No values where the bound is not defined (`bench.diffusion.likelihood.has_bound`).
    """
    if not likelihood.has_bound(subject.process):
        return []
    test = subject.data.test
    n = min(cfg.n_molecules or len(test), len(test))
    chosen = np.sort(np.random.default_rng(0).permutation(len(test))[:n])
    chosen = chosen[np.argsort(test.n_atoms[chosen], kind="stable")]
    log_size = SizeDistribution(subject.facts.sizes).log_prob(test.n_atoms[chosen])
    known = np.isfinite(log_size)
    about = f"variational bound on {known.sum()} test molecules, {cfg.n_passes} times each"
    if not known.all():
        about += f"; {n - known.sum()} of sizes that training lacks are left out"
    if not known.any():
        return [Value("nll", "NLL", None, UNIT, Better.LOWER, Kind.LIKELIHOOD, definition=about)]
    # drawn of all molecules, so that times and noise do not depend on the sizes that training has
    drawn = _draws(subject, cfg, test.select(chosen)).select(known)
    drawn.terms["size"] = -np.broadcast_to(log_size[known], drawn.u.shape)

    def made(name: str, label: str, of_molecules: np.ndarray, **more: Any) -> Value:
        """The mean over molecules."""
        mean, sem = mean_and_sem(of_molecules)
        items = np.full(len(test), np.nan)
        items[chosen[known]] = of_molecules
        return Value(name, label, mean, UNIT, kind=Kind.LIKELIHOOD, sem=sem, items=items, **more)

    nll = per_molecule(drawn.terms, drawn.u)
    bound: dict[str, Any] = {"better": Better.LOWER, "upper_bound": drawn.stochastic}
    values = [made("nll", "NLL", nll, definition=about, **bound)]
    values += [
        Value(f"nll_{name}", f"NLL, {TERMS[name]}", float(term.mean()), UNIT, kind=Kind.DIAGNOSTIC)
        for name, term in drawn.terms.items()
    ]
    if drawn.gaps:
        gaps = {m: per_molecule(terms, drawn.u) for m, terms in drawn.gaps.items()}
        gap, draws = gaps[cfg.n_mixture_draws], f"over {cfg.n_mixture_draws} draws per step of the bound"
        values.append(made("nll_mixture", "NLL, mixture bound", nll - gap, definition=draws, **bound))
        values.append(made("jensen_gap", "Jensen gap", gap, definition=draws))
        curve: dict[str, Any] = {
            "label": "Jensen gap by number of draws",
            "definition": "of the bound over that many draws per step, in blocks of the same draws",
        }
        values += [
            made("jensen_gap_by_draws", of_molecules=g, at={"draws": float(m)}, **curve) for m, g in gaps.items()
        ]
    return values


def per_molecule(terms: Mapping[str, Float[np.ndarray, "P B"]], u: Float[np.ndarray, "P B"]) -> Float[np.ndarray, "B"]:
    """Sum of terms, averaged over passes, less what the draw of a molecule's times adds on average.

    Draws are compared with others at about the same times: the mean of each interval of u is replaced by the mean of
    all. The overall mean stays as it is, and what is left scatters as stratified draws do, which always lie in all
    intervals alike; with the differences between intervals in it, the standard error would be too large.

    Args:
        terms: by name, of each pass and molecule.
        u: the numbers behind their times, uniform on [0, 1).
    """
    total = np.sum(list(terms.values()), axis=0)
    n_strata = max(1, min(N_STRATA, total.size // 20))
    stratum = (u * n_strata).astype(int)
    counts = np.bincount(stratum.ravel(), minlength=n_strata)
    means = np.bincount(stratum.ravel(), total.ravel(), minlength=n_strata) / np.maximum(counts, 1)
    return (total - means[stratum] + total.mean()).mean(0)


@dataclass
class Drawn:
    """Draws of the bound: its terms [P, B] by name, those of its Jensen gap by number of draws and name, the numbers u
    [P, B] behind the times, and whether the prediction drew random numbers."""

    u: np.ndarray
    terms: dict[str, np.ndarray]
    gaps: dict[int, dict[str, np.ndarray]]
    stochastic: bool

    def select(self, kept: np.ndarray) -> Drawn:
        """Draws of the molecules `kept` [B]."""

        def of(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: values[:, kept] for name, values in found.items()}

        gaps = {m: of(found) for m, found in self.gaps.items()}
        return Drawn(self.u[:, kept], of(self.terms), gaps, self.stochastic)


@torch.no_grad()
def _draws(subject: Subject, cfg: LikelihoodConfig, test: Structures) -> Drawn:
    process, streams, n = subject.process, Streams(subject.seed, subject.device), len(test)
    assert isinstance(process.path, VariancePreserving)
    parts: dict[tuple[int, str], list[np.ndarray]] = {}  # by draws and name of the term; 0 draws: of the bound itself
    us, stochastic = [], False
    for i in range(cfg.n_passes):
        u = stratified(n, streams.at(1_000_000 * (i + 1)).time)
        us.append(u.cpu().numpy())
        for j in range(0, n, BATCH):
            subject.on_batch()
            rng, again = (streams.at(1_000_000 * (i + 1) + j) for _ in range(2))
            x0 = subject.encode(test.select(np.arange(j, min(j + BATCH, n))), subject.device)
            times = times_at(process.path, cfg.times, u[j : j + BATCH])

            def predict(z_t: State, level: Level, rng=rng) -> State:
                return subject.predict(z_t, level, rng.method)

            found = {(0, name): v for name, v in likelihood.bound(process, x0, predict, times, rng.noise).items()}
            if not parts:
                stochastic = is_stochastic(subject, *_noised(subject, x0, again))
                again = streams.at(1_000_000 * (i + 1) + j)
            if stochastic and cfg.n_mixture_draws > 1:
                gap = likelihood.jensen_gap(process, x0, predict, cfg.n_mixture_draws, times, again.noise)
                sizes = nested_draws(cfg.n_mixture_draws)
                found |= {(m, name): row for name, rows in gap.items() for m, row in zip(sizes, rows, strict=True)}
            for key, values in found.items():
                parts.setdefault(key, []).append(values.cpu().numpy())
    by_draws: dict[int, dict[str, np.ndarray]] = {0: {}}
    for (m, name), values in parts.items():
        by_draws.setdefault(m, {})[name] = np.concatenate(values).reshape(cfg.n_passes, n)
    return Drawn(np.stack(us), by_draws.pop(0), by_draws, stochastic)


def _noised(subject: Subject, x0: State, rng: StepStreams) -> tuple[State, Level]:
    """Noised states half way along the path, and their level."""
    process = subject.process
    level = process.path.at(process.path.grid(2, subject.device)[1].expand(len(x0)))
    return process.noised(x0, process.noise(x0.layout, rng.noise), level).z_t, level
