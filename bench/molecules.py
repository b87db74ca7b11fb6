"""Ragged batches of point clouds: what every network, method and diffusion step works on.

Conventions: B molecules with A atoms in all, atoms of a molecule one after the other; `x` [A, 3] positions, `h` [A, F]
features. There are no padded atoms. Positions are in angstrom in data and in the scaled units of
`bench.diffusion.process` inside a diffusion step. A rotation R acts on rows, x_n -> R x_n, one R per molecule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
        self.memo: dict[Any, Any] = {}  # what every layer of a network asks for (`bench.backbones.pairs`)

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


@dataclass(frozen=True)
class Molecules:
    """One state of a batch of molecules.

    Attributes:
        x: positions [A, 3].
        h: features [A, F].
        layout: which atoms belong to which molecule.
    """

    x: Float[Tensor, "A 3"]
    h: Float[Tensor, "A F"]
    layout: Layout

    @property
    def ptr(self) -> Int[Tensor, "B_plus_1"]:
        return self.layout.ptr

    @property
    def n_atoms(self) -> Int[Tensor, "B"]:
        return self.layout.n_atoms

    def __len__(self) -> int:
        return self.layout.n_molecules

    def replace(self, x: Tensor | None = None, h: Tensor | None = None) -> Molecules:
        """The same batch with other positions or features."""
        return Molecules(self.x if x is None else x, self.h if h is None else h, self.layout)

    def per_atom(self, values: Float[Tensor, "B ..."]) -> Float[Tensor, "A ..."]:
        """Each molecule's value, once for each of its atoms."""
        return values.index_select(0, self.layout.molecule)

    def sum_over_atoms(self, values: Float[Tensor, "A ..."]) -> Float[Tensor, "B ..."]:
        """Sum of an atom-wise quantity within each molecule."""
        out = values.new_zeros((len(self), *values.shape[1:]))
        return out.index_add(0, self.layout.molecule, values)

    def mean_over_atoms(self, values: Float[Tensor, "A ..."]) -> Float[Tensor, "B ..."]:
        total = self.sum_over_atoms(values)
        return total / self.n_atoms.to(total.dtype).view(-1, *[1] * (total.ndim - 1))

    def centre(self, x: Float[Tensor, "A 3"]) -> Float[Tensor, "A 3"]:
        """Project onto U = {x : sum_n x_n = 0 in each molecule}."""
        return x - self.per_atom(self.mean_over_atoms(x))

    def centred(self) -> Molecules:
        return self.replace(x=self.centre(self.x))

    def rotate(self, R: Float[Tensor, "B 3 3"]) -> Molecules:
        """x_n -> R x_n for each atom n, one matrix per molecule (any matrix, not only rotations)."""
        # not a matrix product, which autocast would round to bf16: three digits of a position
        return self.replace(x=(self.per_atom(R) * self.x[:, None, :]).sum(-1))

    def combine(self, other: Molecules, of: Callable[[Tensor, Tensor], Tensor]) -> Molecules:
        """Apply one function of two tensors to positions and to features."""
        return self.replace(x=of(self.x, other.x), h=of(self.h, other.h))

    def squared_norm(self) -> Float[Tensor, "B"]:
        """|x|^2 + |h|^2 of each molecule."""
        return self.sum_over_atoms(self.x.square().sum(1) + self.h.square().sum(1))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Molecules:
        layout = self.layout if device is None else self.layout.to(device)
        return Molecules(self.x.to(device, dtype), self.h.to(device, dtype), layout)
