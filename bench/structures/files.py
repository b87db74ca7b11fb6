"""Files of molecules: xyz, extended xyz, sdf and npz, read into `Structures` and written from them.

    .xyz, .extxyz   any number of frames; positions in angstrom; a comment with `Properties=` (extended xyz) sets the
                    columns, otherwise they are element, x, y, z, and columns after these are ignored, as are blank
                    lines. QM9 as published on figshare (five columns, three closing lines, exponents written `1.0*^-5`)
                    is read.
    .sdf            V2000 or V3000, through RDKit and unsanitised; bonds and formal charges are kept beside the
                    structures (`contents`). Written as V2000, whose coordinates have four decimals; the other formats
                    keep every digit.
    .npz            `num_atoms` [M], `charges`, `positions`: padded as EDM has it ([M, n_max] and [M, n_max, 3], charge
                    0 is padding) or with all atoms in one row ([A] and [A, 3]); of crystals also `cells` [M, 3, 3],
                    lattice vectors as rows, which alone of these formats .npz and .xyz (`Lattice=`, written) keep.
                    Other arrays in the file are ignored.

xyz and sdf files are read compressed too (.xyz.gz). Elements are H to Cm; the isotopes D and T are hydrogen. Nothing is
unpickled, and declared sizes are checked against the file before memory is allocated.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bench.records import inputs
from bench.records.inputs import one_line, size_of, truncate
from bench.records.store import write_atomically
from bench.structures.elements import MAX_LINE, MAX_NUMBER, SYMBOL, BadMoleculesError, Contents, FileError
from bench.structures.structures import Structures

T = TypeVar("T")
EXTENDED = "Properties=species:S:1:pos:R:3"
NO_CHARGE = f"a charge outside 1 to {MAX_NUMBER} (H to {SYMBOL[MAX_NUMBER]})"


_ISOTOPES = {"D": 1, "T": 1}
_NUMBERS = {  # every spelling -> nuclear charge
    spelling: number
    for symbol, number in [*_ISOTOPES.items(), *((symbol, number) for number, symbol in SYMBOL.items())]
    for spelling in (symbol, symbol.upper(), symbol.lower(), str(number))
}


def read(path: Path | str) -> Structures:
    """All molecules of one file, positions in angstrom; the format follows from the suffix.

    Raises:
        FileError: the file is missing, of an unknown kind, empty, cut short or otherwise not what its format says;
            BadMoleculesError where the rest of its molecules can be read (`contents`).
    """
    return contents(path).structures


def contents(path: Path | str, skip_bad: bool = False) -> Contents:
    """What one file holds.

    Args:
        skip_bad: leave out molecules that cannot be read, even all, and list why; else the first is an error.
    Raises:
        FileError: as for `read`, but for bad molecules; also where the end of one cannot be told.
    """
    path = Path(path)
    found = _attempt(_of_suffix(path, _READERS), path)
    n_bad = len(found.faults)
    n = len(found.structures) + n_bad
    if n == 0:
        raise FileError(f"{path}: holds no molecule, expected at least one")
    if n_bad and not skip_bad:
        raise BadMoleculesError(found.faults[0] + (f" ({n_bad} of {n} molecules are bad)" if n > 1 else ""))
    return found


def read_samples(path: Path) -> Structures:
    """A run's samples as `write_samples` keeps them: those that diverged have positions that are not finite.

    Raises:
        FileError: the file is missing, cut short or otherwise no such file.
    """
    samples = _attempt(_structures_of_npz, path)
    if not _is_charge(samples.numbers).all():
        raise FileError(f"{path}: holds {NO_CHARGE}")
    return samples


def write_samples(path: Path, samples: Structures) -> None:
    """Write a run's samples (.npz), those with positions that are not finite included, atomically."""
    write_atomically(path, _write_npz(samples, None))


