"""Orbit-averaged targets: limits, symmetry, unbiasedness and the variance that they remove (spec section 4)."""

from __future__ import annotations

import pytest
import torch

from bench.diffusion.schedule import NoiseLevel, NoiseSchedule
from bench.groups import O3, SO3
from bench.method import NoOptions, Setting
from bench.molecules import Layout, Molecules
from methods.orbit_rb_exact import OrbitRBExact

N_ATOMS = 18
SCHEDULE = NoiseSchedule()


def method(group=None) -> OrbitRBExact:
    return OrbitRBExact(NoOptions(), Setting(group or SO3(), torch.nn.Identity(), 1))


def cloud(n: int, seed: int, n_atoms: int = N_ATOMS, dims: int = 3) -> Molecules:
    """n copies of one centred cloud of about a molecule's size; `dims` = 1 is collinear."""
    rng = torch.Generator().manual_seed(seed)
    x = 1.5 * torch.randn(n_atoms, 3, generator=rng, dtype=torch.float64)
    x[:, dims:] = 0
    layout = Layout([n_atoms] * n)
    return Molecules(x.repeat(n, 1), torch.zeros(n * n_atoms, 1, dtype=torch.float64), layout).centred()


def noised(x0: Molecules, i: int, seed: int) -> tuple[Molecules, Molecules, NoiseLevel]:
    """z_t, eps and level at index i."""
    rng = torch.Generator().manual_seed(seed)
    level = SCHEDULE.at(torch.full((len(x0),), i), torch.float64)
    eps = x0.replace(x=torch.randn(x0.x.shape, generator=rng, dtype=torch.float64)).centred()
    z_t = x0.replace(x=x0.per_atom(level.alpha)[:, None] * x0.x + x0.per_atom(level.sigma)[:, None] * eps.x)
    return z_t, eps, level


def target(x0: Molecules, z_t: Molecules, level: NoiseLevel, group=None) -> torch.Tensor:
    return method(group).target(x0, z_t, level, torch.Generator()).x


def relative_size(i: int) -> float:
    x0 = cloud(200, 1)
    z_t, _, level = noised(x0, i, 2)
    return (target(x0, z_t, level).norm() / x0.x.norm()).item()


def test_target_tends_to_the_data_at_low_noise_and_to_nothing_at_high():
    """T23: |T - x0| <= 5 sigma / alpha; |T| / |x0| < 0.05 at t = T, and decreasing in t."""
    for i in (1, 10, 100):
        x0 = cloud(50, 3)
        z_t, _, level = noised(x0, i, 4)
        distance = x0.sum_over_atoms((target(x0, z_t, level) - x0.x).square().sum(1)).sqrt()
        assert (distance <= 5 * level.sigma / level.alpha).all()
        assert (distance > 0).all()
    sizes = [relative_size(i) for i in (10, 200, 500, 700, 900, 990, 1000)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.05 < sizes[3]


@pytest.mark.parametrize("group", [SO3(), O3()], ids=["SO3", "O3"])
def test_target_turns_with_the_state_and_not_with_the_data(group):
    """T24: T(Q x_t, x0) = Q T(x_t, x0) and T(x_t, Q x0) = T(x_t, x0)."""
    x0 = cloud(6, 5)
    z_t, _, level = noised(x0, 400, 6)
    Q = group.haar(6, torch.Generator().manual_seed(7), torch.float64)
    plain = x0.replace(x=target(x0, z_t, level, group))
    assert (target(x0, z_t.rotate(Q), level, group) - plain.rotate(Q).x).abs().max() < 1e-5
    assert (target(x0.rotate(Q), z_t, level, group) - plain.x).abs().max() < 1e-5
    assert (target(x0, z_t.rotate(Q), level, group) - plain.x).abs().max() > 0.1  # control


def bias_score(factor: float) -> float:
    """Largest |z| of E<T - R x0, psi(x_t)> over test functions and levels; `factor` spoils the concentration."""
    worst = 0.0
    for i in (300, 500, 700):
        x0 = cloud(4000, 8, n_atoms=3)
        x0 = x0.rotate(SO3().haar(len(x0), torch.Generator().manual_seed(i), torch.float64))
        z_t, _, level = noised(x0, i, 9 + i)
        spoilt = NoiseLevel(level.t, level.alpha * factor, level.sigma, level.log_snr)
        difference = target(x0, z_t, spoilt) - x0.x
        for psi in (z_t.x, torch.tanh(2 * z_t.x), z_t.x.norm(dim=1, keepdim=True) * z_t.x):
            products = x0.sum_over_atoms((difference * psi).sum(1))
            worst = max(worst, (products.mean() / products.std() * len(products) ** 0.5).abs().item())
    return worst


def test_target_is_the_posterior_mean():
    """T26, exact version: E<T - R x0, psi(x_t)> = 0; a wrong concentration (half of it) is noticed."""
    assert bias_score(1.0) < 5
    assert bias_score(0.5) > 10


def removed(i: int, dims: int = 3) -> float:
    """E|eps - eps*|^2 = (alpha / sigma)^2 E|x0 - T|^2 per molecule."""
    x0 = cloud(400, 10, dims=dims)
    z_t, _, level = noised(x0, i, 11)
    ratio = x0.per_atom(level.alpha / level.sigma)[:, None]
    shift = ratio * (x0.x - target(x0, z_t, level))
    return x0.sum_over_atoms(shift.square().sum(1)).mean().item()


def test_the_variance_removed_is_the_dimension_of_the_orbit():
    """T29: 3 +- 0.6 for a generic cloud, 2 for a collinear one at low noise, nothing at the end."""
    for i in (100, 300, 500):
        assert abs(removed(i) - 3) < 0.6
    assert abs(removed(50, dims=1) - 2) < 0.4
    assert removed(990) < 0.2


def test_averaging_never_raises_the_variance_of_the_target():
    """T28, its ends: Var <exact, psi> <= Var <one draw, psi>, strictly in the middle of the schedule."""
    x0 = cloud(2000, 12, n_atoms=5)
    x0 = x0.rotate(SO3().haar(len(x0), torch.Generator().manual_seed(13), torch.float64))
    z_t, _, level = noised(x0, 500, 14)
    averaged = x0.sum_over_atoms((target(x0, z_t, level) * z_t.x).sum(1))
    single = x0.sum_over_atoms((x0.x * z_t.x).sum(1))
    assert averaged.var() < single.var()


def test_float32_positions_are_enough():
    x0 = cloud(20, 15)
    for i in (0, 1, 300, 1000):
        z_t, _, level = noised(x0, i, 16)
        single = NoiseLevel(*(v.float() for v in (level.t, level.alpha, level.sigma, level.log_snr)))
        rounded = target(x0.to(dtype=torch.float32), z_t.to(dtype=torch.float32), single)
        assert (rounded - target(x0, z_t, level)).abs().max() < 1e-5 * 10
