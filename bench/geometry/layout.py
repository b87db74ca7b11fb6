"""Ragged batches: which points belong to which molecule, without padding.

B molecules with A atoms in all, atoms of a molecule one after the other. "Molecule" and "atom" stand for whatever a
task works on: a crystal and its sites, a chain and its residues, a toy cloud and its points.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class Bucket(NamedTuple):
    """Molecules of one size, consecutive once a batch is sorted by size."""

    n_atoms: int
    n_molecules: int
    start: int  # first atom, in the sorted order


class Layout:
    """Which atoms make up which molecule. One object serves all states of a batch, so indices are made once.

    Sizes are known on the host, so nothing here ever waits for the device.
    """

    def __init__(
        self, n_atoms: Sequence[int] | np.ndarray, device: torch.device | str = "cpu", n_padded: int | None = None
    ) -> None:
        """
        Args:
            n_atoms: atoms of each molecule, each at least 1.
            n_padded: what padded code would pad this batch to, its largest molecule unless told. Nothing is padded
                here; only the reproduction of published defects (`edm_compat`) reads it.
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
        self.memo: dict[Any, Any] = {}  # what every layer of a network asks for (`bench.nn.pairs`)

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
    def _sorting(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Layout]:
        order = np.argsort(self.sizes, kind="stable")
        if np.array_equal(order, np.arange(len(order))):
            return None, None, None, self
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        atoms = np.concatenate([np.arange(int(starts[i]), int(starts[i + 1])) for i in order])
        inverse = np.empty_like(atoms)
        inverse[atoms] = np.arange(len(atoms))
        return (
            torch.from_numpy(atoms).to(self.device),
            torch.from_numpy(inverse).to(self.device),
            torch.from_numpy(order).to(self.device),
            Layout(self.sizes[order], self.device, self.n_padded),
        )

    @property
    def by_size(self) -> Layout:
        """The layout of the same molecules sorted by size; itself if they are sorted."""
        return self._sorting[3]

    def to_sorted(self, values: Float[Tensor, "A ..."]) -> Float[Tensor, "A ..."]:
        """Atoms in the order of `by_size`."""
        index = self._sorting[0]
        return values if index is None else values.index_select(0, index)

    def from_sorted(self, values: Float[Tensor, "A ..."]) -> Float[Tensor, "A ..."]:
        """Inverse of `to_sorted`."""
        index = self._sorting[1]
        return values if index is None else values.index_select(0, index)

    def molecules_to_sorted(self, values: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """Molecule-wise values in the order of `by_size`."""
        index = self._sorting[2]
        return values if index is None else values.index_select(0, index)

    @cached_property
    def buckets(self) -> list[Bucket]:
        """Runs of equal size; of a sorted layout there is one for each size that occurs."""
        edges = [0, *(np.flatnonzero(np.diff(self.sizes)) + 1).tolist(), len(self.sizes)]
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        return [Bucket(int(self.sizes[i]), j - i, int(starts[i])) for i, j in pairwise(edges)]

    @cached_property
    def n_molecules(self) -> int:
        """B."""
        return len(self.sizes)

    @cached_property
    def n_total(self) -> int:
        """Atoms of all molecules, A."""
        return int(self.sizes.sum())

    @cached_property
    def n_largest(self) -> int:
        """Atoms of the largest molecule."""
        return int(self.sizes.max())

    @cached_property
    def n_pairs(self) -> int:
        """Ordered pairs of atoms of one molecule, an atom with itself included."""
        return int((self.sizes**2).sum())

    def to(self, device: torch.device | str) -> Layout:
        return self if torch.device(device) == self.device else Layout(self.sizes, device, self.n_padded)
