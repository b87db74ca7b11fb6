"""The mixture bound of stochastic methods (spec 3.3): closed form, monotonicity, equality where nothing is drawn."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from support import (
    ELEMENTS,
    Z_MAX,
    core,
    drawn_times,
    generator,
    likelihood_values,
    model_of,
    states,
    structures,
    z_score,
)
from torch import Tensor

from bench.diffusion import likelihood
from bench.diffusion.likelihood import Times, _gap_of_mean, _nested_gaps, nested_draws
from bench.diffusion.parametrisation import Predict
from bench.diffusion.process import Process
from bench.geometry.layout import Layout
from bench.geometry.noised import Level
from bench.geometry.state import State
from bench.records.schema import RecordError
from bench.records.values import Value
from bench.structures.dataset import DataSet

N_LEVELS = 10
K = 1.3  # how far apart the two values of the prediction lie, in standard deviations of the reverse step


def closed_gap(n_draws: int, k: float = K) -> float:
    """Gap of p = (N(k, 1) + N(-k, 1)) / 2 against q = N(0, 1), nats, by sums over binomial counts and Gauss-Hermite.

    With j of M draws at +k: -log mean_m exp(-a_m) = k^2/2 - log((j/M) e^{-k x} + (1 - j/M) e^{k x}).
    """
    x, weights = np.polynomial.hermite_e.hermegauss(200)
    weights = weights / weights.sum()
    total = 0.0
    for j in range(n_draws + 1):
        share = j / n_draws
        log_mean = np.log(share * np.exp(-k * x) + (1 - share) * np.exp(k * x))
        total += math.comb(n_draws, j) / 2**n_draws * float(weights @ log_mean)
    return total


def clean(n: int) -> State:
    """n molecules of two atoms."""
    x = torch.tensor([[0.5, 0.0, 0.0], [-0.5, 0.0, 0.0]], dtype=torch.float64)
    return State(
        {"x": x.repeat(n, 1), "h": torch.zeros(2 * n, len(ELEMENTS) + 1, dtype=torch.float64)}, Layout([2] * n)
    )


def two_values(process: Process, x0: State, rng: torch.Generator) -> Predict:
    """The truth, plus or minus K standard deviations along one unit vector; at t = 0, where the truth is the data's
    own, that vector without it."""
    direction = torch.tensor([[0, 0.5**0.5, 0], [0, -(0.5**0.5), 0]], dtype=torch.float64).repeat(len(x0), 1)

    def predict(z_t: State, level: Level) -> State:
        alpha, sigma = z_t.per_atom(level.alpha)[:, None], z_t.per_atom(level.sigma)[:, None]
        i = (level.t * N_LEVELS).round().long()
        weight = torch.expm1(process.path.gamma[i] - process.path.gamma[(i - 1).clamp_min(0)])
        step = torch.where(i == 0, 1.0, weight.clamp_min(1e-12).rsqrt())
        sign = torch.randint(0, 2, (len(z_t),), generator=rng).double() * 2 - 1
        true = z_t.combine(x0, lambda z, c: (z - alpha * c) / sigma)
        known = z_t.per_atom((i > 0).double())[:, None]
        return true.replace(x=known * true.x + K * z_t.per_atom(sign * step)[:, None] * direction)

    return predict


def gaps(n_draws: int, times: Times, n: int = 20_000) -> dict[str, Tensor]:
    """Gaps of the two-valued prediction by nested number of draws and molecule; that of the diffusion term over T."""
    process, x0 = core(n_levels=N_LEVELS).process, clean(n)
    drawn = drawn_times(process, n, 1, times)
    found = likelihood.jensen_gap(process, x0, two_values(process, x0, generator(3)), n_draws, drawn, generator(2))
    return {"diffusion": found["diffusion"] / N_LEVELS, "reconstruction": found["reconstruction"]}


@pytest.mark.parametrize("times", Times)
def test_gap_has_its_closed_form(times):
    """T19: two-valued predictions, |z| < 5 at every M nested in 4 draws, in both terms, however times are drawn; the
    gap of 2 M is refused, and no molecule's falls with M."""
    assert nested_draws(4) == [1, 2, 4]
    for rows in gaps(4, times).values():
        for n_draws, values in zip(nested_draws(4), rows, strict=True):
            assert z_score(values, closed_gap(n_draws)) < Z_MAX
            assert z_score(values, closed_gap(2 * n_draws)) > Z_MAX
        assert rows[0].abs().max() < 1e-9
        assert rows.diff(dim=0).min() > -1e-9


def test_blocks_of_nested_draws_hold_two_of_the_next_smaller():
    """Halves while they are whole, and single draws; with blocks that do not nest an estimate can fall with M."""
    assert [nested_draws(n) for n in (1, 2, 6, 7, 8)] == [[1], [1, 2], [1, 3, 6], [1, 7], [1, 2, 4, 8]]
    a = torch.tensor([0.0, 9.0, 0.0])[:, None]
    assert _nested_gaps(a).diff(dim=0).min() > 0
    assert _gap_of_mean(a[:2]) > _gap_of_mean(a)  # control: two of three draws


