"""Heavy-atom RMSD between conformers of a molecule, over its symmetries.

The distance of two conformers is RDKit's GetBestRMS after the removal of hydrogens: the root mean square deviation in
angstrom, minimised over rotations and translations (no reflections) and over the maps of the molecular graph onto
itself, where the two ends of a conjugated terminal group, such as a carboxylate's oxygens, count as equal. Maps ignore
chirality tags, as they do in the published evaluations, so that a meso compound may be compared with itself in reverse.
RDKit's RemoveHs leaves a hydrogen on which the configuration of a double bond depends, that of an imine's N; so it
counts here, as it does there.

A graph may have millions of maps (every tert-butyl group and every CF3 brings a factor of six). Maps are therefore
capped at MAX_MATCHES, and each molecule has a limit of CPU time, after which its remaining pairs are compared atom by
atom. Both give an upper bound of the distance, and both are counted.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from rdkit import Chem
from rdkit.Chem.rdMolAlign import AlignMol, GetBestRMS

MAX_MATCHES = 10_000
SECONDS_PER_MOLECULE = 120.0  # of CPU time: wall-clock time would make the outcome depend on what else runs
ORIGINAL = "_index_with_hydrogens"


@dataclass(frozen=True)
class Distances:
    """RMSD of n conformers to m others.

    Attributes:
        rmsd: [n, m] in angstrom; NaN where one of the two has a position that is not finite.
        n_timed_out: pairs that were compared atom by atom, since the molecule's time was up.
        capped: whether the molecule has MAX_MATCHES maps or more, so that some were not tried.
    """

    rmsd: np.ndarray
    n_timed_out: int
    capped: bool


def without_hydrogens(mol: Chem.Mol, but: Collection[int] = ()) -> tuple[Chem.Mol, np.ndarray]:
    """The molecule without its conformers and its hydrogens, and the indices of the atoms that stay [n].

    Args:
        but: hydrogens that stay.
    Raises:
        ValueError: RDKit cannot sanitise the molecule.
    """
    marked = Chem.Mol(mol, True)  # without conformers
    for atom in marked.GetAtoms():  # pyright: ignore[reportGeneralTypeIssues] - incomplete stubs
        atom.SetIntProp(ORIGINAL, atom.GetIdx())
    for i in but:
        marked.GetAtomWithIdx(i).SetIsotope(2)  # RemoveHs leaves deuterium
    heavy = Chem.RemoveHs(marked)
    kept = [atom.GetIntProp(ORIGINAL) for atom in heavy.GetAtoms()]  # pyright: ignore[reportGeneralTypeIssues]
    return heavy, np.array(kept, dtype=np.int64)


def with_conformers(mol: Chem.Mol, positions: np.ndarray) -> Chem.Mol:
    """A copy of the molecule whose conformers 0..n-1 have the positions [n, A, 3], in angstrom."""
    copy = Chem.Mol(mol, True)
    for x in positions:
        conformer = Chem.Conformer(copy.GetNumAtoms())
        conformer.SetPositions(np.ascontiguousarray(x, dtype=np.float64))
        copy.AddConformer(conformer, assignId=True)
    return copy


def rmsd_between(
    mol: Chem.Mol,
    first: np.ndarray,
    second: np.ndarray,
    seconds: float = SECONDS_PER_MOLECULE,
    hydrogens: Collection[int] = (),
) -> Distances:
    """Distances of conformers [n, A, 3] to others [m, A, 3] of one molecule with A atoms, hydrogens counted.

    Args:
        seconds: CPU time after which the remaining pairs are compared atom by atom.
        hydrogens: those that are compared too.
    Raises:
        ValueError: RDKit cannot sanitise the molecule.
    """
    heavy, kept = without_hydrogens(mol, hydrogens)
    probe, reference = (with_conformers(heavy, x[:, kept]) for x in (second, first))
    usable = np.logical_and.outer(*(np.isfinite(x[:, kept]).all(axis=(1, 2)) for x in (first, second)))
    capped = len(heavy.GetSubstructMatches(heavy, uniquify=False, maxMatches=MAX_MATCHES)) >= MAX_MATCHES
    atom_by_atom = [(i, i) for i in range(len(kept))]
    rmsd = np.full((len(first), len(second)), np.nan)
    n_timed_out, end = 0, time.process_time() + seconds
    for i, j in np.argwhere(usable).tolist():
        if time.process_time() < end:
            rmsd[i, j] = GetBestRMS(probe, reference, j, i, maxMatches=MAX_MATCHES)
        else:
            rmsd[i, j] = AlignMol(probe, reference, j, i, atomMap=atom_by_atom)
            n_timed_out += 1
    return Distances(rmsd, n_timed_out, capped)
