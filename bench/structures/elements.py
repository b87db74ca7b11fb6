"""Shared by the readers of all formats: element symbols, limits, and the error for a file that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.structures.structures import Structures

MAX_LINE = 1 << 20  # characters of a line of text


class FileError(ValueError):
    """A file of molecules that cannot be read or written; one line: file, place, what was found, what was expected."""


class BadMoleculesError(FileError):
    """Molecules of a file that cannot be read, where others can: `contents(path, skip_bad=True)` leaves them out."""


@dataclass(frozen=True)
class Contents:
    """What a file of molecules holds.

    Attributes:
        structures: its molecules.
        faults: why molecules were left out, a line for each.
        bonds: of an sdf, the file's own: per molecule rows (first atom, second atom, order 1..3), counted from 0,
            aromatic ones in a Kekule form; None where the molecule's bonds have no such orders.
        charges: of an sdf, the formal charge of every atom [A].
        n_hydrogens: of an sdf, hydrogens that the file's bonds call for and that are no atoms in it [M].
    """

    structures: Structures
    faults: list[str] = field(default_factory=list)
    bonds: Sequence[np.ndarray | None] | None = None
    charges: np.ndarray | None = None
    n_hydrogens: np.ndarray | None = None

    def select(self, index: np.ndarray) -> Contents:
        """The molecules at `index`, with the same faults."""
        if self.bonds is None or self.charges is None or self.n_hydrogens is None:
            return Contents(self.structures.select(index), self.faults)
        ptr = self.structures.ptr
        charges = [self.charges[ptr[i] : ptr[i + 1]] for i in index.tolist()]
        return Contents(
            self.structures.select(index),
            self.faults,
            [self.bonds[i] for i in index.tolist()],
            np.concatenate([*charges, np.zeros(0, np.int64)]),
            self.n_hydrogens[index],
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Contents]) -> Contents:
        """Several files as one; without bonds if one of them has none."""
        structures = Structures.concatenate([part.structures for part in parts])
        faults = [fault for part in parts for fault in part.faults]
        bonds = [part.bonds for part in parts if part.bonds is not None]
        if len(bonds) < len(parts):
            return cls(structures, faults)
        charges = np.concatenate([part.charges for part in parts if part.charges is not None])
        n_hydrogens = np.concatenate([part.n_hydrogens for part in parts if part.n_hydrogens is not None])
        return cls(structures, faults, [rows for some in bonds for rows in some], charges, n_hydrogens)


# Written out, because a training run reads xyz files and loads no RDKit.
SYMBOLS = (  # noqa: SIM905
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb "
    "Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au "
    "Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm"
).split()
MAX_NUMBER = len(SYMBOLS)  # 96, curium: the last with a covalent radius below
SYMBOL = dict(enumerate(SYMBOLS, start=1))  # nuclear charge -> element symbol
# Covalent radii in angstrom, as in RDKit's periodic table (Cordero et al. 2008, doi:10.1039/b801115j).
COVALENT_RADIUS = np.array(
    [
        np.nan, 0.31, 0.28, 1.28, 0.96, 0.84, 0.76, 0.71, 0.66, 0.57, 0.58, 1.66, 1.41, 1.21, 1.11, 1.07, 1.05, 1.02,
        1.06, 2.03, 1.76, 1.7, 1.6, 1.52, 1.39, 1.39, 1.32, 1.26, 1.24, 1.32, 1.22, 1.22, 1.2, 1.19, 1.2, 1.2, 1.16,
        2.2, 1.95, 1.9, 1.75, 1.64, 1.54, 1.47, 1.46, 1.42, 1.39, 1.45, 1.44, 1.42, 1.39, 1.39, 1.38, 1.39, 1.4, 2.44,
        2.15, 2.07, 2.04, 2.03, 2.01, 1.99, 1.98, 1.98, 1.96, 1.94, 1.92, 1.92, 1.89, 1.9, 1.87, 1.87, 1.75, 1.7, 1.62,
        1.51, 1.44, 1.41, 1.36, 1.36, 1.32, 1.45, 1.46, 1.48, 1.4, 1.5, 1.5, 2.6, 2.2, 2.15, 2.06, 2.0, 1.96, 1.9,
        1.87, 1.8, 1.69,
    ]
)  # fmt: skip
