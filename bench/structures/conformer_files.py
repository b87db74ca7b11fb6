"""Files of conformers, read into ensembles: one npz file, or a folder of sdf files.

.npz    molecules by pointer: `atom_ptr` [M + 1], `atomic_numbers` [A], `formal_charge` [A], `bond_ptr` [M + 1] and
        `bonds` [K, 3] (two atoms of the molecule, counted from 0, and the order 1, 2, 3, or 4 for aromatic);
        conformers by pointer: `conf_mol` [C] (their molecule), `conf_ptr` [C + 1] and `positions` in angstrom.
        Instead of `bonds`, `bonds_i_j_twice_order` has twice the order, and 3 for aromatic. Optional: `split` [M],
        one of train, valid and test; `bond_source` [M], where 0 marks molecules whose bonds are not known.
        With one conformer of each molecule, `ptr` [M + 1] stands for `atom_ptr`, `conf_mol` and `conf_ptr`.
.sdf    records of one conformer each, all of one molecule or of many, in any order and with atoms in any order. The
        bonds and charges of a record are read, its stereochemistry follows from its coordinates. All hydrogens
        must be there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.records import inputs
from bench.records.inputs import one_line
from bench.structures import files
from bench.structures.elements import MAX_NUMBER, FileError
from bench.structures.ensembles import Ensembles

POINTERS = ("atom_ptr", "bond_ptr", "conf_ptr")
ALWAYS = ("bond_ptr", "atomic_numbers", "formal_charge", "positions")
LAYOUT = ("atom_ptr", "conf_mol", "conf_ptr")
OPTIONAL = ("bonds", "bonds_i_j_twice_order", "bond_source", "split")
TWICE_ORDER = {2: 1, 4: 2, 6: 3, 3: 4}  # -> type
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Found:
    """What files hold.

    Attributes:
        ensembles: their conformers.
        faults: why some were left out, a line for each.
        split: 'train', 'valid' or 'test' of each conformer [C], where the file says so.
    """

    ensembles: Ensembles
    faults: list[str] = field(default_factory=list)
    split: np.ndarray | None = None


def read_npz(*paths: Path) -> Found:
    """Conformers of npz files; molecules that are in several are one.

    Raises:
        FileError: one is missing or damaged, lacks an array, or has arrays that do not fit one another.
    """
    from bench.structures.perception import Record, collected  # here: it loads RDKit

    faults: list[str] = []
    splits: list[str | None] = []  # of each record

    def records() -> Iterator[Record]:
        for path in paths:
            arrays = _arrays(path)
            atoms, bonds, conformers = (arrays[name] for name in POINTERS)
            numbers, charges, table = arrays["atomic_numbers"], arrays["formal_charge"], arrays["bonds"]
            known = arrays["bond_source"] > 0 if "bond_source" in arrays else np.ones(len(atoms) - 1, bool)
            faults.extend(f"{path.name}: molecule {k}: its bonds are not known" for k in np.flatnonzero(~known))
            for c in np.flatnonzero(known[arrays["conf_mol"]]).tolist():
                k = arrays["conf_mol"][c]
                mine, of_bonds = slice(*atoms[k : k + 2]), slice(*bonds[k : k + 2])
                x = arrays["positions"][conformers[c] : conformers[c + 1]]
                splits.append(str(arrays["split"][k]) if "split" in arrays else None)
                yield Record(numbers[mine], table[of_bonds], charges[mine], x, f"{path.name}: conformer {c}")

    found = collected(records())
    named = [splits[i] for i in found.taken]
    split = None if None in named else np.array(named)
    return Found(found.ensembles(), [*faults, *found.faults], split)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file, which fit one another; `bonds` with types 1 to 4, whichever way they are stored."""
    try:
        arrays = inputs.read_arrays(path, ALWAYS, (*LAYOUT, "ptr", *OPTIONAL))
    except (inputs.NpzError, OSError) as error:
        raise FileError(f"{path}: {one_line(error)}") from error
    if "ptr" in arrays and not set(LAYOUT) & set(arrays):
        ptr = arrays.pop("ptr")
        arrays |= {"atom_ptr": ptr, "conf_ptr": ptr, "conf_mol": np.arange(max(0, ptr.size - 1))}
    if missing := [name for name in LAYOUT if name not in arrays]:
        raise FileError(f"{path}: array {missing[0]!r} is missing; its layout is told in docs/data.md")
    given = arrays.pop("bonds_i_j_twice_order", None)
    if given is not None:
        _expect(path, "bonds_i_j_twice_order", given, given.ndim == 2 and given.shape[1:] == (3,), "[K, 3]")
        arrays["bonds"] = np.column_stack([given[:, :2], [TWICE_ORDER.get(v, 0) for v in given[:, 2].tolist()]])
    if "bonds" not in arrays:
        raise FileError(f"{path}: array 'bonds' is missing; a network is given the bonds, they cannot be left out")
    a, k, c = (arrays[name] for name in POINTERS)
    bonds, positions, molecule = arrays["bonds"], arrays["positions"], arrays["conf_mol"]
    numbers, charges = arrays["atomic_numbers"], arrays["formal_charge"]
    for name, pointer, end in zip(POINTERS, (a, k, c), (len(numbers), len(bonds), len(positions)), strict=True):
        good = pointer.ndim == 1 and pointer.dtype.kind in "iu" and len(pointer) > 1 and pointer[0] == 0
        _expect(path, name, pointer, bool(good and (np.diff(pointer.astype(np.int64)) >= 0).all()), "rising from 0")
        _expect(path, name, pointer, int(pointer[-1]) == end, f"to end at {end}")
        arrays[name] = pointer.astype(np.int64)
    n = len(a) - 1
    integers = {"atomic_numbers": numbers, "formal_charge": charges, "conf_mol": molecule, "bonds": bonds}
    for name, array in integers.items():
        _expect(path, name, array, array.dtype.kind in "iu", "integers")
        arrays[name] = array.astype(np.int64)
    _expect(path, "formal_charge", charges, charges.shape == numbers.shape, f"one for each of {len(numbers)} atoms")
    known = bool(((numbers >= 1) & (numbers <= MAX_NUMBER)).all())
    _expect(path, "atomic_numbers", numbers, known, f"nuclear charges from 1 to {MAX_NUMBER}")
    _expect(path, "bond_ptr", k, len(k) == n + 1, f"{n + 1} entries, as atom_ptr has")
    of_molecules = molecule.shape == (len(c) - 1,) and bool(((molecule >= 0) & (molecule < n)).all())
    _expect(
        path, "conf_mol", molecule, of_molecules, f"a molecule from 0 to {n - 1} for each of {len(c) - 1} conformers"
    )
    sizes = np.diff(arrays["atom_ptr"])
    same = bool((np.diff(arrays["conf_ptr"]) == sizes[molecule]).all())
    _expect(path, "conf_ptr", c, same, "as many atoms in each conformer as its molecule has")
    finite = positions.shape[1:] == (3,) and positions.dtype.kind == "f" and bool(np.isfinite(positions).all())
    _expect(path, "positions", positions, finite, "finite numbers [A, 3]")
    bonds = arrays["bonds"]
    _expect(path, "bonds", bonds, bonds.ndim == 2 and bonds.shape[1:] == (3,), "[K, 3]")
    most = np.repeat(sizes, np.diff(arrays["bond_ptr"]))
    inside = (bonds[:, :2] >= 0).all() and (bonds[:, :2] < most[:, None]).all() and (bonds[:, 0] != bonds[:, 1]).all()
    _expect(path, "bonds", bonds, bool(inside), "two different atoms of the molecule")
    _expect(path, "bonds", bonds, bool(np.isin(bonds[:, 2], (1, 2, 3, 4)).all()), "orders 1, 2, 3, or 4 for aromatic")
    for name in ("bond_source", "split"):
        if name in arrays:
            _expect(path, name, arrays[name], arrays[name].shape == (n,), f"one for each of {n} molecules")
    if "split" in arrays:
        _expect(path, "split", arrays["split"], bool(np.isin(arrays["split"], SPLITS).all()), "train, valid or test")
    return arrays


