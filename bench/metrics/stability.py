"""Bonds looked up from distances, and the stability of atoms and molecules that follows from them.

The rule is EDM's (Hoogeboom et al. 2022, arXiv:2203.17003): a pair of atoms is bonded when it is closer than the
typical single-bond length plus a margin; the bond is double when it is also closer than the double-bond length plus its
own margin, and triple when it is double and closer than the triple-bond length plus its margin. Every `<` is strict.
Lengths are in pm and positions in angstrom; distances are taken in float32, as the published code takes them, so that
float64 and float32 files give the same bonds. An atom is stable when its bond orders add up to the valence of the
neutral element.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

import numpy as np
from rdkit import Chem

from bench.structures.structures import Structures

PAIRS_AT_ONCE = 500_000  # bounds the memory of the dense distances (some 50 bytes a pair)
ORDERS = ("single", "double", "triple")


class UnknownElementError(ValueError):
    """An element that the table has no bond lengths for."""


@dataclass(frozen=True)
class BondTable:
    """A look-up table of bond lengths.

    Attributes:
        name: file under `bench/metrics/valence`, without suffix.
        reach: [3, Z, Z] float32, length plus margin in pm for single, double, triple; 0 where there is no such bond.
        valence: [Z] allowed sum of bond orders; -1 where the element is not in the table.
    """

    name: str
    reach: np.ndarray
    valence: np.ndarray

    @classmethod
    @functools.cache
    def load(cls, name: str = "edm") -> BondTable:
        """Read `bench/metrics/valence/<name>.json`."""
        table = json.loads(resources.files("bench.metrics").joinpath(f"valence/{name}.json").read_text())
        number = {symbol: Chem.GetPeriodicTable().GetAtomicNumber(symbol) for symbol in table["valence"]}
        valence = np.full(max(number.values()) + 1, -1, dtype=np.int64)
        reach = np.zeros((len(ORDERS), len(valence), len(valence)), dtype=np.float32)
        for symbol, allowed in table["valence"].items():
            valence[number[symbol]] = allowed
        for k, order in enumerate(ORDERS):
            for pair, length in table[order].items():
                a, b = (number[symbol] for symbol in pair.split("-"))
                reach[k, a, b] = reach[k, b, a] = length + table["margins"][order]
        return cls(name, reach, valence)

    def check(self, structures: Structures) -> None:
        """Raise UnknownElementError when a molecule has an element that is not in the table."""
        numbers = structures.numbers
        inside = (numbers > 0) & (numbers < len(self.valence))
        unknown = ~inside | (self.valence[np.where(inside, numbers, 0)] < 0)
        if unknown.any():
            atom = int(np.argmax(unknown))
            symbol = Chem.GetPeriodicTable().GetElementSymbol
            known = ", ".join(symbol(int(number)) for number in np.flatnonzero(self.valence >= 0))
            molecule = int(np.searchsorted(structures.ptr, atom, side="right")) - 1
            raise UnknownElementError(
                f"molecule {molecule} (counted from 0) has element {symbol(int(numbers[atom]))}, but bond table "
                f"{self.name!r} covers {known}; evaluate molecules of these elements alone"
            )


@dataclass(frozen=True)
class Bonds:
    """Bonds of M molecules, E in all, molecule after molecule; `bonds[i]` gives those of one.

    Attributes:
        pairs: [E, 2] int32, atoms counted from 0 within the molecule, the later atom first.
        order: [E] int8, 1 to 3.
        ptr: [M + 1] int64.
    """

    pairs: np.ndarray
    order: np.ndarray
    ptr: np.ndarray

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """Rows (first atom, second atom, order) of molecule `index`, [n, 3]."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        rows = slice(self.ptr[index], self.ptr[index + 1])
        return np.column_stack([self.pairs[rows], self.order[rows]])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def order_sums(self, structures: Structures) -> np.ndarray:
        """Sum of bond orders at each atom [A], int64."""
        start = np.repeat(structures.ptr[:-1], np.diff(self.ptr))
        atoms = (start[:, None] + self.pairs).ravel()
        weights = np.repeat(self.order, 2)
        return np.bincount(atoms, weights, minlength=len(structures.numbers)).astype(np.int64)


def infer_bonds(structures: Structures, table: BondTable | None = None) -> Bonds:
    """Bonds of every molecule by the look-up rule, default EDM's table.

    Raises:
        UnknownElementError: an element that the table does not cover.
        ValueError: a position that is not finite.
    References: Hoogeboom et al. (2022), Equivariant Diffusion for Molecule Generation in 3D, arXiv:2203.17003.
    """
    table = BondTable.load() if table is None else table
    table.check(structures)
    if not np.isfinite(structures.positions).all():
        atom = int(np.argmin(np.isfinite(structures.positions).all(axis=1)))
        molecule = int(np.searchsorted(structures.ptr, atom, side="right")) - 1
        raise ValueError(
            f"molecule {molecule} (counted from 0) has a position that is not finite; it cannot be evaluated"
        )
    found = list(_bonds_by_size(structures, table))
    molecule = np.concatenate([part[0] for part in found] or [np.zeros(0, np.int64)])
    pairs = np.concatenate([part[1] for part in found] or [np.zeros((0, 2), np.int32)])
    order = np.concatenate([part[2] for part in found] or [np.zeros(0, np.int8)])
    by_molecule = np.argsort(molecule, kind="stable")
    counts = np.bincount(molecule, minlength=len(structures))
    return Bonds(pairs[by_molecule], order[by_molecule], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def _bonds_by_size(structures: Structures, table: BondTable) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(molecule [e], pairs [e, 2], order [e]) of molecules of one size at a time, as dense blocks."""
    sizes = structures.n_atoms
    for n in np.unique(sizes[sizes > 1]).tolist():
        molecules = np.flatnonzero(sizes == n)
        for first, second in _pair_blocks(n):
            n_at_once = max(1, PAIRS_AT_ONCE // len(first))
            for chunk in np.array_split(molecules, -(-len(molecules) // n_at_once)):
                atoms = structures.ptr[chunk][:, None] + np.arange(n)
                numbers = structures.numbers[atoms]
                reach = table.reach[:, numbers[:, first], numbers[:, second]]  # [3, g, pairs]
                with np.errstate(over="ignore"):  # atoms too far apart for float32 are not bonded
                    x = structures.positions[atoms].astype(np.float32)
                    d = 100 * np.sqrt(sum((x[:, first, k] - x[:, second, k]) ** 2 for k in range(3)))
                single = d < reach[0]
                double = single & (d < reach[1])
                triple = double & (d < reach[2])
                row, pair = np.nonzero(single)
                order = 1 + double[row, pair].astype(np.int8) + triple[row, pair].astype(np.int8)
                yield chunk[row], np.column_stack([first[pair], second[pair]]).astype(np.int32), order


def _pair_blocks(n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs first > second of n atoms, row after row, in blocks of about PAIRS_AT_ONCE."""
    n_rows = max(1, PAIRS_AT_ONCE // n)
    for start in range(1, n, n_rows):
        sizes = np.arange(start, min(start + n_rows, n))  # row i pairs atom i with the i atoms before it
        first = np.repeat(sizes, sizes)
        yield first, np.arange(len(first)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
