"""The embedded data set: small molecules of H, C, N, O and F with GFN2-xTB geometries, shipped with the package.

Made by `bench/mini/make.py`. A study may use it in place of QM9 where neither a copy nor a network is available; name
and label say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.references import EQUIBENCH, GFN2_XTB
from bench.registry import datasets
from bench.structures.dataset import DataError, DataSet, read_with

PATH = Path(__file__).with_name("mini.npz")
ELEMENTS = (1, 6, 7, 8, 9)


@dataclass
class MiniConfig:
    """Options: the limits of all data sets, and what the set stands in for."""

    max_atoms: int | None = None
    n_train: int | None = None
    turned: bool = False
    in_place_of: str | None = None  # the data set that was out of reach; the label names it


# the geometries are those of GFN2-xTB
@datasets.register("mini", MiniConfig, references=(EQUIBENCH, GFN2_XTB))
def load(cfg: MiniConfig) -> DataSet:
    """Embedded set: molecules of H, C, N, O, F with at most 14 atoms, GFN2-xTB geometries.

    Raises DataError when the package's file is damaged.
    """
    structures, split = read_with(PATH, "split")
    if split is None:
        raise DataError(f"{PATH}: array 'split' is missing; install the package again")
    train, valid, test = (structures.select(split == code) for code in range(3))
    label, notes = "mini (embedded, GFN2-xTB)", []
    if cfg.in_place_of is not None:
        label += f" in place of {cfg.in_place_of}"
        notes = [f"not {cfg.in_place_of}, which was out of reach, but the embedded set: these numbers are none of its"]
    data = DataSet("mini", label, "embedded in the package", ELEMENTS, train, valid, test, notes)
    return data.limited(cfg.max_atoms, cfg.n_train, cfg.turned)
