"""Files of crystals: CIF, the official csv files of CDVAE's benchmarks, whose column `cif` holds CIF text, and npz.

    .cif    any number of data blocks
    .csv    columns `cif`, `material_id`, and where there is one `formula` or `pretty_formula`, with which the sites of
            the CIF must agree; `spacegroup.number` and other attributes that prompts name (`bench.structures.prompts`)
    .npz    `cell` [M, 6] (lengths in angstrom, angles in degrees), `ptr` [M + 1], `atomic_numbers` [A], `frac` [A, 3],
            and where they are there `material_id` [M], `formula` [M], `spacegroup` [M] (0: unknown), and `props` [M, K]
            with `prop_names` [K]

All go through pymatgen: cells are Niggli-reduced and put into the standard orientation, as in CDVAE and DiffCSP. A
reduction takes milliseconds, the parsing of CIF text more, so that what was read is kept in the cache, under the
content of its files. An entry with partial occupancies or disorder, of elements beyond curium, whose sites are not its
formula, or that cannot be read is a fault. Bytes that are not UTF-8, mostly of authors' names, do not matter.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.records import inputs
from bench.records.inputs import one_line, size_of, truncate
from bench.records.store import write_atomically
from bench.structures.elements import MAX_NUMBER, FileError
from bench.structures.fetch import cache_folder
from bench.structures.lattices import crystals, standard_cells
from bench.structures.prompts import SENTENCES, prompt
from bench.structures.structures import Structures

if TYPE_CHECKING:
    from pymatgen.core import Structure  # pyright: ignore[reportMissingImports] - optional

log = logging.getLogger(__name__)

SUFFIXES = (".cif", ".csv", ".npz")
VERSION = 4  # of the reader: what the cache holds of another one is not read
FORMULAE = ("formula", "pretty_formula")
OPTIONAL = ("material_id", "formula", "spacegroup", "props", "prop_names")  # arrays of npz files
UNKNOWN = ("", "?", ".")  # values of CIF that say nothing
MAX_FIELD = 1 << 24  # characters of a csv field


class FaultyEntryError(ValueError):
    """An entry that is no ordered crystal; the message says why, without its name."""


@dataclass(frozen=True)
class Entries:
    """What files of crystals hold.

    Attributes:
        structures: reduced, in the standard orientation; positions in float64.
        names: of each crystal: its `material_id`, or its file.
        prompts: of each crystal: what is known of it, in words; its formula at least.
        faults: entries that cannot be used, one line each, named.
    """

    structures: Structures
    names: list[str]
    prompts: list[str]
    faults: list[str] = field(default_factory=list)


def read_entries(paths: Sequence[Path]) -> Entries:
    """All crystals of files of one kind, in their order.

    Raises:
        FileError: pymatgen is missing, or a file cannot be read at all.
    """
    contents: list[bytes] = []
    try:
        for path in paths:
            size_of(path)
            contents.append(path.read_bytes())
        version = metadata.version("pymatgen-core")
    except OSError as error:
        raise FileError(f"{paths[len(contents)]}: {one_line(error)}") from error
    except metadata.PackageNotFoundError as error:
        raise FileError("files of crystals are read by pymatgen; pip install 'equibench[crystals]'") from error
    digest = hashlib.sha256(f"{VERSION} {version}".encode())
    for path, content in zip(paths, contents, strict=True):
        digest.update(f"\n{path.name} {len(content)}\n".encode() + content)
    cached = cache_folder() / f"crystals-{digest.hexdigest()[:16]}.npz"
    if cached.is_file() and (known := _from_cache(cached)) is not None:
        return known
    log.info("reading %d files of crystals (once; kept in %s)", len(paths), cached.parent)
    found = _collect(entry for path, content in zip(paths, contents, strict=True) for entry in _entries(path, content))
    _to_cache(cached, found)
    return found


Named = tuple[str, "Structure | FaultyEntryError", Mapping[str, float]]  # name, crystal, its attributes


def _entries(path: Path, content: bytes) -> Iterator[Named]:
    """Crystals of one file, by name, as files hold them; a fault in place of what is none."""
    read = {".cif": _cif, ".csv": _csv, ".npz": _npz}[path.suffix.lower()]
    try:
        yield from read(path, content)
    except csv.Error as error:
        raise FileError(f"{path}: {one_line(error)}") from error


def _cif(path: Path, content: bytes) -> Iterator[Named]:
    blocks = parsed(content.decode(errors="replace"))
    for k, block in enumerate(blocks):
        yield (path.name if len(blocks) == 1 else f"{path.name} block {k + 1}"), block, {}


def _csv(path: Path, content: bytes) -> Iterator[Named]:
    csv.field_size_limit(MAX_FIELD)
    rows = csv.DictReader(io.StringIO(content.decode(errors="replace"), newline=""))
    if "cif" not in (rows.fieldnames or ()):
        columns = truncate(", ".join(rows.fieldnames or ()))
        raise FileError(f"{path}: its columns are {columns}; expected one called cif, with CIF text")
    for number, row in enumerate(rows, start=1):
        name = f"{path.name} {row.get('material_id') or f'row {number}'}"
        formula = next((row[key] for key in FORMULAE if row.get(key)), "")
        try:
            blocks = parsed(row["cif"] or "")
            if len(blocks) != 1:
                raise FaultyEntryError(f"its CIF has {len(blocks)} data blocks with sites, expected one")
            if isinstance(blocks[0], FaultyEntryError):
                raise blocks[0]
            _check_formula(blocks[0], formula)
        except FaultyEntryError as fault:
            yield name, fault, {}
        else:
            given = {key: row.get(key) for key in SENTENCES} | {"space_group": row.get("spacegroup.number")}
            yield name, blocks[0], {key: number for key, text in given.items() if (number := _number(text)) is not None}


def _number(text: str | None) -> float | None:
    """The number of a csv field; None where it holds none."""
    try:
        return float(text or "")
    except ValueError:
        return None


def _npz(path: Path, content: bytes) -> Iterator[Named]:
    from pymatgen.core import Lattice, Structure  # pyright: ignore[reportMissingImports] - optional

    del content  # read again, by the safe reader
    try:
        arrays = inputs.read_arrays(path, ("cell", "ptr", "atomic_numbers", "frac"), OPTIONAL)
    except inputs.NpzError as error:
        raise FileError(f"{path}: {error}") from error
    cell, ptr, numbers, frac = (arrays[name] for name in ("cell", "ptr", "atomic_numbers", "frac"))
    n, n_sites = len(cell), len(numbers)
    fits = cell.shape == (n, 6) and ptr.shape == (n + 1,) and numbers.shape == (n_sites,) and frac.shape == (n_sites, 3)
    if not fits or ptr[0] != 0 or ptr[-1] != n_sites or (np.diff(ptr.astype(np.int64)) < 1).any():
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise FileError(f"{path}: arrays {shapes}; expected cell [M, 6], ptr [M + 1], atomic_numbers [A], frac [A, 3]")
    known = _columns(path, arrays, n)
    for k in range(n):
        sites = slice(int(ptr[k]), int(ptr[k + 1]))
        name = f"{path.name} {arrays['material_id'][k] if 'material_id' in arrays else f'number {k}'}"
        try:
            if not (numbers[sites] > 0).all() or not np.isfinite(frac[sites]).all() or not np.isfinite(cell[k]).all():
                raise FaultyEntryError("a nuclear charge of 0, or a number that is not finite")
            lattice = Lattice.from_parameters(*cell[k].astype(np.float64).tolist())
            structure = Structure(lattice, numbers[sites].tolist(), frac[sites].astype(np.float64))
            _check_formula(structure, str(arrays["formula"][k]) if "formula" in arrays else "")
        except (FaultyEntryError, ValueError) as error:
            yield name, FaultyEntryError(one_line(error)), {}
        else:
            yield name, structure, {key: float(column[k]) for key, column in known.items()}


def _columns(path: Path, arrays: Mapping[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
    """Attributes of `n` crystals that prompts name, each [n]; raises FileError for arrays of other lengths."""
    names = [str(name) for name in arrays.get("prop_names", ())]
    props, groups = arrays.get("props", np.zeros((n, 0))), arrays.get("spacegroup", np.zeros(n))
    if props.shape != (n, len(names)) or groups.shape != (n,):
        raise FileError(
            f"{path}: arrays props {props.shape}, prop_names ({len(names)},) and spacegroup {groups.shape}; "
            f"expected props [M, K], prop_names [K] and spacegroup [M] for {n} crystals"
        )
    return {name: props[:, k] for k, name in enumerate(names) if name in SENTENCES} | {"space_group": groups}


def parsed(text: str) -> list[Structure | FaultyEntryError]:
    """Crystals of CIF text, their cells as written: one for each data block that has sites, a fault where it is none.

    Text without such a block is one fault.
    """
    blocks = [block for block in re.split(r"^\s*(?=data_)", text, flags=re.MULTILINE) if "_atom_site_" in block]
    return [_parsed_block(block) for block in blocks] or [FaultyEntryError("no CIF that pymatgen can read: no sites")]


def _parsed_block(text: str) -> Structure | FaultyEntryError:
    from pymatgen.io.cif import CifParser  # pyright: ignore[reportMissingImports] - optional

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            parser = CifParser.from_str(text)
            (structure,) = parser.parse_structures(primitive=False, on_error="raise")
            (items,) = parser.as_dict().values()
        except Exception as error:  # pymatgen raises whatever its parts do
            return FaultyEntryError(f"no CIF that pymatgen can read: {one_line(error, 80)}")
    formula = str(items.get("_chemical_formula_sum", "?"))
    if formula in UNKNOWN or not structure.is_ordered:  # disorder is a fault of its own
        return structure
    try:  # pymatgen leaves out sites without occupancy, and reads a vacancy, `Vac`, as vanadium
        _check_formula(structure, formula)
    except FaultyEntryError as fault:
        return fault
    return structure


def _check_formula(structure: Structure, formula: str) -> None:
    from pymatgen.core import Composition  # pyright: ignore[reportMissingImports] - optional

    if not formula:
        return
    found = structure.composition.reduced_formula
    try:
        expected = Composition(formula).reduced_formula
    except ValueError as error:
        raise FaultyEntryError(f"its formula, {truncate(formula, 40)}, cannot be read") from error
    if expected != found:
        raise FaultyEntryError(f"its formula is {truncate(formula, 40)}, that of its sites {found}")


def reduced(structure: Structure) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nuclear charges [n], lengths and angles [6] and fractions [n, 3] of a crystal's Niggli cell.

    Raises:
        FaultyEntryError: partial occupancies or disorder, sites of no element, or elements beyond curium.
    """
    from pymatgen.core import DummySpecies  # pyright: ignore[reportMissingImports] - optional

    if not structure.is_ordered:
        site = next(site for site in structure if not site.is_ordered)
        raise FaultyEntryError(f"partial occupancy or disorder: a site of {truncate(site.species_string, 40)}")
    dummy = next((site for site in structure if isinstance(site.specie, DummySpecies)), None)
    if dummy is not None:  # pymatgen gives it a number that differs by process
        raise FaultyEntryError(f"a site of {truncate(dummy.species_string, 40)}, which is no element")
    numbers = np.array([int(site.specie.Z) for site in structure])
    if numbers.max() > MAX_NUMBER:
        raise FaultyEntryError(f"element {int(numbers.max())}, expected 1 to {MAX_NUMBER} (H to Cm)")
    try:
        niggli = structure.get_reduced_structure()
    except Exception as error:  # a cell that cannot be reduced
        raise FaultyEntryError(f"its cell cannot be reduced: {one_line(error, 80)}") from error
    numbers = np.array([int(site.specie.Z) for site in niggli])
    return numbers, np.array(niggli.lattice.parameters), np.asarray(niggli.frac_coords) % 1.0


