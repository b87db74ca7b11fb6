"""Files of protein chains: npz archives of backbones, and PDB or mmCIF files through gemmi.

.npz    chains by pointer: `ptr` [M + 1]; `xyz_centi_angstrom` [A, 4, 3] (N, CA, C, O) or `ca_centi_angstrom` [A, 3],
        integers; `seq` [A], letters as bytes; `name` [M], ENTRY:CHAIN.
.pdb .ent .cif .mmcif, also .gz
        of the first model, the polymers of L-amino acids. Of alternate locations, and of point mutations, the likeliest
        is kept. A residue breaks its chain if it lacks an atom, if its occupancy is below one half, all locations
        together, or if it is a D-amino acid; so does a distance of two C-alphas that no peptide bond has. In an entry
        whose occupancies are all 0 none is given, and all residues count as present.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from bench.records import inputs
from bench.records.inputs import one_line
from bench.structures.chains import UNKNOWN, Chain, ChainAtoms
from bench.structures.dataset import grouped
from bench.structures.elements import FileError

COORDINATES = (".pdb", ".ent", ".cif", ".mmcif")
PDB = (".pdb", ".ent")
MAX_BYTES = 1 << 29
COORDINATE_COLUMNS = (30, 38, 46)
LEAST_OCCUPANCY = 0.5
DECIMALS = 3  # of occupancies, which are single precision: 0.45 + 0.05 falls short of a half
BONDED = (2.5, 4.4)  # angstrom, C-alphas of neighbours: 2.9 around a cis peptide bond, 3.8 around a trans one
CENTI_ANGSTROM = 0.01
PRINTABLE = 128  # letters are ASCII


class Flaw(StrEnum):
    """What makes residues of an entry unusable, or needs a choice."""

    ALTERNATE = "residues have alternate locations or amino acids, of which the likeliest is kept"
    OCCUPANCY = "residues have an occupancy below one half, all locations together, and break their chain"
    INCOMPLETE = "residues lack a backbone atom and break their chain"
    D_AMINO_ACID = "residues are D-amino acids and break their chain"
    GAP = "neighbours are farther apart, or closer, than a peptide bond allows, and the chain is broken there"


@dataclass(eq=False)
class Found:
    """What files hold.

    Attributes:
        chains: stretches without a gap.
        faults: files that are left out, and why, a line each.
        flaws: entry -> how often it has each flaw.
    """

    chains: list[Chain] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    flaws: dict[str, Counter[Flaw]] = field(default_factory=dict)


def kind(path: Path) -> str:
    """Suffix that decides how a file is read, in lower case, without that of compression; '' for other files."""
    suffix = _unpacked(path).suffix.lower()
    return suffix if suffix in COORDINATES or path.suffix.lower() == ".npz" else ""


def _unpacked(path: Path) -> Path:
    """The path without the suffix of compression."""
    return path.with_suffix("") if path.suffix.lower() == ".gz" else path


def read_files(paths: Sequence[Path], atoms: ChainAtoms) -> Found:
    """Chains of all files; those that cannot be read are among the faults.

    Raises:
        FileError: an npz file is damaged; gemmi is needed and not installed.
    """
    found = Found()
    for path in paths:
        try:
            if kind(path) == ".npz":
                chains, flaws = read_npz(path, atoms), Counter[Flaw]()
            else:
                chains, flaws = read_entry(path, atoms)
        except EntryError as error:
            found.faults.append(f"{path.name}: {error}")
            continue
        found.chains += chains
        if flaws:
            found.flaws[entry_of(path)] = flaws
    return found


class EntryError(ValueError):
    """A file that cannot be used; the message says why."""


# ---------------------------------------------------------------------- npz


def read_npz(path: Path, atoms: ChainAtoms) -> list[Chain]:
    """Chains of an npz file.

    Raises:
        EntryError: N, C-alpha and C are wanted, and it holds C-alphas alone.
        FileError: it is missing or damaged, lacks an array, or has arrays that do not fit one another.
    """
    try:
        arrays = inputs.read_arrays(path, ("ptr", "seq", "name"), ("xyz_centi_angstrom", "ca_centi_angstrom"))
    except (inputs.NpzError, OSError) as error:
        raise FileError(f"{path}: {one_line(error)}") from error
    ptr, letters, names = arrays["ptr"], arrays["seq"], arrays["name"]
    whole, trace = arrays.get("xyz_centi_angstrom"), arrays.get("ca_centi_angstrom")
    if whole is None and trace is None:
        raise FileError(f"{path}: expected an array 'xyz_centi_angstrom' or 'ca_centi_angstrom'")
    rising = ptr.ndim == 1 and ptr.dtype.kind in "iu" and len(ptr) > 1 and ptr[0] == 0
    if not rising or not (np.diff(ptr.astype(np.int64)) > 0).all() or ptr[-1] != len(letters):
        raise FileError(f"{path}: 'ptr' does not rise from 0 to the {len(letters)} letters of 'seq'")
    if letters.dtype != np.uint8 or letters.ndim != 1 or len(letters) == 0 or letters.max() >= PRINTABLE:
        raise FileError(f"{path}: 'seq' is {letters.dtype} of shape {letters.shape}, expected letters as uint8")
    if names.shape != (len(ptr) - 1,) or names.dtype.kind != "U":
        raise FileError(f"{path}: 'name' has shape {names.shape}, expected a text for each of {len(ptr) - 1} chains")
    for name, array, shape in (("xyz", whole, (len(letters), 4, 3)), ("ca", trace, (len(letters), 3))):
        if array is not None and (array.shape != shape or array.dtype.kind not in "iu"):
            raise FileError(
                f"{path}: '{name}_centi_angstrom' is {array.dtype} of shape {array.shape}, expected integers {shape}"
            )
    if whole is not None:
        x = whole[:, :3] if atoms is ChainAtoms.BACKBONE else whole[:, 1:2]
    elif atoms is ChainAtoms.CA and trace is not None:
        x = trace[:, None]
    else:
        raise EntryError(f"its {grouped(len(names))} chains have C-alphas alone, and 'atoms' is {atoms}")
    text, bounds = letters.tobytes().decode("ascii"), ptr.astype(np.int64).tolist()
    return [
        Chain(str(name).rpartition(":")[0] or str(name), text[start:stop], x[start:stop] * CENTI_ANGSTROM)
        for name, start, stop in zip(names, bounds, bounds[1:], strict=False)
    ]


# ---------------------------------------------------------------------- PDB and mmCIF


def entry_of(path: Path) -> str:
    """Name of the entry of a file: what comes before the suffix."""
    return _unpacked(path).stem


def read_entry(path: Path, atoms: ChainAtoms) -> tuple[list[Chain], Counter[Flaw]]:
    """Chains of a PDB or mmCIF file, and its flaws.

    Raises:
        EntryError: it cannot be parsed, or has no residue of a peptide chain that can be used.
        FileError: gemmi is not installed.
    """
    try:
        import gemmi
    except ImportError as error:
        raise FileError(
            f"{path}: PDB and mmCIF files are read by gemmi, which is not installed; pip install 'equibench[proteins]'"
        ) from error
    format_ = gemmi.CoorFormat.Pdb if kind(path) in PDB else gemmi.CoorFormat.Mmcif
    try:
        structure = gemmi.read_structure_string(_contents(path), format=format_)
        structure.setup_entities()
    except EntryError:
        raise
    except Exception as error:  # gzip, zlib and gemmi raise whatever they meet
        raise EntryError(f"it cannot be parsed ({one_line(error)})") from error
    _fill_occupancies(structure)
    flaws: Counter[Flaw] = Counter()
    chains = [
        Chain(entry_of(path), "".join(letter for letter, _ in part), np.stack([x for _, x in part]))
        for polymer in _polymers(gemmi, structure)
        for part in _stretches(gemmi, polymer, atoms, flaws)
    ]
    if not chains:
        counts = "".join(f"; {grouped(flaws[flaw])} {flaw}" for flaw in Flaw if flaws[flaw])
        raise EntryError(f"it has no residue of a peptide chain that can be used{counts}")
    return chains, flaws


def _contents(path: Path) -> bytes:
    """The unpacked file; raises EntryError for one that is too large, or a PDB file with a coordinate that is none."""
    inputs.size_of(path)  # a regular file
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise EntryError(f"it has more than {MAX_BYTES} bytes when unpacked")
    if kind(path) in PDB:  # gemmi takes what it cannot read for zero
        for number, line in enumerate(content.splitlines(), 1):
            if line.startswith((b"ATOM", b"HETATM")):
                try:
                    [float(line[k : k + 8]) for k in COORDINATE_COLUMNS]
                except ValueError:
                    raise EntryError(f"line {number} has a coordinate that is no number") from None
    return content


def _fill_occupancies(structure: Any) -> None:
    """Sets the occupancies of the first model to 1 if all are 0: some programs write 0.00, and a blank is read as 0."""
    if len(structure) and not any(found.atom.occ for found in structure[0].all()):
        for found in structure[0].all():
            found.atom.occ = 1.0


def _polymers(gemmi: Any, structure: Any) -> Iterator[Any]:
    """Peptides of the first model."""
    for chain in structure[0] if len(structure) else ():
        polymer = chain.get_polymer()
        if polymer.check_polymer_type() in (gemmi.PolymerType.PeptideL, gemmi.PolymerType.PeptideD):
            yield polymer


def _stretches(
    gemmi: Any, polymer: Any, atoms: ChainAtoms, flaws: Counter[Flaw]
) -> Iterator[list[tuple[str, np.ndarray]]]:
    """Letters and positions [K, 3] of residues that follow one another."""
    part: list[tuple[str, np.ndarray]] = []
    alpha = atoms.names.index("CA")
    for group in polymer.residue_groups():
        residue = _residue(gemmi, group, atoms, flaws)
        if part and residue and not BONDED[0] < np.linalg.norm(residue[1][alpha] - part[-1][1][alpha]) < BONDED[1]:
            flaws[Flaw.GAP] += 1
            yield part
            part = []
        if residue:
            part.append(residue)
        elif part:
            yield part
            part = []
    if part:
        yield part


def _residue(gemmi: Any, group: Any, atoms: ChainAtoms, flaws: Counter[Flaw]) -> tuple[str, np.ndarray] | None:
    """Letter and positions [K, 3] of the likeliest conformer at one place of a chain; None where it cannot be used.

    The group has one residue for each amino acid that was seen at this place; a residue has one conformer for each
    label of its alternate locations, or a single one. Atoms without a label belong to all of its conformers.
    """
    conformers = []
    present: Counter[str] = Counter()
    for residue in group:
        # C-alpha and calcium have one name and differ in their element
        mine = [a for a in residue if a.name in atoms.names and a.element.name in ("N", "C")]
        for atom in mine:
            present[atom.name] += atom.occ
        for label in sorted({a.altloc for a in mine if a.has_altloc()}) or [None]:
            chosen = {a.name: a for a in mine if not a.has_altloc() or a.altloc == label}
            conformers.append((residue.name, chosen))
    if len(conformers) > 1:
        flaws[Flaw.ALTERNATE] += 1
    name, chosen = max(conformers, key=lambda conformer: sum(atom.occ for atom in conformer[1].values()))
    amino_acid = gemmi.find_tabulated_residue(name)
    if amino_acid.kind == gemmi.ResidueKind.AAD:
        flaws[Flaw.D_AMINO_ACID] += 1
        return None
    x = np.array([[*chosen[wanted].pos] if wanted in chosen else [np.nan] * 3 for wanted in atoms.names])
    if not np.isfinite(x).all():
        flaws[Flaw.INCOMPLETE] += 1
        return None
    if round(min(present.values()), DECIMALS) < LEAST_OCCUPANCY:
        flaws[Flaw.OCCUPANCY] += 1
        return None
    return amino_acid.one_letter_code.upper().strip() or UNKNOWN, x
