"""Evaluation of predicted crystals: match rate and RMSE by pymatgen's StructureMatcher, validity, volumes, cells.

A prediction matches the crystal of its composition where StructureMatcher maps one onto the other, cells included,
within stol 0.5, ltol 0.3 and 10 degrees, those of the code that made the published numbers (CDVAE's and DiffCSP's; the
text of arXiv:2502.09890 exchanges ltol and stol). Its RMSE is the root mean square distance of sites over (V/N)^(1/3),
averaged over matches. Cells so long that they cannot match are not given to it (`is_too_long`), for its time and memory
grow with the cube of their length.

`match_rate_valid` is the published match rate: prediction and reference must both be valid, or nothing matches. Valid
is what CDVAE calls so: some charges of its elements balance (SMACT), no two sites are nearer than 0.5 angstrom,
periodic images of others included, and the volume is at least 0.1 cubic angstrom. A composition is given, so that the
first is none of the model's doing: it bounds the rate from above. Here the rate stands with and without the filter.

References: Ong et al. (2013), pymatgen, doi:10.1016/j.commatsci.2012.10.028; Davies et al. (2019), SMACT,
doi:10.21105/joss.01361; Xie et al. (2022), CDVAE, arXiv:2110.06197.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import wasserstein_distance

from bench.metrics.pool import Lost, bounded_map, require
from bench.records.intervals import Z_95, rate_interval
from bench.records.values import Better, Kind, Value
from bench.structures.lattices import fractions_of, parameters_of, volumes
from bench.structures.structures import Structures

if TYPE_CHECKING:
    from pymatgen.core import Structure  # pyright: ignore[reportMissingImports] - optional

STOL, LTOL, ANGLE_TOL = 0.5, 0.3, 10.0
CPU_SECONDS = 60  # for one crystal; a matcher that is slower than this is lost
STRETCH = 8.1  # of the longest edge, which no match reaches: 2 x 1.3 x 1.3^3 sqrt(2) = 8.08, see `is_too_long`
NEAREST, SMALLEST = 0.5, 0.1  # angstrom, cubic angstrom
OXIDATION_STATES = "smact14"  # SMACT's list at the time of the published numbers
DALTON = 1.66053906660  # g/cm3 of one dalton per cubic angstrom

Crystal = tuple[np.ndarray, np.ndarray, np.ndarray]  # nuclear charges [n], fractions [n, 3], cell [3, 3]


@dataclass(frozen=True)
class Judged:
    """One prediction against its reference.

    Attributes:
        distance: RMSE of the match over (V/N)^(1/3); None without a match.
        plausible: whether the prediction's sites and volume are, by CDVAE's limits.
        reference_plausible: the same of the reference.
        balanced: whether SMACT finds charges that balance in the composition.
        too_long: whether the prediction's cell is too long for any match, so that none was tried.
    """

    distance: float | None
    plausible: bool
    reference_plausible: bool
    balanced: bool
    too_long: bool = False

    @property
    def valid(self) -> bool:
        """Whether the published filter lets the pair be compared."""
        return self.plausible and self.reference_plausible and self.balanced


def version() -> str:
    """Of what the cached values of a data set depend on beside the data."""
    return f"2-pymatgen{metadata.version('pymatgen-core')}-smact{metadata.version('smact')}"


def to_list(structures: Structures) -> list[Crystal]:
    """Crystals of a list of structures with cells; raises ValueError for others."""
    cells, ptr = structures.cells, structures.ptr.tolist()
    if cells is None:
        raise ValueError("molecules have no cells; choose a data set of crystals")
    cells = np.where(structures.is_finite()[:, None, None], cells, 0.0)  # what is not finite has no volume
    broken = np.flatnonzero(~(volumes(cells) > 0))
    flat = np.zeros((len(structures.numbers), 3))
    if len(broken) < len(structures):
        whole = np.setdiff1d(np.arange(len(structures)), broken)
        flat[np.isin(structures.of_atoms(), whole)] = fractions_of(structures.select(whole))
    rows = zip(itertools.pairwise(ptr), cells, strict=True)
    return [(structures.numbers[a:b], flat[a:b], cell.astype(np.float64)) for (a, b), cell in rows]


def judge(pair: tuple[Crystal, Crystal]) -> Judged | Lost:
    """One prediction and its reference, by pymatgen and SMACT; lost where pymatgen fails on them."""
    from pymatgen.analysis.structure_matcher import StructureMatcher  # pyright: ignore[reportMissingImports] - optional

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made, known = (structure_of(crystal) for crystal in pair)
        distance, too_long = None, False
        if made is not None and known is not None:
            try:
                too_long = is_too_long(made, known)
                matcher = StructureMatcher(stol=STOL, ltol=LTOL, angle_tol=ANGLE_TOL)
                found = None if too_long else matcher.get_rms_dist(made, known)
            except Exception:  # a network can predict any cell; pymatgen raises whatever its parts do
                return Lost.CRASH
            distance = None if found is None else float(found[0])
        balanced = is_balanced(tuple(pair[1][0].tolist()))
        return Judged(distance, is_plausible(made), is_plausible(known), balanced, too_long)


def is_too_long(made: Structure, known: Structure) -> bool:
    """Whether the longest edge of the prediction's reduced cell, at equal volumes, is too long for any match.

    A match maps bases of the two primitive lattices onto each other, at equal volumes V; one of them is reduced, so the
    product of its lengths is at most sqrt(2) V. Lengths differ by 1 + ltol = 1.3 at most, so the other basis has a
    product of at most D V, D = 1.3^3 sqrt(2), and its longest vector is at most D times the longest edge of its own
    reduced cell. So longest edges differ by a factor of at most 1.3 D = 4.04. A cell of g primitive ones is at most g
    times as long, and g divides the number of sites of each element. The reduction here is LLL's, whose longest edge is
    at most twice the shortest possible one; pymatgen's Niggli reduction is itself what takes minutes.
    """
    repeats = math.gcd(*Counter(site.specie.Z for site in known).values())
    longest = [max(one.lattice.get_lll_reduced_lattice().abc) / one.lattice.volume ** (1 / 3) for one in (made, known)]
    return longest[0] > STRETCH * repeats * longest[1]


def structure_of(crystal: Crystal) -> Structure | None:
    """For pymatgen; None for a cell without a volume, or whose volume is no number."""
    from pymatgen.core import Lattice, Structure  # pyright: ignore[reportMissingImports] - optional

    numbers, fractions, cell = crystal
    if not 1e-6 <= volumes(cell[None])[0] < math.inf:
        return None
    return Structure(Lattice(cell), numbers.tolist(), fractions)


def is_plausible(structure: Structure | None) -> bool:
    """No two sites nearer than 0.5 angstrom, and a volume of at least 0.1 cubic angstrom."""
    if structure is None or structure.volume < SMALLEST:
        return False
    distances = np.asarray(structure.distance_matrix)  # of nearest images; those of a site itself are left out
    return bool((distances[~np.eye(len(distances), dtype=bool)] >= NEAREST).all())


@cache
def is_balanced(numbers: tuple[int, ...]) -> bool:
    """Whether some oxidation states of the elements add up to zero, of metals by definition (SMACT)."""
    from pymatgen.core import Composition, Element  # pyright: ignore[reportMissingImports] - optional
    from smact.screening import smact_validity  # pyright: ignore[reportMissingImports] - optional

    counts: dict[str, float] = {}
    for z in numbers:
        symbol = Element.from_Z(z).symbol
        counts[symbol] = counts.get(symbol, 0) + 1
    return bool(smact_validity(Composition(counts), oxidation_states_set=OXIDATION_STATES))


def judged(samples: Structures, test: Structures, n_workers: int | None = None) -> list[Judged | Lost]:
    """Each sample against the test crystal at its place.

    Raises:
        MissingPackageError: pymatgen or SMACT is not installed.
        ValueError: other compositions, or other numbers of crystals.
    """
    require("pymatgen", "matching crystals", "crystals")
    require("smact", "the validity of compositions", "crystals")
    same = np.array_equal(samples.ptr, test.ptr) and np.array_equal(samples.numbers, test.numbers)
    if not same:
        raise ValueError("samples and test crystals differ in composition or order; expected one sample for each")
    return bounded_map(judge, list(zip(to_list(samples), to_list(test), strict=True)), CPU_SECONDS, n_workers)


def evaluate_crystals(samples: Structures, test: Structures, n_workers: int | None = None) -> list[Value]:
    """All values of samples, each against the test crystal at its place; lost ones count as no match and invalid."""
    found = judged(samples, test, n_workers)
    known = [one for one in found if not isinstance(one, Lost)]

    def share(name: str, label: str, of: Any, definition: str, kind: Kind = Kind.QUALITY) -> Value:
        items = np.array([not isinstance(one, Lost) and of(one) for one in found], dtype=np.float64)
        rate, better = items.mean().item(), Better.HIGHER if kind is Kind.QUALITY else Better.NEITHER
        low, high = rate_interval(rate, Z_95 * (rate * (1 - rate) / len(items)) ** 0.5, len(items))
        return Value(name, label, rate, "fraction", better, kind, low, high, definition=definition, items=items)

    about = "StructureMatcher maps the prediction onto the test crystal (stol 0.5, ltol 0.3, 10 degrees)"
    strict = f"{about}, both are valid (SMACT, no sites within 0.5 angstrom, volume): the published rate"
    lost = sum(isinstance(one, Lost) for one in found)
    return [
        share("match_rate", "Match rate", lambda one: one.distance is not None, about),
        share("match_rate_valid", "Match rate of valid", lambda one: one.valid and one.distance is not None, strict),
        _rmse("rmse", "RMSE of matches", [one.distance for one in known if one.distance is not None]),
        _rmse("rmse_valid", "RMSE of valid matches", [o.distance for o in known if o.valid and o.distance is not None]),
        share("plausible", "Plausible sites", lambda one: one.plausible, "no sites within 0.5 angstrom, a volume"),
        share(
            "balanced",
            "Balanced compositions",
            lambda one: one.balanced,
            "SMACT; of the given compositions, an upper bound of the match rate of valid",
            Kind.DIAGNOSTIC,
        ),
        Value("lost", "Comparisons lost", float(lost), "count", Better.LOWER, Kind.DIAGNOSTIC),
        share("too_long", "Cells too long", lambda one: one.too_long, "too long for any match", Kind.DIAGNOSTIC),
        *_distributions(*(some.select(samples.is_finite()) for some in (samples, test))),
    ]


def _rmse(name: str, label: str, distances: Sequence[float]) -> Value:
    about = "root mean square distance of matched sites over (V/N)^(1/3), averaged over matches"
    n = len(distances)
    sem = float(np.std(distances, ddof=1) / n**0.5) if n > 1 else None
    return Value(name, label, float(np.mean(distances)) if n else None, "", Better.LOWER, sem=sem, definition=about)


def _distributions(samples: Structures, test: Structures) -> list[Value]:
    """Wasserstein-1 distances between distributions, and the error of each volume."""
    both = (samples, test)
    assert samples.cells is not None
    assert test.cells is not None
    sizes = [volumes(cells) for cells in (samples.cells, test.cells)]
    per_atom = [volume / some.n_atoms for volume, some in zip(sizes, both, strict=True)]
    # a flat cell has no density; it counts as one of 1e-3 cubic angstrom
    mass = masses(test)
    density = [DALTON * mass / volume.clip(1e-3) for volume in sizes]
    lengths = [np.sort(parameters_of(cells)[:, :3], axis=1).ravel() for cells in (samples.cells, test.cells)]
    of_crystal = np.abs(per_atom[0] / per_atom[1] - 1)
    made = [
        Value(
            "volume_error",
            "Error of the volume",
            float(np.median(of_crystal)),
            "fraction",
            Better.LOWER,
            definition="median over crystals of |V / V of the test crystal - 1|",
        )
    ]
    for name, label, pair, unit in (
        ("volume_w1", "W1 of volumes per site", per_atom, "A^3"),
        ("density_w1", "W1 of densities", density, "g/cm^3"),
        ("length_w1", "W1 of cell lengths", lengths, "angstrom"),
    ):
        distance = float(wasserstein_distance(*pair))
        made.append(Value(name, label, distance, unit, Better.LOWER, Kind.DIAGNOSTIC))
    return made


def masses(structures: Structures) -> np.ndarray:
    """Mass of the sites of each crystal in dalton [M], by RDKit's atomic weights."""
    from rdkit import Chem

    table = Chem.GetPeriodicTable()
    of_site = np.array([table.GetAtomicWeight(int(z)) for z in structures.numbers.tolist()])
    return np.bincount(structures.of_atoms(), weights=of_site, minlength=len(structures))
