"""The matrix-Fisher mean against closed forms, sampling, more nodes, and another formula in forty digits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.special import ive
from theory.matrix_fisher import STORED, row, spectra

from bench.geometry import matrix_fisher
from bench.geometry.groups import O3, SO3, Translated
from bench.geometry.matrix_fisher import mean_O3, mean_SO3, moments, proper_svd

CONCENTRATIONS = np.logspace(-3, 8, 45)
SHAPES = [
    (1, 1, 1),
    (1, 1, -1),
    (1, 0.5, 0.3),
    (1, 0.5, -0.3),
    (1, 0.5, 0),
    (1, 0, 0),
    (1, 1e-3, 1e-4),
    (1, 1e-5, -1e-5),
    (1, 0.999, -0.999),
]


def singular_values() -> torch.Tensor:
    """Generic, planar (s3 = 0) and collinear (s2 = s3 = 0) at concentrations from 1e-3 to 1e8, and zero."""
    values = [[scale * part for part in shape] for scale in CONCENTRATIONS for shape in SHAPES]
    return torch.tensor([[0.0, 0.0, 0.0], *values], dtype=torch.float64)


def finer(s: torch.Tensor, monkeypatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The same formula with more nodes over a longer range."""
    with monkeypatch.context() as patch:
        patch.setattr(matrix_fisher, "N_NODES", 600)
        patch.setattr(matrix_fisher, "LOG_RANGE", 50.0)
        matrix_fisher._nodes.cache_clear()
        found = moments(s)
    matrix_fisher._nodes.cache_clear()
    return found


def test_more_nodes_change_moments_by_less_than_1e_6(monkeypatch):
    """T22: at all concentrations and shapes; nodes that are not logarithmic miss the peaks."""
    s = singular_values()
    _, d = moments(s)
    _, reference = finer(s, monkeypatch)
    assert (d - reference).abs().max() < 1e-6
    with monkeypatch.context() as patch:  # control: plain Gauss-Legendre nodes on [0, 2] miss the peaks
        x, w = np.polynomial.legendre.leggauss(matrix_fisher.N_NODES)
        patch.setattr(matrix_fisher, "_nodes", lambda _: (torch.tensor((1 + x) / 2), torch.tensor(w / 2)))
        assert (moments(s)[1] - reference).nan_to_num(nan=1).abs().max() > 1e-2


REFERENCE = {
    key: torch.tensor([row[key] for row in json.loads(STORED.read_text())], dtype=torch.float64)
    for key in ("s", "log_c_less_sum", "d", "mean_O3")
}


def errors_of_means(factor: float = 1.0) -> tuple[float, float]:
    """Largest deviation from forty digits over SO(3) and over O(3), for P diag(s) Q^T with random P, Q."""
    s, n = REFERENCE["s"], len(REFERENCE["s"])

    def error(group: SO3 | O3, diagonal: torch.Tensor) -> float:
        P, Q = group.haar(2 * n, torch.Generator().manual_seed(11), torch.float64).chunk(2)
        found = group.mean(factor * (P * s[:, None]) @ Q.mT)
        return (found - (P * diagonal[:, None]) @ Q.mT).abs().max().item()

    return error(SO3(), REFERENCE["d"]), error(O3(), REFERENCE["mean_O3"])


def test_means_are_right_to_1e_6_by_another_formula_in_forty_digits():
    """T22: generic of either orientation, planar and collinear, nearly planar, nearly collinear, from 1e-2 to 1e8, over
    SO(3) and O(3) (tests/theory/matrix_fisher.py); half the concentration is refused."""
    assert REFERENCE["s"][:, 0].max() == 1e8
    assert max(errors_of_means()) < 1e-6
    assert min(errors_of_means(0.5)) > 0.1


def test_log_c_is_as_accurate_as_it_says():
    """T22: 2e-3 by itself; in the difference that O(3) takes, for s3 of order one, 1e-6."""
    s, expected = REFERENCE["s"], REFERENCE["log_c_less_sum"]
    assert (moments(s)[0] - s.sum(1) - expected).abs().max() < 2e-3
    # at s1 >= 1e3 and s3 of order one; the proper half's share p follows from mean_O3_3 = p d_3 - (1 - p) d'_3
    close = (s[:, 0] >= 1e3) & (s[:, 2] != 0) & (s[:, 2].abs() < 2)
    assert close.sum() == 5
    mirrored = s * torch.tensor([1.0, 1.0, -1.0])
    (log_c, d), (other_log_c, other_d) = moments(s[close]), moments(mirrored[close])
    share = (REFERENCE["mean_O3"][close, 2] + other_d[:, 2]) / (d[:, 2] + other_d[:, 2])
    assert (log_c - other_log_c - torch.logit(share)).abs().max() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("i", [2, 11, 20, -2])
