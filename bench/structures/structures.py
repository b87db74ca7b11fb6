"""Molecules as files hold them: nuclear charges and positions in numpy arrays, no torch.

Data sets are read into `Structures`, sampling returns them and the metrics evaluate them. Positions are in
angstrom. The atoms of all molecules are concatenated; `ptr[i]:ptr[i+1]` are the atoms of molecule i. A crystal is a
"molecule" of the atoms in one cell, with the cell's lattice vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike


def rows_of(ptr: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Rows of the items at `index` in a ragged array, item i being rows ptr[i]:ptr[i+1]."""
    sizes = np.diff(ptr)[index]
    ends = np.cumsum(sizes, dtype=np.int64)
    return np.repeat(ptr[:-1][index] - ends + sizes, sizes) + np.arange(ends[-1] if len(ends) else 0)


@dataclass(frozen=True)
class Structures:
    """A list of M molecules with A atoms in all.

    Attributes:
        numbers: nuclear charges [A], int64; 0 never occurs.
        positions: [A, 3] in angstrom, float32 or float64.
        ptr: [M + 1], int64, ptr[0] = 0 and ptr[M] = A.
        cells: lattice vectors of crystals, as rows [M, 3, 3], in angstrom; None: molecules, which have no cell.
    """

    numbers: np.ndarray
    positions: np.ndarray
    ptr: np.ndarray
    cells: np.ndarray | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.positions.shape != (len(self.numbers), 3):
            raise ValueError(
                f"positions have shape {self.positions.shape}, expected ({len(self.numbers)}, 3): "
                "one row for each nuclear charge"
            )
        if self.ptr[0] != 0 or self.ptr[-1] != len(self.numbers):
            raise ValueError(f"ptr runs from {self.ptr[0]} to {self.ptr[-1]}, expected 0 to {len(self.numbers)}")
        if self.cells is not None and self.cells.shape != (len(self), 3, 3):
            raise ValueError(f"cells have shape {self.cells.shape}, expected ({len(self)}, 3, 3): one for each crystal")

    @classmethod
    def from_list(cls, molecules: Sequence[tuple[np.ndarray, np.ndarray]]) -> Structures:
        """Concatenate (numbers [n], positions [n, 3]) pairs."""
        sizes = [len(numbers) for numbers, _ in molecules]
        return cls(
            numbers=np.concatenate(
                [np.asarray(numbers, dtype=np.int64) for numbers, _ in molecules] or [np.zeros(0, np.int64)]
            ),
            positions=np.concatenate([np.asarray(x) for _, x in molecules] or [np.zeros((0, 3))]),
            ptr=np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64),
        )

    @classmethod
    def from_sizes(cls, numbers: ArrayLike, positions: np.ndarray, sizes: ArrayLike) -> Structures:
        """From nuclear charges [A], positions [A, 3] and the number of atoms of each molecule [M]."""
        ptr = np.concatenate([[0], np.cumsum(np.asarray(sizes, dtype=np.int64))]).astype(np.int64)
        return cls(np.asarray(numbers, dtype=np.int64), positions, ptr)

    @classmethod
    def from_padded(cls, num_atoms: np.ndarray, charges: np.ndarray, positions: np.ndarray) -> Structures:
        """From EDM's layout: num_atoms [M], charges [M, n_max] with 0 as padding, positions [M, n_max, 3]."""
        real = np.arange(charges.shape[1])[None, :] < num_atoms[:, None]
        return cls(
            numbers=charges[real].astype(np.int64),
            positions=positions[real],
            ptr=np.concatenate([[0], np.cumsum(num_atoms, dtype=np.int64)]).astype(np.int64),
        )

    @property
    def n_atoms(self) -> np.ndarray:
        """Atoms of each molecule [M]."""
        return np.diff(self.ptr)

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(f"molecule {index} of {len(self)}, counted from 0")
        start, stop = self.ptr[index], self.ptr[index + 1]
        return self.numbers[start:stop], self.positions[start:stop]

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (self[i] for i in range(len(self)))

    def of_atom(self, atom: int) -> int:
        """Index of the molecule that atom `atom`, counted over all molecules, belongs to."""
        return int(np.searchsorted(self.ptr, atom, side="right")) - 1

    def of_atoms(self) -> np.ndarray:
        """Index of the molecule of each atom [A]."""
        return np.repeat(np.arange(len(self)), self.n_atoms)

    def is_finite(self) -> np.ndarray:
        """Whether all coordinates of a molecule, and those of its cell, are finite [M]."""
        broken = self.of_atoms()[~np.isfinite(self.positions).all(axis=1)]
        finite = np.bincount(broken, minlength=len(self)) == 0
        return finite if self.cells is None else finite & np.isfinite(self.cells).all((1, 2))

    def select(self, index: np.ndarray) -> Structures:
        """The molecules at `index` (integers, in that order) or where `index` is True (booleans [M])."""
        index = np.asarray(index)
        if index.dtype == bool:
            if len(index) != len(self):
                raise IndexError(f"a mask of {len(index)} for {len(self)} molecules")
            index = np.flatnonzero(index)
        index = index.astype(np.int64, casting="unsafe" if index.size == 0 else "same_kind")
        ptr = np.concatenate([[0], np.cumsum(self.n_atoms[index], dtype=np.int64)]).astype(np.int64)
        atoms = rows_of(self.ptr, index)
        cells = None if self.cells is None else self.cells[index]
        return Structures(self.numbers[atoms], self.positions[atoms], ptr, cells=cells)

    def arrays(self) -> Iterator[np.ndarray]:
        """All that a molecule is made of, for fingerprints."""
        yield from (self.ptr, self.numbers, self.positions)
        if self.cells is not None:
            yield self.cells

    def distinct(self) -> tuple[Structures, np.ndarray]:
        """The distinct molecules, in the order of their first occurrence, and how often each occurs [K].

        Molecules are equal where nuclear charges and coordinates agree bit for bit, atom by atom; crystals where the
        cells do too.
        """
        first: dict[bytes, int] = {}
        counts: dict[bytes, int] = {}
        for i, (numbers, positions) in enumerate(self):
            key = numbers.tobytes() + positions.tobytes() + (b"" if self.cells is None else self.cells[i].tobytes())
            first.setdefault(key, i)
            counts[key] = counts.get(key, 0) + 1
        return self.select(np.array(list(first.values()), dtype=np.int64)), np.array(list(counts.values()), np.int64)

    @classmethod
    def concatenate(cls, parts: Sequence[Structures]) -> Structures:
        """Several lists as one; with cells where all have some."""
        cells = [part.cells for part in parts if part.cells is not None]
        offsets = np.cumsum([0, *(part.ptr[-1] for part in parts)])
        ptr = [part.ptr[:-1] + offset for part, offset in zip(parts, offsets, strict=False)]
        return cls(
            numbers=np.concatenate([part.numbers for part in parts]),
            positions=np.concatenate([part.positions for part in parts]),
            ptr=np.concatenate([*ptr, offsets[-1:]]).astype(np.int64),
            cells=np.concatenate(cells) if cells and len(cells) == len(parts) else None,
        )
