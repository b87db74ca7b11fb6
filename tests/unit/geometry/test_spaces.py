"""Spaces: noise, moves and displacements of each kind of part; on a torus against sums over images and many draws."""

import math

import pytest
import torch
from support import SIZES, Z_MAX, core, generator, relative_error, states, z_score
from torch import Tensor

from bench.geometry.layout import Layout
from bench.geometry.noised import Level, Noised
from bench.geometry.spaces import Centred, Euclidean, Spaces, Torus
from bench.geometry.state import State

LAYOUT = Layout(SIZES)
ALL = Spaces({"x": Centred(3), "h": Euclidean(2), "frac": Torus(3), "cell": Euclidean(9, per_molecule=True)})
LINEAR = Spaces({name: ALL[name] for name in ("x", "h", "cell")})


def level_of(alpha: float, sigma: float, n: int = len(SIZES)) -> Level:
    a, s = torch.full((n,), alpha, dtype=torch.float64), torch.full((n,), sigma, dtype=torch.float64)
    return Level(a * 0 + 0.5, a, s)


def pair(spaces: Spaces, alpha: float, sigma: float) -> tuple[State, State, Level, State]:
    """Clean state, noise, level, noised state."""
    clean = spaces.wrap(spaces.noise(LAYOUT, generator(0), torch.float64))
    noise, level = spaces.noise(LAYOUT, generator(1), torch.float64), level_of(alpha, sigma)
    return clean, noise, level, spaces.move(clean, noise, level)


# ---------------------------------------------------------------------- parts and shapes


def test_parts_have_a_row_for_each_atom_or_for_each_molecule():
    noise = ALL.noise(LAYOUT, generator(0))
    rows = {name: len(part) for name, part in noise.parts.items()}
    assert rows == {"x": LAYOUT.n_total, "h": LAYOUT.n_total, "frac": LAYOUT.n_total, "cell": len(SIZES)}
    assert ALL.channels == {"x": 3, "h": 2, "frac": 3, "cell": 9}
    assert list(noise.parts) == list(ALL)


def test_atom_wise_parts_share_one_draw():
    """Positions and features are the columns of one draw, as golden losses have it; molecule-wise parts come after."""
    alike, alone = generator(3), generator(3)
    noise = ALL.noise(LAYOUT, alike)
    drawn = torch.randn(LAYOUT.n_total, 8, generator=alone)
    assert torch.equal(noise.h, drawn[:, 3:5])
    assert torch.equal(noise.frac, drawn[:, 5:])
    assert torch.equal(noise.x, Centred(3).project(drawn[:, :3], LAYOUT))
    assert not torch.equal(noise.x, drawn[:, :3])  # control: unprojected
    assert torch.equal(noise.cell, torch.randn(len(SIZES), 9, generator=alone))


def test_dimensions_are_those_of_the_projection():
    """The rank of each space's projection, counted on unit vectors; a part without centre of mass has 3 fewer."""
    for space, lost in ((Centred(3), 3), (Euclidean(3), 0), (Torus(3), 0)):
        for n in (1, 2, 5):
            layout, unit = Layout([n]), torch.eye(3 * n, dtype=torch.float64)
            images = torch.stack([space.project(column.view(n, 3), layout).flatten() for column in unit])
            assert torch.linalg.matrix_rank(images) == 3 * n - lost
            assert space.dimension(layout).tolist() == [3 * n - lost]
    assert Euclidean(9, per_molecule=True).dimension(LAYOUT).tolist() == [9.0] * len(SIZES)
    n = LAYOUT.n_atoms.double()
    assert torch.equal(ALL.dimension(LAYOUT), 3 * (n - 1) + 2 * n + 3 * n + 9)


def test_projection_is_one_and_leaves_the_space_alone():
    """P P = P, P is symmetric, and each molecule is projected by itself."""
    v, w = (torch.randn(LAYOUT.n_total, 3, generator=generator(i), dtype=torch.float64) for i in (0, 1))
    space = Centred(3)
    once = space.project(v, LAYOUT)
    assert relative_error(space.project(once, LAYOUT), once) < 1e-12
    assert relative_error(once, v) > 0.1  # control: something was taken away
    assert ((once * w).sum() - (v * space.project(w, LAYOUT)).sum()).abs() < 1e-12
    for atoms in v.split(list(SIZES)):
        alone = space.project(atoms, Layout([len(atoms)]))
        assert alone.sum(0).abs().max() < 1e-12


