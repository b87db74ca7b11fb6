"""Molecules of RDKit from arrays of atoms and bonds, and the automorphisms of their graphs."""

from __future__ import annotations

import numpy as np
from rdkit import Chem

TYPES = {
    1: Chem.BondType.SINGLE,
    2: Chem.BondType.DOUBLE,
    3: Chem.BondType.TRIPLE,
    4: Chem.BondType.AROMATIC,
}
CODES = {kind: code for code, kind in TYPES.items()}


def molecule_of(
    numbers: np.ndarray, bonds: np.ndarray, charges: np.ndarray, positions: np.ndarray | None = None
) -> Chem.Mol:
    """A sanitised molecule without implicit hydrogens; without stereochemistry unless there are positions.

    Args:
        numbers, charges: nuclear and formal charges [n], hydrogens included.
        bonds: [k, >= 3]: two atoms, counted from 0, and the type (1, 2, 3, or 4 for aromatic), each bond once.
        positions: of conformers [c, n, 3] in angstrom; the first decides the stereochemistry.
    Raises:
        ValueError: RDKit refuses it, e.g. for a valence.
    """
    mol = Chem.RWMol()
    for number, charge in zip(numbers.tolist(), charges.tolist(), strict=True):
        atom = Chem.Atom(number)
        atom.SetFormalCharge(charge)
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    for first, second, kind in bonds[:, :3].tolist():
        mol.AddBond(first, second, TYPES[kind])
        if kind == CODES[Chem.BondType.AROMATIC]:
            mol.GetBondBetweenAtoms(first, second).SetIsAromatic(True)
            mol.GetAtomWithIdx(first).SetIsAromatic(True)
            mol.GetAtomWithIdx(second).SetIsAromatic(True)
    Chem.SanitizeMol(mol)
    for x in [] if positions is None else positions:
        conformer = Chem.Conformer(len(numbers))
        conformer.SetPositions(np.ascontiguousarray(x, dtype=np.float64))
        mol.AddConformer(conformer, assignId=True)
    if positions is not None:
        Chem.AssignStereochemistryFrom3D(mol)
    return mol.GetMol()


def automorphisms(colours: np.ndarray, bonds: np.ndarray, at_most: int) -> np.ndarray:
    """As `Graphs.automorphisms`; colours [n, k], the nuclear charge first, and bonds [m, 4] of one molecule."""
    n = len(colours)
    degree = np.bincount(bonds[:, :2].ravel(), minlength=n)
    single = (colours[:, 0] == 1) & (degree == 1)
    of_hydrogen: dict[int, list[int]] = {}  # heavy atom -> its hydrogens, ascending
    for first, second in bonds[:, :2].tolist():
        for heavy, hydrogen in ((first, second), (second, first)):
            if single[hydrogen] and not single[heavy]:
                of_hydrogen.setdefault(heavy, []).append(hydrogen)
    carried = {hydrogen for some in of_hydrogen.values() for hydrogen in some}
    kept = [atom for atom in range(n) if atom not in carried]
    place = {atom: k for k, atom in enumerate(kept)}
    labels = [(*colours[atom].tolist(), len(of_hydrogen.get(atom, []))) for atom in kept]
    known = {label: k for k, label in enumerate(sorted(set(labels)), start=1)}
    mol = Chem.RWMol()
    for label in labels:  # RDKit's isotopes and bond types serve as colours, which a match keeps
        atom = Chem.Atom(6)
        atom.SetIsotope(known[label])
        mol.AddAtom(atom)
    kinds = sorted({(kind, configuration) for _, _, kind, configuration in bonds.tolist()})
    colour_of_bond = {kind: list(Chem.BondType.values.values())[k + 1] for k, kind in enumerate(kinds)}
    for first, second, kind, configuration in bonds.tolist():
        if first in place and second in place:
            mol.AddBond(place[first], place[second], colour_of_bond[kind, configuration])
    found = mol.GetSubstructMatches(mol, uniquify=False, maxMatches=at_most + 1)
    identity = np.arange(n)
    if len(found) > at_most:
        return identity[None]
    listed = []
    for match in found:
        image = identity.copy()
        for atom, to in zip(kept, match, strict=True):
            image[atom] = kept[to]
            image[sorted(of_hydrogen.get(atom, []))] = sorted(of_hydrogen.get(kept[to], []))
        listed.append(image)
    return np.array(sorted(listed, key=lambda image: image.tolist()))
