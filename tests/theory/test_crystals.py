"""Crystals: paths of fractions and cells, targets under common shifts, and samplers, against laws in closed form."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from support import Z_MAX, z_score
from torch import Tensor

from bench.diffusion.parametrisation import LossWeight, Parametrisation
from bench.diffusion.paths import ByPart, PathName, cosine, make_path, wrapped_rms
from bench.diffusion.process import DiffusionConfig, Process, squared_error
from bench.diffusion.sampler import Sampler, corrector_step, n_calls, sample
from bench.geometry.groups import SO2, Permutations
from bench.geometry.layout import Layout
from bench.geometry.noised import Level, Noised
from bench.geometry.spaces import Centred, Euclidean, Spaces, Torus
from bench.geometry.state import State
from bench.geometry.torus import TorusShift, WrappedNormal
from bench.measure.optimum import Optimum
from bench.symmetry.orbit import OrbitTargetConfig, Proposal, orbit_target

F64 = torch.float64
SPACES = Spaces({"frac": Torus(3), "cell": Euclidean(9, per_molecule=True)})


def process(
    n_levels: int = 999,
    parametrisation: Parametrisation = Parametrisation.UNIT,
    corrector_step: float = 1e-5,
    **more: Any,
) -> Process:
    cfg = DiffusionConfig(PathName.VARIANCE_EXPLODING, n_levels, parametrisation=parametrisation, **more)
    return Process(SPACES, cfg, 5.0, own_paths={"cell": PathName.COSINE}, corrector_step=corrector_step)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noised(sizes: list[int], place: int | None = None, seed: int = 0) -> Noised:
    """Crystals with random fractions and cells, each at a level of its own, or all at one place of the path."""
    of, rng, layout = process(), generator(seed), Layout(sizes)
    noise = of.noise(layout, rng, F64)
    clean = State(
        {
            "frac": torch.rand(layout.n_total, 3, generator=rng, dtype=F64),
            "cell": 4 + torch.randn(len(sizes), 9, generator=rng, dtype=F64),
        },
        layout,
    )
    level = of.draw(len(sizes), rng, F64) if place is None else of.path.at(torch.full((len(sizes),), place), F64)
    return of.noised(clean, noise, level)


# ---------------------------------------------------------------------- paths


def test_the_cosine_path_is_that_of_the_published_betas():
    """alpha^2 by T = 1000 betas of cos^2((t/T + s)/(1 + s) pi/2), each in [1e-4, 0.9999]; control: without bounds."""

    def alpha2(lowest: float, highest: float) -> list[float]:
        f = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1001)]
        made, product = [], 1.0
        for t in range(1, 1001):
            product *= 1 - min(max(1 - f[t] / f[t - 1], lowest), highest)
            made.append(product)
        return made

    found = 1 / (1 + np.exp(cosine(999)))
    assert np.allclose(found, alpha2(1e-4, 0.9999), rtol=1e-9)
    assert not np.allclose(found, alpha2(0.0, 1.0), rtol=1e-5)
    assert (np.diff(cosine(999)) > 0).all()


def test_parts_have_paths_of_their_own_at_one_time():
    of = process()
    assert isinstance(of.path, ByPart)
    level = of.path.at(torch.tensor([0, 500, 999]), F64)
    cell = make_path(PathName.COSINE, 999).at(torch.tensor([0, 500, 999]), F64)
    assert torch.equal(level.of("cell").alpha, cell.alpha)
    assert torch.equal(level.of("cell").t, level.t)
    assert torch.equal(level[[2, 1]].of("cell").sigma, cell.sigma[[2, 1]])
    assert level.to(dtype=torch.float32).of("cell").sigma.dtype is torch.float32
    torch.testing.assert_close(level.of("frac").sigma[[0, 2]], torch.tensor([0.005, 0.5], dtype=F64))
    assert not torch.allclose(level.of("cell").sigma, level.of("frac").sigma)  # control: they differ
    assert of.prior(of.noise(Layout([1] * 4000), generator())).cell.std().item() == pytest.approx(1, abs=0.02)


def test_each_part_moves_by_its_own_level():
    """Both parts come back from the noised state by their own alpha and sigma; control: by the other part's."""
    made = noised([5, 2, 7])
    level = made.level
    cell = level.of("cell")
    back = (made.z_t.cell - cell.sigma[:, None] * made.noise.cell) / cell.alpha[:, None]
    torch.testing.assert_close(back, made.clean.cell)
    other = made.z_t.cell - level.sigma[:, None] * made.noise.cell
    assert (other - made.clean.cell).abs().max() > 0.1
    again = made.spaces.displacement(made.z_t, made.clean, level)
    torch.testing.assert_close(again.cell, made.noise.cell, rtol=1e-8, atol=1e-8)


