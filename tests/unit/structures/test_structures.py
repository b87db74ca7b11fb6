"""Lists of molecules."""

import numpy as np

from bench.structures.structures import Structures


def test_distinct_keeps_first_occurrences_and_counts_all():
    """Equal elements at other places, and other elements at equal places, are different molecules."""
    x = np.arange(6.0).reshape(2, 3)
    molecules = [([1, 8], x), ([1, 1], x), ([1, 8], x + 1), ([1, 8], x), ([1, 1], x), ([1, 8], x)]
    found, counts = Structures.from_list([(np.array(z), positions) for z, positions in molecules]).distinct()
    assert found.numbers.tolist() == [1, 8, 1, 1, 1, 8]
    np.testing.assert_array_equal(found.positions, np.concatenate([x, x, x + 1]))
    assert counts.tolist() == [3, 2, 1]


def test_distinct_of_no_molecules_is_empty():
    found, counts = Structures.from_list([]).distinct()
    assert len(found) == len(counts) == 0
