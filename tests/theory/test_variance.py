"""Measure `variance` against closed forms: what orbit averages remove, biases of estimators, parts of the gradient."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom
from theory.test_toys import config
from torch import Tensor, nn

from bench.config.run import RunConfig, build
from bench.data.toys import Toy, shapes
from bench.measure.contract import Subject
from bench.measure.optimum import OptimumConfig
from bench.measure.optimum import measure as measure_optimum
from bench.measure.orbit_averages import orbit_targets
from bench.measure.variance import VarianceConfig, gradients, measure, parts, what_varies
from bench.records.values import Value
from bench.registry import measures
from bench.run.batches import load_data
from bench.run.contract import randomise
from bench.run.evaluate import subject_of
from bench.run.model import Model

F64 = torch.float64
SMALL = VarianceConfig(n_levels=3, n_targets=8, n_gradients=3, n_draws=4)


def subject_with(toy: Toy, method="haar", **more) -> Subject:
    cfg = config(toy, method, **more)
    data = load_data(cfg)
    return subject_of(cfg, Model.build(cfg, data.facts).eval(), data)


def levels_of(subject: Subject, n: int):
    return subject.process.quantile((torch.arange(n, dtype=F64) + 0.5) / n, F64)


def curve_of(values: list[Value], name: str, **words: str) -> list[Value]:
    """Values with a position t, in order of t."""
    found = [v for v in values if v.name == name and "t" in v.at and {**words, "t": v.at["t"]} == v.at]
    assert found, (name, words)
    return sorted(found, key=lambda v: v.at["t"])


def over_law(values: list[Value], name: str, **words: str) -> Value:
    (found,) = [v for v in values if v.name == name and v.at == words]
    return found


def normal_nodes(n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    x = np.linspace(-9, 9, n)
    w = np.exp(-x * x / 2)
    return x, w / w.sum()


def check_curve(found: list[Value], expected: list[float], sigmas: float = 5) -> None:
    for value, exact in zip(found, expected, strict=True):
        assert value.sem is not None
        assert abs(value.value - exact) < sigmas * value.sem + 1e-9, (value, exact)


# ---------------------------------------------------------------------- what averages remove, and biases


N_DRAWS = 5


@pytest.fixture(scope="module")
def of_sign_flip() -> tuple[list[Value], list[tuple[float, float]]]:
    subject = subject_with(Toy.SIGN_FLIP)
    levels = levels_of(subject, 4)
    found = orbit_targets(subject, 4096, N_DRAWS, levels)
    return found, list(zip(levels.alpha.tolist(), levels.sigma.tolist(), strict=True))


def sign_flip_mean(alpha: float, sigma: float, of) -> float:
    """(alpha / sigma)^2 E of a function of u = alpha z / sigma^2, z made by x0 = 1."""
    e, w = normal_nodes()
    return (alpha / sigma) ** 2 * float(w @ of(alpha * (alpha + sigma * e) / sigma**2))


def with_counts(n_plus: np.ndarray, n: int, u: np.ndarray) -> np.ndarray:
    """The weighted mean of n signs, n_plus of them positive: tanh(u + log(n+ / n-) / 2)."""
    with np.errstate(divide="ignore"):
        shift = 0.5 * (np.log(n_plus) - np.log(n - n_plus))
    return np.tanh(u[None] + shift[:, None])


def test_the_exact_average_of_signs_removes_what_the_hyperbolic_tangent_leaves(of_sign_flip):
    found, levels = of_sign_flip
    expected = [sign_flip_mean(a, s, lambda u: (1 - np.tanh(u)) ** 2) for a, s in levels]
    check_curve(curve_of(found, "target_variance_removed", estimator="exact"), expected)
    assert max(expected) > 0.3  # control: there is something to remove, and 5 % of it would be noticed
    highest = max(curve_of(found, "target_variance_removed", estimator="exact"), key=lambda v: v.value)
    assert 5 * highest.sem < 0.25 * highest.value


def test_a_sampled_average_of_signs_removes_what_the_binomial_law_says(of_sign_flip):
    found, levels = of_sign_flip
    n_plus = np.arange(1, N_DRAWS + 1)
    chance = binom.pmf(n_plus - 1, N_DRAWS - 1, 0.5)

    def left(u):
        return chance @ (with_counts(n_plus, N_DRAWS, u) - np.tanh(u)) ** 2

    expected = [sign_flip_mean(a, s, lambda u: (1 - np.tanh(u)) ** 2 - left(u)) for a, s in levels]
    check_curve(curve_of(found, "target_variance_removed", estimator="uniform"), expected)
    exact = [sign_flip_mean(a, s, lambda u: (1 - np.tanh(u)) ** 2) for a, s in levels]
    assert max(b - a for a, b in zip(expected, exact, strict=True)) > 0.02  # control: five draws leave some of it


@pytest.mark.parametrize(("kind", "power"), [("tempered", 1 / 0.4), ("aligned", math.inf)])
def test_biases_of_tempered_and_aligned_signs(of_sign_flip, kind, power):
    found, levels = of_sign_flip

    def squared(u, power=power):
        return (np.where(u == 0, 0, np.tanh(np.where(u == 0, 0, u * power))) - np.tanh(u)) ** 2

    biases = curve_of(found, "target_bias", estimator=kind)
    check_curve(biases, [sign_flip_mean(a, s, squared) for a, s in levels])
    other = [sign_flip_mean(a, s, lambda u: squared(u, 1 / 0.8)) for a, s in levels]  # control: another temperature
    assert any(abs(v.value - o) > 5 * v.sem + 1e-9 for v, o in zip(biases, other, strict=True))


def test_bias_without_the_generating_element(of_sign_flip):
    found, levels = of_sign_flip
    n_plus = np.arange(N_DRAWS + 1)
    chance = binom.pmf(n_plus, N_DRAWS, 0.5)

    def squared(u):
        return (chance @ with_counts(n_plus, N_DRAWS, u) - np.tanh(u)) ** 2

    expected = [sign_flip_mean(a, s, squared) for a, s in levels]
    check_curve(curve_of(found, "target_bias", estimator="generator_less"), expected)
    assert max(expected) > 1e-3


def test_effective_sample_size_lies_between_one_and_all(of_sign_flip):
    found, _ = of_sign_flip
    sizes = [v.value for v in curve_of(found, "effective_sample_size", estimator="uniform")]
    assert 1 <= sizes[0] < sizes[-1] - 0.5 < N_DRAWS - 0.5  # it grows with the noise
    # at little noise the candidates of the generating sign share the weight: E[1 / sum w^2] = 1 + (K - 1) / 2
    assert sizes[0] == pytest.approx(1 + (N_DRAWS - 1) / 2, rel=0.03)


@pytest.mark.parametrize("toy", [Toy.SIGN_FLIP, Toy.PLANAR_ONE, Toy.CHIRAL_TETRAHEDRON, Toy.TORUS_PAIR], ids=str)
def test_one_draw_removes_nothing_and_many_what_the_exact_average_does(toy):
    subject = subject_with(toy)
    levels = subject.process.quantile(torch.tensor([0.8], dtype=F64), F64)  # at less noise uniform draws miss
    one = orbit_targets(subject, 64, 1, levels)
    assert [v.value for v in curve_of(one, "target_variance_removed", estimator="uniform")] == pytest.approx([0])
    few, many = (orbit_targets(subject, 64, n, levels) for n in (4, 400))

    def shortfall(found: list[Value]) -> float:
        exact, sampled = (over_law(found, "target_variance_removed", estimator=e).value for e in ("exact", "uniform"))
        return (exact - sampled) / exact

    assert shortfall(many) < 0.15
    assert shortfall(few) > 2 * shortfall(many)  # control


def test_rotations_of_the_plane_remove_what_the_von_mises_law_says():
    subject = subject_with(Toy.PLANAR_ONE)
    levels = levels_of(subject, 4)
    found = orbit_targets(subject, 2048, 4, levels)
    size = float((shapes(Toy.PLANAR_ONE)[0] ** 2).sum())
    e, w = normal_nodes(600)
    expected = []
    for alpha, sigma in zip(levels.alpha.tolist(), levels.sigma.tolist(), strict=True):
        a = alpha**2 * size / sigma**2
        k = torch.from_numpy(np.hypot(a + a**0.5 * e[:, None], a**0.5 * e[None]))
        ratio = (torch.special.i1e(k) / torch.special.i0e(k)).numpy()
        expected.append(a * float(w @ (1 - ratio**2) @ w))
    check_curve(curve_of(found, "target_variance_removed", estimator="exact"), expected)
    assert over_law(found, "target_variance_removed_limit").value == 1
    assert expected[0] == pytest.approx(1, abs=0.1)  # one unit at little noise
    assert expected[-1] < 0.6  # control: not at much noise


def wrapped_information(sigma: float) -> float:
    """sigma^2 E[score^2] of the wrapped normal."""
    d = np.linspace(-0.5, 0.5, 40_001)[:-1]
    k = np.arange(-8, 9)[:, None]
    weight = np.exp(-((d + k) ** 2) / (2 * sigma**2))
    density, slope = weight.sum(0), -((d + k) * weight).sum(0) / sigma**2
    score = np.divide(slope, density, out=np.zeros_like(slope), where=density > 0)
    return sigma**2 * float((score**2 * density).sum() / density.sum())


def test_shifts_of_a_pair_remove_what_the_wrapped_normal_says():
    """What is left is the score of the difference of the atoms, a wrapped normal of variance 2 sigma^2, twice."""
    subject = subject_with(Toy.TORUS_PAIR)
    levels = levels_of(subject, 3)
    found = orbit_targets(subject, 400, 2, levels)
    sigmas = levels.sigma.tolist()
    expected = [3 * (2 * wrapped_information(s) - wrapped_information(2**0.5 * s)) for s in sigmas]
    check_curve(curve_of(found, "target_variance_removed", estimator="exact"), expected)
    assert expected[0] == pytest.approx(3, abs=0.05)  # one unit for each axis at little noise
    assert abs(expected[-1] - 3) > 0.3  # control: not everywhere
    biased = {v.at["estimator"] for v in found if v.name == "target_bias"}
    assert biased == {"generator_less", "generator_centred"}  # no mode on a torus


@pytest.mark.parametrize(("toy", "limit"), [(Toy.MOLECULE, 3), (Toy.TWO_POINTS, 0)], ids=str)
def test_at_little_noise_an_average_removes_the_dimension_of_the_group(toy, limit):
    subject = subject_with(toy)
    levels = subject.process.quantile(torch.tensor([0.06, 0.97], dtype=F64), F64)
    found = orbit_targets(subject, 256, 4, levels)
    assert over_law(found, "target_variance_removed_limit").value == limit
    little, much = curve_of(found, "target_variance_removed", estimator="exact")
    assert abs(little.value - limit) < 5 * little.sem + 0.02
    if limit:
        assert much.value < 0.5 * limit  # control
        kept = [curve_of(found, "target_variance_removed", estimator=kind)[0] for kind in ("uniform", "local")]
        assert kept[0].value < 0.05 * limit < kept[1].value  # uniform candidates miss a narrow posterior


# ---------------------------------------------------------------------- parts of the gradient


def one_weight(subject: Subject, gradient_of) -> Subject:
    """A subject with one weight w = 0 whose loss has the gradient `gradient_of(noised)` [B]."""
    w = nn.Parameter(torch.zeros(1))

    def losses(clean, rng, level) -> Tensor:
        noised, _ = subject.example(clean, rng, level)
        return w * gradient_of(noised)

    return replace(subject, weights={"w": w}, losses=losses)


def decomposed(subject: Subject, n_levels: int, n: int) -> list[Value]:
    """Parts of the gradient's variance alone."""
    levels = levels_of(subject, n_levels)
    return parts("gradient_variance", gradients(subject, n, levels, what_varies(subject, levels)), levels)[0]