def test_paths_of_parts_must_be_tables_of_one_length():
    cfg = DiffusionConfig(PathName.LINEAR, parametrisation=Parametrisation.VELOCITY)
    with pytest.raises(ValueError, match="cannot run beside cosine"):
        Process(Spaces({"x": Centred(3), "cell": Euclidean(9, True)}), cfg, own_paths={"cell": PathName.COSINE})
    with pytest.raises(ValueError, match="do not share"):
        process(loss_weight=LossWeight.SNR)


@pytest.mark.parametrize("sigma", [0.005, 0.06, 0.2, 0.5])
def test_noise_on_a_torus_is_the_wrapped_normals_score_in_high_precision(sigma):
    """-sigma times the derivative of log sum_k exp(-(d + k)^2 / 2 sigma^2), in 50 digits; control: 1 % more sigma."""
    mpmath.mp.dps = 50

    def exact(d: float, s: float) -> float:
        def log_p(x: Any) -> Any:
            return mpmath.log(mpmath.nsum(lambda k: mpmath.exp(-((x + k) ** 2) / (2 * mpmath.mpf(s) ** 2)), [-30, 30]))

        return float(-s * mpmath.diff(log_p, mpmath.mpf(d)))

    d = [-0.5, -0.31, 0.0, 0.02, 0.25, 0.499]
    one = torch.ones(len(d), 1, dtype=F64)
    found = Torus(1).displacement(torch.tensor(d, dtype=F64)[:, None], 0 * one, one, sigma * one)[:, 0].tolist()
    assert found == pytest.approx([exact(x, sigma) for x in d], rel=1e-9, abs=1e-9)
    assert found != pytest.approx([exact(x, 1.01 * sigma) for x in d], rel=1e-4)


@pytest.mark.parametrize("sigma", [0.03, 0.1, 0.3, 0.5])
def test_the_unit_target_has_unit_variance(sigma):
    """`wrapped_rms` against 100 000 draws, |z| < 5; control: the noise as it is, where images meet."""
    of = Torus(1)
    eps = torch.randn(100_000, 1, generator=generator(1), dtype=F64)
    one = torch.ones_like(eps)
    noise = of.displacement(of.move(0 * one, eps, one, sigma * one), 0 * one, one, sigma * one)
    rms = float(wrapped_rms(np.array([sigma]))[0])
    assert z_score(noise.square() / rms**2, 1.0) < Z_MAX
    assert (z_score(noise.square(), 1.0) > Z_MAX) == (sigma > 0.2)


def test_the_unit_parametrisation_scales_fractions_alone():
    made = noised([3, 6], place=950)
    unit, rms = Parametrisation.UNIT, made.level.noise_rms
    assert rms is not None
    target = unit.target(made.noise, made)
    torch.testing.assert_close(target.frac, made.noise.frac / rms[0])
    assert torch.equal(target.cell, made.noise.cell)
    torch.testing.assert_close(unit.noise(target, made.z_t, made.level).frac, made.noise.frac)
    assert rms[0] < 0.2  # control: there is something to scale
    with pytest.raises(ValueError, match="but on a torus; choose 'noise'"):
        Process(Spaces({"x": Centred(3)}), DiffusionConfig(parametrisation=unit))


