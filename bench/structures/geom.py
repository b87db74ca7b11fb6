"""The official files of GEOM, read as a stream: one molecule is in memory at a time.

GEOM (Axelrod & Gomez-Bombarelli 2022, doi:10.1038/s41597-022-01288-4) is published twice. `qm9_crude.msgpack` and
`drugs_crude.msgpack` (msgpack; also inside of .tar.gz) are a sequence of maps from SMILES to what is known of a
molecule: a list `conformers`, each with `xyz`, rows of nuclear charge and position in angstrom, and `totalenergy` in
hartree. They have no bonds: here the bonds are those of the SMILES, its atoms laid onto those of the geometry by their
neighbours. `rdkit_folder` holds pickled RDKit molecules, which are never loaded: unpickling runs code from the file.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from bench.records.inputs import one_line, truncate
from bench.structures.elements import COVALENT_RADIUS, MAX_NUMBER, FileError
from bench.structures.identity import REACH
from bench.structures.perception import CODES, Record

PICKLES = (".pickle", ".pkl", ".p")
ARCHIVES = (".tar.gz", ".tgz", ".tar")
N_LOOKED_AT = 20  # members of an archive, in search of the one to read
MAX_MOLECULE_BYTES = 1 << 29  # of the file; the largest ensembles of GEOM-Drugs have some 10 MB
CONVERT = (
    "unpickling runs code from the file, so it is never done here; take {name}_crude.msgpack of the same data set "
    "(https://doi.org/10.7910/DVN/JNGTDF), or write its molecules to an sdf file yourself, as docs/data.md shows, and "
    "use the data set 'conformers'"
)


@dataclass(frozen=True)
class Ensemble:
    """A molecule as the file holds it.

    Attributes:
        smiles: as published.
        numbers: nuclear charges [A], hydrogens included.
        positions: of its conformers [n, A, 3] in angstrom, lowest energy first.
        energies: [n] in hartree, ascending.
    """

    smiles: str
    numbers: np.ndarray
    positions: np.ndarray
    energies: np.ndarray


def find(folder: Path, name: str) -> Path:
    """The msgpack file of GEOM-QM9 or GEOM-Drugs, `name` being 'qm9' or 'drugs', in a folder.

    Raises:
        FileError: the folder does not exist, lacks it, or has pickled molecules in its place.
    """
    if not folder.is_dir():
        raise FileError(f"folder {folder} does not exist, expected one with {name}_crude.msgpack")
    for suffix in ("", *ARCHIVES):
        if (path := folder / f"{name}_crude.msgpack{suffix}").is_file():
            return path
    inner = [folder / name, folder / "rdkit_folder" / name, folder]
    pickled = next((path for some in inner if some.is_dir() for path in some.iterdir() if path.suffix in PICKLES), None)
    if pickled is not None:
        raise FileError(f"{pickled} is a pickled molecule; {CONVERT.format(name=name)}")
    raise FileError(f"{folder} has no {name}_crude.msgpack, nor the same with .tar.gz; put it there")


def ensembles(path: Path, at_most: int | None = None) -> Iterator[Ensemble]:
    """All molecules of a msgpack file, one after another.

    Args:
        path: .msgpack, or a tar archive with one.
        at_most: conformers of each molecule, those of lowest energy.
    Raises:
        FileError: pickled molecules, a damaged file, one of another layout, or msgpack is not installed.
        OSError: the file is missing.
    """
    try:
        import msgpack  # pyright: ignore[reportMissingImports] - extra `geom`
    except ModuleNotFoundError as error:
        raise FileError(f"{path}: reading GEOM needs the package 'msgpack'; pip install 'equibench[geom]'") from error
    with _stream(path) as (file, n_bytes):
        unpacker = msgpack.Unpacker(file, max_buffer_size=MAX_MOLECULE_BYTES)
        n_read = 0
        while unpacker.tell() < n_bytes:
            try:
                for _ in range(unpacker.read_map_header()):
                    smiles, found = unpacker.unpack(), unpacker.unpack()
                    n_read += 1
                    yield _ensemble(smiles, found, f"{path}: molecule {n_read}", at_most)
            except msgpack.OutOfData as error:
                raise FileError(f"{path}: cut short after {n_read} molecules; fetch it again") from error
            except FileError:
                raise
            except (ValueError, msgpack.UnpackException) as error:
                raise FileError(
                    f"{path}: no msgpack of GEOM's layout after {n_read} molecules ({one_line(error)})"
                ) from error


@contextmanager
def _stream(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """The msgpack data of a file or an archive, and its size."""
    if path.suffix in PICKLES:
        raise FileError(f"{path} is pickled; {CONVERT.format(name='qm9')}")
    if not path.name.endswith(ARCHIVES):
        with path.open("rb") as file:
            yield file, path.stat().st_size
        return
    try:
        with tarfile.open(path, "r|*") as archive:
            for _, member in zip(range(N_LOOKED_AT), archive, strict=False):
                if member.name.endswith(PICKLES):
                    raise FileError(f"{path} holds pickled molecules ({member.name}); {CONVERT.format(name='qm9')}")
                file = archive.extractfile(member) if member.name.endswith(".msgpack") else None
                if file is not None:
                    yield file, member.size
                    return
    except (tarfile.TarError, EOFError) as error:
        raise FileError(f"{path}: a damaged archive ({one_line(error)}); fetch it again") from error
    raise FileError(f"{path}: none of its first {N_LOOKED_AT} members ends in .msgpack; fetch GEOM's archive again")


def _ensemble(smiles: Any, found: Any, where: str, at_most: int | None) -> Ensemble:
    try:
        conformers = sorted(found["conformers"], key=lambda conformer: conformer["totalenergy"])[:at_most]
        rows = np.array([conformer["xyz"] for conformer in conformers], dtype=np.float64)
        energies = np.array([conformer["totalenergy"] for conformer in conformers], dtype=np.float64)
        if not isinstance(smiles, str) or rows.ndim != 3 or rows.shape[2] != 4 or not np.isfinite(rows).all():
            raise ValueError("'xyz' has no rows of a nuclear charge and three coordinates")
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(
            f"{where} ({truncate(str(smiles))}) is not as in GEOM: {one_line(error)}; expected 'conformers', each with "
            "'totalenergy' and 'xyz', and all with the same atoms"
        ) from error
    numbers = rows[0, :, 0].astype(np.int64)
    if (rows[:, :, 0] != numbers).any() or numbers.min() < 1 or numbers.max() > MAX_NUMBER:
        raise FileError(f"{where} ({truncate(smiles)}): conformers list other atoms, or elements other than H to Cm")
    return Ensemble(smiles, numbers, rows[:, :, 1:], energies)


def records(
    path: Path, faults: list[str], at_most: int | None = None, n_molecules: int | None = None
) -> Iterator[Record]:
    """Conformers with the bonds of their SMILES, as `bench.structures.perception.collect` takes them.

    GEOM has conformers that reacted while they were sought: those whose neighbours are not those of the SMILES are left
    out.

    Args:
        faults: filled with a line for each molecule of which something is left out.
        at_most: as for `ensembles`.
        n_molecules: to read, from the start.
    Raises: as `ensembles`.
    """
    for k, one in enumerate(islice(ensembles(path, at_most), n_molecules), start=1):
        where = f"{path.name}: molecule {k} ({truncate(one.smiles)})"
        bonds = bonds_of_smiles(one)
        if isinstance(bonds, str):
            faults.append(f"{where}: {bonds}")
            continue
        rows, charges, same = bonds
        if not same.all():
            faults.append(f"{where}: {int((~same).sum())} of {len(same)} conformers have other bonds than the SMILES")
        for positions in one.positions[same]:
            yield Record(one.numbers, rows, charges, positions, where)


def bonds_of_smiles(one: Ensemble) -> tuple[np.ndarray, np.ndarray, np.ndarray] | str:
    """Bonds [k, 3] and formal charges [A] of a molecule by its SMILES, in the order of its geometry, and which of its
    conformers have these bonds [n]; or the reason why none has.

    Atoms are neighbours that are closer than 1.3 times the sum of their covalent radii.
    """
    from rdkit import Chem

    template = Chem.MolFromSmiles(one.smiles)
    if template is None:
        return "RDKit refuses its SMILES"
    template = Chem.AddHs(template)
    atoms, bonds = list(template.GetAtoms()), list(template.GetBonds())  # pyright: ignore[reportCallIssue]
    pairs = np.array([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in bonds], np.int64).reshape(-1, 2)
    wanted = _skeleton(np.array([atom.GetAtomicNum() for atom in atoms]), pairs)
    neighbours = _neighbours(one)
    several, which = np.unique(neighbours.reshape(len(neighbours), -1), axis=0, return_inverse=True)
    for k in np.argsort(-np.bincount(which), kind="stable").tolist():  # most conformers have the right ones
        adjacency = several[k].reshape(neighbours.shape[1:])
        present = np.argwhere(np.triu(adjacency))
        if len(present) != len(pairs) or len(atoms) != len(one.numbers):
            continue
        place = np.array(_skeleton(one.numbers, present).GetSubstructMatch(wanted), np.int64)
        if len(place):
            kinds = [CODES[bond.GetBondType()] for bond in bonds]
            charges = np.zeros(len(atoms), np.int64)
            charges[place] = [atom.GetFormalCharge() for atom in atoms]
            return np.column_stack([place[pairs], np.array(kinds, np.int64)]), charges, which.ravel() == k
    return "no conformer has the bonds of its SMILES"


def _neighbours(one: Ensemble) -> np.ndarray:
    """Which atoms are neighbours in each conformer [n, A, A]."""
    radii = COVALENT_RADIUS[one.numbers]
    found = np.empty((len(one.positions), len(one.numbers), len(one.numbers)), dtype=bool)
    for k, x in enumerate(one.positions):
        found[k] = np.linalg.norm(x[:, None] - x, axis=-1) < REACH * (radii[:, None] + radii)
        np.fill_diagonal(found[k], False)
    return found


def _skeleton(numbers: np.ndarray, pairs: np.ndarray) -> Any:
    """A molecule of single bonds, which stands for elements and neighbours alone."""
    from rdkit import Chem

    mol = Chem.RWMol()
    for number in numbers.tolist():
        mol.AddAtom(Chem.Atom(number))
    for first, second in pairs.tolist():
        mol.AddBond(first, second, Chem.BondType.SINGLE)
    return mol