def parts_of(found: list[Value]) -> dict[str, list[Value]]:
    return {p: curve_of(found, "gradient_variance", part=p) for p in ("data", "group", "noise", "method", "total")}


def test_noise_and_time_parts_of_a_linear_gradient():
    """Gradient e z with z = alpha g + sigma e: variance alpha^2 + 2 sigma^2 from the noise, mean sigma at each time."""
    base = subject_with(Toy.SIGN_FLIP)
    subject = one_weight(base, lambda n: (n.noise.x * n.z_t.x)[:, 0])
    found = decomposed(subject, 5, 100)
    levels, by_part = levels_of(subject, 5), parts_of(found)
    alpha, sigma = levels.alpha.numpy(), levels.sigma.numpy()
    expected = alpha**2 + 2 * sigma**2
    check_curve(by_part["noise"], expected.tolist())
    check_curve(by_part["total"], expected.tolist())
    check_curve(by_part["group"], [0] * 5)
    check_curve(by_part["data"], [0] * 5)
    assert [v.value for v in by_part["method"]] == [0] * 5
    time = over_law(found, "gradient_variance", part="time")
    assert abs(time.value - sigma.var()) < 5 * time.sem
    assert time.value > 5 * time.sem  # control: it is seen
    total = over_law(found, "gradient_variance", part="total")
    assert abs(total.value - expected.mean() - sigma.var()) < 5 * total.sem