def _collect(entries: Iterator[Named]) -> Entries:
    made, names, faults = list[tuple[np.ndarray, np.ndarray, np.ndarray]](), list[str](), list[str]()
    prompts = list[str]()
    for name, entry, attributes in entries:
        try:
            if isinstance(entry, FaultyEntryError):
                raise entry
            made.append(reduced(entry))
            names.append(name)
            prompts.append(prompt({**attributes, "formula": entry.composition.reduced_formula}))
        except FaultyEntryError as fault:
            faults.append(f"{name}: {fault}")
    return Entries(_structures(made), names, prompts, faults)


def _structures(made: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Structures:
    ptr = np.concatenate([[0], np.cumsum([len(numbers) for numbers, _, _ in made], dtype=np.int64)]).astype(np.int64)
    if not made:
        return crystals(np.zeros(0, np.int64), np.zeros((0, 3)), np.zeros((0, 3, 3)), ptr)
    cells = standard_cells(np.stack([parameters for _, parameters, _ in made]))
    numbers, fractions = (np.concatenate([one[i] for one in made]) for i in (0, 2))
    return crystals(numbers, fractions, cells, ptr)


def _to_cache(path: Path, found: Entries) -> None:
    buffer, structures = io.BytesIO(), found.structures
    arrays: dict[str, Any] = {name: getattr(structures, name) for name in ("numbers", "positions", "ptr", "cells")}
    arrays |= {name: np.array(getattr(found, name), dtype=str) for name in ("names", "prompts", "faults")}
    np.savez_compressed(buffer, **arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        log.warning("%s: not kept: %s", path, one_line(error))


def _from_cache(path: Path) -> Entries | None:
    """What an earlier reading found; None where the file is damaged."""
    try:
        arrays = inputs.read_arrays(path, ("numbers", "positions", "ptr", "cells", "names", "prompts", "faults"))
        structures = Structures(arrays["numbers"], arrays["positions"], arrays["ptr"], cells=arrays["cells"])
        return Entries(structures, *(arrays[name].tolist() for name in ("names", "prompts", "faults")))
    except (inputs.NpzError, OSError, ValueError, IndexError):
        log.warning("%s is damaged; reading the files again", path)
        return None
