"""Flow matching: priors and bridge noise against dense matrices and draws, the law of samples, what symmetry leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from flows import (
    F64,
    FORK,
    GRAPHS,
    OVER_SETTINGS,
    PAIR,
    RING,
    SETTINGS,
    SIZES,
    Bonds,
    at,
    batch,
    context,
    copies,
    flow,
    laplacian,
)
from flows import covariance as dense_covariance
from support import Z_MAX, generator, orthogonal, relative_error, turned, z_score
from torch import Tensor

from bench.diffusion.parametrisation import Parametrisation, velocity
from bench.diffusion.paths import PathName, Prior
from bench.diffusion.process import DiffusionConfig, Process
from bench.diffusion.sampler import Sampler, sample
from bench.geometry.groups import O3, SO3, RotationGroup
from bench.geometry.harmonic import scaled
from bench.geometry.layout import Layout
from bench.geometry.noised import Level, Noised
from bench.geometry.spaces import Centred, Euclidean, Spaces
from bench.geometry.state import State

TIMES = [0.05, 0.4, 0.9]


def blocks(matrices: list[Tensor]) -> Tensor:
    return torch.block_diag(*matrices)


def operator(of: Callable[[State], State]) -> Tensor:
    """Matrix [A, A] of a linear function of states that acts on atoms alone, on states without centre of mass."""
    columns = []
    for n in range(sum(SIZES)):
        unit = torch.zeros(sum(SIZES), 3, dtype=F64)
        unit[n] = 1
        columns.append(of(batch(unit)).x[:, 0])
    return torch.stack(columns, dim=1)


# ---------------------------------------------------------------------- the law of the noise


def test_covariance_of_the_harmonic_prior_is_the_pseudo_inverse_of_the_laplacian():
    """Of the operator that makes it of white noise, in a ragged batch; and it has no centre of mass. Control: one bond
    more, and the covariance is another."""
    found = operator(flow(Prior.HARMONIC).prior)
    expected, other = (
        blocks([torch.linalg.pinv(laplacian(b, n)) for b, n in zip(graphs, SIZES, strict=True)])
        for graphs in (GRAPHS, [(*FORK, (0, 4)), RING, PAIR])
    )
    torch.testing.assert_close(found @ found.T, expected, rtol=0, atol=1e-12)
    assert (found @ found.T - other).abs().max() > 0.1
    drawn = flow(Prior.HARMONIC).prior(batch())
    assert drawn.sum_over_atoms(drawn.x).abs().max() < 1e-12


def test_draws_of_the_harmonic_prior_have_its_covariance():
    """20 000 molecules through the process, |z| < 5 for each entry; control: the Gaussian prior's draws."""
    expected = torch.linalg.pinv(laplacian(FORK, 5))
    i, j = torch.triu_indices(5, 5)
    n = 20_000
    empty = copies(torch.zeros(5, 3, dtype=F64), FORK, n)
    scores = {}
    for prior in Prior:
        process = flow(prior)
        e = process.prior(process.noise(empty.layout, generator(0), F64, empty.context)).x.view(n, 5, 3)
        scores[prior] = z_score((e[:, i] * e[:, j]).mean(2) - expected[i, j])
    assert scores[Prior.HARMONIC] < Z_MAX
    assert scores[Prior.GAUSSIAN] > 10 * Z_MAX


@OVER_SETTINGS
@pytest.mark.parametrize("t", TIMES)
def test_noise_of_a_state_has_the_covariance_of_the_path(prior, bridge, t):
    """t^2 C + s^2 for each molecule, by the operator; undone by `displacement`; and log p(z_t | x0) is the normal
    density of that covariance but for a constant. Control: at another time."""
    process, level = flow(prior, bridge), at(flow(prior, bridge), t, 3)
    zero = batch().map(torch.zeros_like)
    S = operator(lambda eps: process.noising(zero, eps, level))
    expected, later = (
        blocks([dense_covariance(prior, bridge, b, n, time) for b, n in zip(GRAPHS, SIZES, strict=True)])
        for time in (t, 1.05 * t)
    )
    torch.testing.assert_close(S @ S.T, expected, rtol=0, atol=1e-12)
    assert relative_error(S @ S.T, later) > 1e-2

    x0, z_t = batch(seed=1), process.noising(batch(seed=1), batch(seed=2), level)
    assert relative_error(process.spaces.displacement(z_t, x0, level).x, batch(seed=2).x) < 1e-9
    d = z_t.x - (1 - t) * x0.x
    densities = [
        -0.5 * z_t.sum_over_atoms((d * (torch.linalg.pinv(matrix) @ d)).sum(1)) for matrix in (expected, later)
    ]
    found = process.spaces.log_likelihood(z_t, x0, level)
    torch.testing.assert_close(found, densities[0], rtol=1e-9, atol=1e-9)
    assert relative_error(found, densities[1]) > 1e-2


