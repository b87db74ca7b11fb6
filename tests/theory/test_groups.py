"""Posterior means and evidence of an orbit, group by group, against enumeration, quadrature and sampling.

Each closed form is held to one general computation, the weighted mean over many group elements, which knows of a group
nothing but how it acts.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bench.config.run import build
from bench.geometry.groups import O3, SO2, SO3, Group, Permutations, RotationGroup, Sign, weighted_noise
from bench.geometry.layout import Layout
from bench.geometry.noised import Level, Noised
from bench.geometry.spaces import Centred, Euclidean, Spaces, Torus
from bench.geometry.state import State
from bench.geometry.torus import TorusShift
from bench.symmetry.orbit import OrbitTargetConfig, orbit_target

F64 = torch.float64


def level(sigma: float, n: int, exploding: bool = False) -> Level:
    s = torch.full((n,), sigma, dtype=F64)
    alpha = torch.ones_like(s) if exploding else (1 - s.square()).sqrt()
    return Level(s, alpha, s)


def noised(group: Group, sigma: float, n_points: int, n: int = 4, seed: int = 0) -> Noised:
    rng = torch.Generator().manual_seed(seed)
    layout = Layout([n_points] * n)
    if isinstance(group, TorusShift):
        spaces, part = Spaces({"frac": Torus(3)}), "frac"
        clean = State({part: torch.rand(n_points, 3, generator=rng, dtype=F64).repeat(n, 1)}, layout)
    else:
        columns = getattr(group, "size", 2)
        space = Euclidean(columns) if n_points == 1 else Centred(columns)
        spaces, part = Spaces({"x": space}), "x"
        x = torch.randn(n_points, columns, generator=rng, dtype=F64).repeat(n, 1)
        clean = State({part: space.project(x, layout)}, layout)
    clean = group.act(group.haar(n, rng, F64), clean)
    noise = spaces.noise(layout, rng, F64)
    at = level(sigma, n, isinstance(group, TorusShift))
    z_t = spaces.move(clean, noise, at)
    return Noised(clean, spaces.expected_noise(noise, z_t, clean, at), z_t, at, spaces)


def elements(group: Group, n: int) -> list[Tensor]:
    """Elements that cover a group evenly: all of it, or a fine grid."""
    if isinstance(group, Sign):
        return [torch.full((1, 1, 1), s, dtype=F64) for s in (1.0, -1.0)]
    if isinstance(group, Permutations):
        return [element[None] for element in group.elements]
    assert isinstance(group, SO2)
    angle = 2 * math.pi * torch.arange(n, dtype=F64) / n
    return [SO2.rotation(a.cos(), a.sin()) for a in angle[:, None]]


@pytest.mark.parametrize("sigma", [0.05, 0.3, 0.9])
@pytest.mark.parametrize(("group", "n_points"), [(Sign(), 1), (SO2(), 3), (Permutations(2), 2), (Permutations(4), 4)])
def test_posterior_mean_and_evidence_are_those_of_enumeration(group, n_points, sigma):
    made = noised(group, sigma, n_points)
    g = [element.expand(len(made), *element.shape[1:]) for element in elements(group, 1000)]
    log_w = torch.stack([group.log_likelihood(element, made) for element in g])
    brute = weighted_noise(group, g, log_w, made)
    exact = group.posterior_mean(made)
    torch.testing.assert_close(exact.x, brute.x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(group.log_evidence(made), log_w.logsumexp(0) - math.log(len(g)), rtol=1e-9, atol=1e-8)
    if sigma == 0.9:  # control: where the group matters, the noise that made z_t is not the mean
        assert (exact.x - made.noise.x).abs().max() > 1e-2


def test_the_sign_flip_is_a_hyperbolic_tangent():
    made = noised(Sign(), 0.7, 1, n=64)
    alpha, sigma = made.level.alpha[:, None], made.level.sigma[:, None]
    clean = made.clean_of(Sign().posterior_mean(made)).x
    torch.testing.assert_close(clean, torch.tanh(alpha * made.z_t.x * made.clean.x / sigma**2) * made.clean.x)
    assert (clean - made.clean.x).abs().max() > 0.1  # control


@pytest.mark.parametrize("group", [SO3(), O3()], ids=["SO3", "O3"])
def test_evidence_of_rotations_is_a_mean_over_draws(group):
    F = torch.diag(torch.tensor([1.4, 1.2, 1.0], dtype=F64)) @ SO3().haar(1, torch.Generator().manual_seed(0), F64)[0]
    R = group.haar(400_000, torch.Generator().manual_seed(1), F64)
    weights = torch.einsum("ij,kij->k", F, R).exp()
    found = group.log_normaliser(F[None]).exp().item()
    z = abs(weights.mean().item() - found) / (weights.std().item() / len(R) ** 0.5)
    assert z < 5
    other = (SO3() if isinstance(group, O3) else O3()).log_normaliser(F[None]).exp().item()
    assert abs(weights.mean().item() - other) / (weights.std().item() / len(R) ** 0.5) > 5  # control: the other group


# ---------------------------------------------------------------------- the torus


def dense_mean(made: Noised, n_nodes: int = 200_000, uniform: bool = True) -> Tensor:
    """E[eps | z_t, orbit] [A, 3] by nodes on the whole circle, one molecule and axis after the other."""
    space, sigma = made.spaces["frac"], made.level.sigma[0]
    d = made.z_t.parts["frac"] - made.clean.parts["frac"]
    tau = (torch.arange(n_nodes, dtype=F64) + 0.5) / n_nodes
    out = torch.empty_like(d)
    zero, one = torch.zeros(n_nodes, 1, dtype=F64), torch.ones(n_nodes, 1, dtype=F64)
    for b in range(len(made)):
        rows = range(int(made.z_t.ptr[b]), int(made.z_t.ptr[b + 1]))
        for a in range(3):
            moved = [(d[n, a] - tau)[:, None] for n in rows]  # one atom at a time keeps memory flat
            log_w = sum(space.log_likelihood(at, zero, one, sigma * one) for at in moved)
            assert isinstance(log_w, Tensor)
            w = log_w.softmax(0)
            for n, at in zip(rows, moved, strict=True):
                out[n, a] = w @ space.displacement(at, zero, one, sigma * one)[:, 0]
    return out


@pytest.mark.parametrize("n_points", [1, 2, 7])
@pytest.mark.parametrize("sigma", [0.005, 0.1, 0.5])
def test_the_torus_quadrature_is_that_of_200_000_nodes(sigma, n_points):
    group = TorusShift()
    made = noised(group, sigma, n_points, n=1)
    torch.testing.assert_close(group.posterior_mean(made).frac, dense_mean(made), rtol=0, atol=1e-10)


def test_a_uniform_grid_of_256_nodes_is_not_enough_at_small_noise():
    """Control of the above: the interval around the circular mean is what makes few nodes suffice."""
    made = noised(TorusShift(), 0.005, 20, n=1)
    assert (dense_mean(made, 256) - dense_mean(made)).abs().max() > 0.05


def test_limits_of_the_torus_target():
    group = TorusShift()
    small = noised(group, 0.002, 5)
    noise = small.noise.frac
    mean = small.z_t.per_atom(small.z_t.mean_over_atoms(noise))
    torch.testing.assert_close(group.posterior_mean(small).frac, noise - mean, rtol=0, atol=1e-9)
    assert mean.abs().max() > 0.1  # control: the mean over atoms is what is removed
    for sigma in (0.01, 0.2, 0.5):  # a lone atom's place is nothing but the shift
        alone = noised(group, sigma, 1)
        assert group.posterior_mean(alone).frac.abs().max() < 1e-10
    assert noised(group, 0.2, 1).noise.frac.abs().max() > 0.1
    assert group.posterior_mean(noised(group, 0.9, 3)).frac.abs().max() < 1e-8  # near the period nothing is left


def test_torus_target_against_a_million_shifts():
    group = TorusShift()
    made = noised(group, 0.2, 2, n=1)
    d = made.z_t.frac - made.clean.frac
    tau = torch.rand(1_000_000, generator=torch.Generator().manual_seed(5), dtype=F64)
    for a in range(3):
        moved = (d[:, a][:, None] - tau).reshape(-1, 1)
        zero, one = torch.zeros_like(moved), torch.ones_like(moved)
        log_w = made.spaces["frac"].log_likelihood(moved, zero, one, 0.2 * one).view(2, -1).sum(0)
        noise = made.spaces["frac"].displacement(moved, zero, one, 0.2 * one).view(2, -1)
        w = log_w.softmax(0)
        mean = (w * noise).sum(1)
        spread = (w.square() * (noise - mean[:, None]).square()).sum(1).sqrt()
        exact = group.posterior_mean(made).frac[:, a]
        assert ((exact - mean).abs() < 5 * spread + 1e-12).all()
        assert ((made.noise.frac[:, a] - mean).abs() > 5 * spread).any()  # control: the noise itself is not the mean


# ---------------------------------------------------------------------- all groups

GROUPS = [(Sign(), 1), (SO2(), 3), (SO3(), 4), (O3(), 4), (Permutations(3), 3), (TorusShift(), 2)]
IDS = ["sign", "SO2", "SO3", "O3", "permutations", "torus"]


@pytest.mark.parametrize(("group", "n_points"), GROUPS, ids=IDS)
def test_posterior_means_turn_with_z_and_do_not_see_which_element_made_it(group, n_points):
    made = noised(group, 0.4 if n_points > 1 else 0.8, n_points)
    rng = torch.Generator().manual_seed(9)
    g, h = group.haar(len(made), rng, F64), group.haar(len(made), rng, F64)
    mean = group.posterior_mean(made)

    def of(z_t: State, clean: State) -> State:
        return group.posterior_mean(
            Noised(clean, made.spaces.displacement(z_t, clean, made.level), z_t, made.level, made.spaces)
        )

    part = group.part if hasattr(group, "part") else "x"
    turned = of(group.act(g, made.z_t), made.clean)
    torch.testing.assert_close(turned.parts[part], group.act_on_noise(g, mean).parts[part], rtol=0, atol=1e-7)
    other = of(made.z_t, group.act(h, made.clean))
    torch.testing.assert_close(other.parts[part], mean.parts[part], rtol=0, atol=1e-7)
    shifted = made.clean.map(lambda x: x + 0.1 * torch.arange(len(x), dtype=F64)[:, None])  # control: another orbit
    assert (of(made.z_t, shifted).parts[part] - mean.parts[part]).abs().max() > 1e-3


def _mean_of_targets(group: Group, n_points: int, cfg: OrbitTargetConfig, n: int) -> float:
    """Largest standard score of mean(target - exact) over n independent examples, projected on z and on the mean.

    For one orbit the exact mean is a function of z_t; an unbiased target differs from it by what no function of z_t can
    tell, so its products with functions of z_t average to zero.
    """
    sigma = 0.1 if isinstance(group, TorusShift) else 0.5 if n_points > 1 else 0.9  # where the group is in doubt
    made = noised(group, sigma, n_points, n=n, seed=3)
    rng = torch.Generator().manual_seed(4)
    part = group.part if hasattr(group, "part") else "x"
    target = orbit_target(made, group, rng, cfg).noise.parts[part]
    exact = group.posterior_mean(made).parts[part]
    products = made.z_t.sum_over_atoms(((target - exact) * exact).sum(1))
    assert products.abs().max() > 0
    return abs(products.mean().item()) / (products.std().item() / n**0.5)


@pytest.mark.slow
@pytest.mark.parametrize(("group", "n_points"), GROUPS, ids=IDS)
def test_the_sampled_average_is_unbiased(group, n_points):
    n = 5_000 if isinstance(group, TorusShift) else 20_000 if isinstance(group, RotationGroup) else 100_000
    assert _mean_of_targets(group, n_points, OrbitTargetConfig(n_draws=3), n) < 5


@pytest.mark.slow
@pytest.mark.parametrize(("group", "n_points"), GROUPS, ids=IDS)
def test_a_biased_average_is_noticed(group, n_points):
    """Control: without the generating element three draws are a biased estimate."""
    n = 5_000 if isinstance(group, TorusShift) else 20_000 if isinstance(group, RotationGroup) else 100_000
    cfg = OrbitTargetConfig(n_draws=3, include_generator=False)
    assert _mean_of_targets(group, n_points, cfg, n) > 5


class Narrow(TorusShift):
    """Control: the width of one normal divided by sqrt(N), whatever sigma is."""

    FLAT = math.inf


@pytest.mark.parametrize("sigma", [0.05, 0.25, 0.35])
def test_the_quadrature_of_a_shift_covers_the_posterior_of_many_atoms(sigma):
    at = noised(TorusShift(), sigma, 100, n=1)
    whole = TorusShift(1024)
    whole.REACH = math.inf
    exact, evidence = whole.posterior_mean(at).frac, whole.log_evidence(at)
    torch.testing.assert_close(TorusShift().posterior_mean(at).frac, exact, rtol=0, atol=1e-7)
    torch.testing.assert_close(TorusShift().log_evidence(at), evidence, rtol=0, atol=1e-7)
    if sigma > 0.3:
        assert (Narrow().posterior_mean(at).frac - exact).abs().max() > 1e-3


def test_options_that_a_group_does_not_have_are_refused():
    """Control: a group of matrices has them."""
    chosen = build(OrbitTargetConfig, {"n_draws": 2, "permutations": "all"})
    rng = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="TorusShift takes permutations 'none', got 'all'"):
        orbit_target(noised(TorusShift(), 0.1, 3), TorusShift(), rng, chosen)
    orbit_target(noised(O3(), 0.1, 3), O3(), rng, chosen)


def test_classes_of_atoms_need_features():
    chosen = build(OrbitTargetConfig, {"n_draws": 2, "permutations": "classes"})
    with pytest.raises(ValueError, match="need features h; the state has x"):
        orbit_target(noised(O3(), 0.1, 3), O3(), torch.Generator().manual_seed(0), chosen)
