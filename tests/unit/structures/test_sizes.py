import numpy as np
import pytest

from bench.structures.sizes import SizeDistribution, size_histogram
from bench.structures.structures import Structures

COUNTS = {3: 1, 5: 6, 9: 3}


def test_log_probabilities_are_those_counted_and_unseen_sizes_have_probability_zero():
    p = SizeDistribution(COUNTS)
    expected = [*np.log([0.1, 0.6, 0.3]), *[-np.inf] * 3]
    np.testing.assert_allclose(p.log_prob(np.array([3, 5, 9, 4, 1, 100])), expected, rtol=1e-12)


def test_drawn_sizes_follow_the_counts():
    n = 20_000
    drawn = SizeDistribution(COUNTS).draw(n, np.random.default_rng(0))
    frequencies = {size: float((drawn == size).mean()) for size in COUNTS}
    assert set(drawn.tolist()) == set(COUNTS)
    for size, count in COUNTS.items():
        p = count / 10
        assert abs(frequencies[size] - p) < 5 * np.sqrt(p * (1 - p) / n)
        assert abs(frequencies[size] - 1 / 3) > 5 * np.sqrt(p * (1 - p) / n)  # control: uniform sizes would be told


def test_histogram_counts_molecules_by_size():
    molecules = [(np.ones(n, np.int64), np.zeros((n, 3))) for n in (2, 5, 2, 3)]
    assert size_histogram(Structures.from_list(molecules)) == {2: 2, 3: 1, 5: 1}


@pytest.mark.parametrize("counts", [{}, {0: 3}, {4: -1}, {4: 0}])
def test_counts_that_are_no_distribution_are_refused(counts):
    with pytest.raises(ValueError, match="size distribution"):
        SizeDistribution(counts)