@OVER_SETTINGS
@pytest.mark.parametrize("of", [Parametrisation.VELOCITY, Parametrisation.CLEAN])
def test_velocity_is_the_derivative_along_the_path(prior, bridge, of):
    """With both ends of the path fixed, by differences; noise and clean state come back from what is regressed on.
    Control: the isotropic derivative under a harmonic prior with bridge noise."""
    process, step = flow(prior, bridge, of), 1e-5
    x0, eps = batch(seed=1), batch(seed=2)
    noised = process.noised(x0, eps, at(process, TIMES))

    def moved(by: float) -> Tensor:
        return process.noising(x0, eps, at(process, [t + by for t in TIMES])).x

    expected = (moved(step) - moved(-step)) / (2 * step)
    found = Parametrisation.VELOCITY.target(noised.noise, noised)
    assert relative_error(found.x, expected) < 1e-7
    if prior is Prior.HARMONIC and bridge:
        frozen = replace(noised.level, d_harmonic_share=torch.zeros(3, dtype=F64))
        assert relative_error(velocity(x0, eps, frozen).x, expected) > 1e-3

    another = noised.noise.combine(batch(seed=3), lambda a, b: 0.9 * a + 0.3 * b)
    target = of.target(another, noised)
    assert relative_error(of.noise(target, noised.z_t, noised.level).x, another.x) < 1e-9
    assert relative_error(of.clean(target, noised.z_t, noised.level).x, noised.clean_of(another).x) < 1e-9
    assert relative_error(noised.noise_of(noised.clean_of(another)).x, another.x) < 1e-9


def raw(process: Process, x0: State, t: float, seed: int) -> tuple[Noised, State]:
    """z_t made of a draw of the prior and one of bridge noise, and its velocity e - x0 + s' e', as papers write it."""
    n, bridge = len(x0), process.cfg.bridge_noise
    e, other = (process.noise(x0.layout, generator(seed + i), F64, x0.context) for i in range(2))
    e = process.prior(e)
    s, d_s = bridge * (t * (1 - t)) ** 0.5, bridge * (1 - 2 * t) / (2 * (t * (1 - t)) ** 0.5)
    z_t = x0.replace(x=(1 - t) * x0.x + t * e.x + s * other.x)
    level = at(process, t, n)
    noise = process.spaces.displacement(z_t, x0, level)
    return Noised(x0, noise, z_t, level, process.spaces), x0.replace(x=e.x - x0.x + d_s * other.x)


def regression_products(process: Process, n: int, seed: int = 0, wrong: bool = False) -> Tensor:
    """(u - v) psi(z_t) of n molecules, u the velocity drawn, v its mean given z_t and x0, psi linear and bounded."""
    residuals = []
    for i, t in enumerate(TIMES):
        noised, u = raw(process, copies(batch().x[:5], FORK, n), t, 100 * seed + 10 * i)
        level = noised.level
        if wrong:
            level = replace(level, harmonic_share=None, d_harmonic_share=None)
        v = velocity(noised.clean, process.spaces.displacement(noised.z_t, noised.clean, level), level)
        residual, z = (u.x - v.x).view(n, 15), (noised.z_t.x - (1 - t) * noised.clean.x).view(n, 15)
        residuals.append(torch.cat([residual, residual * z, residual * torch.tanh(2 * z)], dim=1))
    return torch.cat(residuals, dim=1)


@OVER_SETTINGS
def test_target_of_plain_is_the_mean_velocity_given_state_and_data(prior, bridge):
    """The one noise that a process draws stands for a draw of the prior and one of bridge noise: the velocity of the
    two regresses on z_t to the target."""
    assert z_score(regression_products(flow(prior, bridge), 20_000)) < Z_MAX


@pytest.mark.slow
@OVER_SETTINGS
def test_target_of_plain_over_a_million_draws(prior, bridge):
    means = [regression_products(flow(prior, bridge), 10_000, seed).mean(0) for seed in range(100)]
    assert z_score(torch.stack(means)) < Z_MAX


