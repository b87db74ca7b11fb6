"""Intervals of rates against scipy's and by their coverage."""

import numpy as np
import pytest
from scipy import stats as reference

from bench.records.intervals import Z_95, rate_interval


def half_width(rate: float, n: int) -> float:
    return Z_95 * (rate * (1 - rate) / n) ** 0.5


@pytest.mark.parametrize(("count", "n"), [(0, 50), (1, 50), (25, 50), (50, 50), (3, 1000)])
def test_interval_of_independent_trials_is_wilsons(count, n):
    found = rate_interval(count / n, half_width(count / n, n), n)
    assert found == pytest.approx(tuple(reference.binomtest(count, n).proportion_ci(0.95, "wilson")), abs=1e-6)
    assert 0 <= found[0] <= count / n <= found[1] <= 1


def test_an_interval_has_width_where_the_scatter_has_none():
    for rate in (0.0, 0.5, 1.0):
        low, high = rate_interval(rate, 0.0, 100)
        assert high - low > 0.03
    assert np.isnan(rate_interval(0.5, float("nan"), 100)).all()  # control: unknown stays unknown


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.985])
def test_interval_covers_the_truth(rate):
    """Control: the normal approximation does not, next to a bound."""
    counts = np.random.default_rng(0).binomial(250, rate, size=4000)
    intervals = [rate_interval(c / 250, half_width(c / 250, 250), 250) for c in counts]
    assert np.mean([low <= rate <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.02)
    normal = np.abs(counts / 250 - rate) <= [half_width(c / 250, 250) for c in counts]
    assert normal.mean() < 0.93 or rate == 0.2