# ---------------------------------------------------------------------- moves and displacements


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.01), (0.6, 0.8), (0.01, 1.0)])
def test_displacement_undoes_a_move(alpha, sigma):
    """On linear spaces the noise comes back from the two points; another level gives other noise."""
    clean, noise, level, z_t = pair(LINEAR, alpha, sigma)
    for part in LINEAR:
        found = LINEAR.displacement(z_t, clean, level).parts[part]
        assert relative_error(found, noise.parts[part]) < 1e-9
        off = LINEAR.displacement(z_t, clean, level_of(1.1 * alpha, 1.1 * sigma)).parts[part]
        assert relative_error(off, noise.parts[part]) > 1e-2
    assert LINEAR.expected_noise(noise, z_t, clean, level).x is noise.x


def test_log_likelihood_is_that_of_a_gaussian_up_to_a_constant():
    """Differences between two clean states agree with torch.distributions, molecule by molecule."""
    clean, _, level, z_t = pair(LINEAR, 0.6, 0.8)
    other = LINEAR.noise(LAYOUT, generator(5), torch.float64)

    def reference(x0: State) -> Tensor:
        total = torch.zeros(len(SIZES), dtype=torch.float64)
        for name, part in x0.parts.items():
            rows = torch.distributions.Normal(0.6 * part, 0.8).log_prob(z_t.parts[name]).sum(1)
            total += rows if LINEAR[name].per_molecule else z_t.sum_over_atoms(rows)
        return total

    found = LINEAR.log_likelihood(z_t, clean, level) - LINEAR.log_likelihood(z_t, other, level)
    torch.testing.assert_close(found, reference(clean) - reference(other), rtol=1e-9, atol=1e-9)
    wrong = LINEAR.log_likelihood(z_t, clean, level) - LINEAR.log_likelihood(z_t, clean, level_of(0.6, 0.7))
    assert wrong.abs().min() > 1e-2  # control: another level is told apart


def test_prior_has_the_spread_of_the_path():
    """sigma times standard normal numbers; on a torus uniform whatever sigma is, which the numbers are not."""
    noise = Spaces({"h": Euclidean(2), "frac": Torus(3)}).noise(Layout([100_000]), generator(0), torch.float64)
    wide = Euclidean(2).prior(noise.h, 50.0)
    assert torch.equal(wide, 50.0 * noise.h)
    assert Euclidean(2).prior(noise.h, 1.0) is noise.h

    def uniform_z(u: Tensor) -> float:
        harmonics = [f(2 * math.pi * k * u) for k in (1, 2, 3) for f in (torch.cos, torch.sin)]
        return max(z_score(torch.cat(harmonics, dim=1)), z_score(u, 0.5), z_score(u.square(), 1 / 3))

    assert uniform_z(Torus(3).prior(noise.frac, 0.5)) < Z_MAX
    assert uniform_z((0.2 * noise.frac) % 1.0) > Z_MAX  # control


# ---------------------------------------------------------------------- the torus


def rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """alpha = 1 and nothing but ones to multiply, [N, 1]."""
    one = torch.ones(len(values), 1, dtype=values.dtype)
    return one, one


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_points_of_a_torus_lie_in_the_unit_cell(dtype):
    """[0, 1) for points far away and for those that rounding would leave at 1."""
    z = torch.tensor([[-1e-9, -1e-20, 0.0], [1.0, 3.25, -7.5], [1e-9, 0.999, 1.001]], dtype=dtype)
    one, sigma = rows(z)
    for found in (
        Torus(3).wrap(z, Layout([3])),
        Torus(3).move(0 * z, z, one, sigma),
        Torus(3).prior(1e3 * z, 0.5),
    ):
        assert found.min() >= 0
        assert found.max() < 1
    assert (z % 1.0).max() == 1  # control: what one remainder leaves


