"""The embedded set of protein-like backbones: ideal helices, hairpins and helix bundles, shipped with the package.

Made by geometry (`bench/mini/proteins.py`): ideal bond lengths and angles, dihedral angles of the classes of secondary
structure with seeded noise. No structure of it is of a real protein.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.records import inputs
from bench.records.inputs import one_line
from bench.references import EQUIBENCH
from bench.registry import datasets
from bench.structures.chains import ChainAtoms, structures_of
from bench.structures.dataset import SPLITS, DataError, DataSet

PATH = Path(__file__).with_name("mini_proteins.npz")
CENTI_ANGSTROM = 0.01


@dataclass
class MiniProteinsConfig:
    """Options: the atoms kept, the limits of all data sets, and what the set stands in for."""

    atoms: ChainAtoms = ChainAtoms.CA
    max_atoms: int | None = None
    n_train: int | None = None
    turned: bool = False
    in_place_of: str | None = None  # the data set that was out of reach; the label names it


@datasets.register("mini_proteins", MiniProteinsConfig, references=(EQUIBENCH,))
def load(cfg: MiniProteinsConfig) -> DataSet:
    """Embedded set: ideal helices, hairpins and helix bundles of 14 to 47 residues, made by geometry.

    Raises DataError when the package's file is missing or damaged.
    """
    try:
        arrays = inputs.read_arrays(PATH, ("n_residues", "split", "centi_angstrom"))
    except (inputs.NpzError, OSError) as error:
        raise DataError(f"{PATH}: {one_line(error)}; install the package again") from error
    x, starts = arrays["centi_angstrom"] * CENTI_ANGSTROM, np.cumsum(arrays["n_residues"])[:-1]
    if cfg.atoms is ChainAtoms.CA:
        x = x[:, 1:2]
    backbones = np.split(x, starts)
    parts = {
        name: structures_of([some for some, split in zip(backbones, arrays["split"], strict=True) if split == name])
        for name in SPLITS
    }
    what = "C-alpha" if cfg.atoms is ChainAtoms.CA else "N, C-alpha, C"
    label, notes = f"mini_proteins (embedded, ideal geometry), {what}", []
    if cfg.in_place_of is not None:
        label += f" in place of {cfg.in_place_of}"
        notes = [f"not {cfg.in_place_of}, which was out of reach, but the embedded set: no structure is of a protein"]
    data = DataSet("mini_proteins", label, "embedded in the package", cfg.atoms.elements, notes=notes, **parts)
    return data.limited(cfg.max_atoms, cfg.n_train, cfg.turned)
