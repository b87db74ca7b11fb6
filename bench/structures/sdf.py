"""SDF files through RDKit; `bench.structures.files` is the way in.

Molecules are read as they stand (no sanitisation, hydrogens kept, bonds ignored) and written with the bonds given.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rdkit import Chem, rdBase

from bench.structures.files import MAX_LINE, MAX_NUMBER, FileError, to_structures
from bench.structures.structures import Structures

BOND_TYPES = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}


def read_sdf(path: Path) -> Structures:
    numbers, positions, sizes = array("q"), array("d"), array("q")
    for k, mol in enumerate(_mols(path), start=1):
        if mol is None:
            raise FileError(f"{path}: molecule {k} is cut short or no V2000 or V3000 block")
        if not mol.GetNumAtoms() or not mol.GetNumConformers():
            raise FileError(f"{path}: molecule {k} has no atoms with coordinates, expected at least one")
        for atom in mol.GetAtoms():
            if not 1 <= atom.GetAtomicNum() <= MAX_NUMBER:
                raise FileError(f"{path}: molecule {k}: unknown element {atom.GetSymbol()!r}, expected H to Rn")
            numbers.append(atom.GetAtomicNum())
        x = mol.GetConformer().GetPositions()
        if not np.isfinite(x).all():
            raise FileError(f"{path}: molecule {k} has a coordinate that is not finite")
        positions.frombytes(x.tobytes())
        sizes.append(mol.GetNumAtoms())
    return to_structures(numbers, np.frombuffer(positions).reshape(-1, 3), sizes)


def _mols(path: Path) -> Iterator[Chem.Mol | None]:
    with rdBase.BlockLogs():
        for block in _blocks(path):
            try:
                yield Chem.MolFromMolBlock(block, sanitize=False, removeHs=False) if _has_its_atoms(block) else None
            except (RuntimeError, ValueError):  # of what RDKit's parser did not expect
                yield None


def _blocks(path: Path) -> Iterator[str]:
    """Text of each molecule, up to its line $$$$; blank lines behind the last are none."""
    lines: list[str] = []
    # RDKit takes bytes for UTF-8, which names need not be
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        while line := file.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                raise FileError(f"{path}: a line of more than {MAX_LINE} characters; this is no sdf file")
            if line.startswith("$$$$"):
                yield "".join(lines)
                lines = []
            else:
                lines.append(line)
    if "".join(lines).strip():
        yield "".join(lines)


def _has_its_atoms(block: str) -> bool:
    """Whether there are as many lines as atoms and bonds are declared: RDKit makes room for them before it looks."""
    n_lines = block.count("\n")
    counts = (block.split("\n", 4) + [""] * 4)[3]
    declared = [counts[:3], counts[3:6]]
    for words in re.findall(r"^M +V30 +COUNTS(.*)$", block, re.MULTILINE):
        declared += words.split()
    return all(int(n) <= n_lines for word in declared if (n := word.strip()).isdecimal())


def write_sdf(structures: Structures, bonds: Sequence[np.ndarray] | None) -> bytes:
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
