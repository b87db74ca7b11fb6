"""Lattices of crystals in numpy: lengths and angles, lattice vectors in the standard orientation, fractions, volumes.

Lattice vectors are the rows of a cell [3, 3] in angstrom; a point with fractions f lies at f @ cell. The standard
orientation is that of pymatgen and of CDVAE's code: c along z, a in the plane of x and z. A cell follows from its three
lengths and three angles, so that rotations of a crystal never enter a model.
"""

from __future__ import annotations

import numpy as np

from bench.structures.structures import Structures


def standard_cells(parameters: np.ndarray) -> np.ndarray:
    """Lattice vectors in the standard orientation [M, 3, 3].

    Args:
        parameters: a, b, c in angstrom, alpha, beta, gamma in degrees [M, 6].
    Raises:
        ValueError: lengths that are not positive, or angles that no cell has.
    """
    parameters = np.asarray(parameters, dtype=np.float64)
    a, b, c = parameters[:, :3].T
    alpha, beta, gamma = np.radians(parameters[:, 3:]).T
    cos_star = (np.cos(alpha) * np.cos(beta) - np.cos(gamma)) / (np.sin(alpha) * np.sin(beta))  # reciprocal gamma
    if not (parameters[:, :3] > 0).all() or not (np.abs(cos_star) < 1).all():
        raise ValueError("lengths or angles of a cell without a volume; expected positive lengths and angles of a cell")
    zero, sin_star = np.zeros_like(a), np.sqrt(1 - np.square(cos_star))
    rows = (
        (a * np.sin(beta), zero, a * np.cos(beta)),
        (-b * np.sin(alpha) * cos_star, b * np.sin(alpha) * sin_star, b * np.cos(alpha)),
        (zero, zero, c),
    )
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


def parameters_of(cells: np.ndarray) -> np.ndarray:
    """Lengths in angstrom and angles in degrees of cells [M, 3, 3], as [M, 6]; NaN where a length is zero."""
    cells = np.asarray(cells, dtype=np.float64)
    lengths = np.linalg.norm(cells, axis=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = cells / lengths[..., None]
    cosines = [(unit[:, i] * unit[:, j]).sum(1) for i, j in ((1, 2), (0, 2), (0, 1))]
    return np.concatenate([lengths, np.degrees(np.arccos(np.clip(np.stack(cosines, axis=1), -1, 1)))], axis=1)


def volumes(cells: np.ndarray) -> np.ndarray:
    """Volumes in cubic angstrom [M], positive whatever the handedness."""
    return np.abs(np.linalg.det(np.asarray(cells, dtype=np.float64)))


def crystals(numbers: np.ndarray, fractions: np.ndarray, cells: np.ndarray, ptr: np.ndarray) -> Structures:
    """Structures from fractions [A, 3] and cells [M, 3, 3], positions and cells in float64."""
    fractions = np.asarray(fractions, dtype=np.float64)
    cells = np.asarray(cells, dtype=np.float64)
    positions = np.einsum("ai,aij->aj", fractions, np.repeat(cells, np.diff(ptr), axis=0))
    return Structures(np.asarray(numbers, np.int64), positions, np.asarray(ptr, np.int64), cells=cells)


def fractions_of(structures: Structures) -> np.ndarray:
    """Fractional coordinates in [0, 1) [A, 3], float64.

    Raises:
        ValueError: structures without cells.
    """
    if structures.cells is None:
        raise ValueError("molecules have no cells, and so no fractional coordinates; choose a data set of crystals")
    inverse = np.linalg.inv(structures.cells.astype(np.float64))
    found = np.einsum("ai,aij->aj", structures.positions.astype(np.float64), inverse[structures.of_atoms()])
    return found % 1.0 % 1.0  # twice: one remainder rounds -1e-20 to 1
