"""The embedded set of conformer ensembles: QM9-size molecules with GFN2-xTB conformers, shipped with the package.

Made by `bench/mini/conformers.py`. The split is by molecule: no test molecule has a conformer in the training split.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.references import EQUIBENCH, GFN2_XTB, RDKIT
from bench.registry import datasets
from bench.structures.conformer_files import read_npz
from bench.structures.dataset import SPLITS, DataError, DataSet
from bench.structures.elements import FileError

PATH = Path(__file__).with_name("mini_conformers.npz")
ELEMENTS = (1, 6, 7, 8, 9)


@dataclass
class MiniConformersConfig:
    """Options: the limits of all data sets; `n_train` counts conformers."""

    max_atoms: int | None = None
    n_train: int | None = None


# the conformers are those of GFN2-xTB, found with RDKit
@datasets.register("mini_conformers", MiniConformersConfig, references=(EQUIBENCH, GFN2_XTB, RDKIT))
def load(cfg: MiniConformersConfig) -> DataSet:
    """Embedded ensembles: up to 9 heavy atoms of C, N, O, F, GFN2-xTB conformers, split by molecule.

    Raises DataError when the package's file is missing or damaged.
    """
    try:
        found = read_npz(PATH)
    except FileError as error:
        raise DataError(
            f"{error}; install the package again, or make the file as docs/mini_conformers.md says"
        ) from error
    if found.faults or found.split is None:
        raise DataError(f"{PATH}: {'; '.join(found.faults[:1]) or 'it names no split'}; install the package again")
    train, valid, test = (found.ensembles.select(found.split == name) for name in SPLITS)
    label = "mini_conformers (embedded, GFN2-xTB)"
    data = DataSet("mini_conformers", label, "embedded in the package", ELEMENTS, train, valid, test)
    return data.limited(cfg.max_atoms, cfg.n_train)
