"""Molecular graphs from atoms, bonds and coordinates, through RDKit: aromaticity, stereochemistry, canonical order.

`collect` brings conformers in any order, with their atoms in any order, into ensembles. What RDKit does once for each
kind of record (sanitisation, canonical SMILES) is cached, so that ten conformers of a molecule cost little more than
one. Stereochemistry is that of the coordinates: what a file says of it is not read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdCIPLabeler

from bench.structures.chemistry import CODES, molecule_of
from bench.structures.elements import FileError
from bench.structures.ensembles import Ensembles, Graphs

CHIRALITY = {"R": 1, "r": 1, "S": -1, "s": -1}  # lower case: pseudoasymmetric
CONFIGURATION = {"Z": 1, "z": 1, "E": 2, "e": 2}
NO_ATOM = 2**31  # RDKit writes a larger index where a stereo element has no neighbour


@dataclass(frozen=True)
class Record:
    """One conformer as a file holds it.

    Attributes:
        numbers: nuclear charges [n], hydrogens included.
        bonds: [k, >= 3]: two atoms, counted from 0, and the type (1, 2, 3, or 4 for aromatic), each bond once.
        charges: formal charges [n].
        positions: [n, 3] in angstrom.
        where: its place, for messages.
    """

    numbers: np.ndarray
    bonds: np.ndarray
    charges: np.ndarray
    positions: np.ndarray
    where: str


@dataclass
class Collection:
    """Conformers found so far, by molecule.

    Attributes:
        faults: why records were left out, a line for each.
        n_seen: records that came.
        taken: which of them, from 0, are the conformers.
    """

    faults: list[str] = field(default_factory=list)
    _templates: dict[bytes, _Template | str] = field(default_factory=dict)
    _graphs: dict[str, _Graph] = field(default_factory=dict)
    n_seen: int = 0
    taken: list[int] = field(default_factory=list)
    _positions: list[np.ndarray] = field(default_factory=list)
    _molecules: list[int] = field(default_factory=list)

    def add(self, record: Record) -> None:
        """Take a conformer, or note why it cannot be taken."""
        self.n_seen += 1
        key = b"|".join(a.astype("<i8").tobytes() for a in (record.numbers, record.charges, record.bonds))
        if key not in self._templates:
            self._templates[key] = _template(record)
        template = self._templates[key]
        if isinstance(template, str):
            self.faults.append(f"{record.where}: {template}")
            return
        graph, order = self._graph_of(template, record)
        self._positions.append(np.asarray(record.positions, dtype=np.float32)[order])
        self._molecules.append(graph)
        self.taken.append(self.n_seen - 1)

    def _graph_of(self, template: _Template, record: Record) -> tuple[int, np.ndarray]:
        """Index of the molecule, and the record's atoms in the order of its graph."""
        signature = template.signature(record.positions)
        if signature not in template.known:
            mol = molecule_of(record.numbers, record.bonds, record.charges, record.positions[None])
            smiles = Chem.MolToSmiles(mol)
            order = np.array(mol.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"])
            if smiles not in self._graphs:
                self._graphs[smiles] = _graph(mol, order, len(self._graphs))
            first = self._graphs[smiles]
            mine = np.empty_like(order)
            mine[first.order] = order  # atoms at one place of the SMILES are the same atom
            template.known[signature] = first.index, mine
        return template.known[signature]

    def ensembles(self) -> Ensembles:
        """All conformers, in the order in which they came.

        Raises:
            FileError: there are none.
        """
        if not self._positions:
            reason = f": {self.faults[0]}" if self.faults else ""
            raise FileError(f"no conformer can be used{reason}")
        graphs = list(self._graphs.values())
        sizes, n_bonds = [len(g.numbers) for g in graphs], [len(g.bonds) for g in graphs]
        joined = Graphs(
            numbers=np.concatenate([g.numbers for g in graphs]),
            charges=np.concatenate([g.charges for g in graphs]),
            chirality=np.concatenate([g.chirality for g in graphs]),
            ptr=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            bonds=np.concatenate([g.bonds for g in graphs]),
            turns=np.concatenate([g.turns for g in graphs]),
            bond_ptr=np.concatenate([[0], np.cumsum(n_bonds)]).astype(np.int64),
            smiles=tuple(g.smiles for g in graphs),
        )
        molecule = np.array(self._molecules, np.int64)
        ptr = np.concatenate([[0], np.cumsum(joined.n_atoms[molecule])]).astype(np.int64)
        numbers = np.concatenate([graphs[k].numbers for k in self._molecules])
        return Ensembles(numbers, np.concatenate(self._positions), ptr, joined, molecule)


def collect(records: Iterable[Record]) -> tuple[Ensembles, list[str]]:
    """Ensembles of conformers in any order, and why some were left out.

    Raises:
        FileError: none can be used.
    """
    collection = collected(records)
    return collection.ensembles(), collection.faults


def collected(records: Iterable[Record]) -> Collection:
    """A collection of all records."""
    collection = Collection()
    with rdBase.BlockLogs():
        for record in records:
            collection.add(record)
    return collection


@dataclass
class _Template:
    """What may be stereochemistry of atoms and bonds given in one order.

    Attributes:
        centres: [c, 4]: an atom and three of its neighbours.
        doubles: [d, 4]: a neighbour, the two atoms of the bond, a neighbour.
        known: signs of all of these -> the molecule and its order of atoms.
    """

    centres: np.ndarray
    doubles: np.ndarray
    known: dict[bytes, tuple[int, np.ndarray]] = field(default_factory=dict)

    def signature(self, positions: np.ndarray) -> bytes:
        """Signs of the volumes at the centres, and of the angle between the neighbours of each double bond."""
        x = np.asarray(positions, dtype=np.float64)
        c, d = x[self.centres], x[self.doubles]
        volumes = np.linalg.det(c[:, 1:] - c[:, :1]) if len(c) else np.zeros(0)
        axis = d[:, 2] - d[:, 1]
        first, last = np.cross(axis, d[:, 0] - d[:, 1]), np.cross(axis, d[:, 3] - d[:, 2])
        return np.concatenate([volumes > 0, (first * last).sum(1) > 0]).tobytes()


def _template(record: Record) -> _Template | str:
    """The stereo elements of a record, or why it is no molecule that can be generated."""
    try:
        mol = molecule_of(record.numbers, record.bonds, record.charges)
    except ValueError as error:
        return f"RDKit refuses the molecule: {str(error).strip().splitlines()[0]}"
    if (n := len(Chem.GetMolFrags(mol))) > 1:
        return f"{n} fragments without a bond between them, expected one molecule"
    centres, doubles = [], []
    for info in Chem.FindPotentialStereo(mol):
        around = [atom for atom in info.controllingAtoms if atom < NO_ATOM]
        if info.type == Chem.StereoType.Atom_Tetrahedral and len(around) >= 3:
            centres.append([info.centeredOn, *around[:3]])
        elif info.type == Chem.StereoType.Bond_Double:
            bond = mol.GetBondWithIdx(info.centeredOn)
            left, right = list(info.controllingAtoms)[:2], list(info.controllingAtoms)[2:]
            ends = [next(atom for atom in side if atom < NO_ATOM) for side in (left, right)]
            doubles.append([ends[0], bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), ends[1]])
    return _Template(np.array(centres, np.int64).reshape(-1, 4), np.array(doubles, np.int64).reshape(-1, 4))