def test_stored_reference_is_what_the_script_computes(i):
    """T22: one generic, one improper, one collinear, one nearly planar spectrum, in forty digits again."""
    again = row(spectra()[i])
    for key, stored in REFERENCE.items():
        assert (torch.tensor(again[key], dtype=torch.float64) - stored[i]).abs().max() < 1e-15


def test_collinear_moments_are_langevins():
    """s = (s, 0, 0): R_11 is uniform on [-1, 1], so d_1 = coth s - 1/s and the others vanish."""
    s = torch.tensor(CONCENTRATIONS)
    zero = torch.zeros_like(s)
    _, d = moments(torch.stack([s, zero, zero], dim=1))
    small = s < 1e-2
    langevin = torch.where(small, s / 3, 1 / torch.tanh(s) - 1 / s)
    assert (d[:, 0] - langevin).abs().max() < 1e-6
    assert d[:, 1:].abs().max() < 1e-6
    assert (d[:, 0] - 1 / torch.tanh(s)).abs().max() > 0.5  # control


def test_isotropic_moments_are_bessel_ratios():
    """F = s I: p(angle) ~ exp(2 s cos) (1 - cos), c = e^s (I0(2s) - I1(2s)) (Khatri & Mardia 1977)."""
    s = torch.tensor(CONCENTRATIONS[CONCENTRATIONS < 1e4])
    i0, i1, i2 = (torch.tensor(ive(order, 2 * s.numpy())) for order in (0, 1, 2))
    expected = (1 + (2 * i1 - i0 - i2) / (i0 - i1)) / 3
    _, d = moments(s[:, None].expand(-1, 3))
    assert (d - expected[:, None]).abs().max() < 1e-5


def test_concentrated_moments_follow_the_expansion():
    s = torch.tensor([[5e3, 3e3, 2e3], [4e4, 4e4, 1e3]], dtype=torch.float64)
    i, j = s[:, [1, 0, 0]], s[:, [2, 2, 1]]
    expected = 1 - 0.5 * (1 / (i + s) + 1 / (j + s))
    assert (moments(s)[1] - expected).abs().max() < 1e-6


def test_the_three_normalisations_are_one_number():
    """T22: c_1 = c_2 = c_3: permuting the values permutes the moments and leaves log c."""
    s = torch.tensor([[3.0, 1.5, -0.7], [20.0, 4.0, 3.0]], dtype=torch.float64)
    log_c, d = moments(s)
    for order in ([1, 2, 0], [2, 0, 1], [1, 0, 2]):
        other_log_c, other_d = moments(s[:, order])
        assert (log_c - other_log_c).abs().max() < 1e-8
        assert (d[:, order] - other_d).abs().max() < 1e-8


def test_moments_are_the_gradient_of_log_c():
    s = torch.tensor([[3.0, 1.5, -0.7], [0.3, 0.2, 0.1]], dtype=torch.float64)
    _, d = moments(s)
    for k in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[k] = 1e-5
        slope = (moments(s + step)[0] - moments(s - step)[0]) / 2e-5
        assert (slope - d[:, k]).abs().max() < 1e-8


