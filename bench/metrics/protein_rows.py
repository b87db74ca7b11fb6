"""Rows that generated backbones are read against: held-out data, mirrored data, data with noise, random chains.

Held-out data is what samples as good as the data would get. Mirrored data is what a generator gives that knows the data
perfectly up to reflections. Random chains keep every distance of neighbours and avoid clashes, and know nothing else.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

import numpy as np
from jaxtyping import Float

from bench.metrics.proteins import NEAREST, TRANS, evaluate_backbones
from bench.records.values import Value
from bench.structures.chains import structures_of
from bench.structures.dataset import DataSet
from bench.structures.structures import Structures

NOISE = 0.3  # angstrom on each coordinate
MAX_TURNS = 100  # steps tried at one place of a random chain, which is then begun again


class Row(StrEnum):
    """Samples that no trained model made."""

    HELD_OUT = "held-out data"
    MIRRORED = "mirrored data"
    NOISY = f"data with noise of {NOISE:g} Å"
    RANDOM = "random chains"


def random_chain(n: int, rng: np.random.Generator) -> Float[np.ndarray, "n 3"]:
    """Steps of 3.8 Å in directions that are uniform but for those that lead into a clash."""
    while True:
        x = np.zeros((1, 3))
        for _ in range(MAX_TURNS * n):
            step = rng.normal(size=3)
            there = x[-1] + TRANS * step / np.linalg.norm(step)
            if (np.linalg.norm(x[:-1] - there, axis=1) > NEAREST).all():
                x = np.concatenate([x, there[None]])
            if len(x) == n:
                return x


def row_samples(row: Row, data: DataSet, seed: int = 0) -> Structures:
    """Samples of a row, as many as the validation split has C-alpha traces, and of their lengths.

    Raises:
        ValueError: random chains of N, C-alpha and C.
    """
    part, rng = data.valid, np.random.default_rng(seed)
    x = part.positions.astype(np.float64)
    if row is Row.RANDOM:
        if len(data.elements) > 1:
            raise ValueError("random chains are of C-alpha alone")
        return structures_of([random_chain(int(n), rng)[:, None] for n in part.n_atoms])
    if row is Row.MIRRORED:
        x = -x
    if row is Row.NOISY:
        x = x + NOISE * rng.normal(size=x.shape)
    return Structures(part.numbers, x, part.ptr)


def row_values(data: DataSet, seed: int = 0) -> list[Value]:
    """The metrics of each row against the test split, at {'samples': row}."""
    return [
        replace(value, at={"samples": str(row)}, items=None)
        for row in Row
        for value in evaluate_backbones(row_samples(row, data, seed), data.test, data.train)
    ]