def _attempt(reader: Callable[[Path], T], path: Path) -> T:
    """What a reader makes of a file, with errors of the system as FileError."""
    try:
        size_of(path)
        return reader(path)
    except (OSError, EOFError, zlib.error) as error:  # the last two: a .gz that is cut short or damaged
        raise FileError(f"{path}: {one_line(error)}") from error
    except MemoryError as error:
        raise FileError(f"{path}: does not fit in memory; split it into several files") from error


def expand(paths: Iterable[Path]) -> list[Path]:
    """Paths of files, with every folder replaced by the files of molecules in it, in name order.

    Raises FileError for a folder without any.
    """
    found = []
    for path in paths:
        inside = sorted(file for file in path.iterdir() if holds_molecules(file)) if path.is_dir() else [path]
        if not inside:
            raise FileError(f"{path}: folder without a file of molecules, expected {', '.join(SUFFIXES)}")
        found += inside
    return found


def holds_molecules(path: Path) -> bool:
    """Whether a visible file has a suffix that can be read."""
    return kind(path) in _READERS and not path.name.startswith(".")


def kind(path: Path) -> str:
    """The suffix in lower case, with that before it where it is .gz: '.xyz', '.sdf.gz'."""
    inner = Path(path.stem).suffix if path.suffix.lower() == ".gz" else ""
    return (inner + path.suffix).lower()


def write(path: Path | str, structures: Structures, bonds: Iterable[np.ndarray] | None = None) -> None:
    """Write molecules in the format that the suffix names, atomically.

    Args:
        bonds: per molecule rows (first atom, second atom, order 1..3), counted from 0 in the molecule; for .sdf alone.
    Raises:
        FileError: unknown suffix, bonds for a format that holds none, a charge outside 1 to 96 or a position that is
            not finite.
        OSError: no space, no permission; what was there before is untouched.
    """
    path = Path(path)
    writer = _of_suffix(path, _WRITERS)
    for k, what in _faults(structures).items():
        raise FileError(f"{path}: not written: molecule {k} has {what}")
    if bonds is not None and path.suffix.lower() != ".sdf":
        raise FileError(f"{path}: {path.suffix} files hold no bonds; write .sdf, or leave the bonds out")
    listed = None if bonds is None else list(bonds)
    if listed is not None and len(listed) != len(structures):
        raise FileError(f"{path}: got bonds of {len(listed)} molecules for {len(structures)} molecules")
    write_atomically(path, writer(structures, listed))


def _of_suffix(path: Path, known: dict[str, T]) -> T:
    if kind(path) not in known:
        raise FileError(f"{path}: unknown kind of file {kind(path)!r}, expected {', '.join(known)}")
    return known[kind(path)]


def _opened(path: Path) -> io.BufferedReader | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


# xyz and extended xyz