@pytest.mark.parametrize("group", [SO3(), O3()], ids=["SO3", "O3"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
def test_mean_equals_a_million_draws(group, scale):
    """T22: |quadrature - self-normalised uniform average| < 5e-3 on F of either orientation."""
    rng = torch.Generator().manual_seed(3)
    R = group.haar(1_000_000, rng, torch.float64)
    F = scale * torch.randn(4, 3, 3, generator=rng, dtype=torch.float64)
    means = group.mean(F)
    for matrix, mean in zip(F, means, strict=True):
        weights = torch.softmax((matrix * R).sum((1, 2)), dim=0)
        assert ((weights[:, None, None] * R).sum(0) - mean).abs().max() < 5e-3
    if scale == 2.0:  # control: the other group's mean is another
        other = mean_O3(F) if isinstance(group, SO3) else mean_SO3(F)
        assert (other - means).abs().max() > 5e-2


@pytest.mark.parametrize("mean", [mean_SO3, mean_O3])
def test_mean_turns_on_both_sides(mean):
    """M(P F Q) = P M(F) Q for rotations, for generic, planar, collinear and vanishing F."""
    rng = torch.Generator().manual_seed(5)
    F = 30 * torch.randn(6, 3, 3, generator=rng, dtype=torch.float64)
    F[1, :, 2] = 0
    F[2, :, 1:] = 0
    F[3] = 0
    P, Q = SO3().haar(6, rng, torch.float64), SO3().haar(6, rng, torch.float64)
    assert (mean(P @ F @ Q) - P @ mean(F) @ Q).abs().max() < 1e-6
    assert (mean(P @ F @ Q) - mean(F)).abs().max() > 0.1  # control
    assert torch.linalg.matrix_norm(mean(1e6 * F), ord=2).max() < 1 + 1e-9


def test_a_reflection_reflects_the_mean_over_o3_alone():
    rng = torch.Generator().manual_seed(6)
    F = torch.randn(5, 3, 3, generator=rng, dtype=torch.float64)
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    assert (mean_O3(mirror @ F) - mirror @ mean_O3(F)).abs().max() < 1e-9
    assert (mean_SO3(mirror @ F) - mirror @ mean_SO3(F)).abs().max() > 1e-2


def test_proper_svd_has_proper_factors_and_carries_the_sign():
    rng = torch.Generator().manual_seed(7)
    F = torch.randn(50, 3, 3, generator=rng, dtype=torch.float64)
    U, s, V = proper_svd(F)
    assert (torch.linalg.det(U) - 1).abs().max() < 1e-12
    assert (torch.linalg.det(V) - 1).abs().max() < 1e-12
    assert ((U * s[:, None, :]) @ V.mT - F).abs().max() < 1e-12
    assert torch.equal(s[:, 2].sign(), torch.linalg.det(F).sign())
    assert (s[:, 2] < 0).any()


def spectra_for_svd() -> torch.Tensor:
    """Turned matrices of every shape at scales from 1e-300 to 1e300, products that leave rounding in place of zeros,
    integers with equal, parallel and zero columns, graded columns and rows, and nothing: [B, 3, 3]."""
    rng = torch.Generator().manual_seed(10)
    s = torch.tensor([*SHAPES, (1, 1, 0), (1, 1e-8, 1e-16), (1, 1 - 1e-8, 1 - 2e-8)], dtype=torch.float64)
    s = s.repeat_interleave(200, 0)
    P, Q = SO3().haar(2 * len(s), rng, torch.float64).chunk(2)
    shapes = (P * s[:, None, :]) @ Q.mT
    integers = torch.randint(-1, 2, (2000, 3, 3), generator=rng).double()
    columns = (8 * torch.randn(1000, 1, 3, generator=rng, dtype=torch.float64)).exp()
    graded = columns * torch.randn(1000, 3, 3, generator=rng, dtype=torch.float64)
    parts = [scale * shapes for scale in (1e-300, 1e-8, 1.0, 1e8, 1e300)]
    return torch.cat([*parts, integers, graded, graded.mT, torch.zeros(1, 3, 3, dtype=torch.float64)])


def test_svd_is_backward_stable_for_matrices_of_every_rank(monkeypatch):
    """Orthonormal to 1e-14 with determinant 1, F = U diag(s) V^T and LAPACK's singular values to 1e-14 of the largest,
    in decreasing order; three sweeps are too few."""
    F = spectra_for_svd()
    scale = F.abs().amax((1, 2)).clamp_min(1e-300)[:, None]
    expected = torch.linalg.svdvals(F / scale[:, None])

    def error() -> float:
        U, s, V = proper_svd(F)
        s = s / scale
        above = torch.stack([s[:, 1] - s[:, 0], s[:, 2].abs() - s[:, 1], -s[:, 1]])
        one = torch.eye(3, dtype=torch.float64)
        wrong = (
            *(U.mT @ U - one, torch.linalg.det(U) - 1, V.mT @ V - one, torch.linalg.det(V) - 1),
            *((U * s[:, None]) @ V.mT - F / scale[:, None], s.abs() - expected, above.clamp_min(0)),
        )
        return max(w.abs().max().item() for w in wrong)

    assert error() < 1e-14
    monkeypatch.setattr(matrix_fisher, "N_SWEEPS", matrix_fisher.N_SWEEPS - 1)
    assert error() < 1e-14  # there is one to spare
    monkeypatch.setattr(matrix_fisher, "N_SWEEPS", 3)
    assert error() > 1e-8  # control


def test_an_average_does_not_see_the_coupling():
    F = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(8))
    Q = SO3().haar(1, torch.Generator().manual_seed(9))[0]
    assert torch.equal(Translated(O3(), Q).mean(F), O3().mean(F))


# ---------------------------------------------------------------------- the envelope

SHAPES_OF_F = [(1, 0.5, 0.3), (1, 0.5, -0.3), (1, 0, 0), (1, 0.5, 0), (0, 0, 0)]


def tilted(shape: tuple[float, ...], scale: float) -> torch.Tensor:
    U, V = O3().haar(2, torch.Generator().manual_seed(0), torch.float64)
    return (U @ torch.diag(scale * torch.tensor(shape, dtype=torch.float64)) @ V)[None]


@pytest.mark.parametrize("group", [SO3(), O3()], ids=["SO3", "O3"])
@pytest.mark.parametrize("shape", SHAPES_OF_F)
def test_envelope_has_the_density_that_it_says(shape, group):
    """Its density integrates to 1 under Haar draws, and weighs its own draws back to the uniform law and to the
    matrix-Fisher mean; a density of twice the concentration does not."""
    F = tilted(shape, 5.0)
    envelope, rng = group.envelope(F), torch.Generator().manual_seed(1)
    mass = envelope.log_density(group.haar(100_000, rng, torch.float64)[None]).exp()[0]
    assert abs(mass.mean() - 1) < 5 * mass.std() / 1e5**0.5 + 1e-9
    R = envelope.draw(200_000, rng)
    assert (R.mT @ R - torch.eye(3)).abs().max() < 1e-12
    exponent = torch.einsum("nij,nkij->nk", F, R)

    def mean(density: torch.Tensor) -> torch.Tensor:
        return torch.einsum("nk,nkij->nij", (exponent - density).softmax(1), R)

    exact = group.mean(F)
    assert (mean(envelope.log_density(R)) - exact).abs().max() < 1e-2
    if any(shape):
        assert (mean(group.envelope(2 * F).log_density(R)) - exact).abs().max() > 2e-2


@pytest.mark.parametrize("group", [SO3(), O3()], ids=["SO3", "O3"])
def test_envelope_fits_at_all_concentrations(group):
    """Effective sample size above half of the draws for F from 0 to 1e8; that of Haar draws is gone by 1e4."""
    for scale in (0.0, 1.0, 1e2, 1e4, 1e8):
        for shape in SHAPES_OF_F[:4]:
            F = tilted(shape, scale)
            envelope = group.envelope(F)
            R = envelope.draw(20_000, torch.Generator().manual_seed(2))
            w = (torch.einsum("nij,nkij->nk", F, R) - envelope.log_density(R)).softmax(1)
            assert 1 / w.square().sum() > 10_000
    uniform = torch.einsum(
        "nij,kij->nk", tilted((1, 0.5, 0.3), 1e4), group.haar(20_000, torch.Generator().manual_seed(2)).double()
    )
    assert 1 / uniform.softmax(1).square().sum() < 10


def test_envelope_turns_with_its_parameter():
    """Draws for Q F have the law of Q times draws for F: first moments, |z| < 5; untransformed ones do not."""
    F, Q = tilted((1, 0.5, 0.3), 3.0), O3().haar(1, torch.Generator().manual_seed(3), torch.float64)
    here, there = (O3().envelope(f).draw(50_000, torch.Generator().manual_seed(s))[0] for s, f in ((4, F), (5, Q @ F)))

    def z(a: torch.Tensor, b: torch.Tensor) -> float:
        return ((a.mean(0) - b.mean(0)) / ((a.var(0) + b.var(0)) / len(a)).sqrt()).abs().max().item()

    assert z(Q @ here, there) < 5
    assert z(here, there) > 25
