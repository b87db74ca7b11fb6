"""Tetrahedral chirality: tags perceived from positions against the tags that a molecule was given."""

from __future__ import annotations

import numpy as np
from rdkit import Chem

from bench.metrics.rmsd import with_conformers

TETRAHEDRAL = (Chem.ChiralType.CHI_TETRAHEDRAL_CW, Chem.ChiralType.CHI_TETRAHEDRAL_CCW)


def chiral_tags(mol: Chem.Mol) -> dict[int, Chem.ChiralType]:
    """Tags of the atoms that have one, by index."""
    tags = {atom.GetIdx(): atom.GetChiralTag() for atom in mol.GetAtoms()}  # pyright: ignore[reportGeneralTypeIssues]
    return {i: tag for i, tag in tags.items() if tag in TETRAHEDRAL}


def tags_violated(mol: Chem.Mol, positions: np.ndarray) -> np.ndarray:
    """How many of the molecule's tags each conformer violates [n], int64.

    A tag is violated where the geometry has the other handedness, or none: a centre with its neighbours in one plane.

    Args:
        mol: with A atoms, hydrogens counted, and the tags given.
        positions: [n, A, 3] in angstrom, finite.
    """
    given = chiral_tags(mol)
    conformers = with_conformers(mol, positions)
    violated = np.zeros(len(positions), dtype=np.int64)
    for k in range(len(positions)):
        Chem.AssignAtomChiralTagsFromStructure(conformers, confId=k, replaceExistingTags=True)
        violated[k] = sum(conformers.GetAtomWithIdx(i).GetChiralTag() != tag for i, tag in given.items())
    return violated


def nearer_hand(mol: Chem.Mol, positions: np.ndarray) -> np.ndarray:
    """Each conformer [n, A, 3], or its mirror image where that violates fewer of the molecule's tags; those that are
    not finite as they are."""
    finite = np.isfinite(positions).all(axis=(1, 2))
    out = positions.copy()
    as_drawn, mirrored = (tags_violated(mol, sign * positions[finite]) for sign in (1, -1))
    out[finite] = np.where((mirrored < as_drawn)[:, None, None], -1, 1) * positions[finite]
    return out
