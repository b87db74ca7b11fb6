"""Conformer ensembles in numpy: molecular graphs, and the conformers of each.

A molecule is a graph with its stereochemistry: conformers whose tetrahedral centres or double bonds differ belong to
different molecules. The atoms of all its conformers are in the order of its graph. How graphs are made from files:
`bench.structures.perception`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from bench.structures.structures import Structures, rows_of

if TYPE_CHECKING:
    from rdkit import Chem


@dataclass(frozen=True, eq=False)
class Graphs:
    """M molecular graphs with A atoms and K bonds in all.

    Attributes:
        numbers: nuclear charges [A], int64.
        charges: formal charges [A], int64.
        chirality: CIP label of each atom [A], int64: 1 for R, -1 for S, 0 for none; a function of the molecule, not of
            the order of its atoms.
        ptr: [M + 1], first atoms.
        bonds: [K, 4], int64: two atoms of the molecule, counted from 0, the type (1, 2, 3, and 4 for aromatic), and the
            configuration of a double bond (0 none, 1 Z, 2 E); each bond once.
        turns: [K, 2], int64: of each bond, the place of its second atom among the neighbours of its first, and of the
            first among those of the second, from 1; 0 around an atom without a CIP label. With unit vectors u_1, u_2
            and u_3 from a centre to its neighbours at places 1, 2 and 3, u_1 (u_2 x u_3) > 0: the handedness, without
            the rules by which a label follows from the whole molecule.
        bond_ptr: [M + 1], first bonds.
        smiles: canonical isomeric SMILES of each molecule, without hydrogens.
    """

    numbers: np.ndarray
    charges: np.ndarray
    chirality: np.ndarray
    ptr: np.ndarray
    bonds: np.ndarray
    turns: np.ndarray
    bond_ptr: np.ndarray
    smiles: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.smiles)

    @property
    def n_atoms(self) -> np.ndarray:
        """Atoms of each molecule [M]."""
        return np.diff(self.ptr)

    def atoms(self, index: int) -> slice:
        return slice(int(self.ptr[index]), int(self.ptr[index + 1]))

    def bonds_of(self, index: int) -> np.ndarray:
        """Bonds of one molecule [k, 4]."""
        return self.bonds[self.bond_ptr[index] : self.bond_ptr[index + 1]]

    def arrays(self) -> Iterator[np.ndarray]:
        """All that decides what a network is given, for fingerprints."""
        yield from (self.numbers, self.charges, self.chirality, self.ptr, self.bonds, self.turns, self.bond_ptr)

    def mol(self, index: int, positions: np.ndarray | None = None) -> Chem.Mol:
        """One molecule for RDKit, its atoms in the order of the graph.

        Args:
            positions: of conformers [n, atoms, 3] in angstrom, to add; the first decides the stereochemistry. Without
                them the molecule has none.
        """
        from bench.structures.chemistry import molecule_of

        atoms = self.atoms(index)
        return molecule_of(self.numbers[atoms], self.bonds_of(index), self.charges[atoms], positions)

    def automorphisms(self, index: int, at_most: int) -> np.ndarray:
        """Permutations of a molecule's atoms that its graph does not tell apart [G, atoms], the identity first.

        They keep elements, formal charges, CIP labels, numbers of hydrogens, types and configurations of bonds. Listed
        is the group of the heavy atoms, with the k-th hydrogen of an atom going to the k-th hydrogen of its image: a
        subgroup of all automorphisms, which exchange the hydrogens of every CH3 too and are thousands in a drug.
        The identity alone where there are more than `at_most`: a part of a list is no group.
        """
        if (index, at_most) not in self._automorphisms:
            from bench.structures.chemistry import automorphisms

            atoms = self.atoms(index)
            colours = np.stack([self.numbers[atoms], self.charges[atoms], self.chirality[atoms]], axis=1)
            self._automorphisms[index, at_most] = automorphisms(colours, self.bonds_of(index), at_most)
        return self._automorphisms[index, at_most]

    @cached_property
    def _automorphisms(self) -> dict[tuple[int, int], np.ndarray]:
        return {}


@dataclass(frozen=True)
class Ensembles(Structures):
    """Conformers as structures, and of which molecule each one is.

    Attributes:
        graphs: molecules; some may have no conformer here, since the splits of a data set share them.
        molecule: index of each conformer's graph [C], int64.
    """

    graphs: Graphs
    molecule: np.ndarray

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.molecule.shape != (len(self),):
            raise ValueError(f"molecule has shape {self.molecule.shape}, expected one index for each of {len(self)}")
        if not np.array_equal(self.n_atoms, self.graphs.n_atoms[self.molecule]):
            raise ValueError("conformers and their graphs differ in the number of atoms")

    def select(self, index: np.ndarray) -> Ensembles:
        """The conformers at `index`, or where it is True, with all graphs."""
        index = np.asarray(index)
        chosen = super().select(index)
        # an empty list is an array of floats
        molecule = self.molecule[index if index.size else index.astype(np.int64)]
        return Ensembles(chosen.numbers, chosen.positions, chosen.ptr, self.graphs, molecule)

    @property
    def present(self) -> np.ndarray:
        """Molecules that have a conformer here, ascending."""
        return np.unique(self.molecule)

    def conformers(self, index: int) -> np.ndarray:
        """Positions of all conformers of one molecule [n, atoms, 3]."""
        mine = np.flatnonzero(self.molecule == index)
        return self.positions[rows_of(self.ptr, mine)].reshape(len(mine), -1, 3)

    def arrays(self) -> Iterator[np.ndarray]:
        yield from super().arrays()
        yield self.molecule
        yield from self.graphs.arrays()
