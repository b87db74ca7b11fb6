"""Small ensembles for tests: molecules of known symmetry, embedded by RDKit with fixed seeds."""

from __future__ import annotations

from functools import cache

import numpy as np
from rdkit import Chem
from rdkit.Chem.rdDistGeom import EmbedMultipleConfs

from bench.structures.chemistry import CODES
from bench.structures.ensembles import Ensembles
from bench.structures.perception import Record, collect

# SMILES -> automorphisms of the heavy atoms, counted by hand
SYMMETRIES = {
    "Cc1ccccc1": 2,  # toluene: the ring is turned over
    "CC(F)(F)F": 6,
    "C[C@H](O)F": 1,
    "F/C=C/F": 2,
    "F/C=C\\F": 2,
    "CC(=O)[O-]": 1,
    "C[C@H](F)[C@@H](C)F": 1,  # meso: exchanging the ends exchanges R and S
    "C[C@H](F)[C@H](C)F": 2,
}


def records_of(smiles: str, n: int = 3, seed: int = 1) -> list[Record]:
    """Conformers of one molecule; the seed is not 0, from which RDKit draws one conformer n times."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    EmbedMultipleConfs(mol, n, randomSeed=seed)
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    charges = np.array([atom.GetFormalCharge() for atom in mol.GetAtoms()])
    bonds = np.array([(b.GetBeginAtomIdx(), b.GetEndAtomIdx(), CODES[b.GetBondType()]) for b in mol.GetBonds()])
    return [Record(numbers, bonds, charges, c.GetPositions(), smiles) for c in mol.GetConformers()]


def shuffled(record: Record, seed: int = 0) -> Record:
    """The same conformer with its atoms and bonds in another order."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(record.numbers))
    place = np.argsort(order)
    bonds = rng.permutation(np.column_stack([place[record.bonds[:, [1, 0]]], record.bonds[:, 2]]))
    return Record(record.numbers[order], bonds, record.charges[order], record.positions[order], record.where)


def mirrored(record: Record) -> Record:
    return Record(record.numbers, record.bonds, record.charges, -record.positions, record.where)


@cache
def ensembles(n: int = 3) -> Ensembles:
    """n conformers of each molecule of SYMMETRIES."""
    found, faults = collect(record for smiles in SYMMETRIES for record in records_of(smiles, n))
    assert not faults
    return found