def test_noise_of_the_step_belongs_into_the_mixture():
    """T19: without xi all draws would lie equally far from the truth, and the gap, here half a nat, be missed."""

    class WithoutNoise(Process):
        """Control: z_s at the mean of q."""

        def noise(
            self, layout: Layout, rng: torch.Generator, dtype: torch.dtype = torch.float32, context: Any = None
        ) -> State:
            eps = super().noise(layout, rng, dtype, context)
            self.calls = getattr(self, "calls", 0) + 1
            return eps.replace(x=0 * eps.x, h=0 * eps.h) if self.calls == 3 else eps

    process, x0 = core(n_levels=N_LEVELS).process, clean(20_000)
    process.__class__ = WithoutNoise
    times = drawn_times(process, len(x0), 1)
    found = likelihood.jensen_gap(process, x0, two_values(process, x0, generator(3)), 8, times, generator(2))
    assert closed_gap(8) == pytest.approx(0.5, abs=0.05)
    assert z_score(found["diffusion"][-1] / N_LEVELS, closed_gap(8)) > Z_MAX


def exponents(method: str, backbone: str, n_draws: int, n: int = 400, **options) -> Tensor:
    """a_m of each draw [M, n], of the diffusion term, for one oriented molecule at a middle level."""
    model = model_of(method, backbone, dtype=torch.float32, **options)
    process = model.process
    one = states([4], seed=6, dtype=torch.float32)[0]
    x0 = State({"x": one.x.repeat(n, 1), "h": one.h.repeat(n, 1)}, Layout([4] * n))
    drawn: list[Tensor] = []

    def keep(a: Tensor) -> Tensor:
        drawn.append(a)
        return _nested_gaps(a)

    rng, times = generator(3), drawn_times(process, n, 1)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr("bench.diffusion.likelihood._nested_gaps", keep)
        likelihood.jensen_gap(process, x0, lambda z, level: model.predict(z, level, rng), n_draws, times, generator(2))
    return drawn[0]


@pytest.mark.parametrize("method", ["symdiff", "symdiff_haar"])
def test_more_draws_never_raise_the_bound(method):
    """T19: M = 1, 2, 4, 8 on the same draws: the gap is not negative and does not fall on average, paired z > -5; more
    draws do lower the bound of these methods, and the same comparison refuses the reversed order."""
    a = exponents(method, "dit", 8)
    by_draws = [_gap_of_mean(a[:n]) for n in (1, 2, 4, 8)]
    assert by_draws[0].abs().max() < 1e-12

    def signed_z(difference: Tensor) -> float:
        return (difference.mean() / (difference.std() / len(difference) ** 0.5)).item()

    for fewer, more in pairwise(by_draws):
        assert more.min() >= -1e-12
        assert signed_z(more - fewer) > -Z_MAX
    assert signed_z(by_draws[0] - by_draws[-1]) < -Z_MAX


def relative_gap(method: str, backbone: str) -> float:
    """Largest gap of four draws over the largest exponent."""
    a = exponents(method, backbone, 4)
    return (_gap_of_mean(a).abs().max() / a.abs().max()).item()


@pytest.mark.parametrize(("method", "backbone"), [("plain", "dit"), ("edm", "egnn"), ("symdiff", "egnn")])
def test_bounds_are_equal_where_the_prediction_does_not_depend_on_the_draw(method, backbone):
    """T19: a method that draws nothing, and one that draws around an equivariant network; around DiT it has a gap."""
    assert relative_gap(method, backbone) < 1e-9
    assert relative_gap("symdiff", "dit") > 1e-6


# ---------------------------------------------------------------------- what is recorded


def data_set() -> DataSet:
    test = structures([6, 4, 5, 6], seed=2)
    return DataSet("synthetic", "synthetic", "tests", ELEMENTS, test, test, test)


def test_evaluation_records_the_mixture_bound_beside_the_single_draw_bound(monkeypatch):
    """T19: the single-draw bound is untouched, the mixture's is lower by the gap; a method without draws has none."""
    gaps: list[Tensor] = []  # [2 terms, numbers of draws, molecules] of each pass

    def keep(*args: Any) -> dict[str, Tensor]:
        found = jensen_gap(*args)
        gaps.append(torch.stack(list(found.values())))
        return found

    jensen_gap = likelihood.jensen_gap
    monkeypatch.setattr(likelihood, "jensen_gap", keep)
    symdiff = model_of("symdiff", "dit", dtype=torch.float32)
    alone = likelihood_values(symdiff, data_set(), n_passes=2)
    assert not gaps
    beside = likelihood_values(symdiff, data_set(), n_passes=2, n_mixture_draws=4)
    mixture, gap, by_draws = (beside.pop(name) for name in ("nll_mixture", "jensen_gap", "jensen_gap_by_draws"))
    assert alone == beside
    assert alone["nll"].upper_bound
    assert mixture.upper_bound
    assert mixture.definition == gap.definition == "over 4 draws per step of the bound"
    assert gap.value > 0
    assert mixture.value == pytest.approx(beside["nll"].value - gap.value, rel=1e-9)
    assert len(gaps) == 2
    assert gap.value == pytest.approx(torch.stack(gaps)[:, :, -1].sum(1).mean().item(), rel=1e-9)
    assert (by_draws.value, by_draws.sem, by_draws.at) == (gap.value, gap.sem, {"draws": 4})  # the last of its curve

    plain = likelihood_values(model_of("plain", "dit", dtype=torch.float32), data_set(), n_passes=2, n_mixture_draws=4)
    assert not plain["nll"].upper_bound
    assert not {"nll_mixture", "jensen_gap"} & set(plain)
    assert Value.from_dict(mixture.to_dict()) == mixture
    with pytest.raises(RecordError, match="value"):
        Value.from_dict({"name": "nll_mixture", "label": "NLL, mixture bound"})