def test_isotropic_velocity_under_a_harmonic_prior_with_bridge_noise_is_refused():
    """Control; without bridge noise the velocity (z_t - x0) / t is the same under every prior."""
    assert z_score(regression_products(flow(Prior.HARMONIC, 0.5), 20_000, wrong=True)) > Z_MAX
    assert z_score(regression_products(flow(Prior.HARMONIC), 20_000, wrong=True)) < Z_MAX


def test_target_is_finite_where_the_velocity_drawn_is_not():
    """Toward pure noise s' grows without bound, and with it the variance of the velocity of papers; the mean stays."""
    process = flow(Prior.GAUSSIAN, 0.1)
    spread = {}
    for t in (0.9, 0.9999):
        noised, u = raw(process, copies(batch().x[:5], FORK, 500), t, 0)
        v = Parametrisation.VELOCITY.target(noised.noise, noised)
        spread[t] = [(state.x + noised.clean.x).square().mean().item() for state in (u, v)]
    assert spread[0.9999][0] > 20 * spread[0.9][0]
    assert spread[0.9999][1] == pytest.approx(spread[0.9][1], rel=0.2)


# ---------------------------------------------------------------------- the law of samples

WIDTHS = torch.tensor([1.0, 0.3, 0.6, 0.9, 1.2], dtype=F64)  # of Gaussian data in the modes of FORK
MODES = torch.linalg.eigh(laplacian(FORK, 5)).eigenvectors


def in_modes(state: State) -> Tensor:
    """[n, 5, 3]: coefficients of molecules of the graph FORK."""
    return MODES.T @ state.x.to(F64).view(-1, 5, 3)


def variances(process: Process, t: float) -> Tensor:
    """Of each mode of z_t given x0 [5]."""
    return torch.diagonal(MODES.T @ dense_covariance(process.cfg.prior, process.cfg.bridge_noise, FORK, 5, t) @ MODES)


def gaussian_clean(process: Process, centre: Tensor) -> Callable[[State, Level], State]:
    """E[x0 | z_t] for data with the mean `centre` [5, 3] and standard deviation WIDTHS in modes, from the path's
    definition."""

    def clean(z_t: State, level: Level) -> State:
        t = level.t[0].item()
        variance = variances(process, t)
        gain = (1 - t) * WIDTHS**2 / ((1 - t) ** 2 * WIDTHS**2 + variance.clamp_min(1e-30))
        x = centre + gain[:, None] * (in_modes(z_t) - (1 - t) * centre)
        return z_t.replace(x=(MODES @ x).view(-1, 3).to(z_t.dtype))

    return clean


def as_output(process: Process, clean: State, z_t: State, level: Level) -> State:
    if process.parametrisation is Parametrisation.CLEAN:
        return clean
    return velocity(clean, process.spaces.displacement(z_t, clean, level), level)


def drawn_from(
    process: Process, clean: Callable[[State, Level], State], like: State, n_steps: int, sampler: Sampler
) -> State:
    def predict(z: State, level: Level) -> State:
        return as_output(process, clean(z, level), z, level)

    return sample(process, predict, like.layout, n_steps, generator(0), sampler=sampler, context=like.context)


def flow_error(process: Process, sampler: Sampler, n_steps: int) -> float:
    """Error of samples of Gaussian data, whose flow is linear in every mode: from its spread under the prior to
    WIDTHS."""
    like = copies(torch.zeros(5, 3, dtype=F64), FORK, 200)
    centre = torch.linspace(-1, 1, 15, dtype=F64).view(5, 3) * (torch.arange(5) > 0)[:, None]
    found = in_modes(drawn_from(process, gaussian_clean(process, centre), like, n_steps, sampler))
    white = in_modes(process.noise(like.layout, generator(0), torch.float32, like.context))
    return (found - centre - WIDTHS[:, None] * white)[:, 1:].abs().max().item()


