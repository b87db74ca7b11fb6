"""Internal coordinates of bonded molecules: bond lengths, angles and torsions with their classes, and fragments.

A class is the tuple of nuclear charges along the chain of atoms, read in the direction that makes it smaller: C-O and
O-C are one class, and so are H-C-O and O-C-H. Lengths are in angstrom, angles in degrees on [0, 180], torsions in
degrees on [-180, 180), positive clockwise as IUPAC has it, so that mirror images differ by the sign. Atoms with more
than MAX_NEIGHBOURS bonds, such as those of a collapsed sample, have no angles and no torsions: their number grows with
the third power, and no chemistry has them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from bench.metrics.stability import Bonds
from bench.structures.elements import SYMBOL
from bench.structures.structures import Structures

MAX_NEIGHBOURS = 8
BASE = 128  # of the number that a class is written as; above all nuclear charges


@dataclass(frozen=True)
class Coordinates:
    """One kind of internal coordinate of a set of molecules.

    Attributes:
        classes: of each, as a number with the nuclear charges as digits to base BASE.
        values: in angstrom or degrees.
    """

    classes: Int[np.ndarray, "n"]
    values: Float[np.ndarray, "n"]


def class_name(key: int, n_atoms: int) -> str:
    """'H-C-O' of a class of chains of three atoms."""
    digits = [key // BASE**k % BASE for k in reversed(range(n_atoms))]
    return "-".join(SYMBOL[digit] for digit in digits)


def n_fragments(n_atoms: Int[np.ndarray, "M"], bonds: Bonds) -> Int[np.ndarray, "M"]:
    """Number of pieces that no bond connects, of each molecule."""
    ptr = np.concatenate([[0], np.cumsum(n_atoms)])
    first, second = _of_all(ptr, bonds).T
    graph = coo_matrix((np.ones(len(first), dtype=bool), (first, second)), shape=(ptr[-1], ptr[-1]))
    label = connected_components(graph, directed=False)[1]
    molecule = np.repeat(np.arange(len(n_atoms)), n_atoms)
    return np.bincount(molecule[np.unique(label, return_index=True)[1]], minlength=len(n_atoms))


def bond_lengths(structures: Structures, bonds: Bonds) -> Coordinates:
    """Length of every bond."""
    chains = _of_all(structures.ptr, bonds)
    x = structures.positions.astype(np.float64)
    return Coordinates(_classes(structures, chains), np.linalg.norm(x[chains[:, 0]] - x[chains[:, 1]], axis=1))


def bond_angles(structures: Structures, bonds: Bonds) -> Coordinates:
    """Angle of every pair of bonds at an atom."""
    neighbours, start = _neighbours(structures, bonds)
    # each neighbour with those after it in the list of the same centre
    centre = np.repeat(np.arange(len(start) - 1), np.diff(start))
    left = start[centre + 1] - 1 - np.arange(len(neighbours))
    first = np.repeat(np.arange(len(neighbours)), left)
    second = first + 1 + _counting(left)
    chains = np.column_stack([neighbours[first], centre[first], neighbours[second]])
    x = structures.positions.astype(np.float64)
    a, b = x[chains[:, 0]] - x[chains[:, 1]], x[chains[:, 2]] - x[chains[:, 1]]
    # of the arc tangent, which is accurate where the arc cosine is not: near 0 and 180 degrees
    angle = np.arctan2(np.linalg.norm(np.cross(a, b), axis=1), (a * b).sum(axis=1))
    return Coordinates(_classes(structures, chains), np.degrees(angle))


def torsions(structures: Structures, bonds: Bonds) -> Coordinates:
    """Dihedral angle of every chain of three bonds; those with three atoms in a line have none."""
    neighbours, start = _neighbours(structures, bonds)
    b, c = _of_all(structures.ptr, bonds).T
    n_b, n_c = np.diff(start)[b], np.diff(start)[c]
    bond = np.repeat(np.arange(len(b)), n_b * n_c)
    place = _counting(n_b * n_c)
    a = neighbours[start[b[bond]] + place // n_c[bond]]
    d = neighbours[start[c[bond]] + place % n_c[bond]]
    chains = np.column_stack([a, b[bond], c[bond], d])
    chains = chains[(a != c[bond]) & (d != b[bond]) & (a != d)]
    x = structures.positions.astype(np.float64)
    u, v, w = (x[chains[:, k + 1]] - x[chains[:, k]] for k in range(3))
    n, m = np.cross(u, v), np.cross(v, w)
    sine = np.linalg.norm(v, axis=1) * (u * m).sum(axis=1)
    cosine = (n * m).sum(axis=1)
    defined = (sine != 0) | (cosine != 0)
    turns = np.degrees(np.arctan2(sine, cosine))[defined]
    return Coordinates(_classes(structures, chains)[defined], np.where(turns >= 180, turns - 360, turns))


def _of_all(ptr: np.ndarray, bonds: Bonds) -> Int[np.ndarray, "E 2"]:
    """Bonded atoms, counted over all molecules."""
    return np.repeat(ptr[:-1], np.diff(bonds.ptr))[:, None] + bonds.pairs


def _neighbours(structures: Structures, bonds: Bonds) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours of all atoms, atom after atom, and where those of each begin [A + 1]; none for crowded atoms."""
    first, second = _of_all(structures.ptr, bonds).T
    at, to = np.concatenate([first, second]), np.concatenate([second, first])
    crowded = np.bincount(at, minlength=len(structures.numbers)) > MAX_NEIGHBOURS
    at, to = at[~crowded[at]], to[~crowded[at]]
    counts = np.bincount(at, minlength=len(structures.numbers))
    return to[np.argsort(at, kind="stable")], np.concatenate([[0], np.cumsum(counts)])


def _counting(n: np.ndarray) -> np.ndarray:
    """0..n[0]-1, 0..n[1]-1, ... in a row."""
    return np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)


def _classes(structures: Structures, chains: np.ndarray) -> np.ndarray:
    numbers = structures.numbers[chains]
    digits = BASE ** np.arange(numbers.shape[1])[::-1]
    return np.minimum(numbers @ digits, numbers[:, ::-1] @ digits)
