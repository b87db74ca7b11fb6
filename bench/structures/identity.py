"""Which molecules are the same: keys of atoms and bonds, of scaffolds, and whether positions can be in angstrom.

Atoms are bonded here when they are closer than 1.3 times the sum of their covalent radii, whatever the order: enough to
tell conformers of one molecule from another molecule, for all elements and without RDKit. A key is a hash of the graph
by Weisfeiler and Lehman's refinement: equal for equal graphs, and, but for rare regular ones, different for different
ones. Mirror images and positions of double bonds are not told apart.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bench.structures.elements import COVALENT_RADIUS
from bench.structures.structures import Structures

REACH = 1.3  # times the sum of the radii, as in RDKit
N_ROUNDS = 12  # of refinement: as many bonds away an atom sees
PAIRS_AT_ONCE = 2_000_000
N_LOOKED_AT = 1000  # molecules whose distances tell the unit
FAR = 1.4  # in bohr, 1.89 times the number in angstrom, bonds are longer than this times the sum of the radii


def graph_keys(structures: Structures) -> np.ndarray:
    """Key of the atoms and bonds of each molecule [M], uint64."""
    return _keys(structures, scaffold=False)


def scaffold_keys(structures: Structures) -> np.ndarray:
    """Key of the rings and the chains between them of each molecule [M]; where there is no ring, of the molecule.

    References: Bemis & Murcko (1996), The properties of known drugs, 1: molecular frameworks, doi:10.1021/jm9602928.
    """
    return _keys(structures, scaffold=True)


def unit_warning(structures: Structures) -> str | None:
    """A line if in most of the first molecules no two atoms are within bonding distance, which bohr would explain."""
    some = structures.select(np.arange(min(N_LOOKED_AT, len(structures))))
    n, far, lengths = 0, 0, []
    for molecules, distance, radii in _pairs(some):
        ratio = (distance / radii).reshape(len(molecules), -1).min(axis=1)
        n, far = n + len(molecules), far + int((ratio > FAR).sum())
        lengths.append(distance.reshape(len(molecules), -1).min(axis=1))
    if not n or 2 * far <= n:
        return None
    return (
        f"in {far} of {n} molecules no two atoms are within bonding distance (the closest are "
        f"{np.median(np.concatenate(lengths)):.2f} apart); are these angstrom? 1 bohr is 0.529177 angstrom"
    )


def _keys(structures: Structures, scaffold: bool) -> np.ndarray:
    found = _mix(structures.numbers[structures.ptr[:-1]].astype(np.uint64))  # of a single atom
    for molecules, distance, radii in _pairs(structures):
        bonded = distance < REACH * radii
        numbers = structures.numbers[_atoms(structures, molecules)]
        real = np.ones(numbers.shape, dtype=bool)
        if scaffold:
            inner = _without_ends(bonded)
            real = np.where(inner.any(axis=1, keepdims=True), inner, real)
        bonded &= real[:, :, None] & real[:, None, :]
        label = _mix(numbers.astype(np.uint64))
        for _ in range(N_ROUNDS):
            around = np.where(bonded, label[:, None, :], np.uint64(0)).sum(axis=2, dtype=np.uint64)
            label = _mix(label + np.uint64(3) * _mix(around))
        found[molecules] = _mix(np.where(real, label, np.uint64(0)).sum(axis=1, dtype=np.uint64))
    return found


def _without_ends(bonded: np.ndarray) -> np.ndarray:
    """Atoms that are left when those with at most one bond are taken away until there are none [g, n]."""
    inner = np.ones(bonded.shape[:2], dtype=bool)
    while True:
        kept = inner & ((bonded & inner[:, None, :]).sum(axis=2) > 1)
        if (kept == inner).all():
            return inner
        inner = kept


def _atoms(structures: Structures, molecules: np.ndarray) -> np.ndarray:
    """Atoms of molecules of one size [g, n]."""
    return structures.ptr[molecules][:, None] + np.arange(int(structures.n_atoms[molecules[0]]))


def _pairs(structures: Structures) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(molecules [g], distances [g, n, n], sums of radii [n, n] for each), of molecules of one size of at least 2."""
    sizes = structures.n_atoms
    for n in np.unique(sizes[sizes > 1]).tolist():
        molecules = np.flatnonzero(sizes == n)
        for chunk in np.array_split(molecules, -(-len(molecules) * n * n // PAIRS_AT_ONCE)):
            atoms = _atoms(structures, chunk)
            x = structures.positions[atoms].astype(np.float64)
            square = sum((x[:, :, None, k] - x[:, None, :, k]) ** 2 for k in range(3))
            distance = np.sqrt(square)
            distance[:, np.arange(n), np.arange(n)] = np.inf
            radius = COVALENT_RADIUS[structures.numbers[atoms]]
            yield chunk, distance, radius[:, :, None] + radius[:, None, :]


def _mix(x: np.ndarray) -> np.ndarray:
    """Finaliser of splitmix64: a bijection of 64-bit integers that looks random (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
