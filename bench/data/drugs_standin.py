"""A stand-in for GEOM-Drugs, for cost, scaling and small studies: drug-like molecules of two public benchmarks.

The folder (`dir`, else the environment variable CONFORMERS_DIR) holds conformers_druglike.npz, optimised conformers of
the benchmark of Folmsbee & Hutchison, and ligands_fep.npz, one pose of each ligand of the free-energy benchmarks of
OpenFE and OpenFF. They are not fetched. As in GEOM-Drugs molecules are large and have rings, charges and heteroatoms;
but they are fewer by two orders of magnitude, many ligands are members of one series, and their poses are no minima.
Numbers do not compare with those of GEOM-Drugs.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.data.conformers import ConformerSplit, split_of
from bench.data.geom import ELEMENTS
from bench.references import Reference
from bench.registry import datasets
from bench.structures.conformer_files import read_npz
from bench.structures.dataset import SPLITS, DataError, DataSet, grouped

log = logging.getLogger(__name__)

FILES = ("conformers_druglike.npz", "ligands_fep.npz")

FOLMSBEE_2021 = Reference(
    "folmsbee2021conformers",
    "Assessing conformer energies using electronic structure and machine learning methods",
    ("Folmsbee, Dakota", "Hutchison, Geoffrey"),
    2021,
    doi="10.1002/qua.26381",
    venue="International Journal of Quantum Chemistry",
)


@dataclass
class DrugsStandInConfig:
    """Options: the folder and the split by molecule; limits as in all data sets, `n_train` counting conformers."""

    dir: str | None = None  # folder with the two files; null: `CONFORMERS_DIR`
    seed: int = 0  # of the split
    valid_fraction: float = 0.1  # of the molecules
    test_fraction: float = 0.1  # of the molecules
    max_atoms: int | None = 100
    n_train: int | None = None


@datasets.register("drugs_standin", DrugsStandInConfig, references=(FOLMSBEE_2021,))
def load(cfg: DrugsStandInConfig) -> DataSet:
    """Stand-in for GEOM-Drugs: conformers of drug-like molecules in CONFORMERS_DIR; GEOM-Drugs' sixteen elements.

    Raises:
        DataError: no folder is given, it lacks a file, or fractions leave a split empty.
        FileError: a file cannot be read.
    """
    given = cfg.dir or os.environ.get("CONFORMERS_DIR")
    if not given:
        raise DataError(
            f"drugs_standin is read from a folder with {' and '.join(FILES)}; set data.dir or CONFORMERS_DIR"
        )
    paths = [Path(given).expanduser() / name for name in FILES]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise DataError(f"{given} lacks {' and '.join(missing)}; correct data.dir or CONFORMERS_DIR")
    found = read_npz(*paths)
    index, how = split_of(found, ConformerSplit.MOLECULE, cfg.seed, cfg.valid_fraction, cfg.test_fraction)
    parts = {split: found.ensembles.select(np.sort(index[split])) for split in SPLITS}
    counts = (f"{split} {grouped(len(part))} of {grouped(len(part.present))}" for split, part in parts.items())
    notes = [f"conformers of molecules: {', '.join(counts)}"]
    if found.faults:
        notes.append(f"{grouped(len(found.faults))} times something was left out, first: {found.faults[0]}")
    for note in notes:
        log.info("%s", note)
    label, source = "Drug-like molecules (stand-in for GEOM-Drugs)", f"{' and '.join(FILES)}, split {how}"
    data = DataSet("drugs_standin", label, source, ELEMENTS["drugs"], notes=notes, **parts)
    return data.limited(cfg.max_atoms, cfg.n_train)
