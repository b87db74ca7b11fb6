"""The distribution over molecule sizes p(N), counted on the training split.

It enters the likelihood as log p(N), and sampling draws from it first (EDM, arXiv:2203.17003, section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bench.structures.structures import Structures


def size_histogram(structures: Structures) -> dict[int, int]:
    """How many molecules have n atoms, for every n that occurs, ascending."""
    sizes, counts = np.unique(structures.n_atoms, return_counts=True)
    return dict(zip(sizes.tolist(), counts.tolist(), strict=True))


class SizeDistribution:
    """p(N) as counted.

    Attributes:
        sizes: numbers of atoms that occur [K], ascending.
        probabilities: p of each [K], summing to 1.
    """

    def __init__(self, counts: Mapping[int, int]) -> None:
        """Raises ValueError for no counts, a size below 1 or a negative count."""
        if not counts or min(counts) < 1 or min(counts.values()) < 0 or sum(counts.values()) == 0:
            raise ValueError(
                f"cannot make a size distribution of {dict(counts)}; expected at least one molecule, sizes from 1"
            )
        self.sizes = np.array(sorted(counts), dtype=np.int64)
        weights = np.array([counts[n] for n in self.sizes.tolist()], dtype=np.float64)
        self.probabilities = weights / weights.sum()

    def log_prob(self, n: np.ndarray) -> np.ndarray:
        """log p(n) in nats for sizes n [B]; -inf where the size does not occur."""
        n = np.asarray(n)
        place = np.searchsorted(self.sizes, n).clip(max=len(self.sizes) - 1)
        with np.errstate(divide="ignore"):
            return np.log(np.where(self.sizes[place] == n, self.probabilities[place], 0.0))

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """n independent sizes [n], int64."""
        return rng.choice(self.sizes, size=n, p=self.probabilities)

    @property
    def entropy(self) -> float:
        """-sum p log p in nats."""
        p = self.probabilities[self.probabilities > 0]
        return float(-(p * np.log(p)).sum())
