"""Distances of bond lengths, bond angles and torsions between samples and references, with the bonds of the graphs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rdkit import Chem

from bench.metrics.conformers import Reference
from bench.metrics.plausibility import Profile, distances
from bench.metrics.stability import BondRule, Bonds
from bench.records.values import Value
from bench.structures.structures import Structures

COMPARED = ("bond_length", "angle", "torsion")  # sizes, elements and valences are those of the graph


def geometry_values(references: Sequence[Reference], samples: Sequence[np.ndarray]) -> list[Value]:
    """Wasserstein-1 and Jensen-Shannon distances, over all conformers of all molecules; none without a usable sample.

    Args: as of `bench.metrics.conformers.evaluate_ensembles`, which counts samples that are not finite; here they are
        left out.
    """
    mols = [mol for mol, _ in references]
    usable = [x[np.isfinite(x).all(axis=(1, 2))] for x in samples]
    if not any(map(len, usable)):
        return []
    found = distances(profile(mols, usable), profile(mols, [x for _, x in references]))
    return [value for value in found if value.name.endswith(COMPARED)]


def profile(mols: Sequence[Chem.Mol], positions: Sequence[np.ndarray]) -> Profile:
    """Distributions of the conformers [n, A, 3] of each molecule, in angstrom, with the bonds of its graph."""
    conformers, rows = [], []
    for mol, x in zip(mols, positions, strict=True):
        numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])  # pyright: ignore[reportGeneralTypeIssues]
        bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), 1) for bond in mol.GetBonds()]  # classes know no order
        conformers += [(numbers, one) for one in x]
        rows += [np.array(bonds, np.int64).reshape(-1, 3)] * len(x)
    structures = Structures.from_list(conformers)
    return Profile.of(structures, Bonds.from_rows(rows, BondRule.FILE, np.zeros(len(structures.numbers), np.int64)))
