"""A folder of your own molecules as a data set: xyz, extended xyz, sdf or npz files, positions in angstrom.

Files named train.*, valid.* and test.* are the splits. In any other folder all files are read in name order and their
molecules split by a seeded permutation.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.references import EQUIBENCH
from bench.registry import datasets
from bench.structures import files
from bench.structures.dataset import SPLITS, DataError, DataSet, grouped
from bench.structures.structures import Structures

log = logging.getLogger(__name__)

SUFFIXES = (".xyz", ".extxyz", ".sdf", ".npz")
CLOSEST_ANGSTROM = 0.3  # closer atoms are an error in the file: no bond is much shorter than that of H2, 0.74
MAX_NAMED = 3  # omitted molecules that a note names individually


@dataclass
class FolderConfig:
    """Options: the folder; seed and fractions of a split that file names do not define; limits as in all data sets."""

    dir: str  # the folder
    seed: int = 0  # of the random split
    valid_fraction: float = 0.1  # of all molecules, where file names define no split
    test_fraction: float = 0.1  # the same for the test split
    max_atoms: int | None = None
    n_train: int | None = None


# the reader alone: the molecules are the user's to cite
@datasets.register("folder", FolderConfig, references=(EQUIBENCH,))
def load(cfg: FolderConfig) -> DataSet:
    """A folder of your own: xyz, extxyz, sdf or npz files; elements, sizes and split are found.

    Molecules with fewer than two atoms, or with atoms on top of each other, are left out and noted with their file.
    Raises DataError when the folder holds no data set; FileError from
    `bench.structures.files` when a file cannot be read.
    """
    folder = Path(cfg.dir).expanduser()
    if not folder.is_dir():
        raise DataError(f"data folder {folder} does not exist; correct data.dir")
    paths = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    if not paths:
        raise DataError(f"data folder {folder} has no file ending in {', '.join(SUFFIXES)}; correct data.dir")
    notes: list[str] = []
    named = _named_splits(folder, paths)
    if named:
        splits = {split: _read(path, notes) for split, path in named.items()}
        ignored = sorted(path.name for path in set(paths) - set(named.values()))
        notes += [f"not read, since train, valid and test are there: {', '.join(ignored)}"] if ignored else []
        how = "split by file name"
    else:
        splits = _split(Structures.concatenate([_read(path, notes) for path in paths]), cfg)
        how = f"split at random, seed {cfg.seed}, fractions {cfg.valid_fraction:g} valid and {cfg.test_fraction:g} test"
    for note in notes:
        log.warning("%s", note)
    elements = np.unique(np.concatenate([structures.numbers for structures in splits.values()]))
    kinds = "/".join(sorted({path.suffix.lower().lstrip(".") for path in (named or dict(enumerate(paths))).values()}))
    name = folder.resolve().name
    data = DataSet("folder", name, f"folder of {kinds}, {how}", tuple(elements.tolist()), notes=notes, **splits)
    return data.limited(cfg.max_atoms, cfg.n_train)


def _named_splits(folder: Path, paths: list[Path]) -> dict[str, Path] | None:
    """The files named after splits, or None if there are none; DataError if one is missing or ambiguous."""
    found = {split: [path for path in paths if path.stem.lower() == split] for split in SPLITS}
    if not any(found.values()):
        return None
    for split, candidates in found.items():
        if len(candidates) != 1:
            came = " and ".join(path.name for path in candidates) or f"no {split}.*"
            raise DataError(
                f"{folder}: {came}; expected one file for each of train, valid and test, or no file so named"
            )
    return {split: candidates[0] for split, candidates in found.items()}


def _split(molecules: Structures, cfg: FolderConfig) -> dict[str, Structures]:
    fractions = (cfg.valid_fraction, cfg.test_fraction)
    if min(fractions) <= 0 or sum(fractions) >= 1:
        raise DataError(
            f"valid_fraction and test_fraction are {fractions[0]:g} and {fractions[1]:g}; "
            "expected positive ones below 1 in sum"
        )
    if len(molecules) < len(SPLITS):
        raise DataError(f"{cfg.dir} has {len(molecules)} usable molecules; a split needs at least 3")
    order = np.random.default_rng(cfg.seed).permutation(len(molecules))
    n_valid, n_test = (max(1, int(fraction * len(molecules))) for fraction in fractions)
    parts = np.split(order, [len(molecules) - n_valid - n_test, len(molecules) - n_test])
    return {split: molecules.select(np.sort(part)) for split, part in zip(SPLITS, parts, strict=True)}


def _read(path: Path, notes: list[str]) -> Structures:
    """Usable molecules of one file; those omitted are added to the notes."""
    molecules = files.read(path)
    faults = {i: fault for i, (_, positions) in enumerate(molecules) if (fault := _fault(positions))}
    if faults:
        some = "; ".join(f"molecule {i + 1}: {fault}" for i, fault in list(faults.items())[:MAX_NAMED])
        more = f"; and {len(faults) - MAX_NAMED} more" if len(faults) > MAX_NAMED else ""
        notes.append(
            f"{path.name}: {grouped(len(faults))} of {grouped(len(molecules))} molecules left out ({some}{more})"
        )
        molecules = molecules.select(np.setdiff1d(np.arange(len(molecules)), list(faults)))
    return molecules


def _fault(positions: np.ndarray) -> str | None:
    """Why a molecule with these positions [n, 3] cannot be used, or None."""
    from scipy.spatial import KDTree  # here, because `equibench list` imports this module and scipy is slow to load

    if len(positions) < 2:
        return f"{len(positions)} atom(s), at least 2 needed"
    closest = float(KDTree(positions).query(positions, k=2)[0][:, 1].min())  # not all pairs: one molecule may be large
    return f"two atoms {closest:.2f} angstrom apart" if closest < CLOSEST_ANGSTROM else None
