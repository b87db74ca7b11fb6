"""Orbit-averaged targets of flows, for each prior and path: as enumerated, unbiased; and the released heuristic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from flows import F64, FORK, GRAPHS, OVER_SETTINGS, SIZES, at, batch, context, copies, covariance, flow, laplacian
from support import Z_MAX, generator, orthogonal, relative_error, turned, z_score
from torch import Tensor

from bench.diffusion.parametrisation import Parametrisation
from bench.diffusion.paths import Prior
from bench.diffusion.process import Process
from bench.geometry.automorphisms import RotationsAndAutomorphisms
from bench.geometry.groups import O3, SO3, RotationGroup
from bench.geometry.layout import Layout
from bench.geometry.noised import Noised
from bench.geometry.state import State
from bench.symmetry.contract import Method, NoOptions, Setting
from bench.symmetry.orbit import OrbitTargetConfig, Proposal, orbit_target
from bench.symmetry.permutations import Permutations, automorphisms
from methods.orbit_rb import OrbitRB
from methods.orbit_rb_as_released import OrbitAsReleasedConfig, OrbitRBAsReleased, prior_sample
from methods.orbit_rb_exact import OrbitRBExact
from methods.target_symmetrisation import TargetSymmetrisation

STAR = ((0, 1), (0, 2), (0, 3), (3, 4))  # atoms 1 and 2 can change places
METHYL = ((0, 1), (0, 2), (0, 3), (0, 4), (4, 5))  # atoms 1, 2 and 3 can
SIX = automorphisms("CHHHOH", [(i, j, 1) for i, j in METHYL])  # S_3
SHAPE = torch.tensor(
    [[0.1, 0.2, 0.0], [1.0, 0.1, 0.3], [-0.5, 0.9, 0.1], [-0.4, -0.8, 0.5], [0.0, -0.1, -1.4], [0.9, 0.2, -1.9]],
    dtype=F64,
)


def on_flow(group: RotationGroup, name: type[Method], cfg: object | None = None) -> Method:
    return name(NoOptions() if cfg is None else cfg, Setting(group, torch.nn.Identity(), {"x": 3}))


def noised_at(process: Process, x0: State, t: float, seed: int) -> tuple[Noised, State]:
    """z_t made of a draw of the prior and one of bridge noise, and its velocity e - x0 + s' e'."""
    bridge = process.cfg.bridge_noise
    e, other = (process.noise(x0.layout, generator(seed + i), F64, x0.context) for i in range(2))
    e = process.prior(e)
    s, d_s = bridge * (t * (1 - t)) ** 0.5, bridge * (1 - 2 * t) / (2 * (t * (1 - t)) ** 0.5)
    z_t = x0.replace(x=(1 - t) * x0.x + t * e.x + s * other.x)
    level = at(process, t, len(x0))
    noise = process.spaces.displacement(z_t, x0, level)
    return Noised(x0, noise, z_t, level, process.spaces), x0.replace(x=e.x - x0.x + d_s * other.x)


def isotropic(noised: Noised) -> Noised:
    """Control: what the release makes of a harmonic prior."""
    return replace(noised, level=replace(noised.level, harmonic_share=None, d_harmonic_share=None))


# ---------------------------------------------------------------------- against enumeration


def enumerated(process: Process, noised: Noised, t: float, elements: Tensor, group: RotationGroup, n: int) -> Tensor:
    """E[x0 | z_t, orbit] of one molecule, from n Haar draws times the listed permutations, each weighed by the normal
    density of z_t in dense matrices."""
    z, x = noised.z_t.x, noised.clean.x
    precision = torch.linalg.pinv(covariance(process.cfg.prior, process.cfg.bridge_noise, METHYL, len(x), t))
    R = group.haar(n, generator(9), F64)
    candidates = torch.einsum("kij,pnj->kpni", R, x[elements]).flatten(0, 1)
    d = z - (1 - t) * candidates
    log_p = -0.5 * torch.einsum("kni,nm,kmi->k", d, precision, d)
    return torch.einsum("k,kni->ni", log_p.softmax(0), candidates)


@OVER_SETTINGS
@pytest.mark.parametrize("group", [SO3(), O3(), RotationsAndAutomorphisms()], ids=["SO3", "O3", "SO3xAut"])
def test_closed_form_is_the_average_over_the_enumerated_group(prior, bridge, group):
    """Rotations stay matrix-Fisher under a harmonic prior, and automorphisms a mixture of them: 60 000 weighed
    candidates for each permutation, 3 % of |x0|. Controls: isotropic weights, and a group without permutations."""
    process, t = flow(prior, bridge), 0.45
    with_permutations = isinstance(group, RotationsAndAutomorphisms)
    elements = SIX if with_permutations else SIX[:1]
    noised, _ = noised_at(process, copies(SHAPE, METHYL, 1, SIX), t, 3)
    found = noised.clean_of(group.posterior_mean(noised)).x
    expected = enumerated(process, noised, t, elements, group, 60_000)
    assert (found - expected).norm() < 0.03 * SHAPE.norm()
    if prior is Prior.HARMONIC:
        wrong = isotropic(noised)
        assert (wrong.clean_of(group.posterior_mean(wrong)).x - expected).norm() > 0.06 * SHAPE.norm()
    if with_permutations:
        assert (noised.clean_of(SO3().posterior_mean(noised)).x - expected).norm() > 0.06 * SHAPE.norm()


@OVER_SETTINGS
def test_many_sampled_candidates_approach_the_closed_form(prior, bridge):
    """Local proposals and drawn automorphisms, without the generating element, in a ragged batch."""
    process = flow(prior, bridge)
    x0 = batch()
    table = torch.arange(sum(SIZES))[:, None].repeat(1, 2)
    table[[0, 2], 1] = table[[2, 0], 0]  # of FORK
    lists: dict[str, Any] = {"automorphisms": table, "n_automorphisms": torch.tensor([2, 1, 1])}
    both = State(x0.parts, Layout(SIZES), context(GRAPHS, SIZES, **lists))
    noised, _ = noised_at(process, both, 0.5, 3)
    group = RotationsAndAutomorphisms()
    expected = noised.clean_of(group.posterior_mean(noised)).x
    cfg = OrbitTargetConfig(60, include_generator=False, proposal=Proposal.LOCAL, n_permutations=400)
    found = orbit_target(noised, group, generator(4), cfg)
    assert relative_error(noised.clean_of(found.noise).x, expected) < 0.04
    warm = replace(cfg, temperature=0.4)
    assert relative_error(noised.clean_of(orbit_target(noised, group, generator(4), warm).noise).x, expected) > 0.06


def test_permutations_that_break_bonds_are_refused_under_a_harmonic_prior():
    noised, _ = noised_at(flow(Prior.HARMONIC), batch(), 0.5, 0)
    cfg = OrbitTargetConfig(permutations=Permutations.ALL)
    with pytest.raises(ValueError, match="permutations 'all' break bonds"):
        orbit_target(noised, SO3(), generator(0), cfg)


# ---------------------------------------------------------------------- unbiased


def bias_score(
    method: Method, process: Process, n: int, t: float, list_of: Tensor = SIX, equivariant: bool = False
) -> float:
    """|z| of E[(u - v) psi(z_t)], u the velocity drawn and v the method's target, for data permuted at random.

    psi: z, |z|^2 z, and coordinatewise functions unless `equivariant`; in batches of 10 000 molecules.
    """
    N, statistics = len(SHAPE), []
    for i in range(0, n, size := min(n, 10_000)):
        rng = generator(1000 + i)
        x0 = copies(SHAPE, METHYL, size, list_of)
        element = SIX[torch.randint(len(SIX), (size,), generator=rng)]
        x0 = x0.replace(x=x0.x.view(size, N, 3).gather(1, element[:, :, None].expand(-1, -1, 3)).reshape(-1, 3))
        noised, u = noised_at(process, method.augment(x0, rng), t, 2 * i)
        v = process.parametrisation.target(method.target(noised, rng), noised)
        off, z = (u.x - v.x).view(size, 3 * N), noised.z_t.x.view(size, 3 * N)
        square = z.square().sum(1, keepdim=True)
        functions = (
            [z, square * z]
            if equivariant
            else [z, square * z, torch.tanh(2 * z), z * z.abs(), z.view(size, N, 3)[:, SIX[3]].flatten(1)]
        )
        statistics.append(torch.stack([(off * psi).sum(1) for psi in functions], dim=1))
    return z_score(torch.cat(statistics))


LOCAL = OrbitTargetConfig(4, proposal=Proposal.LOCAL, n_permutations=2)
UNBIASED = [
    (OrbitRBExact, None, SO3()),
    (OrbitRBExact, None, O3()),
    (OrbitRBExact, None, RotationsAndAutomorphisms()),
    (OrbitRB, LOCAL, RotationsAndAutomorphisms()),
    (OrbitRB, OrbitTargetConfig(8), SO3()),
]
OVER_TARGETS = pytest.mark.parametrize(
    ("name", "cfg", "group"), UNBIASED, ids=["exact-SO3", "exact-O3", "exact-Aut", "local-Aut", "uniform-SO3"]
)


@OVER_SETTINGS
@OVER_TARGETS
def test_orbit_targets_have_the_mean_of_the_velocity(prior, bridge, name, cfg, group):
    method = on_flow(group, name, cfg)
    assert bias_score(method, flow(prior, bridge), 3000, 0.6) < Z_MAX


@pytest.mark.slow
@OVER_SETTINGS
@pytest.mark.parametrize(
    ("group", "n"), [(SO3(), 1_000_000), (RotationsAndAutomorphisms(), 170_000)], ids=["SO3", "SO3xAut"]
)
def test_closed_form_has_the_mean_of_a_million_velocities(prior, bridge, group, n):
    """With automorphisms a target is a mean over six matrix-Fisher laws: a million of these."""
    assert bias_score(on_flow(group, OrbitRBExact), flow(prior, bridge), n, 0.5) < Z_MAX


class IsotropicWeights(OrbitRBExact):
    """Control: the closed form with the weights of isotropic noise."""

    def target(self, noised: Noised, rng: torch.Generator) -> State:
        clean = isotropic(noised)
        return noised.noise_of(clean.clean_of(super().target(clean, rng)))


def test_isotropic_weights_under_a_harmonic_prior_are_biased():
    """Control; under the Gaussian prior they are right, with bridge noise and without."""
    method = on_flow(SO3(), IsotropicWeights)
    assert bias_score(method, flow(Prior.HARMONIC), 10_000, 0.6) > Z_MAX
    assert bias_score(method, flow(Prior.GAUSSIAN, 0.5), 3000, 0.6) < Z_MAX


def test_a_part_of_the_automorphisms_that_is_no_group_is_biased():
    """Control: a list that is cut short, here a cycle of three atoms without its inverse; a subgroup is not."""
    method = on_flow(RotationsAndAutomorphisms(), OrbitRBExact)
    subgroup = SIX[[0, 3, 4]]
    assert bias_score(method, flow(Prior.GAUSSIAN), 10_000, 0.4, subgroup[:2]) > Z_MAX
    assert bias_score(method, flow(Prior.GAUSSIAN), 10_000, 0.4, subgroup) < Z_MAX


@OVER_SETTINGS
def test_target_symmetrisation_serves_equivariant_networks_on_flows(prior, bridge):
    """On the data as stored: its mean is that of the velocity against every equivariant function of z_t, which is all
    that an equivariant network can be. Control: the released heuristic is noticed by the same functions."""
    cfg = OrbitTargetConfig(8, proposal=Proposal.LOCAL)
    method = on_flow(SO3(), TargetSymmetrisation, cfg)
    assert bias_score(method, flow(prior, bridge), 10_000, 0.6, equivariant=True) < Z_MAX
    assert bias_score(released(SO3()), flow(prior, bridge), 10_000, 0.6, equivariant=True) > Z_MAX


@OVER_SETTINGS
@pytest.mark.parametrize(("group", "determinant"), [(SO3(), 1), (O3(), 1), (O3(), -1)], ids=["SO3", "O3", "O3-mirror"])
def test_targets_turn_with_the_state_and_not_with_the_data(prior, bridge, group, determinant):
    """T(Q z, x0) = Q T(z, x0) and T(z, Q x0) = T(z, x0). Control: over SO(3) a mirror image has another target."""
    process, Q = flow(prior, bridge), orthogonal(determinant)
    noised, _ = noised_at(process, batch(), 0.5, 0)

    def T(z_t: State, x0: State, group: RotationGroup = group) -> State:  # noqa: N802
        both = replace(noised, clean=x0, z_t=z_t, noise=process.spaces.displacement(z_t, x0, noised.level))
        return both.clean_of(group.posterior_mean(both))

    here = T(noised.z_t, noised.clean)
    assert relative_error(T(turned(noised.z_t, Q), noised.clean).x, turned(here, Q).x) < 1e-6
    assert relative_error(T(noised.z_t, turned(noised.clean, Q)).x, here.x) < 1e-6
    mirrored = T(noised.z_t, turned(noised.clean, orthogonal(-1)), SO3())
    assert relative_error(mirrored.x, T(noised.z_t, noised.clean, SO3()).x) > 1e-2


# ---------------------------------------------------------------------- variance


@OVER_SETTINGS
def test_averages_lower_the_variance_of_the_velocity(prior, bridge):
    """Rao-Blackwell: exact below sampled below plain, in E|v|^2, since all have one mean given z_t."""
    process, n = flow(prior, bridge), 3000
    x0 = copies(SHAPE, METHYL, n, SIX)
    group = RotationsAndAutomorphisms()
    noised, u = noised_at(process, group.act(group.haar(n, generator(5), F64), x0), 0.6, 0)
    targets = [
        noised.noise,
        on_flow(group, OrbitRB, LOCAL).target(noised, generator(6)),
        on_flow(SO3(), OrbitRBExact).target(noised, generator(6)),
        on_flow(group, OrbitRBExact).target(noised, generator(6)),
    ]
    sizes = [Parametrisation.VELOCITY.target(noise, noised).squared_norm().mean().item() for noise in targets]
    assert sizes[0] > sizes[1] > sizes[3]
    assert sizes[0] > sizes[2] > sizes[3]
    drawn = u.squared_norm().mean().item()
    assert drawn == pytest.approx(sizes[0], rel=1e-9) if not bridge else drawn > sizes[0]


# ---------------------------------------------------------------------- the released heuristic


@OVER_SETTINGS
def test_prior_sample_has_its_law_given_state_and_data(prior, bridge):
    """Without bridge noise it is the e that was drawn; with it, the covariances of (e, z_t) are those of the path.
    Control: at another time."""
    process, n, t = flow(prior, bridge), 20_000, 0.4
    zero = copies(torch.zeros(5, 3, dtype=F64), FORK, n)
    noised, u = noised_at(process, zero, t, 0)
    e = prior_sample(noised, generator(7))
    if not bridge:
        assert relative_error(e.x, u.x) < 1e-9
    C = torch.linalg.pinv(laplacian(FORK, 5)) if prior is Prior.HARMONIC else torch.eye(5, dtype=F64) - 0.2
    e, z = e.x.view(n, 5, 3), noised.z_t.x.view(n, 5, 3)
    i, j = torch.triu_indices(5, 5)
    assert z_score((e[:, i] * e[:, j]).mean(2) - C[i, j]) < Z_MAX
    assert z_score((e[:, i] * z[:, j]).mean(2) - t * C[i, j]) < Z_MAX
    assert z_score((e[:, i] * z[:, j]).mean(2) - 1.2 * t * C[i, j]) > Z_MAX


def released(group: RotationGroup, **options) -> OrbitRBAsReleased:
    return OrbitRBAsReleased(OrbitAsReleasedConfig(**options), Setting(group, torch.nn.Identity(), {"x": 3}))


@pytest.mark.parametrize("prior", list(Prior))
def test_released_rotation_multiplies_by_row_sums_and_changes_distances(prior):
    """With one draw besides the identity the average is w x0 + (1 - w) diag(R 1) x0, no turned molecule."""
    process = flow(prior)
    noised, _ = noised_at(process, copies(SHAPE, METHYL, 1), 0.999, 0)
    method = released(SO3(), n_draws=2, sharpness=float("inf"))
    R, x = method.group.haar(1, generator(0), F64)[0], noised.clean.x
    found = method.average(noised, generator(0)).x
    # at pure noise both candidates weigh about the same
    assert relative_error(found, 0.5 * (x + R.sum(1) * x)) < 0.05
    assert relative_error(found, 0.5 * (x + x @ R.T)) > 0.2
    assert abs((R.sum(1) * x).norm() / x.norm() - 1) > 0.02


def test_released_temperature_sharpens_above_its_level_alone():
    """min(0.4 / t, 1) divides log weights: nothing changes below t = 0.4."""
    for t, same in ((0.3, True), (0.7, False)):
        noised, _ = noised_at(flow(Prior.GAUSSIAN), copies(SHAPE, METHYL, 20), t, 0)
        found = [released(SO3(), sharpness=s).average(noised, generator(1)).x for s in (0.4, float("inf"))]
        assert torch.equal(found[0], found[1]) is same


def test_released_weights_ignore_the_prior():
    """The average at one z_t is the same whatever the prior; the closed form's is not."""
    noised, _ = noised_at(flow(Prior.HARMONIC), copies(SHAPE, METHYL, 20), 0.7, 0)
    other = isotropic(noised)
    assert torch.equal(released(SO3()).average(noised, generator(1)).x, released(SO3()).average(other, generator(1)).x)
    exact = [both.clean_of(SO3().posterior_mean(both)).x for both in (noised, other)]
    assert relative_error(exact[0], exact[1]) > 1e-2