@OVER_SETTINGS
@pytest.mark.parametrize("of", [Parametrisation.VELOCITY, Parametrisation.CLEAN])
def test_samplers_follow_the_flow_of_gaussian_data(prior, bridge, of):
    """Error of each sample against the exact map: first order for Euler, second for Heun on the straight path. With
    bridge noise the last step, to the mean of what is left, is of first order in b^2, for both."""
    process = flow(prior, bridge, of)
    euler, heun = ([flow_error(process, s, n) for n in (20, 40)] for s in (Sampler.EULER, Sampler.HEUN))
    assert 1.6 < euler[0] / euler[1] < 2.6
    assert euler[1] < 0.2
    if bridge:
        assert heun[0] / heun[1] > 1.4
    else:
        assert heun[0] / heun[1] > 3
        assert heun[1] < 0.2 * euler[1]


def test_a_denoiser_of_another_prior_is_noticed_in_the_samples():
    """Control: the exact denoiser under the Gaussian prior, sampled from the harmonic one."""
    like = copies(torch.zeros(5, 3, dtype=F64), FORK, 4000)
    centre = torch.zeros(5, 3, dtype=F64)
    spread = []
    for prior in Prior:
        clean = gaussian_clean(flow(prior), centre)
        found = in_modes(drawn_from(flow(Prior.HARMONIC), clean, like, 40, Sampler.HEUN))
        spread.append(found[:, 1:].square().mean((0, 2)).sqrt() / WIDTHS[1:])
    wrong, right = spread
    assert (right - 1).abs().max() < 0.03
    assert (wrong - 1).abs().max() > 0.2


@OVER_SETTINGS
@pytest.mark.parametrize("sampler", [Sampler.EULER, Sampler.HEUN])
def test_samplers_reproduce_two_gaussians(prior, bridge, sampler):
    """Shares 0.3 and 0.7, centres and widths in every mode; control: equal shares are refused."""
    process, n = flow(prior, bridge), 3000
    like = copies(torch.zeros(5, 3, dtype=F64), FORK, n)
    centre = torch.zeros(5, 3, dtype=F64)
    centre[1, 0], centre[3, 1] = 2.0, -1.5
    means = [gaussian_clean(process, sign * centre) for sign in (1, -1)]

    def clean(z: State, level: Level) -> State:
        t = level.t[0].item()
        variance = variances(process, t)
        width2 = ((1 - t) ** 2 * WIDTHS**2 + variance)[:, None]
        logit = torch.tensor(0.3 / 0.7).log() + (2 * (1 - t) * centre * in_modes(z) / width2)[:, 1:].sum((1, 2))
        share = z.per_atom(torch.sigmoid(logit))[:, None].to(z.dtype)
        a, b = (mean(z, level).x for mean in means)
        return z.replace(x=share * a + (1 - share) * b)

    found = in_modes(drawn_from(process, clean, like, 60, sampler))
    first = (found * centre).sum((1, 2)) > 0
    count = first.sum().item()
    assert abs(count - 0.3 * n) < Z_MAX * (0.21 * n) ** 0.5
    assert abs(count - 0.5 * n) > Z_MAX * (0.25 * n) ** 0.5
    sign = torch.where(first, 1.0, -1.0)[:, None, None]
    off = (found - sign * centre)[:, 1:]
    assert off.mean(0).abs().max() < 0.08
    assert (off.square().mean((0, 2)).sqrt() / WIDTHS[1:] - 1).abs().max() < 0.08


# ---------------------------------------------------------------------- symmetry


@OVER_SETTINGS
@pytest.mark.parametrize("determinant", [1, -1])
def test_prior_and_noising_turn_with_their_arguments(prior, bridge, determinant):
    """So the law of pure noise, and that of z_t given x0, is invariant under SO(3) and O(3). Control: a stretch."""
    process, Q = flow(prior, bridge), orthogonal(determinant)
    level = at(process, TIMES)
    x0, eps = batch(seed=1), batch(seed=2)
    here = process.noising(x0, eps, level)
    assert relative_error(process.prior(turned(eps, Q)).x, turned(process.prior(eps), Q).x) < 1e-12
    assert relative_error(process.noising(turned(x0, Q), turned(eps, Q), level).x, turned(here, Q).x) < 1e-12
    there = process.spaces.log_likelihood(turned(here, Q), turned(x0, Q), level)
    assert relative_error(there, process.spaces.log_likelihood(here, x0, level)) < 1e-12
    stretch = Q @ torch.diag(torch.tensor([2.0, 1.0, 1.0], dtype=F64))
    there = process.spaces.log_likelihood(turned(here, stretch), turned(x0, stretch), level)
    assert relative_error(there, process.spaces.log_likelihood(here, x0, level)) > 1e-2