def test_the_part_of_the_group_is_that_of_its_draws_and_none_without_them():
    def pose(noised) -> Tensor:
        return noised.clean.x[:, 0]

    turned = parts_of(decomposed(one_weight(subject_with(Toy.SIGN_FLIP), pose), 2, 100))
    check_curve(turned["group"], [1, 1])
    check_curve(turned["noise"], [0, 0])
    stored = parts_of(decomposed(one_weight(subject_with(Toy.SIGN_FLIP, "plain"), pose), 2, 100))
    assert [v.value for v in stored["group"]] == [0, 0]
    assert [v.value for v in stored["total"]] == [0, 0]


def test_the_part_of_the_data_is_the_variance_between_shapes():
    base = subject_with(Toy.PLANAR_THREE)
    found = parts_of(decomposed(one_weight(base, lambda n: n.clean.squared_norm()), 2, 200))
    sizes = [float((shape**2).sum()) for shape in shapes(Toy.PLANAR_THREE)]
    check_curve(found["data"], [np.var(sizes)] * 2)
    check_curve(found["noise"], [0, 0], 1)
    assert all(v.value > 5 * v.sem for v in found["data"])  # control: it is seen


def test_draws_of_the_method_are_a_part_of_their_own():
    """Sampled candidates scatter the target at given z_t, most where few of them matter; exact averages do not."""
    cfg = VarianceConfig(n_levels=3, n_targets=512, n_gradients=0)
    sampled = measure(subject_with(Toy.PLANAR_ONE, {"name": "orbit_rb", "n_draws": 3}), cfg)
    exact = measure(subject_with(Toy.PLANAR_ONE, "orbit_rb_exact"), cfg)
    own = curve_of(sampled, "target_variance", part="method")
    assert max(v.value / v.sem for v in own) > 5
    assert [v.value for v in curve_of(exact, "target_variance", part="method")] == [0, 0, 0]


