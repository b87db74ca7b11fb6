"""Toys: one to three fixed shapes, copied, whose law under a symmetry group is known in closed form.

Positions fill the first columns of [A, 3] and are zero in the others; those of `torus_pair` are fractional coordinates.
Points with equal numbers are identical, points numbered 1..N distinguishable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from bench.references import EQUIBENCH, TONG_2025
from bench.registry import datasets
from bench.structures.dataset import DataError, DataSet
from bench.structures.structures import Structures


class Toy(StrEnum):
    """Which shapes."""

    SIGN_FLIP = "sign_flip"  # the point 1 on the line (Tong et al., Orbit Diffusion, arXiv:2502.09890, table 1)
    PLANAR_ONE = "planar_one"  # a triangle in the plane
    PLANAR_THREE = "planar_three"  # three clouds of five points in the plane, equally likely
    TETRAHEDRON = "tetrahedron"  # regular, four identical points
    CHIRAL_TETRAHEDRON = "chiral_tetrahedron"  # a centre with four different arms
    MOLECULE = "molecule"  # cyclohexane in its chair conformation: 18 atoms, the size of a small organic molecule
    TWO_POINTS = "two_points"  # identical points in the plane
    THREE_POINTS = "three_points"
    TORUS_PAIR = "torus_pair"  # two atoms in a periodic cell


@dataclass
class ToysConfig:
    """Options: the toy, and how many copies of each of its shapes a split has; limits as in all data sets."""

    toy: Toy
    n_copies: int = 200  # copies of each shape in a split
    max_atoms: int | None = None
    n_train: int | None = None

    def __post_init__(self) -> None:
        if self.n_copies < 1:
            raise ValueError(f"'n_copies' is {self.n_copies}, expected at least 1")


@datasets.register("toys", ToysConfig, references=(TONG_2025, EQUIBENCH))
def load(cfg: ToysConfig) -> DataSet:
    """Fixed shapes with a known law: sign flip, planar clouds, tetrahedra, identical points, a pair on the torus."""
    chosen = shapes(cfg.toy)
    identical = cfg.toy in (Toy.TETRAHEDRON, Toy.TWO_POINTS, Toy.THREE_POINTS)
    n = len(chosen[0])
    numbers = np.ones(n, np.int64) if identical else np.arange(1, n + 1)
    split = Structures.from_list([(numbers, embedded(shape)) for shape in chosen] * cfg.n_copies)
    elements = tuple(np.unique(numbers).tolist())
    label = cfg.toy.value.replace("_", " ")
    data = DataSet("toys", f"toy: {label}", "made by bench/data/toys.py", elements, split, split, split)
    if cfg.max_atoms is not None and cfg.max_atoms < n:
        raise DataError(f"toy {label} has {n} points, max_atoms is {cfg.max_atoms}; leave it out")
    return data.limited(None, cfg.n_train)


def shapes(toy: Toy) -> list[np.ndarray]:
    """The shapes of a toy, each [N, D]; centred, except on the line and on the torus."""
    if toy is Toy.SIGN_FLIP:
        return [np.ones((1, 1))]
    if toy is Toy.TORUS_PAIR:
        return [np.array([[0.1, 0.2, 0.3], [0.45, 0.4, 0.9]])]
    made = {
        Toy.PLANAR_ONE: [[[1.0, 0.0], [-0.3, 0.9], [-0.7, -0.9]]],
        Toy.PLANAR_THREE: [
            [[1.5, 0.0], [0.75, 0.0], [0.0, 0.0], [-0.75, 0.0], [-1.5, 0.0]],  # a rod
            [[math.cos(0.4 * math.pi * k), math.sin(0.4 * math.pi * k)] for k in range(5)],  # a pentagon
            [[1.2, 0.0], [0.0, 0.0], [0.0, 1.2], [0.0, -1.2], [-0.4, -1.2]],  # a hook
        ],
        Toy.TETRAHEDRON: [TETRAHEDRON],
        Toy.CHIRAL_TETRAHEDRON: [[[0, 0, 0], *(np.array(TETRAHEDRON) * [[0.6], [0.8], [1.0], [1.2]]).tolist()]],
        Toy.MOLECULE: [cyclohexane()],
        Toy.TWO_POINTS: [[[0.8, 0.3], [-0.8, -0.3]]],
        Toy.THREE_POINTS: [[[1.0, 0.2], [-0.6, 0.7], [-0.4, -0.9]]],
    }[toy]
    arrays = [np.asarray(shape, dtype=np.float64) for shape in made]
    return [shape - shape.mean(0) for shape in arrays]


TETRAHEDRON = [[1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]]


def cyclohexane(cc: float = 1.53, ch: float = 1.09) -> list[list[float]]:
    """Six carbons, then twelve hydrogens, in angstrom; all angles tetrahedral, so the ring is a chair."""
    height, radius = cc / 6, cc * math.sqrt(8 / 9)
    up_axis = np.array([0.0, 0.0, 1.0])
    carbons, axial, equatorial = [], [], []
    for k in range(6):
        up = 1 if k % 2 == 0 else -1
        out = np.array([math.cos(math.pi * k / 3), math.sin(math.pi * k / 3), 0.0])
        carbon = radius * out + up * height * up_axis
        carbons.append(carbon)
        axial.append(carbon + up * ch * up_axis)
        equatorial.append(carbon + ch * (math.sqrt(8 / 9) * out - up / 3 * up_axis))
    return np.array([*carbons, *axial, *equatorial]).tolist()


def embedded(shape: np.ndarray) -> np.ndarray:
    """[N, D] as [N, 3], zero in the dimensions that are not used."""
    return np.pad(shape, ((0, 0), (0, 3 - shape.shape[1])))