CHIRAL = torch.tensor([[1.2, 0, 0], [0, 0, 0], [-0.4, 1.1, 0], [-0.5, -0.6, 0.9], [-0.4, -0.9, 2.1]], dtype=F64)


def handedness(x: Tensor) -> Tensor:
    """Signed volume of the first four atoms' bonds [n]."""
    return torch.linalg.det(x[:, [0, 2, 3]] - x[:, [1]])


def sampled_handedness(prior: Prior, bridge: float, group: RotationGroup, sampler: Sampler, n: int) -> Tensor:
    """Signed volumes of samples of the optimal denoiser of one chiral molecule, relative to the data's."""
    process, like = flow(prior, bridge), copies(CHIRAL, FORK, n)

    def clean(z: State, level: Level) -> State:
        if (level.alpha == 0).all():
            return z.map(torch.zeros_like)  # the mean over all rotations
        z64, level = z.to(dtype=F64), level.to(dtype=F64)
        noise = process.spaces.displacement(z64, like, level)
        noised = Noised(like, noise, z64, level, process.spaces)
        return noised.clean_of(group.posterior_mean(noised)).to(dtype=z.dtype)

    x = drawn_from(process, clean, like, 30, sampler).x.double().view(n, 5, 3)
    distances, expected = torch.cdist(x, x), torch.cdist(CHIRAL, CHIRAL)
    assert (distances - expected).abs().max() < 0.1
    return handedness(x) / handedness(CHIRAL[None])


@OVER_SETTINGS
def test_samples_are_mirrored_under_reflections_and_never_under_rotations(prior, bridge):
    """Chirality: the average over SO(3) gives one handedness alone, that over O(3) both, equally often."""
    n, sampler = 200, Sampler.HEUN if bridge else Sampler.EULER
    assert (sampled_handedness(prior, bridge, SO3(), sampler, n) > 0.5).all()
    volume = sampled_handedness(prior, bridge, O3(), sampler, n)
    assert (volume.abs() > 0.5).all()
    assert abs((volume > 0).sum().item() - n / 2) < Z_MAX * (n / 4) ** 0.5


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("cfg", "spaces", "message"),
    [
        ({"prior": Prior.HARMONIC}, {"x": Centred(3)}, "need path 'linear', got 'polynomial'"),
        ({"bridge_noise": 0.1}, {"x": Centred(3)}, "need path 'linear', got 'polynomial'"),
        ({"path": PathName.LINEAR, "bridge_noise": -0.1}, {"x": Centred(3)}, "expected a number that is not negative"),
        (
            {"path": PathName.LINEAR, "prior": Prior.HARMONIC, "parametrisation": Parametrisation.CLEAN},
            {"x": Centred(3), "h": Euclidean(2)},
            "takes positions alone, got parts x, h",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(cfg, spaces, message):
    with pytest.raises(ValueError, match=message):
        Process(Spaces(spaces), DiffusionConfig(**cfg))


def test_molecules_without_bonds_or_in_pieces_are_refused():
    process, loose = flow(Prior.HARMONIC), State({"x": batch().x}, Layout(SIZES))
    with pytest.raises(ValueError, match="needs a bond graph"):
        process.prior(loose)
    pieces: Bonds = ((0, 1), (2, 3), (3, 4))
    with pytest.raises(ValueError, match="one of 5 atoms in 2; choose prior 'gaussian'"):
        process.prior(copies(CHIRAL, pieces, 2))


def test_modes_are_made_once_for_a_batch_and_follow_its_graph():
    """The output of a network may lack the context; another graph over the same layout has modes of its own."""
    state = batch()
    level = at(flow(Prior.HARMONIC), TIMES)

    def by_sigma(state: State) -> Tensor:
        return scaled(state, level, lambda level: level.sigma).x

    found = by_sigma(state)
    kept = state.layout.memo[("harmonic", F64)]
    assert torch.equal(by_sigma(State(state.parts, state.layout)), found)
    assert state.layout.memo[("harmonic", F64)] is kept
    other = State(state.parts, state.layout, context([(*FORK, (0, 4)), RING, PAIR], SIZES))
    assert (by_sigma(other) - found).abs().max() > 1e-2


def test_settings_cover_both_priors_with_and_without_bridge_noise():
    assert {(prior, bridge > 0) for prior, bridge in SETTINGS} == {(p, b) for p in Prior for b in (True, False)}