def test_target_variance_falls_by_what_the_average_removes():
    cfg = VarianceConfig(n_levels=3, n_targets=2000, n_gradients=0)
    single, exact = (measure(subject_with(Toy.PLANAR_ONE, m), cfg) for m in ("haar", "orbit_rb_exact"))
    whole = curve_of(single, "target_variance", part="total")
    check_curve(whole, [4, 4, 4])  # noise alone: 2 (N - 1) degrees of freedom
    left = curve_of(exact, "target_variance", part="total")
    removed = curve_of(single, "target_variance_removed", estimator="exact")
    for a, b, c in zip(whole, left, removed, strict=True):
        assert abs(a.value - b.value - c.value) < 5 * math.hypot(a.sem, b.sem, c.sem)
    assert removed[0].value > 5 * math.hypot(whole[0].sem, left[0].sem)  # control: the fall is seen


@pytest.mark.slow
def test_the_total_is_the_gradient_variance_of_the_measure_optimum():
    subject = subject_with(Toy.PLANAR_THREE, diffusion={"path": "linear_sigma", "n_levels": 20})
    batches = measure_optimum(subject, OptimumConfig(n_levels=10, n_states=64, n_gradients=60, batch_size=32))
    at_grid = {v.at["t"]: v.value for v in batches if v.name == "gradient_variance"}
    found = curve_of(decomposed(subject, 20, 60), "gradient_variance", part="total")
    both = [(v, at_grid[v.at["t"]]) for v in found if v.at["t"] in at_grid]
    assert len(both) > 5
    assert all(abs(value.value - other) < 5 * value.sem + 0.15 * other for value, other in both)
    # control: one and a half times as much is noticed
    assert all(abs(1.5 * value.value - other) > 5 * value.sem + 0.15 * other for value, other in both)


