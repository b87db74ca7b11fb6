"""GEOM-QM9 and GEOM-Drugs: ensembles of conformers from the official msgpack files, positions in angstrom.

The folder (`dir`, else the environment variable GEOM_DIR) holds qm9_crude.msgpack or drugs_crude.msgpack, or the same
with .tar.gz; they are not fetched, that of drugs has 50 GB. A molecule is what its conformers show: those whose
stereochemistry differs are different molecules, whatever SMILES they are listed under.
"""

from __future__ import annotations

import csv
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.data.conformers import ConformerSplit, split_of
from bench.records.inputs import one_line
from bench.references import Reference
from bench.registry import datasets
from bench.structures.conformer_files import Found
from bench.structures.dataset import DataError, DataSet, grouped
from bench.structures.ensembles import Ensembles

log = logging.getLogger(__name__)

ELEMENTS = {  # that models of the two know, as EDM's do: a part of the file may lack rare ones
    "qm9": (1, 6, 7, 8, 9),
    "drugs": (1, 5, 6, 7, 8, 9, 13, 14, 15, 16, 17, 33, 35, 53, 80, 83),
}
PERMUTATION = "geom_permutation.npy"  # EDM's, of the conformers of GEOM-Drugs


@dataclass
class GeomConfig:
    """Options: the folder; conformers of each molecule and molecules to read; the split; limits as in all data sets."""

    dir: str | None = None  # folder with the msgpack file; null: `GEOM_DIR`
    n_conformers: int | None = 30  # of each molecule, those of lowest energy; null: all
    n_molecules: int | None = None  # the first ones of the file; null: all
    split: ConformerSplit = ConformerSplit.MOLECULE
    seed: int = 0  # of the split
    valid_fraction: float = 0.1  # of the molecules
    test_fraction: float = 0.1  # where there is no list of test molecules
    max_atoms: int | None = None
    n_train: int | None = None


GEOM = Reference(
    "axelrod2022geom",
    "GEOM, energy-annotated molecular conformations for property prediction and molecular generation",
    ("Axelrod, Simon", "Gómez-Bombarelli, Rafael"),
    2022,
    doi="10.1038/s41597-022-01288-4",
    venue="Scientific Data",
)


@datasets.register("geom_qm9", GeomConfig, references=(GEOM,))
def load_qm9(cfg: GeomConfig) -> DataSet:
    """GEOM-QM9 from qm9_crude.msgpack in GEOM_DIR: CREST conformers (GFN2-xTB) of QM9's molecules.

    Raises DataError for options that do not fit, FileError when the file is missing, damaged or pickled.
    """
    return _load(cfg, "qm9", "GEOM-QM9")


@datasets.register("geom_drugs", GeomConfig, references=(GEOM,))
def load_drugs(cfg: GeomConfig) -> DataSet:
    """GEOM-Drugs from drugs_crude.msgpack in GEOM_DIR: CREST conformers (GFN2-xTB) of drug-like molecules.

    Raises as `load_qm9`.
    """
    return _load(cfg, "drugs", "GEOM-Drugs")


def _load(cfg: GeomConfig, name: str, label: str) -> DataSet:
    from bench.structures import geom  # here, because RDKit is loaded where it is used
    from bench.structures.perception import collect

    folder = cfg.dir or os.environ.get("GEOM_DIR")
    if not folder:
        raise DataError(f"{label} is read from a folder with {name}_crude.msgpack; set data.dir or GEOM_DIR")
    for option, value in (("n_conformers", cfg.n_conformers), ("n_molecules", cfg.n_molecules)):
        if value is not None and value < 1:
            raise DataError(f"data.{option} is {value}, expected at least 1, or null for all")
    path = geom.find(Path(folder).expanduser(), name)
    faults: list[str] = []
    ensembles, refused = collect(geom.records(path, faults, cfg.n_conformers, cfg.n_molecules))
    splits, how, notes = _split(ensembles, cfg, path.parent, name)
    left_out = faults + refused
    if left_out:
        notes.append(f"{grouped(len(left_out))} times something was left out, first: {left_out[0]}")
    for note in notes:
        log.warning("%s", note)
    source = f"{path.name}, split {how}"
    if cfg.n_conformers is not None:
        label += f", at most {cfg.n_conformers} conformers"
    if cfg.n_molecules is not None:
        label += f" of the first {grouped(cfg.n_molecules)} molecules"
    parts = {split: ensembles.select(np.sort(index)) for split, index in splits.items()}
    data = DataSet(f"geom_{name}", label, source, ELEMENTS[name], notes=notes, **parts)
    return data.limited(cfg.max_atoms, cfg.n_train)


def _split(
    ensembles: Ensembles, cfg: GeomConfig, folder: Path, name: str
) -> tuple[dict[str, np.ndarray], str, list[str]]:
    """Conformers of each split, how they were chosen, and notes."""
    options = (cfg.split, cfg.seed, cfg.valid_fraction, cfg.test_fraction)
    listed, published = folder / f"{name}_test_smiles.csv", folder / PERMUTATION
    if cfg.split is ConformerSplit.CONFORMER:
        if not published.is_file():
            note = f"split by conformer in EDM's manner, but without its {PERMUTATION}"
            return *split_of(Found(ensembles), *options), [note]
        n_valid, n_test = (int(fraction * len(ensembles)) for fraction in (cfg.valid_fraction, cfg.test_fraction))
        order = _published_order(published, len(ensembles))
        valid, test, train = np.split(order, [n_valid, n_valid + n_test])  # in EDM's order
        return {"train": train, "valid": valid, "test": test}, "by conformer, as published", []
    if not listed.is_file():
        return *split_of(Found(ensembles), *options), []
    wanted = _test_smiles(listed)
    is_test = np.isin(np.array(ensembles.graphs.smiles), sorted(wanted))
    named = np.where(is_test[ensembles.molecule], "test", "train")
    note = f"test: {grouped(int(is_test.sum()))} of the {grouped(len(wanted))} molecules of {listed.name}"
    return *split_of(Found(ensembles, split=named), *options), [note]


def _published_order(path: Path, n: int) -> np.ndarray:
    """EDM's permutation of n conformers; DataError where it is of others."""
    try:
        order = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: {one_line(error)}; expected a permutation as an array of integers") from error
    if order.shape != (n,) or order.dtype.kind not in "iu" or not np.array_equal(np.sort(order), np.arange(n)):
        raise DataError(
            f"{path} is {order.dtype} of shape {order.shape}, expected a permutation of the {n} conformers that were "
            "read; it goes with data.n_conformers=30, and with files of which nothing is left out"
        )
    return order


def _test_smiles(path: Path) -> set[str]:
    """Canonical SMILES of the column 'smiles', as they stand where RDKit refuses them, as it does two of GEOM-QM9's."""
    from rdkit import Chem, rdBase

    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or "smiles" not in rows[0]:
        raise DataError(f"{path} has no column 'smiles'; expected the list of test molecules with a line of headers")
    with rdBase.BlockLogs():
        mols = [Chem.MolFromSmiles(row["smiles"]) for row in rows]
    return {row["smiles"] if mol is None else Chem.MolToSmiles(mol) for row, mol in zip(rows, mols, strict=True)}
