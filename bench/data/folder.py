"""A folder of your own molecules as a data set: xyz, extended xyz, sdf or npz files, positions in angstrom.

Files whose names have `train`, `valid` (or `val`, `validation`, `dev`) and `test` as a word, such as train_1.xyz and
mine_val.sdf, or that lie in folders of these names, are the splits. In any other folder all files are read in name
order and their molecules split by a seeded permutation: of molecules, of groups of conformers, or of scaffolds.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from bench.references import EQUIBENCH
from bench.registry import datasets
from bench.structures import files
from bench.structures.dataset import SPLITS, DataError, DataSet, grouped, require_fractions
from bench.structures.elements import BadMoleculesError
from bench.structures.identity import graph_keys, scaffold_keys, unit_warning
from bench.structures.structures import Structures

log = logging.getLogger(__name__)

CLOSEST_ANGSTROM = 0.3  # closer atoms are an error in the file: no bond is much shorter than that of H2, 0.74
MAX_NAMED = 3  # omitted molecules that a note names individually
WORDS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
}


class Split(StrEnum):
    """What a random split keeps together."""

    RANDOM = "random"  # nothing: each conformer on its own
    MOLECULE = "molecule"  # conformers: the same atoms and bonds
    SCAFFOLD = "scaffold"  # molecules of the same rings and chains between them; those without rings, by molecule


@dataclass
class FolderConfig:
    """Options: the folder; seed, fractions and kind of a split that file names do not define; limits as in all data
    sets; `skip_bad` leaves out molecules that cannot be read."""

    dir: str  # the folder
    seed: int = 0  # of the random split
    valid_fraction: float = 0.1  # of all molecules, where file names define no split
    test_fraction: float = 0.1  # the same for the test split
    split: Split = Split.RANDOM  # what is kept together
    skip_bad: bool = False  # leave out molecules that cannot be read
    max_atoms: int | None = None
    n_train: int | None = None
    turned: bool = False


# the reader alone: the molecules are the user's to cite
@datasets.register("folder", FolderConfig, references=(EQUIBENCH,))
def load(cfg: FolderConfig) -> DataSet:
    """A folder of your own: xyz, extxyz, sdf or npz files; elements, sizes and split are found.

    Molecules with fewer than two atoms, or with atoms on top of each other, are left out and noted with their file;
    molecules that occur in several conformers, several times, or in several splits are counted and noted. Raises
    DataError when the folder holds no data set; FileError from `bench.structures.files` when a file cannot be read.
    """
    folder = Path(cfg.dir).expanduser()
    if not folder.is_dir():
        raise DataError(f"data folder {folder} does not exist; correct data.dir")
    paths = sorted(path for path in folder.iterdir() if files.holds_molecules(path))
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and path.name.lower() in WORDS):
        paths += sorted(path for path in inner.iterdir() if files.holds_molecules(path))
    if not paths:
        raise DataError(f"data folder {folder} has no file ending in {', '.join(files.SUFFIXES)}; correct data.dir")
    reader = _Reader(folder, cfg.skip_bad)
    notes: list[str] = []
    named = _named_splits(folder, paths)
    used = [path for some in named.values() for path in some] if named else paths
    if named:
        splits = {split: reader.read(some) for split, some in named.items()}
        ignored = [path.relative_to(folder).as_posix() for path in paths if path not in used]
        notes += [f"not read, since train, valid and test are there: {_some(ignored)}"] if ignored else []
        how = "split by file name"
    else:
        splits = _split(reader.read(paths), cfg)
        by = {Split.RANDOM: "at random", Split.MOLECULE: "by molecule", Split.SCAFFOLD: "by scaffold"}[cfg.split]
        how = f"split {by}, seed {cfg.seed}, fractions {cfg.valid_fraction:g} valid and {cfg.test_fraction:g} test"
    notes += reader.notes() + _repetitions(splits)
    if warning := unit_warning(splits["train"]):
        notes.append(warning)
    for note in notes:
        log.warning("%s", note)
    elements = np.unique(np.concatenate([structures.numbers for structures in splits.values()]))
    kinds = "/".join(sorted({files.kind(path).lstrip(".") for path in used}))
    name = folder.resolve().name
    data = DataSet("folder", name, f"folder of {kinds}, {how}", tuple(elements.tolist()), notes=notes, **splits)
    return data.limited(cfg.max_atoms, cfg.n_train, cfg.turned)


def _named_splits(folder: Path, paths: list[Path]) -> dict[str, list[Path]] | None:
    """The files of each split, or None if no name tells one; DataError if a split is missing or ambiguous."""
    found: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for path in paths:
        told = {WORDS[path.parent.name.lower()]} if path.parent != folder else _words(path)
        if len(told) > 1:
            raise DataError(f"{path}: its name tells several splits ({' and '.join(sorted(told))}); rename it")
        for split in told:
            found[split].append(path)
    if not any(found.values()):
        return None
    for split, some in found.items():
        stems = {path.with_name(path.name.removesuffix(files.kind(path))) for path in some}
        if not some or len(stems) < len(some):
            came = " and ".join(path.name for path in some) or f"no file for {split}"
            raise DataError(
                f"{folder}: {came}; expected files for each of train, valid and test (the word in the name, each file "
                "once), or no file so named"
            )
    return found


def _words(path: Path) -> set[str]:
    """Splits that the words of a file's name tell."""
    stem = path.name.lower().removesuffix(files.kind(path))
    return {WORDS[word] for word in re.split(r"[^a-z]+", stem) if word in WORDS}


