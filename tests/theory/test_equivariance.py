"""The measure `equivariance` against closed forms, and against what every method promises on every backbone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import covering, fitting_pairs, for_molecules, model_of, run_config, structures
from test_toys import TOYS, Toy, config, exact_subject

from bench.geometry.noised import Level
from bench.geometry.state import State
from bench.measure.contract import Subject, is_stochastic
from bench.measure.equivariance import EquivarianceConfig, measure, outcomes, p_value
from bench.measure.examples import clean_states
from bench.records.values import Kind
from bench.registry import backbones, methods
from bench.run.batches import load_data
from bench.run.evaluate import subject_of
from bench.run.model import Model
from bench.streams import Streams
from bench.structures.dataset import DataSet
from bench.symmetry.contract import Guarantee

Z_MAX = 5.0
Answer = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def toy_subject(toy: Toy, of_points: Answer | None = None, group: str | None = None) -> Subject:
    """The untrained perceptron on a toy, or a predictor given as a function of the points and a generator."""
    cfg = config(toy, "plain", **({} if group is None else {"group": group}))
    data = load_data(cfg)
    subject = subject_of(cfg, Model.build(cfg, data.facts), data)
    if of_points is None:
        return subject

    def predict(z_t: State, level: Level, rng: torch.Generator) -> State:
        del level
        return z_t.map(lambda part: of_points(part, rng))

    return replace(subject, predict=predict)


def measured(subject: Subject, n_states: int = 256, n_levels: int = 3, **options: int) -> dict[str, float | None]:
    """Means over levels by name, and by the word of their position."""
    found = measure(subject, EquivarianceConfig(n_levels=n_levels, n_states=n_states, **options))
    return {
        " ".join([v.name.removesuffix("_mean"), *map(str, v.at.values())]): v.value for v in found if "t" not in v.at
    }


def first_level(subject: Subject, n: int, n_draws: int = 1) -> tuple[dict[str, np.ndarray], State, State, Level]:
    """Outcomes of n states in the middle of the path; the states, their targets and level."""
    process, streams = subject.process, Streams(0)
    level = process.path.at(process.path.grid(2, "cpu")[1].expand(n))
    clean = clean_states(subject, subject.data.test, n, 0)
    noised = process.noised(clean, process.noise(clean.layout, streams.at(1).noise), level)
    target = process.parametrisation.target(noised.noise, noised)
    return outcomes(subject, None, clean, level, streams.at(1), n_draws), noised.z_t, target, level


# ---------------------------------------------------------------------- closed forms


@pytest.mark.parametrize(
    ("toy", "group"),
    [(Toy.PLANAR_ONE, "SO2"), (Toy.MOLECULE, "SO3"), (Toy.MOLECULE, "O3")],
    ids=["SO2", "SO3", "O3"],
)
def test_error_of_a_linear_map_is_its_share_that_does_not_commute(toy, group):
    """E|g^-1 A g - h^-1 A h|^2 / E|g^-1 A g|^2 = 2 (1 - |A_0|^2 / |A|^2), A_0 the part of A that commutes with the
    group: a multiple of 1, and for rotations of the plane one of a quarter turn too."""
    D = 2 if group == "SO2" else 3
    A = torch.tensor([[1.0, 0.4, -0.3], [-0.6, 0.5, 0.2], [0.1, 0.7, -0.4]])[:D, :D]
    commuting = A.trace() / D * torch.eye(D)
    if D == 2:
        J = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        commuting = commuting + (A * J).sum() / 2 * J
    expected = (2 * (1 - commuting.square().sum() / A.square().sum())) ** 0.5
    found = measured(toy_subject(toy, lambda z, _: z @ A.T, group), 1500)
    assert found["equivariance_error"] == pytest.approx(expected.item(), rel=0.03)
    assert measured(toy_subject(toy, lambda z, _: z @ commuting.T, group))["equivariance_error"] < 1e-5  # control


@pytest.mark.parametrize("toy", [Toy.SIGN_FLIP, Toy.PLANAR_ONE, Toy.MOLECULE], ids=str)
def test_error_of_a_constant_field_is_the_root_of_two(toy):
    found = measured(toy_subject(toy, lambda z, _: torch.ones_like(z)), 1000)
    assert found["equivariance_error"] == pytest.approx(2**0.5, rel=0.05)


def test_loss_share_is_that_of_enumerating_both_signs():
    """Loss of f at z and -z, less that of (f(z) - f(-z)) / 2, by enumeration; controls: another even part, and none."""

    def shares(even: float) -> tuple[float, float, float]:
        found, z_t, target, _ = first_level(toy_subject(Toy.SIGN_FLIP, lambda z, _: z.tanh() + even * z.cos()), 4000)
        z, y = z_t.x.double(), target.x.double()
        here, there = z.tanh() + even * z.cos(), -((-z).tanh() + even * (-z).cos())
        loss = ((y - here).square() + (y - there).square()) / 2
        gain = (loss - (y - (here + there) / 2).square())[:, 0].numpy()
        off = found["variance"] - gain
        z_score = abs(off.mean()) / max(off.std() / len(off) ** 0.5, 1e-12)
        return z_score, float(found["variance"].mean() / loss.mean()), float(gain.mean() / loss.mean())

    for even in (0.3, 0.6):
        z_score, share, expected = shares(even)
        assert z_score < Z_MAX
        assert share == pytest.approx(expected, rel=0.15)
        assert expected > 0.02
    assert shares(0.6)[1] > 2 * shares(0.3)[1]
    assert shares(0.0)[1] < 1e-12


def test_gain_from_the_stored_orientation_is_that_of_a_model_that_knows_it():
    """A predictor of the stored point, +1, has no loss on data as stored, and where the data are turned one of
    |1 - g|^2 = 4 for half of them; control: a predictor that is odd gains nothing."""
    found, _, _, _ = first_level(toy_subject(Toy.SIGN_FLIP, lambda z, _: torch.ones_like(z)), 2000)
    assert found["loss_stored"].max() < 1e-10
    assert found["loss"].mean() == pytest.approx(2.0, rel=0.05)
    odd, _, _, _ = first_level(toy_subject(Toy.SIGN_FLIP, lambda z, _: z.tanh()), 200)
    assert odd["loss_stored"] == pytest.approx(odd["loss"], abs=1e-6)


# ---------------------------------------------------------------------- stochastic predictions


def absolute_normal(mean: float, sd: float) -> float:
    """E|N(mean, sd^2)|."""
    return sd * (2 / math.pi) ** 0.5 * math.exp(-(mean**2) / (2 * sd**2)) + mean * math.erf(mean / (sd * 2**0.5))


def test_distance_of_normal_laws_is_the_closed_one():
    """b + w on the line, g (b + w) under a sign: laws N(b, 1) and N(-b, 1) for half of the states, equal ones else."""
    b = 0.8
    found, _, _, _ = first_level(
        toy_subject(Toy.SIGN_FLIP, lambda z, rng: b + torch.randn(z.shape, generator=rng)), 3000, 4
    )
    same, other = absolute_normal(0.0, 2**0.5), absolute_normal(2 * b, 2**0.5)
    contrast = found["contrast"].sum((1, 2)) / 12

    def z_score(draws: np.ndarray, expected: float) -> float:
        return abs(draws.mean() - expected) / (draws.std() / len(draws) ** 0.5)

    assert z_score(contrast, other - same) < Z_MAX
    assert z_score(found["distance"], (same + other) / 2) < Z_MAX
    assert z_score(found["error"], 2 * b**2) < Z_MAX
    assert z_score(found["variance"], 1 + b**2) < Z_MAX
    assert z_score(contrast, 0.0) > Z_MAX  # control


def test_laws_are_told_apart_by_mean_and_by_shape():
    """In law: isotropic noise. Controls: a constant vector moves mean and law, noise along one axis the law alone."""

    def isotropic(z: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        return 0.5 * z + torch.randn(z.shape, generator=rng)

    def shifted(z: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        return isotropic(z, rng) + 0.3

    def along_x(z: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        return 0.5 * z + torch.randn(z.shape, generator=rng) * torch.tensor([2.0, 0.2, 0.2])

    in_law, mean, shape = (measured(toy_subject(Toy.MOLECULE, f), 64) for f in (isotropic, shifted, along_x))
    floor = "equivariance_error_floor draws"
    assert in_law["equivariance_law_p"] > 0.01
    assert in_law["equivariance_error"] < 1.5 * in_law[floor]
    assert mean["equivariance_law_p"] < 0.01
    assert mean["equivariance_error"] > 2 * mean[floor]
    assert shape["equivariance_law_p"] < 0.01
    assert shape["equivariance_error"] < 1.5 * shape[floor]
    assert shape["equivariance_law_distance"] > 5 * abs(in_law["equivariance_law_distance"])


def test_p_values_are_uniform_under_equivariance_whatever_pairs_depend_on():
    """Draws of one law in pairs that are independent, equal, or shifted copies of each other; control: another law."""
    rng, n, S = np.random.default_rng(0), 12, 4

    def p_of(x: np.ndarray, y: np.ndarray) -> float:
        def d(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return np.abs(a[:, :, None] - b[:, None, :])

        contrast = (d(x, y) + d(y, x) - d(x, x) - d(y, y)) * ~np.eye(S, dtype=bool)
        return p_value(contrast, int(rng.integers(1 << 30)))

    pairs = {
        "independent": lambda u: rng.uniform(size=u.shape),
        "shifted": lambda u: (u + 0.3) % 1,
        "another law": lambda u: rng.uniform(size=u.shape) ** 2,
    }
    small = {}
    for name, other in pairs.items():
        p = np.array([p_of(u, other(u)) for u in rng.uniform(size=(150, n, S))])
        small[name] = (p < 0.1).mean()
    assert small["independent"] < 0.2
    assert small["shifted"] < 0.2
    assert small["another law"] > 0.4


def test_stochastic_is_what_differs_and_not_what_draws():
    """The mean over all frames draws one, an equivariant network undoes every turn; one frame makes a difference."""
    differs = {("frames", "dit"): True, ("frames_averaged", "dit"): False, ("symdiff", "egnn"): False}
    for (method, backbone), expected in differs.items():
        subject = molecular_subject(method, backbone)
        clean = clean_states(subject, subject.data.test, 8, 0)
        level = subject.process.path.at(torch.full((8,), 500))
        assert is_stochastic(subject, clean, level) is expected


# ---------------------------------------------------------------------- every toy, every promise


@pytest.mark.parametrize("toy", list(Toy), ids=str)
def test_the_optimum_is_equivariant_to_rounding_on_every_toy(toy):
    """Control: the perceptron with its initial weights, and the optimum spoilt at the first point."""
    exact = exact_subject(toy)
    answer = measured(replace(exact, denoiser=lambda z, at: z), 32)
    assert answer["equivariance_error"] < 1e-4
    assert answer["equivariance_loss_share"] < 1e-6

    def spoilt(z_t: State, level: Level, rng: torch.Generator) -> State:
        first = torch.zeros(z_t.layout.n_total, 1).index_fill(0, z_t.ptr[:-1], 1.0)
        return exact.predict(z_t, level, rng).combine(z_t, lambda part, z: part + first * (2 * math.pi * z).cos())

    assert measured(replace(exact, predict=spoilt, denoiser=lambda z, at: z), 32)["equivariance_error"] > 0.01
    found = measure(toy_subject(toy), EquivarianceConfig(n_levels=3, n_states=16))
    assert {"equivariance_error", "equivariance_error_mean", "orientation_gain"} <= {v.name for v in found}
    assert [v.name for v in found if v.kind is Kind.SYMMETRY] == ["equivariance_error_mean"]


def molecular_subject(method: str, backbone: str) -> Subject:
    few = structures((5, 9, 4, 7, 3, 8), spacing=1.0)
    data = DataSet("test", "test", "test", (1, 6, 7, 8, 9), few, few, few)
    return subject_of(run_config("plain", "egnn"), model_of(method, backbone, dtype=torch.float32), data)


@pytest.mark.parametrize(("method", "backbone"), covering(fitting_pairs()))
def test_the_measured_error_is_what_a_row_promises(method, backbone):
    """Exact: at rounding, as is everything on an equivariant backbone. In law: the law of predictions shows nothing,
    though single ones differ. Else, at initial weights: above the floor."""
    if backbone not in for_molecules():
        pytest.skip("for toys")
    equivariant = backbones[backbone].build.equivariant
    promise = methods[method].build.guarantee_on(equivariant)
    found = measured(molecular_subject(method, backbone), n_states=24, n_levels=2)
    error, rounding = found["equivariance_error"], found["equivariance_error_floor float32"]
    stochastic = "equivariance_law_p" in found
    if equivariant or promise is Guarantee.EXACT:
        assert not stochastic
        assert error < 100 * rounding < 1e-2
    elif promise is Guarantee.IN_LAW:
        assert stochastic
        assert found["equivariance_law_p"] > 0.01
        assert found["equivariance_loss_share"] > 1e-3
    elif promise is Guarantee.AT_OPTIMUM or not stochastic:
        assert error > 0.03 > 100 * rounding


def test_the_promise_in_law_is_refused_where_it_is_not_kept():
    """Control of the row above: draws of a network that is not equivariant, about a mean that does not turn."""
    subject = molecular_subject("plain", "dit")

    def noisy(z_t: State, level: Level, rng: torch.Generator) -> State:
        out = subject.predict(z_t, level, rng)
        return out.map(lambda part: part + 0.1 * torch.randn(part.shape, generator=rng))

    assert measured(replace(subject, predict=noisy), n_states=24, n_levels=2)["equivariance_law_p"] < 0.01


def test_floors_are_the_errors_of_an_equivariant_network_in_that_precision():
    """EGNN in float32, and under bf16 autocast, which rounds its invariants alike in every orientation; control: with
    inputs rounded to bf16, which are not invariant, the error is far above."""
    subject = molecular_subject("edm", "egnn")

    def under_autocast(z_t: State, level: Level, rng: torch.Generator) -> State:
        with torch.autocast("cpu", torch.bfloat16):
            return subject.predict(z_t, level, rng)

    def of_rounded_input(z_t: State, level: Level, rng: torch.Generator) -> State:
        return subject.predict(z_t.to(dtype=torch.bfloat16).to(dtype=torch.float32), level, rng)

    found = measured(subject, 64)
    half = measured(replace(subject, predict=under_autocast), 64)["equivariance_error"]
    single_floor, half_floor = (found[f"equivariance_error_floor {name}"] for name in ("float32", "bfloat16"))
    assert single_floor / 5 < found["equivariance_error"] < 5 * single_floor
    assert half_floor / 5 < half < 5 * half_floor
    assert 10 * found["equivariance_error"] < half
    assert 10 * half < measured(replace(subject, predict=of_rounded_input), 64)["equivariance_error"]


def test_the_floor_of_a_network_that_is_not_equivariant_is_its_rounding():
    """Rounding errors at g z and at z are then independent: the root of two times the error of one prediction."""
    subject = molecular_subject("plain", "dit")
    clean = clean_states(subject, subject.data.test, 64, 0)
    level = subject.process.path.at(torch.full((64,), 500))
    z = subject.process.noised(clean, subject.process.noise(clean.layout, Streams(0).at(1).noise), level).z_t
    with torch.no_grad():
        exact = copy.deepcopy(subject.denoiser).double()(z.to(dtype=torch.float64), level.to(dtype=torch.float64))
        with torch.autocast("cpu", torch.bfloat16):
            rounded = subject.denoiser(z, level).to(dtype=torch.float64)
    single = (rounded.combine(exact, torch.sub).squared_norm().sum() / exact.squared_norm().sum()) ** 0.5
    found = measure(subject, EquivarianceConfig(n_levels=2, n_states=64))
    floor = next(v.value for v in found if v.at == {"t": 0.5, "of": "bfloat16"})
    assert floor == pytest.approx(2**0.5 * single.item(), rel=0.3)


def test_the_mean_over_levels_is_of_squares_and_a_network_of_zeros_has_no_error():
    found = measure(toy_subject(Toy.PLANAR_ONE), EquivarianceConfig(n_levels=4, n_states=32))
    at_each = [v.value for v in found if v.name == "equivariance_error" and v.value is not None]
    mean = next(v for v in found if v.name == "equivariance_error_mean")
    assert len(at_each) > 2
    assert mean.value == pytest.approx(np.mean(np.square(at_each)) ** 0.5)
    assert mean.low <= mean.value <= mean.high
    zeros = measure(toy_subject(Toy.PLANAR_ONE, lambda z, _: 0 * z), EquivarianceConfig(n_levels=3, n_states=8))
    assert {v.value for v in zeros if v.name == "equivariance_error"} == {None}
    assert {v.value for v in zeros if v.name == "equivariance_loss_share"} == {0.0}
    with pytest.raises(ValueError, match="'n_draws' of equivariance is 1"):
        EquivarianceConfig(n_draws=1)
    assert set(TOYS) == set(Toy)
