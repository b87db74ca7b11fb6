"""The noise schedule against values computed apart from this code, and its own consistency."""

import numpy as np
import pytest
import torch
from support import core

from bench.diffusion.paths import VariancePreserving, polynomial_2

# i: alpha^2, gamma, computed apart from this code
REFERENCE = {
    0: (0.99999, -11.512915),
    1: (0.999988, -11.330595),
    2: (0.999982, -10.925131),
    10: (0.99979001, -8.468260),
    100: (0.9800904, -3.896443),
    250: (0.87889867, -1.982042),
    500: (0.56249875, -0.251309),
    750: (0.19141242, 1.440859),
    900: (0.036109278, 3.284428),
    990: (4.0600208e-4, 7.808746),
    999: (1.3995921e-5, 11.176731),
    1000: (1.0003996e-5, 11.512516),
}


def path_of(n_levels: int = 1000) -> VariancePreserving:
    return VariancePreserving(polynomial_2(n_levels), n_levels)


def agrees_with_reference(gamma: np.ndarray) -> bool:
    """To the digits of the table above: 1e-6 in gamma, 1e-6 relative in alpha^2."""
    alpha2 = 1 / (1 + np.exp(gamma))
    return all(abs(gamma[i] - g) < 1e-6 and abs(alpha2[i] / a2 - 1) < 1e-6 for i, (a2, g) in REFERENCE.items())


def unclipped(n_levels: int, precision: float = 1e-5) -> np.ndarray:
    """Control: the same polynomial without the clip of the last step."""
    alpha2 = (1 - 2 * precision) * (1 - (np.arange(n_levels + 1) / n_levels) ** 2) ** 2 + precision
    return np.log1p(-alpha2) - np.log(alpha2)


def test_schedule_has_the_published_values():
    """T1: gamma and alpha^2 at twelve levels; sigma_0 = 0.0031623."""
    gamma = polynomial_2(1000)
    assert agrees_with_reference(gamma)
    assert (1 / (1 + np.exp(-gamma[0]))) ** 0.5 == pytest.approx(0.0031623, abs=5e-8)


def test_other_schedules_are_told_apart():
    """T1: the comparison refuses the unclipped polynomial and another precision."""
    assert not agrees_with_reference(unclipped(1000))
    assert not agrees_with_reference(polynomial_2(1000, 1.1e-5))


def test_gamma_increases_and_only_the_last_step_is_clipped():
    """T1: gamma strictly increasing; largest and smallest steps at the levels stated."""
    gamma = polynomial_2(1000)
    assert (np.diff(gamma) > 0).all()
    assert np.flatnonzero(np.abs(gamma - unclipped(1000)) > 1e-9).tolist() == [1000]
    step = np.expm1(np.diff(gamma))
    assert (step.argmax() + 1, step.argmin() + 1) == (999, 510)
    assert step.max() == pytest.approx(0.8554, abs=5e-5)
    assert step.min() == pytest.approx(0.006111, abs=5e-7)


def test_alpha_and_sigma_are_variance_preserving():
    """T1: alpha^2 + sigma^2 = 1 to 1e-12 and gamma = log(sigma^2 / alpha^2), for every level in float64."""
    path = path_of()
    level = path.at(torch.arange(1001), torch.float64)
    assert (level.alpha**2 + level.sigma**2 - 1).abs().max() < 1e-12
    torch.testing.assert_close(path.gamma, (level.sigma**2 / level.alpha**2).log(), rtol=1e-9, atol=1e-9)
    assert torch.equal(level.t, torch.arange(1001, dtype=torch.float64) / 1000)


def step_error(
    path: VariancePreserving, alpha_ts: torch.Tensor, sigma2_ts: torch.Tensor, s: torch.Tensor, t: torch.Tensor
) -> float:
    """How far steps s -> t are from carrying the marginal at s into that at t."""
    at_s, at_t = path.at(s, torch.float64), path.at(t, torch.float64)
    of_alpha = (alpha_ts * at_s.alpha / at_t.alpha - 1).abs().max()
    of_sigma = ((alpha_ts**2 * at_s.sigma**2 + sigma2_ts) / at_t.sigma**2 - 1).abs().max()
    return max(of_alpha.item(), of_sigma.item())


def test_steps_carry_one_marginal_into_the_next():
    """T2: alpha_t = alpha_{t|s} alpha_s, sigma_t^2 = alpha_{t|s}^2 sigma_s^2 + sigma_{t|s}^2, steps of any length."""
    path = path_of()
    for stride in (1, 7, 100):
        t = torch.arange(stride, 1001)
        alpha_ts, sigma2_ts = path.step(t - stride, t)
        assert step_error(path, alpha_ts, sigma2_ts, t - stride, t) < 1e-6
        assert step_error(path, alpha_ts, 1.01 * sigma2_ts, t - stride, t) > 1e-3  # control
        assert step_error(path, 1.01 * alpha_ts, sigma2_ts, t - stride, t) > 1e-3


def test_single_steps_compose_to_the_whole():
    """T2: the product of all single steps is alpha_T / alpha_0."""
    path = path_of()
    t = torch.arange(1, 1001)
    alpha_ts, _ = path.step(t - 1, t)
    ends = path.at(torch.tensor([0, 1000]), torch.float64)
    assert alpha_ts.prod().item() == pytest.approx((ends.alpha[1] / ends.alpha[0]).item(), rel=1e-6)


def test_times_are_uniform_over_all_levels():
    """Levels 0..T are drawn alike, both ends included; `lowest` cuts t = 0 off."""
    path = path_of(10)
    rng = torch.Generator().manual_seed(0)
    counts = torch.bincount((path.draw(110_000, rng).t * 10).round().long(), minlength=11).double()
    assert ((counts - 10_000).abs() / 10_000**0.5 < 5).all()
    assert path.draw(1000, rng, lowest=1).t.min() > 0


def test_scales_that_drown_in_the_decoders_noise_are_refused():
    with pytest.raises(ValueError, match="drown"):
        core(scale_charge=40.0)