def test_the_loss_is_the_sum_of_two_mean_squared_errors():
    """With a third of the mean number of sites as the cell's weight, up to one constant; control: without it."""
    sizes = [5, 2, 8]
    made, other = noised(sizes), noised(sizes, seed=1)

    def ratios(weight: float) -> float:
        cfg = DiffusionConfig(PathName.VARIANCE_EXPLODING, 999)
        own = {"cell": PathName.COSINE}
        of = Process(SPACES, cfg, 5.0, own_paths=own, weights={"cell": weight})
        error = squared_error(other.noise, made.noise)
        loss = of.training_loss(error, other.noise, made.noise, made).mean()
        frac, cell = ((other.noise.parts[p] - made.noise.parts[p]).square().mean() for p in ("frac", "cell"))
        return float(loss / (frac + cell))

    assert ratios(5 / 3) == pytest.approx(9 * (5 / 3) / (2 * 12 * 5), rel=1e-9)
    assert ratios(1.0) != pytest.approx(9 / (2 * 12 * 5), rel=1e-2)


# ---------------------------------------------------------------------- targets under common shifts


@pytest.mark.parametrize("sigma_place", [0, 400, 700, 999])
def test_the_sampled_local_average_is_near_the_exact_one(sigma_place):
    """Effective sample sizes of both kinds of draws at small noise; cells keep their noise to the last digit."""
    made, group = noised([5, 2], place=sigma_place), TorusShift()
    exact = group.posterior_mean(made)
    found = {p: orbit_target(made, group, generator(2), OrbitTargetConfig(400, proposal=p)) for p in Proposal}
    for target in (exact, *(one.noise for one in found.values())):
        assert torch.equal(target.cell, made.noise.cell)
    assert (found[Proposal.LOCAL].noise.frac - exact.frac).abs().max() < 0.5
    if sigma_place == 0:
        assert found[Proposal.LOCAL].effective_sample_size.min() > 350
        assert found[Proposal.UNIFORM].effective_sample_size.max() < 10  # control: it finds next to nothing there


@pytest.mark.parametrize("place", [0, 500, 800, 999])
def test_averages_of_one_and_two_sites_are_wrapped_normals(place):
    """T31: zero for one site; for two +- the score of a wrapped normal of variance 2 sigma^2; sums vanish."""
    alone, pair = noised([1] * 6, place=place), noised([2] * 6, place=place)
    assert TorusShift().posterior_mean(alone).frac.abs().max() < 1e-9
    mean = TorusShift().posterior_mean(pair)
    assert pair.z_t.sum_over_atoms(mean.frac).abs().max() < 1e-9
    assert pair.z_t.sum_over_atoms(pair.noise.frac).abs().max() > 0.01  # control: that of the noise does not
    d = (pair.z_t.frac - pair.clean.frac).view(6, 2, 3)
    one, sigma = torch.ones(6, 3, dtype=F64), pair.level.sigma[0]
    between = Torus(3).displacement(d[:, 0] - d[:, 1], 0 * one, one, 2**0.5 * sigma * one) / 2**0.5
    torch.testing.assert_close(mean.frac.view(6, 2, 3), torch.stack([between, -between], dim=1), rtol=0, atol=1e-9)
    wider = Torus(3).displacement(d[:, 0] - d[:, 1], 0 * one, one, 1.5 * sigma * one) / 2**0.5
    assert (wider - between).abs().max() > 0.02 * between.abs().max()  # control: another variance
    turned = Noised(pair.clean, pair.noise, pair.z_t.replace(frac=pair.z_t.frac + 3), pair.level, pair.spaces)
    torch.testing.assert_close(TorusShift().posterior_mean(turned).frac, mean.frac, rtol=0, atol=1e-9)


def mean_of_errors(cfg: OrbitTargetConfig, n: int, n_points: int = 2, place: int = 700) -> float:
    """Largest standard score of mean (target - exact) times functions of z_t and the orbit, over n examples."""
    made, group = noised([n_points] * n, place=place, seed=3), TorusShift()
    exact = group.posterior_mean(made).frac
    error = orbit_target(made, group, generator(4), cfg).noise.frac - exact
    return z_score(made.z_t.sum_over_atoms((error * exact).sum(1))[:, None])


