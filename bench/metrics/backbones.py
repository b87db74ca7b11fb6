"""Geometry of protein backbones from C-alphas alone: distances, virtual angles, secondary structure and its handedness.

Lengths are in angstrom, angles in degrees, dihedral angles on [-180, 180), positive clockwise as IUPAC has it: mirror
images differ by their sign. A trace is an array [n, 3] of the C-alphas of consecutive residues.

Secondary structure is assigned by the criteria of P-SEA on C-alphas (Labesse et al., 1997,
doi:10.1093/bioinformatics/13.3.291): distances and angles around a residue within a range, five residues or more in a
row. Left out are its lengthening of segments at their ends, and its shorter strands. A helix counts as right-handed or
left-handed by the sign of its virtual dihedral angles; P-SEA knows right-handed ones alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from bench.structures.chains import ChainAtoms
from bench.structures.structures import Structures

SHORTEST = 5  # residues of a helix or strand
# at residue i: distances from i - 1 to i + 1, i + 2 and i + 3, the angle at i, and the dihedral angle of i - 1 to i + 2
HELIX = {"d3": (4.8, 5.8), "d4": (5.8, 7.0), "angle": (77.0, 101.0), "dihedral": (30.0, 70.0)}
STRAND = {"d2": (6.1, 7.3), "d3": (9.0, 10.8), "d4": (11.3, 13.5), "angle": (110.0, 138.0)}
STRAND_DIHEDRAL = (-170.0, 45.0)  # centre, and farthest from it on the circle


def traces_of(structures: Structures) -> list[Float[np.ndarray, "n 3"]]:
    """C-alphas of each backbone, float64."""
    whole = ChainAtoms.BACKBONE.numbers
    step = len(whole) if (structures.numbers == whole[0]).any() else 1
    return [x[step // 2 :: step].astype(np.float64) for _, x in structures]


def distances(x: Float[np.ndarray, "n 3"], apart: int) -> Float[np.ndarray, "m"]:
    """Between residues i and i + apart, of all i."""
    return np.linalg.norm(x[apart:] - x[:-apart], axis=1)


def angles(x: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "m"]:
    """Virtual bond angles of three consecutive points, on [0, 180]."""
    u, v = x[:-2] - x[1:-1], x[2:] - x[1:-1]
    sine, cosine = np.linalg.norm(np.cross(u, v), axis=1), (u * v).sum(1)
    return np.degrees(np.arctan2(sine, cosine))


def dihedrals(x: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "m"]:
    """Virtual dihedral angles of four consecutive points."""
    return torsions(x[:-3], x[1:-2], x[2:-1], x[3:])


def torsions(
    a: Float[np.ndarray, "m 3"], b: Float[np.ndarray, "m 3"], c: Float[np.ndarray, "m 3"], d: Float[np.ndarray, "m 3"]
) -> Float[np.ndarray, "m"]:
    """Dihedral angles about the axes from b to c."""
    axis = c - b
    n1, n2 = np.cross(b - a, axis), np.cross(axis, d - c)
    sine = (np.cross(n1, n2) * axis).sum(1) / np.linalg.norm(axis, axis=1).clip(1e-12)
    return np.degrees(np.arctan2(sine, (n1 * n2).sum(1)))


def radius_of_gyration(x: Float[np.ndarray, "n 3"]) -> float:
    return float(np.sqrt(np.square(x - x.mean(0)).sum(1).mean()))


def in_clash(x: Float[np.ndarray, "n 3"], nearest: float) -> Bool[np.ndarray, "n"]:
    """Whether a residue has another, two or more places away, within `nearest` angstrom."""
    from scipy.spatial import KDTree

    found = np.zeros(len(x), bool)
    pairs = KDTree(x).query_pairs(nearest, output_type="ndarray")
    found[pairs[np.diff(pairs, axis=1)[:, 0] > 1]] = True
    return found


@dataclass(frozen=True)
class SecondaryStructure:
    """Which residues of a trace are in helices of either hand, and in strands [n]."""

    right: Bool[np.ndarray, "n"]
    left: Bool[np.ndarray, "n"]
    strand: Bool[np.ndarray, "n"]


def secondary_structure(x: Float[np.ndarray, "n 3"]) -> SecondaryStructure:
    """Secondary structure by the criteria of P-SEA, helices of both hands."""
    n = len(x)
    none = np.zeros(n, bool)
    if n < SHORTEST:
        return SecondaryStructure(none, none, none)
    at = {f"d{k}": _at(distances(x, k), n) for k in (2, 3, 4)}
    at |= {"angle": _at(angles(x), n), "dihedral": _at(dihedrals(x), n)}

    def within(limits: dict[str, tuple[float, float]], *names: str, of: dict[str, np.ndarray] = at) -> np.ndarray:
        return np.all([(of[name] >= limits[name][0]) & (of[name] <= limits[name][1]) for name in names], axis=0)

    turned = at | {"dihedral": np.abs(at["dihedral"])}
    helical = within(HELIX, "d3", "d4") | within(HELIX, "angle", "dihedral", of=turned)
    off = np.abs((at["dihedral"] - STRAND_DIHEDRAL[0] + 180) % 360 - 180)
    extended = within(STRAND, "d2", "d3", "d4") | (within(STRAND, "angle") & (off <= STRAND_DIHEDRAL[1]))
    right, left = (in_a_row(helical & (sign * at["dihedral"] > 0), SHORTEST) for sign in (1, -1))
    return SecondaryStructure(right, left, in_a_row(extended, SHORTEST) & ~right & ~left)


def _at(values: Float[np.ndarray, "m"], n: int) -> Float[np.ndarray, "n"]:
    """Values of windows that begin one residue before the one that they belong to; NaN where there is no window."""
    padded = np.full(n, np.nan)
    padded[1 : 1 + len(values)] = values
    return padded


def in_a_row(marked: Bool[np.ndarray, "n"], shortest: int) -> Bool[np.ndarray, "n"]:
    """Marked places in runs of `shortest` or more."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marked, [False]]).astype(np.int8)))
    kept = np.zeros(len(marked), bool)
    for start, stop in edges.reshape(-1, 2):
        kept[start:stop] = stop - start >= shortest
    return kept