def _split(molecules: Structures, cfg: FolderConfig) -> dict[str, Structures]:
    require_fractions(cfg.valid_fraction, cfg.test_fraction)
    if len(molecules) < len(SPLITS):
        raise DataError(f"{cfg.dir} has {len(molecules)} usable molecules; a split needs at least 3")
    n_valid, n_test = (max(1, int(fraction * len(molecules))) for fraction in (cfg.valid_fraction, cfg.test_fraction))
    rng = np.random.default_rng(cfg.seed)
    if cfg.split is Split.RANDOM:
        order = rng.permutation(len(molecules))
        parts = np.split(order, [len(molecules) - n_valid - n_test, len(molecules) - n_test])
    else:
        keys = graph_keys(molecules) if cfg.split is Split.MOLECULE else scaffold_keys(molecules)
        parts = _split_groups(np.unique(keys, return_inverse=True)[1], n_valid, n_test, rng)
        if not all(map(len, parts)):
            raise DataError(
                f"{cfg.dir}: data.split={cfg.split.value} leaves a split empty: {len(np.unique(keys))} groups among "
                f"{grouped(len(molecules))} molecules; choose larger fractions, or data.split=random"
            )
    return {split: molecules.select(np.sort(part)) for split, part in zip(SPLITS, parts, strict=True)}


def _split_groups(group: np.ndarray, n_valid: int, n_test: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Molecules of train, valid and test: whole groups in random order go where they fit, test first, else to train."""
    sizes = np.bincount(group)
    place = np.zeros(len(sizes), dtype=np.int64)
    left = {2: n_test, 1: n_valid}
    for k in rng.permutation(len(sizes)).tolist():
        fits = next((split for split, room in left.items() if sizes[k] <= room), 0)
        place[k] = fits
        if fits:
            left[fits] -= int(sizes[k])
    return [np.flatnonzero(place[group] == split) for split in range(len(SPLITS))]


def _repetitions(splits: dict[str, Structures]) -> list[str]:
    """Notes on molecules that occur several times, within a split and in several."""
    keys = {split: graph_keys(structures) for split, structures in splits.items()}
    together = Structures.concatenate(list(splits.values()))
    n, n_same = len(together), int((together.distinct()[1] - 1).sum())
    n_graphs = len(np.unique(np.concatenate(list(keys.values()))))
    notes = []
    if n_same:
        notes.append(f"{grouped(n_same)} of {grouped(n)} molecules are copies of others, coordinate by coordinate")
    if n - n_same > n_graphs:
        notes.append(
            f"{grouped(n - n_same)} conformers are of {grouped(n_graphs)} molecules (same atoms and bonds, other "
            "coordinates)"
        )
    shared = {split: int(np.isin(keys[split], keys["train"]).sum()) for split in ("valid", "test")}
    if any(shared.values()):
        of = ", ".join(f"{grouped(shared[split])} of {grouped(len(keys[split]))} in {split}" for split in shared)
        notes.append(
            f"molecules with the atoms and bonds of a training molecule: {of}; "
            "data.split=molecule or scaffold keeps them apart"
        )
    return notes


class _Reader:
    """Reads files and remembers what was left out, for one note in all."""

    def __init__(self, folder: Path, skip_bad: bool) -> None:
        self.folder, self.skip_bad = folder, skip_bad
        self.n_read = 0
        self.omitted: list[str] = []

    def read(self, paths: Sequence[Path]) -> Structures:
        """Usable molecules of some files."""
        return Structures.concatenate([self._file(path) for path in paths])

    def _file(self, path: Path) -> Structures:
        try:
            held = files.contents(path, self.skip_bad)
        except BadMoleculesError as error:
            raise BadMoleculesError(f"{error}; mend them, or leave them out by data.skip_bad=true") from error
        molecules = held.structures
        self.n_read += len(molecules) + len(held.faults)
        name = path.relative_to(self.folder).as_posix()
        self.omitted += [fault.removeprefix(f"{self.folder}/") for fault in held.faults]
        faults = {i: fault for i, (_, positions) in enumerate(molecules) if (fault := _fault(positions))}
        if faults:
            self.omitted += [f"{name}: molecule {i + 1}: {fault}" for i, fault in faults.items()]
            molecules = molecules.select(np.setdiff1d(np.arange(len(molecules)), list(faults)))
        return molecules

    def notes(self) -> list[str]:
        """One line, or none."""
        n = len(self.omitted)
        left = f"{grouped(n)} of {grouped(self.n_read)} molecules left out ({_some(self.omitted)})"
        return [left] if n else []


def _some(named: Sequence[str]) -> str:
    more = f"; and {grouped(len(named) - MAX_NAMED)} more" if len(named) > MAX_NAMED else ""
    return "; ".join(named[:MAX_NAMED]) + more


def _fault(positions: np.ndarray) -> str | None:
    """Why a molecule with these positions [n, 3] cannot be used, or None."""
    from scipy.spatial import KDTree  # here, because `equibench list` imports this module and scipy is slow to load

    if len(positions) < 2:
        return f"{len(positions)} atom(s), at least 2 needed"
    closest = float(KDTree(positions).query(positions, k=2)[0][:, 1].min())  # not all pairs: one molecule may be large
    return f"two atoms {closest:.2f} angstrom apart" if closest < CLOSEST_ANGSTROM else None
