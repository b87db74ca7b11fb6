"""Paths and samplers against laws in closed form: Gaussian data, point clouds, a pair on the torus."""

from __future__ import annotations

import pytest
import torch

from bench.diffusion.parametrisation import LossWeight, Parametrisation
from bench.diffusion.paths import PathName, make_path
from bench.diffusion.process import DiffusionConfig, Process
from bench.diffusion.sampler import Sampler, sample
from bench.geometry.groups import SO2
from bench.geometry.layout import Layout
from bench.geometry.noised import Level
from bench.geometry.spaces import Centred, Euclidean, Spaces, Torus
from bench.geometry.state import State
from bench.geometry.torus import TorusShift
from bench.measure.optimum import Optimum

F64 = torch.float64
MEAN, SPREAD = 1.5, 0.4  # of the Gaussian data


def process(
    path: PathName, parametrisation: Parametrisation, space=None, part: str = "x", n_levels: int = 100
) -> Process:
    return Process(
        Spaces({part: space or Euclidean(1)}), DiffusionConfig(path, n_levels, parametrisation=parametrisation)
    )


def gaussian_clean(z_t: State, level: Level, spread: float = SPREAD) -> State:
    """E[x0 | z_t] for x0 ~ N(MEAN, spread^2)."""
    alpha, sigma = z_t.spread(level.alpha, z_t.x), z_t.spread(level.sigma, z_t.x)
    gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
    return z_t.replace(x=MEAN + gain * (z_t.x - alpha * MEAN))


def as_output(of: Process, clean: State, z_t: State, level: Level) -> State:
    """What a network would answer that estimates this clean state."""
    if of.parametrisation is Parametrisation.CLEAN:
        return clean
    noise = of.spaces.displacement(z_t, clean, level)
    if of.parametrisation is Parametrisation.NOISE:
        return noise
    return noise.combine(clean, torch.sub)


@pytest.mark.parametrize("parametrisation", [Parametrisation.VELOCITY, Parametrisation.CLEAN])
def test_targets_of_the_linear_path_regress_to_the_closed_form(parametrisation):
    """The regression of a million targets on z_t at one level is the line of the Gaussian closed form."""
    of, n = process(PathName.LINEAR, parametrisation), 1_000_000
    rng = torch.Generator().manual_seed(0)
    layout = Layout([1] * n)
    clean = State({"x": MEAN + SPREAD * torch.randn(n, 1, generator=rng, dtype=F64)}, layout)
    level = of.path.at(torch.full((n,), 0.6, dtype=F64), F64)
    noised = of.noised(clean, of.noise(layout, rng, F64), level)
    target = of.parametrisation.target(noised.noise, noised).x[:, 0]
    optimal = as_output(of, gaussian_clean(noised.z_t, level), noised.z_t, level).x[:, 0]
    residual, z = target - optimal, noised.z_t.x[:, 0]
    for moment in (torch.ones_like(z), z - z.mean()):
        product = residual * moment
        assert abs(product.mean()) < 5 * product.std() / n**0.5
    wrong = as_output(of, gaussian_clean(noised.z_t, level, 1.1 * SPREAD), noised.z_t, level).x[:, 0]
    product = (target - wrong) * (z - z.mean())
    assert abs(product.mean()) > 5 * product.std() / n**0.5  # control: data 10 % wider


def test_velocity_and_clean_targets_are_one_estimate():
    of = process(PathName.LINEAR, Parametrisation.VELOCITY)
    rng = torch.Generator().manual_seed(1)
    layout = Layout([1] * 8)
    level = of.path.draw(8, rng, dtype=F64)
    clean = State({"x": torch.randn(8, 1, generator=rng, dtype=F64)}, layout)
    noised = of.noised(clean, of.noise(layout, rng, F64), level)
    velocity = of.parametrisation.target(noised.noise, noised)
    torch.testing.assert_close(velocity.x, noised.noise.x - clean.x)
    torch.testing.assert_close(of.parametrisation.clean(velocity, noised.z_t, level).x, clean.x)
    torch.testing.assert_close(of.parametrisation.noise(velocity, noised.z_t, level).x, noised.noise.x)
    assert (level.t >= 1e-3).all()
    assert (level.t <= 1 - 1e-3).all()


SAMPLERS = [
    (PathName.LINEAR, Parametrisation.VELOCITY, Sampler.EULER),
    (PathName.LINEAR, Parametrisation.CLEAN, Sampler.EULER),
    (PathName.LINEAR, Parametrisation.VELOCITY, Sampler.HEUN),
    (PathName.LINEAR, Parametrisation.CLEAN, Sampler.HEUN),
    (PathName.LINEAR_SIGMA, Parametrisation.CLEAN, Sampler.EULER),
    (PathName.LINEAR_SIGMA, Parametrisation.NOISE, Sampler.ANCESTRAL),
]