@pytest.mark.slow
@pytest.mark.parametrize("proposal", [Proposal.UNIFORM, Proposal.LOCAL], ids=str)
@pytest.mark.parametrize("n_draws", [2, 5])
def test_shifts_that_do_not_give_away_the_generator_are_unbiased(proposal, n_draws):
    assert mean_of_errors(OrbitTargetConfig(n_draws, proposal=proposal), 20_000) < Z_MAX


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cfg", "n"),
    [
        (
            OrbitTargetConfig(8, proposal=Proposal.GENERATOR),
            40_000,
        ),  # its bias is small
        (OrbitTargetConfig(3, proposal=Proposal.LOCAL, include_generator=False), 20_000),
    ],
    ids=["generator", "local_without_generator"],
)
def test_the_published_proposal_about_the_generator_is_biased(cfg, n):
    """OrbDiff_WN: identity plus draws about it, weighted by their density; and the control without the generator."""
    assert mean_of_errors(cfg, n) > Z_MAX


def test_the_wrapped_normal_proposal_has_its_density():
    """Mean of a function over draws is its integral under the density, |z| < 5; control: under one 10 % wider."""
    centre, width = torch.tensor([[0.1, 0.5, 0.95]], dtype=F64), torch.tensor([0.2], dtype=F64)
    nodes = (torch.arange(2000, dtype=F64) + 0.5) / 2000
    n = 50_000
    drawn = WrappedNormal(centre.expand(n, 3), width.expand(n)).draw(n, generator(5))
    assert drawn.min() >= 0
    assert drawn.max() < 1

    def mean(of: WrappedNormal, axis: int) -> float:
        g = centre.expand(2000, 3).clone()
        g[:, axis] = nodes
        wide = WrappedNormal(of.centre.expand(2000, 3), of.width.expand(2000))
        return float((wide.log_density(g).softmax(0) * (2 * math.pi * nodes).cos()).sum())

    for axis in range(3):
        cosines = (2 * math.pi * drawn[:, axis]).cos()[:, None]
        assert z_score(cosines, mean(WrappedNormal(centre, width), axis)) < Z_MAX
    assert z_score((2 * math.pi * drawn[:, 0]).cos()[:, None], mean(WrappedNormal(centre, 1.1 * width), 0)) > Z_MAX


def test_what_the_average_removes_is_one_unit_per_axis():
    """At small noise one of N units per axis, N = 5 and 20; up to 1.7 in between; nothing at the end of the path."""

    def removed(n_points: int, place: int) -> tuple[float, float]:
        made = noised([n_points] * 100, place=place)
        left = (made.noise.frac - TorusShift().posterior_mean(made).frac).square()
        return float(left.sum() / 300), float(made.noise.frac.square().sum() / 300)

    for n_points in (5, 20):
        gone, whole = removed(n_points, 0)
        assert gone == pytest.approx(1, abs=0.4)
        assert whole == pytest.approx(n_points, rel=0.2)
        assert removed(n_points, 999)[0] < 0.05
        assert 1.1 < removed(n_points, 800)[0] < 2.3


@pytest.mark.parametrize(
    ("group", "proposal"), [(SO2(), Proposal.GENERATOR), (Permutations(3), Proposal.LOCAL)], ids=["SO2", "permutations"]
)
def test_proposals_of_shifts_are_refused_by_groups_without_them(group, proposal):
    spaces = Spaces({"x": Centred(2)})
    x = spaces.project(State({"x": torch.randn(3, 2, generator=generator(), dtype=F64)}, Layout([3])))
    at = Level(*(torch.full((1,), v, dtype=F64) for v in (0.5, 0.8, 0.6)))
    made = Noised(x, x, x, at, spaces)
    with pytest.raises((ValueError, NotImplementedError), match="proposal"):
        orbit_target(made, group, generator(), OrbitTargetConfig(2, proposal=proposal))
    orbit_target(made, group, generator(), OrbitTargetConfig(2))  # control


