"""Validity, uniqueness and novelty through RDKit, as EDM's published code computes them.

A molecule is rebuilt from its bonds, with formal charges where the rule of the bonds gives them (EDM's does not); it is
valid when RDKit sanitises it. Its SMILES is that
of the largest fragment, hydrogens written out, so a molecule in several pieces can be valid. Training molecules are
written whole, pieces and all, which is what the published code compares with. Novelty on QM9 is weak evidence: QM9
enumerates a space, so high novelty can mean leaving the distribution.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from rdkit import Chem, rdBase

from bench.metrics.pool import in_workers, n_cores
from bench.metrics.stability import Bonds, infer_bonds
from bench.structures.sdf import BOND_TYPES
from bench.structures.structures import Structures

MOLECULES_PER_TASK = 500
FEWEST_FOR_A_POOL = 2000  # below this the pool costs more than it saves


def rebuild(
    numbers: Iterable[int], bonds: Iterable[Sequence[int]], charges: Iterable[int] = itertools.repeat(0)
) -> Chem.RWMol:
    """RDKit molecule of nuclear charges, (first atom, second atom, order) rows and formal charges; not sanitised."""
    mol = Chem.RWMol()
    for number, charge in zip(numbers, charges, strict=False):
        atom = Chem.Atom(number)
        atom.SetFormalCharge(charge)
        mol.AddAtom(atom)
    for first, second, order in bonds:
        mol.AddBond(first, second, BOND_TYPES[order])
    return mol


def molecules_of(structures: Structures, bonds: Bonds) -> Iterator[Chem.Mol | None]:
    """RDKit molecules with their positions, not sanitised; None where the rule finds no bonds.

    Every atom is in the file or was generated, so none is added: an open valence is a radical, where RDKit's default
    would fill it with a hydrogen that has no position.
    """
    for k, ((numbers, positions), rows) in enumerate(zip(structures, bonds, strict=True)):
        if bonds.found is not None and not bonds.found[k]:
            yield None
            continue
        charges = itertools.repeat(0) if bonds.charges is None else bonds.charges[slice(*structures.ptr[k : k + 2])]
        mol = rebuild(numbers.tolist(), rows.tolist(), (int(charge) for charge in charges))
        for atom in mol.GetAtoms():  # pyright: ignore[reportGeneralTypeIssues]
            atom.SetNoImplicit(True)
        conformer = Chem.Conformer(len(numbers))
        conformer.SetPositions(np.ascontiguousarray(positions, dtype=np.float64))
        mol.AddConformer(conformer)
        yield mol.GetMol()


def to_smiles(mol: Chem.Mol, whole: bool) -> str | None:
    """SMILES of the largest fragment, or of the whole; None if RDKit cannot sanitise it. Modifies `mol`."""
    try:
        Chem.SanitizeMol(mol)
    except ValueError:  # valence, kekulisation; any other exception is our own bug and must surface
        return None
    if not whole and len(Chem.GetMolFrags(mol)) > 1:
        mol = max(Chem.GetMolFrags(mol, asMols=True), key=lambda fragment: fragment.GetNumAtoms())
    return Chem.MolToSmiles(mol)


def smiles_from_bonds(
    structures: Structures, bonds: Bonds, *, whole: bool = False, n_workers: int | None = None
) -> list[str | None]:
    """SMILES of each molecule, None where it is not valid.

    Args:
        whole: write all fragments (training molecules) instead of the largest one (generated molecules).
        n_workers: worker processes; by default one per available core, and one in all for small sets.
    """
    starts = range(0, len(structures), MOLECULES_PER_TASK)
    tasks = (_task(structures, bonds, start, whole) for start in starts)
    n_workers = _n_workers(len(structures)) if n_workers is None else n_workers
    return list(itertools.chain.from_iterable(in_workers(_smiles_of_task, tasks, n_workers)))


def smiles_of(structures: Structures, n_workers: int | None = None, bonds: Bonds | None = None) -> list[str | None]:
    """SMILES of training molecules, written whole, None where not valid; what novelty compares with.

    Args:
        bonds: by the same rule as those of the samples; by default EDM's.
    """
    bonds = infer_bonds(structures) if bonds is None else bonds
    return smiles_from_bonds(structures, bonds, whole=True, n_workers=n_workers)


def _task(structures: Structures, bonds: Bonds, start: int, whole: bool) -> tuple:
    stop = min(start + MOLECULES_PER_TASK, len(structures))
    atoms = slice(structures.ptr[start], structures.ptr[stop])
    rows = slice(bonds.ptr[start], bonds.ptr[stop])
    n_atoms, n_bonds = np.diff(structures.ptr[start : stop + 1]), np.diff(bonds.ptr[start : stop + 1])
    charges = np.zeros(n_atoms.sum(), np.int64) if bonds.charges is None else bonds.charges[atoms]
    found = np.ones(stop - start, dtype=bool) if bonds.found is None else bonds.found[start:stop]
    return structures.numbers[atoms], charges, n_atoms, bonds.pairs[rows], bonds.order[rows], n_bonds, found, whole


def _smiles_of_task(task: tuple) -> list[str | None]:
    numbers, charges, n_atoms, pairs, order, n_bonds, found, whole = task
    atoms, charge = iter(numbers.tolist()), iter(charges.tolist())
    rows = iter(np.column_stack([pairs, order]).tolist())
    smiles: list[str | None] = []
    with rdBase.BlockLogs():
        for n, e, known in zip(n_atoms.tolist(), n_bonds.tolist(), found.tolist(), strict=True):
            mol = rebuild(
                itertools.islice(atoms, n), list(itertools.islice(rows, e)), list(itertools.islice(charge, n))
            )
            smiles.append(to_smiles(mol, whole) if known else None)
    return smiles


def _n_workers(n_molecules: int) -> int:
    return 1 if n_molecules < FEWEST_FOR_A_POOL else n_cores()