@pytest.mark.parametrize(("path", "parametrisation", "sampler"), SAMPLERS)
def test_samplers_reproduce_gaussian_data_with_the_optimal_denoiser(path, parametrisation, sampler):
    of, n = process(path, parametrisation), 40_000

    def moments(spread: float) -> tuple[float, float]:
        def predict(z: State, level: Level) -> State:
            return as_output(of, gaussian_clean(z, level, spread), z, level)

        drawn = sample(of, predict, Layout([1] * n), 99, torch.Generator().manual_seed(2), sampler=sampler).x
        return drawn.mean().item(), drawn.std().item()

    mean, spread = moments(SPREAD)
    # sampling starts at N(0, 1), where the most noise of a table leaves alpha of the data's mean; a flow carries that
    # offset to the end, fresh noise forgets it
    alpha = 0.0 if sampler is Sampler.ANCESTRAL else of.path.at(of.path.grid(99, "cpu")[:1], F64).alpha.item()
    assert mean == pytest.approx(MEAN - SPREAD * alpha * MEAN, abs=0.01)
    assert spread == pytest.approx(SPREAD, rel=0.05)  # of 99 steps
    assert moments(1.3 * SPREAD)[1] != pytest.approx(SPREAD, rel=0.05)  # control: another denoiser, another law


def heun_error(sampler: Sampler, n_steps: int) -> float:
    """Error of the spread of samples, which the flow of Gaussian data has in closed form."""
    of = process(PathName.LINEAR, Parametrisation.VELOCITY)

    def predict(z: State, level: Level) -> State:
        return as_output(of, gaussian_clean(z, level), z, level)

    rng = torch.Generator().manual_seed(3)
    start = of.noise(Layout([1] * 1000), rng).x  # the same draws that `sample` makes first
    drawn = sample(of, predict, Layout([1] * 1000), n_steps, torch.Generator().manual_seed(3), sampler=sampler).x
    return (drawn - (MEAN + SPREAD * start)).abs().max().item()


def test_heun_is_of_second_order_and_euler_of_first():
    euler, heun = (heun_error(s, 10) / heun_error(s, 20) for s in (Sampler.EULER, Sampler.HEUN))
    assert 1.6 < euler < 2.6
    assert heun > 3
    assert heun_error(Sampler.HEUN, 20) < heun_error(Sampler.EULER, 20)