# ---------------------------------------------------------------------- samplers


PAIR = torch.tensor([[0.1, 0.2, 0.3], [0.45, 0.4, 0.9]], dtype=F64)
CELLS = torch.stack([torch.diag(torch.tensor(d, dtype=F64)).flatten() for d in ([3.0, 4.0, 5.0], [6.0, 6.0, 6.0])])


N = 100  # samples of toy crystals


def drawn(sampler: Sampler, n_levels: int = 50) -> State:
    """Samples of two toy crystals of two sites, shares 0.3 and 0.7, by their optimal denoiser."""
    of = process(n_levels)
    other = PAIR + torch.tensor([[0.0, 0.0, 0.0], [0.2, 0.0, 0.0]], dtype=F64)
    shapes = State({"frac": torch.cat([PAIR, other]), "cell": CELLS}, Layout([2, 2]))
    optimum = Optimum(shapes, torch.tensor([0.3, 0.7], dtype=F64), TorusShift(48), of.spaces)

    def predict(z: State, level: Level) -> State:
        at, z64 = level.to(dtype=F64), z.to(dtype=F64)
        noise = optimum(z64, at)
        made = Noised(z64, noise, z64, at, of.spaces)
        return of.parametrisation.target(noise, made).to(dtype=z.dtype)

    return sample(of, predict, Layout([2] * N), n_levels, generator(4), sampler=sampler)


@pytest.mark.parametrize("sampler", [Sampler.ANCESTRAL, Sampler.PREDICTOR_CORRECTOR], ids=str)
def test_samplers_reproduce_the_law_of_toy_crystals(sampler):
    """Cells and differences of fractions of either crystal, in their shares, at uniform shifts."""
    made = drawn(sampler)
    cells = (made.cell.double()[:, None] - CELLS).norm(dim=2)
    nearest, which = cells.min(1)
    assert nearest.median() < 0.1
    assert abs((which == 0).sum().item() - 0.3 * N) < 5 * (0.21 * N) ** 0.5
    assert abs((which == 0).sum().item() - 0.8 * N) > 5 * (0.21 * N) ** 0.5  # control: other shares
    f = made.frac.double().view(-1, 2, 3)
    expected = (PAIR[1] - PAIR[0]).expand(N, 3).clone()
    expected[:, 0] += 0.2 * which
    off = f[:, 1] - f[:, 0] - expected
    assert (off - off.round()).norm(dim=1).median() < 0.02
    swapped = f[:, 1] - f[:, 0] - (PAIR[1] - PAIR[0]) - 0.2 * (1 - which[:, None]) * torch.eye(3, dtype=F64)[0]
    assert (swapped - swapped.round()).norm(dim=1).median() > 0.1  # control: cell and fractions belong together
    angle = 2 * math.pi * f[:, 0]
    assert torch.hypot(angle.cos().mean(0), angle.sin().mean(0)).max() < 5 / N**0.5


def test_the_corrector_is_langevin_dynamics_at_its_level():
    """From a wrong spread, repeated steps at one level lead to the law of that level; control: steps without noise."""
    of = process(50, Parametrisation.NOISE, corrector_step=0.05 * 0.005**2)
    n, level = 1000, of.path.at(torch.full((1000,), 10), F64)
    sigma = float(level.sigma[0])

    def spread(with_noise: bool) -> float:
        z = of.noise(Layout([1] * n), generator(1), F64)
        z = z.replace(frac=torch.full_like(z.frac, 0.5))  # at the point of the law that is not spread at all
        rng, cell = generator(2), z.cell
        for _ in range(120):
            answer = of.spaces.displacement(z, z.replace(frac=torch.full_like(z.frac, 0.5)), level)
            z = corrector_step(of, z, answer, level, of.noise(z.layout, rng, F64) if with_noise else None)
        assert torch.equal(z.cell, cell)  # fractions alone are corrected
        return float((z.frac - 0.5).std())

    assert spread(True) == pytest.approx(sigma, rel=0.05)
    assert spread(False) < 1e-6


