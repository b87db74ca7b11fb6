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
from bench.structures.prompts import described, label_of, prompt

PATH = Path(__file__).with_name("mini_crystals.npz")


@dataclass
class MiniCrystalsConfig:
    """Options: prompts, and the limits of all data sets."""

    # for task 'crystals_text': formula and crystal system as a prompt, encoded by 'hashed' (a stand-in) or by the
    # Hugging Face text encoder in this folder (needs transformers); null: none
    text: str | None = None
    max_atoms: int | None = None
    n_train: int | None = None


@datasets.register("mini_crystals", MiniCrystalsConfig, references=(EQUIBENCH,))
def load(cfg: MiniCrystalsConfig) -> DataSet:
    """Embedded crystals: perovskites ABX3 and rock salts MX from ionic radii, with small distortions.

    Raises DataError when the package's file is missing or damaged, FileError when a text encoder cannot be used.
    """
    try:
        arrays = inputs.read_arrays(PATH, ("cell", "ptr", "atomic_numbers", "frac", "split", "formula"))
        whole = crystals(arrays["atomic_numbers"], arrays["frac"], standard_cells(arrays["cell"]), arrays["ptr"])
    except (inputs.NpzError, OSError, ValueError) as error:
        raise DataError(f"{PATH}: {inputs.one_line(error)}; install the package again") from error
    if cfg.text:
        given = zip(arrays["formula"], arrays["cell"], strict=True)
        prompts = [prompt({"formula": str(formula), "crystal_system": system_of(cell)}) for formula, cell in given]
        whole = described(whole, prompts, cfg.text)
    train, valid, test = (whole.select(arrays["split"] == code) for code in range(3))
    elements = tuple(np.unique(whole.numbers).tolist())
    label = "mini_crystals (embedded, from ionic radii)" + (f", {label_of(cfg.text)}" if cfg.text else "")
    data = DataSet("mini_crystals", label, "embedded in the package", elements, train, valid, test)
    return data.limited(cfg.max_atoms, cfg.n_train)


def system_of(cell: np.ndarray) -> str:
    """Crystal system of an embedded crystal, from lengths and angles [6] of its cell.

    Rock salts, whose angles are 60 degrees, are cubic; perovskites are cubic, tetragonal or orthorhombic by how many of
    their lengths differ. Their B site leaves the centre along the axis that differs, so it lowers none of these.
    """
    n_lengths = len(np.unique(cell[:3].round(4)))
    return {1: "cubic", 2: "tetragonal", 3: "orthorhombic"}[n_lengths]
