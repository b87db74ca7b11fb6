"""Isotropy of the generated law: do orientations and handedness of the samples prefer anything?

A structure turns with its group, so samples of an invariant law point everywhere alike. Directions u of n structures in
R^D are compared with the uniform law (Mardia & Jupp, Directional Statistics, 2000):

    arrows (Rayleigh)   T = n D |mean u|^2                           ~ chi^2 of k = D
    axes   (Bingham)    T = n D (D + 2) / 2 (tr M^2 - 1/D)           ~ chi^2 of k = (D - 1)(D + 2) / 2,  M = mean u u^T

The size of an effect is the root of (T / k - 1) / (n - 1), the unbiased mean over pairs of structures of u.v for arrows
and of (D (u.v)^2 - 1) / (D - 1) for axes: the polar and the nematic order parameter, 0 for the uniform law and 1 where
all are parallel.

Directions (`directions_of`), all but the first the same however atoms are numbered:

- first atom: the arrow from the centre to the first atom. Data are stored in some order, atoms of a generated molecule
  come in none, and then this sees nothing.
- heavy part: the arrow from the centre to the mean position weighted by nuclear charge.
- long axis, short axis: the principal axes of the positions with the largest and the least spread.

Handedness is the sign of the determinant of the sums of x weighted by Z, |x|^2 and Z |x|^2: rotations leave it,
reflections reverse it. Under O(3) a sample is left-handed with probability 1/2; SO(3) promises nothing.

Structures whose vectors vanish, or whose principal axes tie (methane, benzene), define no direction and are left out.
Each direction is seen by itself and averaged over structures: preferences of some that others undo cancel, and so does
a joint preference of all axes that leaves each of them uniform. Handedness sees an excess of one hand over all
structures, not one of each molecule over its mirror image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from bench.geometry.groups import MatrixGroup
from bench.measure.contract import Subject
from bench.records.values import Kind, Value
from bench.references import Reference
from bench.registry import measures
from bench.structures.structures import Structures

MARDIA_2000 = Reference(
    "mardia2000directional",
    "Directional Statistics",
    ("Mardia, Kanti V.", "Jupp, Peter E."),
    2000,
    doi="10.1002/9780470316979",
)
TIE = 1e-3  # relative size of a vector, or difference of spreads, below which there is no direction
FEWEST = 10  # structures of which something is said
STORED = "stored data"  # the word of `at` that tells them from samples


@dataclass
class IsotropyConfig:
    """Options: samples, beside the whole test split as stored."""

    n_samples: int = 1000  # the first ones

    def __post_init__(self) -> None:
        if self.n_samples < 2:
            raise ValueError(f"'n_samples' of isotropy is {self.n_samples}, expected at least 2")


@measures.register("isotropy", IsotropyConfig, references=(MARDIA_2000,))
def measure(subject: Subject, cfg: IsotropyConfig) -> list[Value]:
    """Orientations and handedness of the samples against the uniform law, beside those of the data as stored.

    Nothing without samples, nor for groups that turn nothing (permutations, shifts).
    """
    if subject.samples is None or not isinstance(subject.group, MatrixGroup):
        return []
    size = subject.group.size
    samples = subject.samples.select(np.arange(min(cfg.n_samples, len(subject.samples))))
    return values_of(samples, size, {}) + values_of(subject.data.test, size, {"of": STORED})


def values_of(structures: Structures, size: int, at: Mapping[str, str]) -> list[Value]:
    """Order of each direction, with its floor and p-value, and the share of left-handed structures.

    Args:
        size: D; positions are the first D coordinates.
        at: what the structures are.
    """
    made = []

    def add(name: str, label: str, value: float | None, where: Mapping[str, str], about: str, unit: str = "") -> None:
        made.append(Value(name, label, value, unit, kind=Kind.DIAGNOSTIC, at=where, definition=about))

    for direction, u in directions_of(structures, size).items():
        where, found = {"direction": direction, **at}, (axes if "axis" in direction else arrows)(u)
        about = f"0 where isotropic, 1 where all are parallel; {len(u)} of {len(structures)} structures define it"
        add("isotropy_order", "Order of orientations", found.order, where, about)
        add("isotropy_floor", "Order of isotropic structures", found.floor, where, "95 % quantile for as many")
        add("isotropy_p", "P-value of isotropy", found.p, where, "Rayleigh's test of arrows, Bingham's of axes")
    if size > 1:
        left, n = handedness(structures, size)
        share = int(left.sum()) / n if n >= FEWEST else None
        about = f"against 1/2 under O(3); {n} of {len(structures)} structures have a hand"
        add("left_handed", "Left-handed", share, at, about, "fraction")
        add("left_handed_p", "P-value of mirror balance", None if share is None else balance(left), at, "binomial test")
    return made


@dataclass(frozen=True)
class Found:
    """The order of n directions, the order that one in twenty isotropic sets of n exceeds, and the p-value."""

    order: float | None
    floor: float | None
    p: float | None


def arrows(u: Float[np.ndarray, "n D"]) -> Found:
    """Rayleigh's test of unit vectors."""
    n, D = u.shape
    return of_statistic(n * D * float(np.square(u.mean(0)).sum()) if n else 0.0, D, n)