def _expect(path: Path, name: str, array: np.ndarray, good: bool, expected: str) -> None:
    if not good:
        raise FileError(f"{path}: array {name!r} is {array.dtype} of shape {array.shape}, expected {expected}")


def read_sdf_files(paths: Sequence[Path], skip_bad: bool) -> Found:
    """Conformers of sdf files.

    Args:
        skip_bad: leave out records that cannot be used, and say why; else the first is an error.
    Raises:
        FileError: a file that cannot be read; a record that cannot be used; nothing is left.
    """
    from bench.structures.perception import Record, collected

    faults: list[str] = []

    def records() -> Iterator[Record]:
        for path in paths:
            held = files.contents(path, skip_bad)
            if held.bonds is None or held.charges is None or held.n_hydrogens is None:
                raise FileError(f"{path}: no sdf file, expected one: bonds are needed")
            faults.extend(held.faults)
            ptr = held.structures.ptr
            for k, ((numbers, x), bonds) in enumerate(zip(held.structures, held.bonds, strict=True)):
                where = f"{path}: molecule {k + 1}"
                if bonds is None or (len(numbers) > 1 and not len(bonds)):
                    faults.append(f"{where} has no bonds of orders 1 to 3, expected a bond graph")
                elif n := int(held.n_hydrogens[k]):
                    faults.append(
                        f"{where} lacks {n} hydrogens that its bonds call for, expected all atoms; add them, e.g. with "
                        "RDKit's AddHs(mol, addCoords=True)"
                    )
                else:
                    yield Record(numbers, bonds, held.charges[ptr[k] : ptr[k + 1]], x, where)
                if faults and not skip_bad:
                    return

    found = collected(records())
    faults += found.faults
    if faults and not skip_bad:
        raise FileError(f"{faults[0]}; mend it, or leave such records out by data.skip_bad=true")
    return Found(found.ensembles(), faults)