@dataclass(frozen=True)
class _Graph:
    """One molecule, its index, and the order in which its canonical SMILES lists its atoms."""

    index: int
    order: np.ndarray
    numbers: np.ndarray
    charges: np.ndarray
    chirality: np.ndarray
    bonds: np.ndarray
    turns: np.ndarray
    smiles: str


def _graph(mol: Chem.Mol, order: np.ndarray, index: int) -> _Graph:
    rdCIPLabeler.AssignCIPLabels(mol)
    atoms, bonds = [mol.GetAtomWithIdx(i) for i in range(mol.GetNumAtoms())], list(mol.GetBonds())
    rows = [
        (
            bond.GetBeginAtomIdx(),
            bond.GetEndAtomIdx(),
            CODES[bond.GetBondType()],
            CONFIGURATION.get(_label(bond), 0),
        )
        for bond in bonds
    ]
    place = {}
    for centre in (atom for atom in atoms if _label(atom) in CHIRALITY):
        place |= {(centre.GetIdx(), j): k for k, j in enumerate(_turn(mol, centre), start=1)}
    return _Graph(
        index,
        order,
        np.array([atom.GetAtomicNum() for atom in atoms], np.int64),
        np.array([atom.GetFormalCharge() for atom in atoms], np.int64),
        np.array([CHIRALITY.get(_label(atom), 0) for atom in atoms], np.int64),
        np.array(rows, np.int64).reshape(-1, 4),
        np.array([(place.get((i, j), 0), place.get((j, i), 0)) for i, j, *_ in rows], np.int64).reshape(-1, 2),
        Chem.MolToSmiles(Chem.RemoveHs(mol)),
    )


def _turn(mol: Chem.Mol, centre: Chem.Atom) -> list[int]:
    """The neighbours of a stereocentre, the first three with a positive triple product.

    By falling nuclear charge, then RDKit's canonical rank, which no order of atoms changes; the last two exchanged
    where the product would be negative. None where two neighbours have one rank: their order would be that of the
    atoms.
    """
    ranks = Chem.CanonicalRankAtoms(mol, breakTies=False)
    around = sorted(centre.GetNeighbors(), key=lambda atom: (-atom.GetAtomicNum(), ranks[atom.GetIdx()]))
    found = [atom.GetIdx() for atom in around]
    if len({ranks[i] for i in found}) < len(found) or len(found) < 3:
        return []
    x = mol.GetConformer().GetPositions()
    if np.linalg.det(x[found[:3]] - x[centre.GetIdx()]) < 0:
        found[-2:] = found[:-3:-1]
    return found


def _label(item: Chem.Atom | Chem.Bond) -> str:
    return item.GetProp("_CIPCode") if item.HasProp("_CIPCode") else ""
