"""SDF files through RDKit; `bench.structures.files` is the public interface.

Molecules are read as they stand (no sanitisation, hydrogens kept, bonds ignored) and written with the bonds given.
RDKit silently skips what it does not understand: of two records joined without a line `$$$$` it reads the first alone.
So the records are counted and checked here, each before RDKit reads it.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rdkit import Chem, rdBase

from bench.structures.elements import MAX_LINE, MAX_NUMBER, FileError
from bench.structures.structures import Structures

BOND_TYPES = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
COUNTS = re.compile(rb".{33,}V[23]000\s*")  # line 4 of a record
COUNTS_V3000 = re.compile(rb"M +V30 +COUNTS +(\d+) +(\d+)")
END = re.compile(rb"M +END\s*")


def read_sdf(path: Path) -> Structures:
    """All molecules of the file; FileError names the first record that is not one molecule with 3D coordinates."""
    numbers, positions, sizes = array("q"), array("d"), array("q")
    with rdBase.BlockLogs(), path.open("rb") as file:
        mols = Chem.ForwardSDMolSupplier(file, sanitize=False, removeHs=False)
        for k, says_2d in enumerate(_records(path), start=1):
            try:
                mol = next(mols, None)
            except (RuntimeError, ValueError):  # what RDKit's parser did not expect
                mol = None
            where = f"{path}: molecule {k}"
            if mol is None:
                raise FileError(f"{where} is cut short or no V2000 or V3000 block")
            if not mol.GetNumAtoms() or not mol.GetNumConformers():
                raise FileError(f"{where} has no atoms with coordinates, expected at least one")
            for atom in mol.GetAtoms():  # pyright: ignore[reportGeneralTypeIssues] - RDKit's stubs are incomplete
                if not 1 <= atom.GetAtomicNum() <= MAX_NUMBER:
                    raise FileError(f"{where}: unknown element {atom.GetSymbol()!r}, expected H to Rn")
                numbers.append(atom.GetAtomicNum())
            x = mol.GetConformer().GetPositions()
            if not np.isfinite(x).all():
                raise FileError(f"{where} has a coordinate that is not finite")
            if says_2d and not x[:, 2].any():
                raise FileError(
                    f"{where} is a flat drawing (its header says 2D and every z is 0), expected 3D coordinates; "
                    "embed it first, for example with RDKit's EmbedMolecule"
                )
            positions.frombytes(x.tobytes())
            sizes.append(mol.GetNumAtoms())
    return Structures.from_sizes(np.array(numbers), np.frombuffer(positions).reshape(-1, 3), np.array(sizes))


def _records(path: Path) -> Iterator[bool]:
    """Whether the header says 2D, for each record up to its line $$$$; blank lines after the last are no record.

    Raises FileError for a record that holds more than one molecule, or less than one.
    """
    k, first = 1, 1
    lines: list[bytes] = []
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                raise FileError(f"{path}: a line of more than {MAX_LINE} bytes; this is no sdf file")
            if not line.startswith(b"$$$$"):
                lines.append(line)
                continue
            yield _says_2d(lines, f"{path}: molecule {k}", first)
            k, first, lines = k + 1, first + len(lines) + 1, []
    if any(line.strip() for line in lines):
        yield _says_2d(lines, f"{path}: molecule {k}", first)


def _says_2d(lines: list[bytes], where: str, first: int) -> bool:
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
    if not ends or any(len(n) > 9 or int(n) > len(lines) for n in declared):
        raise FileError(f"{where} is cut short or no V2000 or V3000 block")
    return len(lines) > 1 and lines[1][20:22] == b"2D"


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
