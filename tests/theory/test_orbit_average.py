"""Orbit averages: K = 1 is SymDiff-H, and what is left of the equivariance error falls as one over sqrt(K)."""

from __future__ import annotations

import pytest
import torch
from support import (
    ELEMENTS_OF_GROUPS,
    GROUP_NAMES,
    Z_MAX,
    generator,
    model_of,
    orthogonal,
    randomise,
    relative_error,
    states,
    turned,
)
from torch import Tensor

from bench.geometry.groups import O3, Group, Translated
from bench.geometry.layout import Layout
from bench.geometry.noised import Level
from bench.geometry.state import State
from bench.run.model import Model
from bench.symmetry.contract import Setting
from bench.symmetry.symmetrise import symmetrised_mean
from methods.orbit_average import OrbitAverage, OrbitAverageConfig


def averaged(n_draws: int, group: Group | None = None, dtype: torch.dtype = torch.float64) -> Model:
    model = model_of("plain", "dit", group, dtype)
    setting = Setting(group or O3(), model.denoiser.backbone, model.process.channels)
    model.method = OrbitAverage(OrbitAverageConfig(n_draws=n_draws), setting)
    return model


@pytest.mark.parametrize("backbone", ["dit", "egnn"])
def test_one_draw_is_symdiff_with_haar_rotations(backbone, precision):
    """K = 1 equals `symdiff_haar` on the same draws, bit for bit; K = 2 does not."""
    _, _, level, z_t = states(dtype=precision)
    other = model_of("symdiff_haar", backbone, dtype=precision)
    out = {}
    for n_draws in (1, 2):
        model = model_of("symdiff_haar", backbone, dtype=precision)
        setting = Setting(O3(), model.denoiser.backbone, model.process.channels)
        model.method = OrbitAverage(OrbitAverageConfig(n_draws=n_draws), setting)
        out[n_draws] = model.predict(z_t, level, generator(1))
    expected = other.predict(z_t, level, generator(1))
    assert torch.equal(out[1].x, expected.x)
    assert torch.equal(out[1].h, expected.h)
    assert not torch.equal(out[2].x, expected.x)


@pytest.mark.parametrize(("group", "determinant"), ELEMENTS_OF_GROUPS, ids=GROUP_NAMES)
@pytest.mark.parametrize("n_draws", [1, 2, 4, 8])
def test_average_is_equivariant_in_law_for_every_number_of_draws(n_draws, group, determinant):
    """T15: draws Q R at Q z where R at z turn the mean by Q, for any K; the same draws R at both do not."""
    _, _, level, z_t = states()
    Q = orthogonal(determinant)
    here = turned(averaged(n_draws, group).predict(z_t, level, generator(1)), Q)
    there = averaged(n_draws, Translated(group, Q)).predict(turned(z_t, Q), level, generator(1))
    assert relative_error(there, here) < 1e-9
    assert relative_error(averaged(n_draws, group).predict(turned(z_t, Q), level, generator(1)), here) > 1e-2


@pytest.mark.parametrize("n_draws", [1, 3, 8])
def test_every_draw_is_counted_as_a_network_call(n_draws):
    _, _, level, z_t = states()
    model = averaged(n_draws)
    model.predict(z_t, level, generator(0))
    assert model.denoiser.n_calls == n_draws


class OneDraw(OrbitAverage):
    """Control: K calls that share one rotation, so that nothing averages out."""

    def predict(self, denoiser, z_t, level, rng):
        R = self.group.haar(len(z_t), rng, z_t.x.dtype)
        return symmetrised_mean(self.group, [R] * self.n_draws, denoiser, z_t, level)


@torch.no_grad()
def squared_errors(n_draws: int, method: type[OrbitAverage], n: int = 400) -> Tensor:
    """|D(Q z) - Q D(z)|^2 over n independent pairs of draws [n], one state."""
    model = averaged(n_draws, dtype=torch.float32)
    randomise(model.denoiser, 5)  # far from equivariant
    model.method.__class__ = method
    one = states([5], seed=6, dtype=torch.float32)[3]
    z = State({"x": one.x.repeat(n, 1), "h": one.h.repeat(n, 1)}, Layout([5] * n))
    level = model.process.path.at(torch.full((n,), 400))
    Q = orthogonal(1, 2)
    here, there = model.predict(z, level, generator(1)), model.predict(turned(z, Q), level, generator(2))
    return there.combine(turned(here, Q), torch.sub).squared_norm().double()


def excess(method: type[OrbitAverage], n_draws: int) -> float:
    """Standard score of K E|error of K draws|^2 - E|error of one|^2."""
    many, one = n_draws * squared_errors(n_draws, method), squared_errors(1, method)
    return ((many.mean() - one.mean()) / (many.var() / len(many) + one.var() / len(one)).sqrt()).item()


@pytest.mark.parametrize("n_draws", [4, 16])
def test_equivariance_error_falls_as_one_over_the_root_of_the_draws(n_draws):
    """K E|D(Qz) - Q D(z)|^2 does not depend on K, |z| < 5; with one rotation shared by all K it grows."""
    assert abs(excess(OrbitAverage, n_draws)) < Z_MAX
    assert excess(OneDraw, n_draws) > Z_MAX


def test_average_brings_an_estimate_nearer_to_its_aim():
    """Jensen: |eps - mean|^2 is at most the mean of |eps - term|^2, molecule by molecule."""
    _, eps, level, z_t = states()
    model = averaged(4)
    rotations = [O3().haar(len(z_t), generator(i), torch.float64) for i in range(4)]

    def error(draws: list[Tensor], level: Level = level) -> Tensor:
        mean = symmetrised_mean(O3(), draws, model.denoiser, z_t, level)
        return mean.combine(eps, torch.sub).squared_norm()

    assert (error(rotations) < torch.stack([error([R]) for R in rotations]).mean(0)).all()
