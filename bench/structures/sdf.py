"""SDF files through RDKit; `bench.structures.files` is the public interface.

Molecules are read as they stand (no sanitisation, hydrogens kept) and written with the bonds given. RDKit silently
skips what it does not understand: of two records joined without a line `$$$$` it reads the first alone. So the records
are cut and checked here, each before RDKit reads it.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from rdkit import Chem, rdBase

from bench.structures.elements import MAX_LINE, MAX_NUMBER, Contents, FileError
from bench.structures.structures import Structures

BOND_TYPES = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
ORDERS = {kind: order for order, kind in BOND_TYPES.items()}
COUNTS = re.compile(rb".{33,}V[23]000\s*")  # line 4 of a record
COUNTS_V3000 = re.compile(rb"M +V30 +COUNTS +(\d+) +(\d+)")
END = re.compile(rb"M +END\s*")


def read_sdf(file: BufferedIOBase, path: Path) -> Contents:
    """All molecules of the file that are one molecule with 3D coordinates each, and why others are not."""
    numbers, positions, sizes, charges, missing = array("q"), array("d"), array("q"), array("q"), array("q")
    faults: list[str] = []
    bonds: list[np.ndarray | None] = []
    with rdBase.BlockLogs():
        for k, (first, lines) in enumerate(_records(file, path), start=1):
            try:
                mol = _molecule(lines, f"{path}: molecule {k}", first)
            except FileError as fault:
                faults.append(str(fault))
                continue
            atoms = list(mol.GetAtoms())  # pyright: ignore[reportCallIssue, reportArgumentType] - incomplete stubs
            numbers.extend(atom.GetAtomicNum() for atom in atoms)
            charges.extend(atom.GetFormalCharge() for atom in atoms)
            positions.frombytes(mol.GetConformer().GetPositions().tobytes())
            sizes.append(len(atoms))
            missing.append(_n_implicit(mol))
            bonds.append(bonds_of(mol))
    found = Structures.from_sizes(np.array(numbers), np.frombuffer(positions).reshape(-1, 3), np.array(sizes))
    return Contents(found, faults, bonds, np.array(charges, np.int64), np.array(missing, np.int64))


def _records(file: BufferedIOBase, path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Number of the first line, and lines, of each record up to its line $$$$; blank lines after the last are none."""
    first, lines = 1, []
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise FileError(f"{path}: a line of more than {MAX_LINE} bytes; this is no sdf file")
        if not line.startswith(b"$$$$"):
            lines.append(line)
            continue
        yield first, lines
        first, lines = first + len(lines) + 1, []
    if any(line.strip() for line in lines):
        yield first, lines


def _molecule(lines: list[bytes], where: str, first: int) -> Chem.Mol:
    """The molecule of a record, unsanitised; FileError where it is more, or less, than one with 3D coordinates."""
    ends = [i for i, line in enumerate(lines) if END.fullmatch(line)]
    counts = [i for i, line in enumerate(lines) if COUNTS.fullmatch(line)]
    for found, what in ((ends, "'M  END'"), (counts, "counts line")):
        if len(found) > 1:
            raise FileError(
                f"{where}: line {first + found[1]} is a second {what}; two records are joined, or the first is cut "
                "short: expected a line $$$$ between them"
            )
    # RDKit allocates the atoms that a V3000 block declares before it looks for them
    declared = [n for line in lines if (match := COUNTS_V3000.match(line)) for n in match.groups()]
    broken = FileError(f"{where} (line {first}) is cut short or no V2000 or V3000 block")
    if not ends or any(len(n) > 9 or int(n) > len(lines) for n in declared):
        raise broken
    try:
        mol = Chem.MolFromMolBlock(b"".join(lines).decode("latin-1"), sanitize=False, removeHs=False)
    except (RuntimeError, ValueError):  # what RDKit's parser did not expect
        mol = None
    if mol is None:
        raise broken
    if not mol.GetNumAtoms() or not mol.GetNumConformers():
        raise FileError(f"{where} has no atoms with coordinates, expected at least one")
    for atom in mol.GetAtoms():  # pyright: ignore[reportGeneralTypeIssues]
        if not 1 <= atom.GetAtomicNum() <= MAX_NUMBER:
            raise FileError(f"{where}: unknown element {atom.GetSymbol()!r}, expected H to Cm")
    x = mol.GetConformer().GetPositions()
    if not np.isfinite(x).all():
        raise FileError(f"{where} has a coordinate that is not finite")
    if len(lines) > 1 and lines[1][20:22] == b"2D" and not x[:, 2].any():
        raise FileError(
            f"{where} is a flat drawing (its header says 2D and every z is 0), expected 3D coordinates; "
            "embed it first, for example with RDKit's EmbedMolecule"
        )
    return mol


def _n_implicit(mol: Chem.Mol) -> int:
    """Hydrogens that the molecule's own bonds call for and that are no atoms; 0 where it has no bonds to go by."""
    if not mol.GetNumBonds():
        return 0
    mol.UpdatePropertyCache(strict=False)
    return sum(atom.GetTotalNumHs() for atom in mol.GetAtoms())  # pyright: ignore[reportGeneralTypeIssues]


def bonds_of(mol: Chem.Mol) -> np.ndarray | None:
    """Rows (first atom, second atom, order), aromatic bonds in a Kekule form; None if an order is none of 1 to 3."""
    if any(bond.GetBondType() == Chem.BondType.AROMATIC for bond in mol.GetBonds()):
        mol = Chem.RWMol(mol)
        try:
            Chem.SetAromaticity(mol)
            Chem.Kekulize(mol, clearAromaticFlags=True)
        except ValueError:
            return None
    rows = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx(), ORDERS.get(b.GetBondType(), 0)) for b in mol.GetBonds()]
    found = np.array(rows, np.int64).reshape(-1, 3)
    return found if found[:, 2].all() else None


def write_sdf(structures: Structures, bonds: Sequence[np.ndarray] | None) -> bytes:
    """Contents of an SDF file, V3000 where a coordinate is too wide for V2000; `bonds` as in `files.write`."""
    blocks = []
    for k, (numbers, positions) in enumerate(structures):
        mol = Chem.RWMol()
        for number in numbers.tolist():
            atom = Chem.Atom(number)
            atom.SetNoImplicit(True)  # a reader is to add no hydrogen
            mol.AddAtom(atom)
        for first, second, order in [] if bonds is None else bonds[k].tolist():
            mol.AddBond(first, second, BOND_TYPES[order])
        conformer = Chem.Conformer(len(numbers))
        conformer.SetPositions(np.ascontiguousarray(positions, dtype=np.float64))
        mol.AddConformer(conformer)
        mol.SetProp("_Name", str(k))
        wide = bool(np.abs(positions).max() >= 9999)  # V2000 has ten characters for a coordinate
        blocks.append(Chem.MolToMolBlock(mol, includeStereo=False, kekulize=False, forceV3000=wide) + "$$$$\n")
    return "".join(blocks).encode()
