"""Rows that a generator of crystals is read against: data against data, species permuted or exchanged, random sites.

They answer what a match rate means. Data against data is what a perfect generator would get, so that what its filtered
rate lacks of 100 % is the filter's doing. Exchanged crystals have the right geometry, and on half of them the two most
electropositive elements in one another's place: what choosing the A and the B site of a perovskite at random is worth.
Permuted ones have their species in random order over the right sites. Random ones are cubes of the right volume, the
training set's median volume per site, with sites anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

import numpy as np

from bench.metrics.crystals import evaluate_crystals
from bench.records.values import Value
from bench.structures.lattices import crystals, volumes
from bench.structures.structures import Structures


class Row(StrEnum):
    """Samples that no trained model made."""

    DATA = "data against data"
    EXCHANGED = "two metals exchanged at random"
    PERMUTED = "species permuted"
    RANDOM = "random sites"


def row_samples(row: Row, test: Structures, train: Structures, seed: int = 0) -> Structures:
    """Samples of a row, one for each test crystal, in its order and with its numbers.

    Args:
        train: whose median volume per site random crystals have.
    Raises:
        ValueError: structures without cells.
    """
    assert test.cells is not None
    assert train.cells is not None
    rng = np.random.default_rng(seed)
    if row is Row.DATA:
        return test
    if row is Row.RANDOM:
        per_site = np.median(volumes(train.cells) / train.n_atoms)
        edge = np.cbrt(per_site * test.n_atoms)
        cells = edge[:, None, None] * np.eye(3)
        return crystals(test.numbers, rng.random((len(test.numbers), 3)), cells, test.ptr)
    positions = test.positions.copy()
    for k, (numbers, x) in enumerate(test):
        sites = slice(int(test.ptr[k]), int(test.ptr[k + 1]))
        if row is Row.PERMUTED:
            positions[sites] = x[rng.permutation(len(x))]
        elif rng.random() < 0.5:
            positions[sites] = x[exchange(numbers)]
    return replace(test, positions=positions)


def exchange(numbers: np.ndarray) -> np.ndarray:
    """An order of the sites in which the two most electropositive elements change places, where there are equally many
    of both; else the identity."""
    from pymatgen.core import Element  # pyright: ignore[reportMissingImports] - optional

    order = np.arange(len(numbers))
    elements = sorted(set(numbers.tolist()), key=lambda z: (Element.from_Z(z).X, z))
    if len(elements) < 3:  # of two elements, one is the anion
        return order
    first, second = (np.flatnonzero(numbers == z) for z in elements[:2])
    if len(first) == len(second):
        order[first], order[second] = second, first
    return order


def row_values(
    test: Structures, train: Structures, seed: int = 0, rows: Sequence[Row] = tuple(Row), n_workers: int | None = None
) -> list[Value]:
    """The metrics of each row, at {'samples': row}."""
    values = []
    for row in rows:
        found = evaluate_crystals(row_samples(row, test, train, seed), test, n_workers)
        values += [replace(value, at={**value.at, "samples": str(row)}, items=None) for value in found]
    return values