@pytest.mark.slow
def test_gradients_fall_by_the_conditional_scatter():
    """Rao-Blackwell: the mean squared difference of gradients under a draw and the mean is that of their variances."""
    subject = subject_with(Toy.PLANAR_ONE, diffusion={"path": "linear_sigma", "n_levels": 20})
    found = measure(subject, VarianceConfig(n_levels=3, n_targets=3, n_gradients=200, n_draws=16))
    single, uniform, exact = (
        over_law(found, "gradient_variance", estimator=kind) for kind in ("single", "uniform", "exact")
    )
    share = over_law(found, "gradient_variance_removed", estimator="exact")
    assert abs(single.value - exact.value - share.value * single.value) < 5 * math.hypot(single.sem, exact.sem)
    assert share.value > 5 * share.sem  # control: it removes something
    assert share.value > over_law(found, "gradient_variance_removed", estimator="uniform").value
    as_trained = over_law(found, "gradient_variance", part="total").value
    time = over_law(found, "gradient_variance", part="time").value
    assert abs(as_trained - time - single.value) < 5 * math.hypot(single.sem, single.sem)  # `haar` is the single draw
    for kind in ("single", "uniform", "exact", "as_trained"):
        assert over_law(found, "gradient_variance_seconds", estimator=kind).value > 0
    assert uniform.value < single.value


# ---------------------------------------------------------------------- everywhere


@pytest.mark.parametrize(
    "method",
    [
        "plain",
        {"name": "orbit_rb", "n_draws": 4},
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("haar", "orbit_rb_exact")),
    ],
    ids=str,
)
@pytest.mark.parametrize("toy", [Toy.SIGN_FLIP, Toy.MOLECULE, Toy.THREE_POINTS, Toy.TORUS_PAIR], ids=str)
def test_it_runs_on_every_group(toy, method):
    found = measure(subject_with(toy, method), SMALL)
    names = {v.name for v in found}
    assert {"gradient_variance", "target_variance", "target_variance_removed", "gradient_variance_seconds"} <= names
    assert all(math.isfinite(v.value) for v in found)
    assert len({(v.name, tuple(sorted(v.at.items()))) for v in found}) == len(found)


@pytest.mark.parametrize(
    ("method", "backbone", "poses", "draws"),
    [("edm", "egnn", False, False), ("haar", "dit", True, False), ("symdiff", "dit", False, True)],
)
def test_it_runs_on_molecules_and_finds_out_what_is_drawn(method, backbone, poses, draws):
    page = {"study": "tests", "method": method, "backbone": {"name": backbone, "size": "tiny"}, "data": "mini"}
    cfg = build(RunConfig, page)
    data = load_data(cfg)
    model = Model.build(cfg, data.facts).eval()
    randomise(model, 0)  # some networks begin with outputs of zero
    found = measure(subject_of(cfg, model, data), SMALL)
    assert all(math.isfinite(v.value) for v in found)
    by_part = parts_of(found)
    assert all(v.value > 0 for v in by_part["noise"])
    assert any(v.value != 0 for v in by_part["group"]) is poses
    assert any(v.value != 0 for v in by_part["method"]) is draws


def test_the_method_is_left_as_it_was():
    subject = subject_with(Toy.PLANAR_ONE)
    before = dict(vars(subject.method))
    measure(subject, SMALL)
    assert vars(subject.method) == before


def test_a_method_that_trains_nothing_has_no_values_and_options_are_checked():
    assert measure(replace(subject_with(Toy.PLANAR_ONE), trains=False), SMALL) == []
    entry = measures["variance"]
    for options in ({"n_levels": 1}, {"n_gradients": 2}, {"n_draws": 1}, {"n_targets": 2}):
        with pytest.raises(ValueError, match="of variance is"):
            entry.config(**options)