def axes(u: Float[np.ndarray, "n D"]) -> Found:
    """Bingham's test of unit vectors whose sign means nothing; D above 1."""
    n, D = u.shape
    M = u.T @ u / max(n, 1)
    return of_statistic(n * D * (D + 2) / 2 * (float(np.square(M).sum()) - 1 / D), (D - 1) * (D + 2) // 2, n)


def of_statistic(T: float, k: int, n: int) -> Found:
    """Order, floor and p-value from a statistic that is chi^2 of k degrees of freedom for isotropic directions."""
    from scipy.special import chdtrc, chdtri  # here: it is slow to load, and `equibench list` imports this module

    if n < FEWEST:
        return Found(None, None, None)

    def order(statistic: float) -> float:
        return math.sqrt(max(statistic / k - 1, 0.0) / (n - 1))

    return Found(order(T), order(float(chdtri(k, 0.05))), float(chdtrc(k, T)))


def directions_of(structures: Structures, size: int) -> dict[str, Float[np.ndarray, "n D"]]:
    """Unit vectors of the structures that define them, by name (see the module)."""
    x, total = centred(structures, size)
    spread, axis = np.linalg.eigh(total(x[:, :, None] * x[:, None, :]))  # ascending
    trace = spread.sum(1)
    heavy = total(structures.numbers[:, None] * x) / total(structures.numbers[:, None].astype(float))
    radius = np.sqrt(trace / structures.n_atoms)
    found = {"first atom": unit(x[structures.ptr[:-1]], radius), "heavy part": unit(heavy, radius)}
    if size > 1:
        found["long axis"] = axis[spread[:, -1] - spread[:, -2] > TIE * trace, :, -1]
    if size > 2:
        found["short axis"] = axis[spread[:, 1] - spread[:, 0] > TIE * trace, :, 0]
    return found


def handedness(structures: Structures, size: int) -> tuple[Bool[np.ndarray, "n"], int]:
    """Whether each structure that has a hand is left-handed, and how many have one."""
    x, total = centred(structures, size)
    r2, Z = np.square(x).sum(1, keepdims=True), structures.numbers[:, None]
    vectors = np.stack([total(weight * x) for weight in (Z, r2, Z * r2)[:size]], axis=1)
    lengths = np.prod(np.linalg.norm(vectors, axis=2), axis=1)
    volume = np.linalg.det(vectors)
    left = volume[np.abs(volume) > TIE * lengths] < 0
    return left, len(left)


def balance(left: Bool[np.ndarray, "n"]) -> float:
    """Two-sided p-value of a probability of 1/2."""
    from scipy.special import bdtr

    n, k = len(left), int(left.sum())
    return min(1.0, 2 * float(bdtr(min(k, n - k), n, 0.5)))


def centred(structures: Structures, size: int) -> tuple[Float[np.ndarray, "A D"], Callable[[np.ndarray], np.ndarray]]:
    """Positions about the mean of each structure, a single point as it is; and the sum over the atoms of each."""

    def total(rows: np.ndarray) -> np.ndarray:
        return np.add.reduceat(rows, structures.ptr[:-1], axis=0)

    x, n = structures.positions[:, :size].astype(np.float64), structures.n_atoms
    mean = np.where(n > 1, 1 / n, 0)[:, None] * total(x)
    return x - np.repeat(mean, n, axis=0), total


def unit(v: Float[np.ndarray, "M D"], radius: Float[np.ndarray, "M"]) -> Float[np.ndarray, "n D"]:
    """Directions of the vectors that do not vanish beside the structure's radius."""
    length = np.linalg.norm(v, axis=1)
    kept = length > TIE * radius
    return v[kept] / length[kept, None]