@OVER_SETTINGS
def test_released_velocity_averages_one_end_of_the_path_alone(prior, bridge):
    """v = u + (x0 - A) / 2t: on the straight path half of the correction (x0 - A) / t. With one candidate, A = x0, it
    is the velocity that was drawn; with bridge noise, another with its law given z_t and x0."""
    process = flow(prior, bridge)
    noised, u = noised_at(process, copies(SHAPE, METHYL, 2000), 0.6, 0)
    alone, many = (
        Parametrisation.VELOCITY.target(released(SO3(), n_draws=k).target(noised, generator(1)), noised).x
        for k in (1, 200)
    )
    mean = Parametrisation.VELOCITY.target(noised.noise, noised).x
    if bridge:
        assert z_score((alone - mean).view(2000, -1)) < Z_MAX
        assert z_score((alone - mean).square().view(2000, -1) - (u.x - mean).square().view(2000, -1)) < Z_MAX
        return
    assert relative_error(alone, u.x) < 1e-9
    A = released(SO3()).average(noised, generator(1)).x
    assert relative_error(many, u.x + (noised.clean.x - A) / 1.2) < 1e-9
    assert relative_error(many, u.x + (noised.clean.x - A) / 0.6) > 1e-2


def released_bias(prior: Prior, bridge: float, t: float, n: int = 2000, **options) -> float:
    """How much of E[dz/dt | z_t, orbit] the released target misses: |E<v - v*, v*>| / E|v*|^2, v* the closed form."""
    process = flow(prior, bridge)
    group = SO3()
    x0 = copies(SHAPE, METHYL, n)
    noised, _ = noised_at(process, group.act(group.haar(n, generator(5), F64), x0), t, 0)
    v, exact = (
        Parametrisation.VELOCITY.target(noise, noised)
        for noise in (released(group, **options).target(noised, generator(6)), group.posterior_mean(noised))
    )
    off = v.combine(exact, torch.sub).combine(exact, torch.mul).x.sum() / exact.squared_norm().sum()
    return abs(off.item())


@OVER_SETTINGS
def test_released_target_is_biased(prior, bridge):
    """By percents of the velocity, where the correct estimator of as many draws is not at all."""
    assert bias_score(released(SO3()), flow(prior, bridge), 10_000, 0.6) > Z_MAX
    assert bias_score(on_flow(SO3(), OrbitRB, OrbitTargetConfig(200)), flow(prior, bridge), 3000, 0.6) < Z_MAX


if __name__ == "__main__":  # the table of docs/strategies/orbit_rb_as_released.md
    for prior in Prior:
        for bridge in (0.0, 0.1):
            row = [released_bias(prior, bridge, t, 20_000) for t in (0.2, 0.4, 0.6, 0.8, 0.95)]
            print(f"| {prior} | {bridge:g} |", " | ".join(f"{value:.1%}" for value in row), "|")
