"""The embedded set of conformer ensembles: QM9-size molecules with GFN2-xTB conformers, shipped with the package.

Made by `bench/mini/conformers.py`. The split is by molecule: no test molecule has a conformer in the training split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.records.inputs import NpzError, read_arrays
from bench.references import EQUIBENCH, GFN2_XTB, RDKIT
from bench.registry import datasets
from bench.structures.dataset import SPLITS, DataError, DataSet

if TYPE_CHECKING:
    from bench.structures.perception import Record

PATH = Path(__file__).with_name("mini_conformers.npz")
ELEMENTS = (1, 6, 7, 8, 9)
ARRAYS = (
    "split",
    "atom_ptr",
    "atomic_numbers",
    "formal_charge",
    "bond_ptr",
    "bonds_i_j_twice_order",
    "conf_mol",
    "conf_ptr",
    "positions",
)
TYPES = {2: 1, 4: 2, 6: 3, 3: 4}  # twice the order of a bond -> its type, 4 for aromatic


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
    from bench.structures.perception import collect  # here, because RDKit is loaded where it is used

    try:
        arrays = read_arrays(PATH, ARRAYS)
    except (NpzError, OSError) as error:
        raise DataError(f"{PATH}: {error}; install the package again, or make it: docs/mini_conformers.md") from error
    ensembles, faults = collect(_records(arrays))
    if faults:
        raise DataError(f"{PATH}: {faults[0]}; install the package again")
    split = arrays["split"][arrays["conf_mol"]]
    train, valid, test = (ensembles.select(split == name) for name in SPLITS)
    data = DataSet(
        "mini_conformers",
        "mini_conformers (embedded, GFN2-xTB)",
        "embedded in the package",
        ELEMENTS,
        train,
        valid,
        test,
    )
    return data.limited(cfg.max_atoms, cfg.n_train)


def _records(arrays: dict[str, np.ndarray]) -> Iterator[Record]:
    """Conformers, molecule by molecule."""
    from bench.structures.perception import Record

    atoms, bonds, conformers = arrays["atom_ptr"], arrays["bond_ptr"], arrays["conf_ptr"]
    kinds = np.zeros(max(TYPES) + 1, np.int64)
    kinds[list(TYPES)] = list(TYPES.values())
    for k, molecule in enumerate(arrays["conf_mol"].tolist()):
        mine = slice(atoms[molecule], atoms[molecule + 1])
        rows = arrays["bonds_i_j_twice_order"][bonds[molecule] : bonds[molecule + 1]].astype(np.int64)
        yield Record(
            arrays["atomic_numbers"][mine].astype(np.int64),
            np.column_stack([rows[:, :2], kinds[rows[:, 2]]]),
            arrays["formal_charge"][mine].astype(np.int64),
            arrays["positions"][conformers[k] : conformers[k + 1]],
            f"conformer {k}",
        )