def shapes(part: str, x: list[list[float]], n_shapes: int) -> State:
    rows = torch.tensor(x, dtype=F64)
    return State({part: rows}, Layout([len(rows) // n_shapes] * n_shapes))


def optimal_samples(of: Process, optimum: Optimum, n: int, n_points: int, sampler: Sampler, n_steps: int) -> State:
    def predict(z: State, level: Level) -> State:
        at, z64 = level.to(dtype=F64), z.to(dtype=F64)
        noise = optimum(z64, at)
        if of.parametrisation is Parametrisation.NOISE:
            return noise.to(dtype=z.dtype)
        pure = bool((at.alpha == 0).all())  # the mean of a group without fixed points is then all that is known
        clean = z64.map(torch.zeros_like) if pure else Parametrisation.NOISE.clean(noise, z64, at)
        return as_output(of, clean, z64, at).to(dtype=z.dtype)

    return sample(of, predict, Layout([n_points] * n), n_steps, torch.Generator().manual_seed(4), sampler=sampler)


TWO_CLOUDS = [[1.0, 0.0], [-0.4, 0.6], [-0.6, -0.6], [1.4, 0.0], [0.0, 0.0], [-1.4, 0.0]]


@pytest.mark.parametrize(("path", "parametrisation", "sampler"), SAMPLERS)
def test_samplers_reproduce_turned_clouds_with_the_optimal_denoiser(path, parametrisation, sampler):
    of = process(path, parametrisation, Centred(2))
    clouds = shapes("x", TWO_CLOUDS, 2)
    clouds = clouds.centred()
    share = torch.tensor([0.3, 0.7], dtype=F64)
    drawn = optimal_samples(of, Optimum(clouds, share, SO2(), of.spaces), 1000, 3, sampler, 99)
    x = torch.view_as_complex(drawn.x.double().view(1000, 3, 2).contiguous())
    distance = []
    for m in range(2):
        cloud = torch.view_as_complex(clouds.x.view(2, 3, 2).contiguous())[m]
        turn = (x * cloud.conj()).sum(1)
        distance.append((x - (turn / turn.abs())[:, None] * cloud).abs().square().mean(1).sqrt())
    nearest, which = torch.stack(distance).min(0)
    assert nearest.median() < 0.02
    count = (which == 0).sum().item()
    assert abs(count - 300) < 5 * (1000 * 0.3 * 0.7) ** 0.5
    assert abs(count - 500) > 5 * (1000 * 0.25) ** 0.5  # control: the shares are what is known, not one half
    angle = turn / turn.abs()
    assert angle.mean().abs() < 5 / 1000**0.5


def torus_distance(drawn: State, pair: torch.Tensor) -> torch.Tensor:
    f = drawn.frac.double().view(-1, 2, 3)
    off = (f[:, 1] - f[:, 0]) - (pair[1] - pair[0])
    return (off - off.round()).norm(dim=1)


def test_ancestral_sampling_on_the_torus_reproduces_a_pair():
    of = process(PathName.VARIANCE_EXPLODING, Parametrisation.NOISE, Torus(3), "frac", n_levels=50)
    pair = [[0.1, 0.2, 0.3], [0.45, 0.4, 0.9]]
    one = torch.ones(1, dtype=F64)
    drawn = optimal_samples(
        of, Optimum(shapes("frac", pair, 1), one, TorusShift(64), of.spaces), 100, 2, Sampler.ANCESTRAL, 50
    )
    assert torus_distance(drawn, torch.tensor(pair, dtype=F64)).max() < 0.1
    assert torus_distance(drawn, torch.tensor(pair, dtype=F64)).median() < 0.02
    angle = 2 * torch.pi * drawn.frac.view(-1, 2, 3)[:, 0].double()
    assert torch.hypot(angle.cos().mean(0), angle.sin().mean(0)).max() < 5 / 100**0.5
    other = [[0.1, 0.2, 0.3], [0.5, 0.4, 0.9]]  # control: the denoiser of another pair
    drawn = optimal_samples(
        of, Optimum(shapes("frac", other, 1), one, TorusShift(64), of.spaces), 100, 2, Sampler.ANCESTRAL, 50
    )
    assert torus_distance(drawn, torch.tensor(pair, dtype=F64)).median() > 0.03


def test_weights_of_levels():
    of = process(PathName.LINEAR_SIGMA, Parametrisation.CLEAN)
    level = of.path.at(torch.tensor([0, 50, 99]), F64)
    torch.testing.assert_close(level.sigma, torch.linspace(0.01, 0.999, 100, dtype=F64)[[0, 50, 99]])
    torch.testing.assert_close(level.t, torch.tensor([0.0, 0.5, 0.99], dtype=F64))
    torch.testing.assert_close(LossWeight.SNR.of(level), (level.alpha / level.sigma) ** 2)


@pytest.mark.parametrize("path", [PathName.POLYNOMIAL, PathName.LINEAR])
def test_training_times_follow_the_power(path):
    """t = u^p has P(t < a) = a^(1/p); validation stays uniform, and so misses what p = 2 must show (control)."""
    made = Parametrisation.NOISE if path is PathName.POLYNOMIAL else Parametrisation.CLEAN

    def share_below_a_quarter(power: float, uniform: bool = False) -> float:
        of = Process(Spaces({"x": Euclidean(1)}), DiffusionConfig(path, 1000, parametrisation=made, time_power=power))
        level = (of.draw_uniform if uniform else of.draw)(40_000, torch.Generator().manual_seed(0))
        return (level.t < 0.25).double().mean().item()

    assert share_below_a_quarter(2.0) == pytest.approx(0.5, abs=0.01)
    assert share_below_a_quarter(2.0, uniform=True) == pytest.approx(0.25, abs=0.01)
    assert share_below_a_quarter(1.0) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("path", [PathName.POLYNOMIAL, PathName.LINEAR, PathName.VARIANCE_EXPLODING], ids=str)
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_shares_of_training_times_lie_below_their_quantiles(path, power):
    of = make_path(path, 1000)
    n, shares = 40_000, torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    drawn = of.draw(n, torch.Generator().manual_seed(0), 1, F64, power).t
    found = of.quantile(shares, 1, F64, power).t
    below = (drawn[:, None] < found).double().mean(0)
    error = 5 * (shares * (1 - shares) / n).sqrt() + 1 / 500  # of levels in steps of 1 / 1000
    assert ((below - shares).abs() < error).all()
    other = of.quantile(shares, 1, F64, 1.5).t  # control: another law
    assert (((drawn[:, None] < other).double().mean(0) - shares).abs() > error).any()
    assert of.quantile(torch.zeros(1, dtype=F64), 1, F64, power).t.item() > 0
