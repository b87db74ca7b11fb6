"""Conformer ensembles from a folder: an npz file, or your own sdf files; positions in angstrom.

The folder is `dir`, else the environment variable CONFORMERS_DIR. Formats: `bench.structures.conformer_files`. What
counts as one molecule follows from bonds, charges and the stereochemistry of the coordinates, not from names.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from bench.references import EQUIBENCH
from bench.registry import datasets
from bench.structures import files
from bench.structures.conformer_files import SPLITS, Found, read_npz, read_sdf_files
from bench.structures.dataset import DataError, DataSet, grouped, require_fractions
from bench.structures.ensembles import Ensembles

log = logging.getLogger(__name__)

SDF = (".sdf", ".sdf.gz")
MAX_NAMED = 2  # omitted records that a note names


class ConformerSplit(StrEnum):
    """What a split keeps together."""

    MOLECULE = "molecule"  # all conformers of a molecule: a test molecule was never seen
    CONFORMER = "conformer"  # nothing: a test conformer's molecule was mostly seen in training


@dataclass
class ConformersConfig:
    """Options: the folder, a file of it, the split; limits as in all data sets, `n_train` counting conformers."""

    dir: str | None = None  # folder with sdf or npz files; null: `CONFORMERS_DIR`
    file: str | None = None  # one file of the folder; null: all its sdf files, or its only npz file
    split: ConformerSplit = ConformerSplit.MOLECULE  # what is kept together
    seed: int = 0  # of the split
    valid_fraction: float = 0.1  # of the molecules, or conformers
    test_fraction: float = 0.1  # the same; not read where the file names its test molecules
    skip_bad: bool = False  # leave out sdf records that cannot be used
    max_atoms: int | None = None
    n_train: int | None = None


# the reader alone: the conformers are another's to cite
@datasets.register("conformers", ConformersConfig, references=(EQUIBENCH,))
def load(cfg: ConformersConfig) -> DataSet:
    """Conformer ensembles in a folder: your own multi-conformer sdf files, or npz.

    Raises:
        DataError: no folder is given, or it holds no such files, or several; fractions that leave a split empty.
        FileError: a file cannot be read, or a record cannot be used.
    """
    name, found = _read(cfg)
    ensembles, notes = found.ensembles, []
    if found.faults:
        more = f"; and {grouped(n)} more" if (n := len(found.faults) - MAX_NAMED) > 0 else ""
        notes.append(f"{grouped(len(found.faults))} left out: {'; '.join(found.faults[:MAX_NAMED])}{more}")
    if n_same := int((ensembles.distinct()[1] - 1).sum()):
        notes.append(f"{grouped(n_same)} conformers are copies of others, coordinate by coordinate")
    if cfg.max_atoms is not None:  # before the split, so that its fractions are of what is left
        kept = ensembles.n_atoms <= cfg.max_atoms
        ensembles = ensembles.select(kept)
        found = Found(ensembles, found.faults, None if found.split is None else found.split[kept])
    index, how = split_of(found, cfg.split, cfg.seed, cfg.valid_fraction, cfg.test_fraction)
    parts = {split: ensembles.select(np.sort(index[split])) for split in SPLITS}
    for split, part in parts.items():
        if not len(part):
            raise DataError(
                f"{name}: the {split} split is empty: {grouped(len(ensembles.present))} molecules with "
                f"{grouped(len(ensembles))} conformers, split {how}; choose larger fractions, or other limits"
            )
    counts = (f"{split} {grouped(len(part))} of {grouped(len(part.present))}" for split, part in parts.items())
    notes.append(f"conformers of molecules: {', '.join(counts)}")
    for note in notes:
        log.info("%s", note)
    elements = tuple(np.unique(ensembles.numbers).tolist())
    data = DataSet("conformers", name, f"conformers, split {how}", elements, notes=notes, **parts)
    return data.limited(cfg.max_atoms, cfg.n_train)


def _read(cfg: ConformersConfig) -> tuple[str, Found]:
    """Name and conformers of what the options choose."""
    given = cfg.dir or os.environ.get("CONFORMERS_DIR")
    if not given:
        raise DataError(
            "conformers are read from a folder of sdf files, or with an npz file; set data.dir or CONFORMERS_DIR"
        )
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise DataError(f"folder {folder} does not exist; correct data.dir or CONFORMERS_DIR")
    inside = sorted(path for path in folder.iterdir() if files.kind(path) in (*SDF, ".npz") and path.name[0] != ".")
    if cfg.file is not None:
        inside = [path for path in inside if path.name == cfg.file]
        if not inside:
            raise DataError(f"{folder} has no sdf or npz file {cfg.file!r}; correct data.file")
    sdf = [path for path in inside if files.kind(path) in SDF]
    if sdf:
        return (folder.resolve().name if cfg.file is None else sdf[0].name), read_sdf_files(sdf, cfg.skip_bad)
    if not inside:
        raise DataError(f"{folder} has no file ending in {', '.join((*SDF, '.npz'))}; correct data.dir")
    if len(inside) > 1:
        named = ", ".join(path.name for path in inside)
        raise DataError(f"{folder} has several npz files: {named}; choose one by data.file")
    return inside[0].stem, read_npz(inside[0])


def split_of(
    found: Found, split: ConformerSplit, seed: int, valid_fraction: float, test_fraction: float
) -> tuple[dict[str, np.ndarray], str]:
    """Conformers of each split, and how they were chosen; DataError for fractions that are none."""
    require_fractions(valid_fraction, test_fraction)
    ensembles, rng = found.ensembles, np.random.default_rng(seed)
    if split is ConformerSplit.CONFORMER:
        parts = _cut(rng.permutation(len(ensembles)), valid_fraction, test_fraction)
        return dict(zip(SPLITS, parts, strict=True)), f"by conformer, seed {seed}"
    if found.split is not None and {"train", "test"} <= set(found.split.tolist()):
        return _split_as_named(ensembles, found.split, valid_fraction, rng), "by molecule, as the file names it"
    parts = _cut(rng.permutation(ensembles.present), valid_fraction, test_fraction)
    index = {name: _of(ensembles, part) for name, part in zip(SPLITS, parts, strict=True)}
    return index, f"by molecule, seed {seed}"


def _split_as_named(
    ensembles: Ensembles, split: np.ndarray, valid_fraction: float, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """The file's own split; validation molecules are taken from the training ones where it names none."""
    named = {name: np.flatnonzero(split == name) for name in SPLITS}
    if not len(named["valid"]):
        molecules = rng.permutation(np.unique(ensembles.molecule[named["train"]]))
        chosen = molecules[: max(1, int(valid_fraction * len(molecules)))]
        valid = np.isin(ensembles.molecule[named["train"]], chosen)
        named["train"], named["valid"] = named["train"][~valid], named["train"][valid]
    return named


def _cut(order: np.ndarray, valid_fraction: float, test_fraction: float) -> list[np.ndarray]:
    """Train, valid and test of items in random order."""
    n_valid, n_test = (max(1, int(fraction * len(order))) for fraction in (valid_fraction, test_fraction))
    valid, test, train = np.split(order, [n_valid, n_valid + n_test])
    return [train, valid, test]


def _of(ensembles: Ensembles, molecules: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.isin(ensembles.molecule, molecules))