def test_the_corrector_is_the_published_step():
    """step = step_lr (sigma_t / 0.005)^2 on the score, and the number of calls; control: another path's least sigma."""
    of = process(999, Parametrisation.UNIT, corrector_step=5e-7)
    made = noised([4, 3], place=600)
    answer = of.parametrisation.target(made.noise, made)
    moved = corrector_step(of, made.z_t, answer, made.level, made.noise.map(torch.zeros_like))
    sigma = made.level.sigma[0]
    step = 5e-7 * (sigma / 0.005) ** 2
    difference = moved.frac - (made.z_t.frac - step * made.noise.frac / sigma)
    assert (difference - difference.round()).abs().max() < 1e-12
    assert (moved.frac - made.z_t.frac).abs().max() > 1e-6  # control: it moves
    calls: list[Tensor] = []

    def predict(z: State, level: Level) -> State:
        calls.append(level.t)
        return z

    sample(of, predict, Layout([2]), 999, generator(), sampler=Sampler.PREDICTOR_CORRECTOR)
    assert len(calls) == n_calls(of.path, Sampler.PREDICTOR_CORRECTOR, 999) == 2000


def test_correctors_need_a_step():
    plain = Process(Spaces({"x": Centred(3)}), DiffusionConfig(n_levels=10))
    with pytest.raises(ValueError, match="that has a corrector's step; choose 'ancestral'"):
        sample(plain, lambda z, _: z, Layout([3]), 5, generator(), sampler=Sampler.PREDICTOR_CORRECTOR)


def test_cells_of_gaussian_data_are_sampled_by_the_cosine_path():
    """Ancestral steps of the cell part reproduce N(5, 0.7^2) to 5 % with its optimal denoiser; control: another one."""
    of, mean, n = process(400), 5.0, 2000

    def spread(true: float) -> tuple[float, float]:
        def predict(z: State, level: Level) -> State:
            cell = level.of("cell")
            alpha, sigma = cell.alpha[:, None], cell.sigma[:, None]
            noise = sigma * (z.cell - alpha * mean) / (alpha**2 * true**2 + sigma**2)
            return z.replace(frac=torch.zeros_like(z.frac), cell=noise)

        made = sample(of, predict, Layout([1] * n), 400, generator(7)).cell
        return float(made.mean()), float(made.std())

    assert spread(0.7) == (pytest.approx(mean, abs=0.05), pytest.approx(0.7, rel=0.05))
    assert spread(1.0)[1] != pytest.approx(0.7, rel=0.05)


@pytest.mark.parametrize("n_steps", [50, 200])
def test_few_steps_start_before_the_jump_of_the_cosine_path(n_steps):
    """Cells of N(4, 0.5^2) by their optimal denoiser, 1 % wrong and bounded as a network's output is, keep their law;
    control: a grid that steps over the jump. All levels, as published, and other paths start at the last one."""
    of, n = process(), 1000

    def spread() -> float:
        def predict(z: State, level: Level) -> State:
            cell = level.of("cell")
            alpha, sigma = cell.alpha[:, None], cell.sigma[:, None]
            noise = 1.01 * sigma * (z.cell - alpha * 4) / (alpha**2 * 0.5**2 + sigma**2)
            return z.replace(frac=torch.zeros_like(z.frac), cell=noise.clamp(-4, 4))

        return float(sample(of, predict, Layout([1] * n), n_steps, generator(7)).cell.std())

    assert isinstance(of.path, ByPart)
    assert spread() == pytest.approx(0.5, rel=0.1)
    assert of.path.grid(999, "cpu").tolist() == list(range(999, -1, -1))
    assert of.path.grid(n_steps, "cpu")[0] == of.path.start == 998
    of.path.start = of.path.last
    assert spread() > 50
    plain = Process(Spaces({"x": Centred(3)}), DiffusionConfig(n_levels=1000))
    assert plain.path.grid(n_steps, "cpu")[0] == 1000