def _read_xyz(path: Path) -> Contents:
    faults: list[str] = []
    with _opened(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", errors="replace") as file:  # a byte order mark is
        return Contents(parse_xyz(_lines(file, path), str(path), faults), faults)  # no part of a number


def parse_xyz(lines: Iterable[str], name: str, faults: list[str] | None = None) -> Structures:
    """All frames of xyz or extended xyz text, positions in float64; FileError messages call the text `name`.

    Args:
        faults: gets the message of each bad frame, which is left out; None: the first one is raised.
    """
    numbers, positions, sizes = array("q"), array("d"), array("q")
    source = _Numbered(lines)
    after_gdb = False  # QM9 as published: lines of frequencies, SMILES and InChI follow the atoms
    n_frames = 0
    for line_number, line in source:
        if not line.strip():
            continue
        if after_gdb and not line.strip().isdecimal():
            after_gdb = False
            for _ in range(2):
                next(source, None)
            continue
        n_frames += 1
        frame = f"frame {n_frames}"
        n_atoms = _count(line, f"{name}:{line_number}: {frame}")
        comment = next(source, (0, ""))[1]
        rows = source.rows(n_atoms)
        after_gdb = re.match(r"gdb\s+\d+\s", comment) is not None
        try:
            found, x = _frame(rows, comment, name, frame, line_number, n_atoms)
        except FileError as fault:
            if faults is None:
                raise
            faults.append(str(fault))
            continue
        numbers.extend(found)
        positions.extend(x)
        sizes.append(n_atoms)
    return Structures.from_sizes(np.array(numbers), np.frombuffer(positions).reshape(-1, 3), np.array(sizes))


class _Numbered(Iterator[tuple[int, str]]):
    """Lines with their numbers from 1."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines, self.again = enumerate(lines, start=1), None

    def __next__(self) -> tuple[int, str]:
        line, self.again = self.again or next(self.lines), None
        return line

    def rows(self, n: int) -> list[tuple[int, str]]:
        """The next n lines that are not blank; fewer where the text ends or a line holds one number alone, which begins
        another frame and is left."""
        found: list[tuple[int, str]] = []
        while len(found) < n and (line := next(self, None)) is not None:
            if line[1].strip().isdecimal():
                self.again = line
                break
            if line[1].strip():
                found.append(line)
        return found


def _frame(
    rows: list[tuple[int, str]], comment: str, name: str, frame: str, first: int, n_atoms: int
) -> tuple[list[int], list[float]]:
    """Nuclear charges and coordinates of the lines of one frame, whose number of atoms stands in line `first`."""
    element, x, n_columns, exact = _columns(comment, f"{name}:{first + 1}: {frame}")
    numbers, positions = [], []
    for at, line in rows:
        words = line.split()
        if len(words) < n_columns or (exact and len(words) > n_columns):
            wanted = f"{'' if exact else 'at least '}{n_columns}"
            raise FileError(f"{name}:{at}: {frame}: {len(words)} columns, expected {wanted}")
        number = _NUMBERS.get(words[element])
        if number is None:
            raise FileError(f"{name}:{at}: {frame}: unknown element {_cut(words[element])}, expected H to Cm")
        numbers.append(number)
        positions += [_coordinate(word, f"{name}:{at}: {frame}") for word in words[x : x + 3]]
    if len(rows) < n_atoms:
        words = comment.split()
        atom = len(rows) == n_atoms - 1 and len(words) == 4 and words[0] in _NUMBERS
        hint = (
            f"; line {first + 1} looks like an atom, but is the comment: it may be blank, not missing" if atom else ""
        )
        raise FileError(
            f"{name}: {frame} is cut short: {len(rows)} atoms of the {n_atoms} that line {first} declares{hint}"
        )
    return numbers, positions


def _lines(file: io.TextIOWrapper, path: Path) -> Iterator[str]:
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise FileError(f"{path}:{number}: a line of more than {MAX_LINE} characters; this is no xyz file")
        yield line


def _count(line: str, where: str) -> int:
    word = line.strip()
    if not (word.isascii() and word.isdigit() and len(word) < 19 and int(word) > 0):
        raise FileError(f"{where}: got {_cut(word)}, expected a number of atoms, 1 or more")
    return int(word)


def _coordinate(word: str, where: str) -> float:
    try:
        # Python's float also knows 1_000 and the digits of other scripts, which a damaged file may hold
        value = float(word.replace("*^", "e")) if word.isascii() and "_" not in word else None
    except ValueError:
        value = None
    if value is None:
        raise FileError(f"{where}: got {_cut(word)}, expected a coordinate in angstrom")
    if not isfinite(value):
        raise FileError(f"{where}: coordinate {_cut(word)} is not finite")
    return value


def _columns(comment: str, where: str) -> tuple[int, int, int, bool]:
    """Columns of element and x, number of columns, and whether a line may have no more than these."""
    found = re.search(r'\bProperties\s*=\s*"?([^\s"]+)', comment, re.IGNORECASE)
    if not found:
        return 0, 1, 4, False
    words = found[1].split(":")
    if len(words) % 3 or not all(w.isascii() and w.isdigit() and len(w) < 7 for w in words[2::3]):
        raise FileError(f"{where}: Properties={_cut(found[1])}, expected name:type:columns triples such as {EXTENDED}")
    start, n_columns = {}, 0
    for name, kind, width in zip(words[::3], words[1::3], map(int, words[2::3]), strict=True):
        start[name.lower(), kind.upper(), width] = n_columns
        n_columns += width
    elements = [("species", "S", 1), ("symbols", "S", 1), ("z", "I", 1), ("numbers", "I", 1)]
    element = next((start[key] for key in elements if key in start), None)
    x = start.get(("pos", "R", 3))
    if element is None or x is None:
        raise FileError(f"{where}: Properties={_cut(found[1])} lacks species:S:1 (or Z:I:1) or pos:R:3")
    return element, x, n_columns, True


def _cut(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")


def _write_xyz(structures: Structures, _: object) -> bytes:
    digits = 9 if structures.positions.dtype == np.float32 else 17  # enough to get the same float back
    lines = []
    for k, (numbers, positions) in enumerate(structures):
        cell = [] if structures.cells is None else structures.cells[k].ravel().tolist()
        lattice = f'Lattice="{" ".join(f"{x:.{digits}g}" for x in cell)}" ' if cell else ""
        lines += [str(len(numbers)), lattice + EXTENDED]
        lines += [
            f"{SYMBOL[number]} {x:.{digits}g} {y:.{digits}g} {z:.{digits}g}"
            for number, (x, y, z) in zip(numbers.tolist(), positions.tolist(), strict=True)
        ]
    return ("\n".join(lines) + "\n").encode()


# sdf: `bench.structures.sdf`, imported when one is read or written


def _read_sdf(path: Path) -> Contents:
    from bench.structures.sdf import read_sdf

    with _opened(path) as file:
        return read_sdf(file, path)


def _write_sdf(structures: Structures, bonds: Sequence[np.ndarray] | None) -> bytes:
    from bench.structures.sdf import write_sdf

    return write_sdf(structures, bonds)


# npz


def _read_npz(path: Path) -> Contents:
    structures = _structures_of_npz(path)
    faults = _faults(structures)
    good = np.setdiff1d(np.arange(len(structures)), list(faults)) if faults else None
    named = [f"{path}: molecule {k} has {what}" for k, what in faults.items()]
    return Contents(structures if good is None else structures.select(good), named)


def _structures_of_npz(path: Path) -> Structures:
    """Whatever the charges and coordinates are."""
    try:
        arrays = inputs.read_arrays(path, ("num_atoms", "charges", "positions"), ("cells",))
    except inputs.NpzError as error:
        raise FileError(f"{path}: {error}") from error
    cells = arrays.pop("cells", None)
    _check_layout(arrays, path)
    num_atoms, charges, positions = arrays.values()
    if cells is not None and (cells.dtype.kind != "f" or cells.shape != (len(num_atoms), 3, 3)):
        raise FileError(
            f"{path}: array 'cells' is {cells.dtype} of shape {cells.shape}, expected reals ({len(num_atoms)}, 3, 3)"
        )
    if not len(num_atoms):
        raise FileError(f"{path}: holds no molecule, expected at least one")
    positions = positions.astype(np.float32 if positions.dtype.itemsize <= 4 else np.float64, copy=False)
    room = charges.shape[1] if charges.ndim == 2 else len(charges)
    if (wrong := (num_atoms < 1) | (num_atoms > room)).any():
        k = int(np.argmax(wrong))
        raise FileError(f"{path}: molecule {k} declares {num_atoms[k]} atoms, expected 1 to {room}")
    num_atoms = num_atoms.astype(np.int64)
    if charges.ndim == 2:
        if (wrong := (np.arange(room) < num_atoms[:, None]) != (charges != 0)).any():
            k = int(np.argmax(wrong.any(axis=1)))
            raise FileError(
                f"{path}: molecule {k} declares {num_atoms[k]} atoms, but its charges are "
                f"{_cut(str(charges[k].tolist()))}; expected as many charges, then zeros"
            )
        structures = Structures.from_padded(num_atoms, charges, positions)
    elif num_atoms.sum() != len(charges):
        raise FileError(f"{path}: num_atoms sums to {num_atoms.sum()}, but there are {len(charges)} charges")
    else:
        structures = Structures.from_sizes(charges, positions, num_atoms)
    return replace(structures, cells=cells)


def _faults(structures: Structures) -> dict[int, str]:
    """What is wrong with the molecules that no file can hold, by their index."""
    found: dict[int, str] = {}
    for wrong, what in (
        (~_is_charge(structures.numbers), NO_CHARGE),
        (~np.isfinite(structures.positions).all(axis=1), "a coordinate that is not finite"),
    ):
        molecules = np.unique(np.searchsorted(structures.ptr, np.flatnonzero(wrong), side="right")) - 1
        found |= {k: what for k in molecules.tolist() if k not in found}
    if structures.cells is not None:
        broken = np.flatnonzero(~np.isfinite(structures.cells).all((1, 2)))
        found |= {k: "a cell that is not finite" for k in broken.tolist() if k not in found}
    return dict(sorted(found.items()))


def _is_charge(numbers: np.ndarray) -> np.ndarray:
    return (numbers >= 1) & (numbers <= MAX_NUMBER)


def _check_layout(arrays: dict[str, np.ndarray], path: Path) -> None:
    for name, kinds, expected in (
        ("num_atoms", "iu", "integers"),
        ("charges", "iu", "integers"),
        ("positions", "fiu", "reals"),
    ):
        if arrays[name].dtype.kind not in kinds:
            raise FileError(f"{path}: array {name!r} holds {truncate(str(arrays[name].dtype))}, expected {expected}")
    n, charges, positions = (arrays[name].shape for name in ("num_atoms", "charges", "positions"))
    padded = len(charges) == 2 and n == charges[:1]
    if len(n) != 1 or not (padded or len(charges) == 1) or positions != (*charges, 3):
        raise FileError(
            f"{path}: num_atoms, charges, positions have shapes {n}, {charges}, {positions}; "
            "expected [M], [M, n_max], [M, n_max, 3] (padded) or [M], [A], [A, 3]"
        )


def _write_npz(structures: Structures, _: object) -> bytes:
    n_atoms = structures.n_atoms
    real = np.arange(n_atoms.max(initial=0)) < n_atoms[:, None]
    charges = np.zeros(real.shape, np.uint8)
    positions = np.zeros((*real.shape, 3), structures.positions.dtype)
    charges[real], positions[real] = structures.numbers, structures.positions
    buffer = io.BytesIO()
    cells: dict[str, Any] = {} if structures.cells is None else {"cells": structures.cells}
    np.savez_compressed(buffer, num_atoms=n_atoms, charges=charges, positions=positions, **cells)
    return buffer.getvalue()


_READERS: dict[str, Callable[[Path], Contents]] = {
    ".xyz": _read_xyz,
    ".extxyz": _read_xyz,
    ".sdf": _read_sdf,
    ".npz": _read_npz,
    ".xyz.gz": _read_xyz,
    ".extxyz.gz": _read_xyz,
    ".sdf.gz": _read_sdf,
}
SUFFIXES = tuple(_READERS)
_WRITERS: dict[str, Callable[[Structures, Sequence[np.ndarray] | None], bytes]] = {
    ".xyz": _write_xyz,
    ".extxyz": _write_xyz,
    ".sdf": _write_sdf,
    ".npz": _write_npz,
}
WRITTEN = tuple(_WRITERS)
