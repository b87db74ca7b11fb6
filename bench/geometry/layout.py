"""Ragged batches: which points belong to which molecule, without padding.

B molecules with A atoms in total; the atoms of a molecule are consecutive. "Molecule" and "atom" stand for the units of
a task: a crystal and its sites, a chain and its residues, a toy cloud and its points.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


class Bucket(NamedTuple):
    """Consecutive molecules of one size."""

    n_atoms: int
    n_molecules: int
    start: int  # first atom


class Layout:
    """Which atoms belong to which molecule. All states of a batch share one layout, so that indices are made once.

    Sizes are kept on the host: nothing here waits for the device.
    """

    def __init__(
        self, n_atoms: Sequence[int] | np.ndarray, device: torch.device | str = "cpu", n_padded: int | None = None
    ) -> None:
        """
        Args:
            n_atoms: atoms of each molecule, each at least 1.
            n_padded: size to which padded code would pad this batch; by default that of its largest molecule. Nothing
                is padded here: only the reproduction of published defects (`edm_compat`) reads it.
        Raises:
            ValueError: no molecule, or one without atoms.
        """
        self.sizes = np.asarray(n_atoms, dtype=np.int64)
        if len(self.sizes) == 0 or self.sizes.min() < 1:
            raise ValueError(
                f"a batch needs at least one molecule and each molecule an atom, got sizes {self.sizes.tolist()}"
            )
        self.device = torch.device(device)
        self.n_padded = self.n_largest if n_padded is None else n_padded
        self.memo: dict[Any, Any] = {}  # cached index lists (`bench.nn.pairs`)

    @cached_property
    def ptr(self) -> Int[Tensor, "B_plus_1"]:
        """Atoms ptr[i]:ptr[i+1] belong to molecule i (PyG's name)."""
        return torch.from_numpy(np.concatenate([[0], np.cumsum(self.sizes)])).to(self.device)

    @cached_property
    def n_atoms(self) -> Int[Tensor, "B"]:
        return torch.from_numpy(self.sizes).to(self.device)

    @cached_property
    def molecule(self) -> Int[Tensor, "A"]:
        """Index of the molecule of each atom."""
        return torch.from_numpy(np.repeat(np.arange(len(self.sizes)), self.sizes)).to(self.device)

    @cached_property
    def buckets(self) -> list[Bucket]:
        """Runs of molecules of equal size, in order; one for each size where molecules are sorted by size."""
        edges = [0, *(np.flatnonzero(np.diff(self.sizes)) + 1).tolist(), len(self.sizes)]
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        return [Bucket(int(self.sizes[i]), j - i, int(starts[i])) for i, j in pairwise(edges)]

    @cached_property
    def n_molecules(self) -> int:
        """B."""
        return len(self.sizes)

    @cached_property
    def n_total(self) -> int:
        """A."""
        return int(self.sizes.sum())

    @cached_property
    def n_largest(self) -> int:
        """Atoms of the largest molecule."""
        return int(self.sizes.max())

    @cached_property
    def n_pairs(self) -> int:
        """Ordered pairs (i, j) within molecules, i = j included."""
        return int((self.sizes**2).sum())

    def to(self, device: torch.device | str) -> Layout:
        return self if torch.device(device) == self.device else Layout(self.sizes, device, self.n_padded)