@pytest.mark.parametrize("sigma", [0.005, 0.05, 0.2, 0.5])
def test_noise_on_a_torus_is_the_score_of_the_wrapped_normal(sigma):
    """E[eps | z, x0] = -sigma d/dz log p(z | x0), and p has integral 1 once its constant is put back."""
    space = Torus(1)
    x0 = torch.full((4000, 1), 0.3, dtype=torch.float64)
    z = ((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)[:, None].requires_grad_()
    one, s = rows(x0)[0], sigma * rows(x0)[0]
    log_p = space.log_likelihood(z, x0, one, s)
    (gradient,) = torch.autograd.grad(log_p.sum(), z)
    found = space.displacement(z.detach(), x0, one, s)
    assert (found + sigma * gradient).abs().max() < 1e-9 / sigma
    assert (found + 1.05 * sigma * gradient).abs().max() > 1e-2 * found.abs().max()  # control
    assert log_p.exp().mean().item() / (sigma * math.sqrt(2 * math.pi)) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("sigma", [0.05, 0.2, 0.5])
def test_noise_on_a_torus_is_the_mean_of_the_noise_that_was_drawn(sigma):
    """E<eps - E[eps | z, x0], psi(z - x0)> = 0, |z| < 5; the noise of the nearest image alone is refused."""
    space, n = Torus(1), 200_000
    rng = generator(1)
    eps = torch.randn(n, 1, generator=rng, dtype=torch.float64)
    x0 = torch.rand(n, 1, generator=rng, dtype=torch.float64)
    one, s = rows(x0)[0], sigma * rows(x0)[0]
    z = space.move(x0, eps, one, s)
    angle = 2 * math.pi * (z - x0)
    psi = torch.cat([angle.sin(), (2 * angle).sin(), angle.cos()], dim=1)

    def score(estimate: Tensor) -> float:
        return z_score((eps - estimate) * psi)

    assert score(space.expected_noise(eps, z, x0, s)) < Z_MAX
    d = z - x0
    nearest = (d - (d + 0.5).floor()) / sigma
    assert (score(nearest) > Z_MAX) == (sigma > 0.1)  # at small sigma there is one image to speak of


def test_images_suffice_for_the_widest_kernel(monkeypatch):
    """At sigma = 0.5, more images change nothing; a single one does. Whole turns change nothing at all."""
    d = torch.linspace(-0.5, 0.5, 101, dtype=torch.float64)[:, None]
    one, s = rows(d)[0], 0.5 * rows(d)[0]

    def found(space: Torus, shift: float = 0.0) -> Tensor:
        noise = space.displacement(d + shift, 0 * d, one, s)
        return torch.cat([noise, space.log_likelihood(d + shift, 0 * d, one, s)[:, None]], dim=1)

    here = found(Torus(1))
    assert (found(Torus(1), 3.0) - here).abs().max() < 1e-9
    for images, changes in ((40, False), (0, True)):
        space = Torus(1)
        monkeypatch.setattr(space, "IMAGES", images)
        assert ((found(space) - here).abs().max().item() > 1e-9) is changes


# ---------------------------------------------------------------------- what has no expected clean state


def test_expected_clean_state_and_noise_determine_one_another():
    """`noise_of` and `clean_of` are inverse, keep z_t, and give back the very objects that belong together."""
    clean, noise, level, z_t = pair(LINEAR, 0.6, 0.8)
    both = Noised(clean, noise, z_t, level, LINEAR)
    T = LINEAR.noise(LAYOUT, generator(7), torch.float64)
    for part in LINEAR:
        assert relative_error(both.clean_of(both.noise_of(T)).parts[part], T.parts[part]) < 1e-9
        again = LINEAR.move(T, both.noise_of(T), level).parts[part]
        assert relative_error(again, z_t.parts[part]) < 1e-9
        assert relative_error(LINEAR.move(T, noise, level).parts[part], z_t.parts[part]) > 1e-2  # control
    assert both.noise_of(clean) is noise
    assert both.clean_of(noise) is clean


def test_a_torus_has_no_expected_clean_state():
    clean, noise, level, z_t = pair(ALL, 1.0, 0.2)
    both = Noised(clean, noise, z_t, level, ALL)
    other = clean.map(torch.clone)
    for ask in (both.noise_of, both.clean_of):
        with pytest.raises(ValueError, match=r"does not exist on a torus \(part frac\)"):
            ask(other)
    assert LINEAR.linear
    assert not ALL.linear


def test_levels_can_be_chosen_and_moved():
    _, _, level, _ = states()
    some = level[[2, 0]]
    assert torch.equal(some.sigma, level.sigma[[2, 0]])
    assert torch.equal(level[1:3].t, level.t[1:3])
    assert level.to(dtype=torch.float32).sigma.dtype is torch.float32
    assert some.d_alpha is None


def test_spaces_of_molecules_are_those_of_the_task():
    spaces = core().process.spaces
    assert {name: type(space) for name, space in spaces.items()} == {"x": Centred, "h": Euclidean}
    assert spaces.channels == {"x": 3, "h": core().n_features}
