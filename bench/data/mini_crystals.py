"""The embedded set of crystals: perovskites and rock salts from ionic radii, shipped with the package.

Made by `bench/mini/crystals.py`. Geometries follow from composition rules; nothing was relaxed or taken from a
database, and the label says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.records import inputs
from bench.references import EQUIBENCH
from bench.registry import datasets
from bench.structures.dataset import DataError, DataSet
from bench.structures.lattices import crystals, standard_cells

PATH = Path(__file__).with_name("mini_crystals.npz")


@dataclass
class MiniCrystalsConfig:
    """Options: the limits of all data sets."""

    max_atoms: int | None = None
    n_train: int | None = None


@datasets.register("mini_crystals", MiniCrystalsConfig, references=(EQUIBENCH,))
def load(cfg: MiniCrystalsConfig) -> DataSet:
    """Embedded crystals: perovskites ABX3 and rock salts MX from ionic radii, with small distortions.

    Raises DataError when the package's file is missing or damaged.
    """
    try:
        arrays = inputs.read_arrays(PATH, ("cell", "ptr", "atomic_numbers", "frac", "split"))
        whole = crystals(arrays["atomic_numbers"], arrays["frac"], standard_cells(arrays["cell"]), arrays["ptr"])
    except (inputs.NpzError, OSError, ValueError) as error:
        raise DataError(f"{PATH}: {inputs.one_line(error)}; install the package again") from error
    train, valid, test = (whole.select(arrays["split"] == code) for code in range(3))
    elements = tuple(np.unique(whole.numbers).tolist())
    label = "mini_crystals (embedded, from ionic radii)"
    data = DataSet("mini_crystals", label, "embedded in the package", elements, train, valid, test)
    return data.limited(cfg.max_atoms, cfg.n_train)
