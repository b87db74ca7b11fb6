"""Plausibility of a set of molecules: what each molecule is worth, and how far the set is from a reference.

`of_molecules` judges molecules one by one: connected and valid, by two rules of bonds; aromatic-aware valences;
PoseBusters' checks; strain. `Profile` holds the distributions of a set, `distances` compares two. `judge` does both for
samples and, beside them (`rows_of`), for molecules of the reference that are held out (floor) and for these with noise
(ceiling): every row has as many molecules, against the same others, since a distance between finite sets is never zero.

Slow metrics take a random subset; labels and definitions tell how many molecules were scored, of how many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.metrics import geometry, posebusters, strain
from bench.metrics.distances import Bins, Distance, by_class
from bench.metrics.geometry import Coordinates, n_fragments
from bench.metrics.pool import require
from bench.metrics.stability import BondRule, Bonds, perceived
from bench.metrics.valence_table import allowed_atoms
from bench.metrics.validity import molecules_of, smiles_from_bonds
from bench.records.intervals import Z_95, rate_interval
from bench.records.values import Better, Kind, Value
from bench.structures.elements import Contents
from bench.structures.structures import Structures

NOISES = (0.05, 0.1)  # angstrom, of each coordinate
N_LOOKED_AT = 200  # structures that tell whether a data set holds molecules
FEWEST = 0.1  # of them that are connected and valid; RDKit finds no bonds for half of some sets
SAMPLES, DATA = "samples", "data"
DIAGNOSTIC = Kind.DIAGNOSTIC


@dataclass
class Effort:
    """How many molecules of each set the slow metrics take; 0 leaves one out."""

    n_posebusters: int = 300  # PoseBusters' checks but the energy ratio, 0.03 s each
    n_energy: int = 20  # PoseBusters' energy ratio, 0.2 to 5 s each
    n_strain: int = 100  # MMFF94 and GFN2-xTB, 0.1 s each for molecules of QM9's size

    def __post_init__(self) -> None:
        for key in ("n_posebusters", "n_energy", "n_strain"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key!r} of plausibility is {getattr(self, key)}, expected at least 0")

    def check(self) -> None:
        """Raise MissingPackageError, before anything is computed, where a metric asked for lacks its package."""
        if self.n_posebusters or self.n_energy:
            require("posebusters", "checks by PoseBusters (n_posebusters, n_energy; 0 leaves them out)")
        if self.n_strain:
            require("tblite", "strain by GFN2-xTB (n_strain; 0 leaves it out)")


@dataclass(frozen=True)
class Quantity:
    """A quantity whose distribution is compared: its label, unit, bins, and period where it is circular."""

    label: str
    unit: str
    bins: Bins
    period: float | None = None


QUANTITIES = {
    "bond_length": Quantity("bond lengths", "angstrom", Bins(0.5, 3.0, 0.02)),
    "angle": Quantity("bond angles", "degree", Bins(0.0, 182.0, 2.0)),
    "torsion": Quantity("torsions", "degree", Bins(-180.0, 180.0, 5.0), period=360.0),
    "valence": Quantity("valences", "", Bins(-0.5, 8.5, 1.0)),
    "size": Quantity("sizes", "atoms", Bins(0.5, 500.5, 1.0)),
    "element": Quantity("elements", "fraction", Bins(0.5, 96.5, 1.0)),
}


def rows_of(
    samples: Contents | None, reference: Contents, n: int | None = None, seed: int = 0, noises: Sequence[float] = NOISES
) -> tuple[dict[str, Contents], Contents]:
    """The samples, n molecules of the reference, and these with noise; and the other molecules of the reference.

    Args:
        samples: None: the rows of the reference alone.
        n: by default as many as there are samples; at most half of the reference.
        noises: standard deviations in angstrom of the noise on each coordinate.
    Raises:
        ValueError: a reference of fewer than two molecules.
    """
    n_known = len(reference.structures)
    if n_known < 2:
        raise ValueError(
            f"the reference has {n_known} molecules, expected at least two: some are set against the others"
        )
    wanted = n if n is not None or samples is None else len(samples.structures)
    n = min(wanted or n_known, n_known // 2)
    order = np.random.default_rng(seed).permutation(n_known)
    rows = {} if samples is None else {SAMPLES: samples}
    rows |= with_noise(reference.select(np.sort(order[:n])), seed, noises)
    return rows, reference.select(np.sort(order[n:]))


def with_noise(held: Contents, seed: int, noises: Sequence[float] = NOISES) -> dict[str, Contents]:
    """Molecules as they are, the floor, and with noise, the ceiling."""
    noisy = {f"noise {sd:g}": replace(held, structures=noised(held.structures, sd, seed)) for sd in noises}
    return {DATA: held, **noisy}


def judge(
    rows: Mapping[str, Contents],
    others: Contents,
    rule: BondRule,
    effort: Effort,
    seed: int = 0,
    n_workers: int | None = None,
    on_row: Callable[[], None] = lambda: None,
) -> dict[str, list[Value]]:
    """Values of each row, all against the same other molecules.

    Raises:
        MissingPackageError: an optional package is missing.
        UnknownElementError: an element that the rule does not know.
    """
    effort.check()
    against = Profile.of(others.structures, perceived(others.structures, rule, others))
    values = {}
    for name, given in rows.items():
        on_row()
        values[name] = _row(given, rule, against, effort, seed, n_workers)
    return values


def _row(
    given: Contents, rule: BondRule, against: Profile, effort: Effort, seed: int, n_workers: int | None
) -> list[Value]:
    bonds = perceived(given.structures, rule, given)
    values = of_molecules(given, bonds, effort, seed, n_workers)
    return values + distances(Profile.of(given.structures, bonds), against)


def are_molecules(structures: Structures, rule: BondRule) -> bool:
    """Whether the first structures are connected and valid often enough, which points with made-up numbers are not."""
    some = structures.select(np.arange(min(N_LOOKED_AT, len(structures))))
    bonds = perceived(some, rule)
    valid = np.array([one is not None for one in smiles_from_bonds(some, bonds, n_workers=1)], dtype=bool)
    connected = (n_fragments(some.n_atoms, bonds) == 1) & (some.n_atoms > 1)  # a lone point is connected and valid
    return bool((valid & connected).mean() > FEWEST)


def noised(structures: Structures, sd: float, seed: int) -> Structures:
    """The structures with normal noise of this standard deviation, in angstrom, on each coordinate; one seed draws the
    same noise for every sd, but for its scale."""
    noise = np.random.default_rng(seed).standard_normal(structures.positions.shape)
    return replace(structures, positions=(structures.positions + sd * noise).astype(structures.positions.dtype))


# ---------------------------------------------------------------------- molecules one by one


def of_molecules(
    given: Contents, bonds: Bonds, effort: Effort, seed: int = 0, n_workers: int | None = None
) -> list[Value]:
    """What each molecule is worth, as values."""
    structures = given.structures
    smiles = smiles_from_bonds(structures, bonds, n_workers=n_workers)
    valid = np.array([one is not None for one in smiles], dtype=bool)
    connected = n_fragments(structures.n_atoms, bonds) == 1
    by = f"bonds by {bonds.rule.description}"
    values = [
        _rate("validity", "Validity", valid, definition=f"sanitised by RDKit, of all molecules; {by}"),
        _rate("connected_and_valid", "Connected and valid", valid & connected, definition=f"valid, in one piece; {by}"),
    ]
    if bonds.rule is not BondRule.RDKIT:
        values += _second_perception(structures, valid & connected, n_workers)
    values += _valences(structures, bonds)
    if effort.n_posebusters or effort.n_energy:
        values += _posebusters(structures, bonds, valid, effort, seed, n_workers)
    if effort.n_strain:
        values += _strain(structures, bonds, effort.n_strain, seed, n_workers)
    return values


def _second_perception(structures: Structures, first: np.ndarray, n_workers: int | None) -> list[Value]:
    """The same by RDKit's rule of bonds, and how often it finds any."""
    bonds = perceived(structures, BondRule.RDKIT)
    assert bonds.found is not None
    smiles = smiles_from_bonds(structures, bonds, n_workers=n_workers)
    valid = np.array([one is not None for one in smiles], dtype=bool)
    good = valid & (n_fragments(structures.n_atoms, bonds) == 1)
    by = f"bonds by {bonds.rule.description}"
    return [
        _rate("connected_and_valid_rdkit", "Connected and valid, RDKit's bonds", good, definition=by),
        _rate("perceptions_agree", "Both rules of bonds say so", good == first, Better.NEITHER, Kind.DIAGNOSTIC),
        _rate("rdkit_no_bonds", "RDKit finds no bonds", ~bonds.found, Better.LOWER, Kind.DIAGNOSTIC),
        _rate(
            "rdkit_gave_up",
            "RDKit's search is stopped",
            np.arange(len(structures)) < bonds.n_gave_up,
            Better.LOWER,
            Kind.DIAGNOSTIC,
            "of those without bonds: too many combinations of bond orders to try",
        ),
    ]


def _valences(structures: Structures, bonds: Bonds) -> list[Value]:
    found = [allowed_atoms(mol) for mol in molecules_of(structures, bonds)]
    good = np.array([allowed is not None and allowed.all() for allowed in found], dtype=bool)
    about = "molecules that RDKit sanitises with all atoms in the table of bench/metrics/valence/geom.json"
    return [
        _rate("valences_allowed", "Valences allowed, aromatic bonds apart", good, kind=DIAGNOSTIC, definition=about)
    ]


def _posebusters(
    structures: Structures, bonds: Bonds, valid: np.ndarray, effort: Effort, seed: int, n_workers: int | None
) -> list[Value]:
    version = posebusters.version()
    molecules = list(molecules_of(structures, bonds))
    values = []
    if effort.n_posebusters:
        chosen = subset(len(structures), effort.n_posebusters, seed)
        found = posebusters.checks([molecules[int(i)] for i in chosen], n_workers)
        passed = found.all_passed if found.passed else np.zeros(len(chosen), dtype=bool)
        of = f"of {len(chosen)} of {len(structures)} molecules; configuration mol without the energy ratio, {version}"
        values.append(_rate("posebusters", "PoseBusters, all checks", passed, definition=f"{of}; all molecules"))
        if valid[chosen].any():
            of_valid = passed[valid[chosen]]
            about = f"{of}; survivors: {len(of_valid)} valid molecules"
            values.append(
                _rate(
                    "posebusters_of_valid",
                    "PoseBusters, all checks, of valid",
                    of_valid,
                    kind=DIAGNOSTIC,
                    definition=about,
                )
            )
        for name, row in found.passed.items():
            label = f"PoseBusters, {name.replace('_', ' ')}"
            values.append(_rate(f"posebusters_{name}", label, row == 1, kind=DIAGNOSTIC, definition=of))
        values.append(_count("posebusters_stopped", "PoseBusters, stopped or crashed", found.n_timeouts, len(chosen)))
    if effort.n_energy:
        chosen = subset(len(structures), effort.n_energy, seed)
        found = posebusters.energy_ratios([molecules[int(i)] for i in chosen], n_workers)
        row = found.passed.get(posebusters.ENERGY, np.full(len(chosen), np.nan))
        known = ~np.isnan(row)
        of = f"of {len(chosen)} of {len(structures)} molecules, {known.sum()} of which have a ratio; {version}"
        values.append(
            _rate("posebusters_energy", "PoseBusters, energy ratio", row == 1, kind=DIAGNOSTIC, definition=of)
        )
        values.append(_rate("posebusters_energy_scored", "PoseBusters, energy ratio, scored", known, kind=DIAGNOSTIC))
        values.append(
            _count("posebusters_energy_stopped", "PoseBusters, energy ratio, stopped", found.n_timeouts, len(chosen))
        )
    return values


def _strain(structures: Structures, bonds: Bonds, n: int, seed: int, n_workers: int | None) -> list[Value]:
    chosen = subset(len(structures), n, seed)
    molecules = list(molecules_of(structures, bonds))
    found = {
        "mmff94": ("MMFF94", strain.mmff94_strain([molecules[int(i)] for i in chosen], n_workers)),
        "gfn2": ("GFN2-xTB", strain.gfn2_strain(structures.select(chosen), n_workers)),
    }
    values = []
    for name, (label, energies) in found.items():
        scored = energies[~np.isnan(energies)]
        about = f"survivors: {len(scored)} scored of {len(chosen)} drawn from {len(structures)} molecules"
        lower = {"unit": "kcal/mol", "better": Better.LOWER, "definition": about}
        median = float(np.median(scored)) if len(scored) else None
        low, high = median_interval(scored)
        kind = Kind.QUALITY if name == "gfn2" else DIAGNOSTIC
        values.append(
            Value(f"strain_{name}", f"Strain, {label}, median", median, kind=kind, low=low, high=high, **lower)
        )
        mean = float(scored.mean()) if len(scored) else None
        values.append(Value(f"strain_{name}_mean", f"Strain, {label}, mean", mean, kind=DIAGNOSTIC, **lower))
        values.append(_rate(f"strain_{name}_scored", f"Strain, {label}, scored", ~np.isnan(energies), kind=DIAGNOSTIC))
    return values


def subset(n: int, n_wanted: int, seed: int) -> np.ndarray:
    """Indices of at most n_wanted of n molecules, ascending, at random: files are often sorted by size."""
    return np.sort(np.random.default_rng(seed).permutation(n)[:n_wanted])


def median_interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """95 % interval of the median by order statistics, normal approximation to their binomial ranks; None below six
    values, which have none."""
    n = len(values)
    if n < 6:
        return None, None
    half = Z_95 * n**0.5 / 2
    ranks = np.clip([np.floor(n / 2 - half), np.ceil(n / 2 + half) - 1], 0, n - 1).astype(int)
    low, high = np.sort(values)[ranks].tolist()
    return low, high


def _rate(
    name: str,
    label: str,
    passed: np.ndarray,
    better: Better = Better.HIGHER,
    kind: Kind = Kind.QUALITY,
    definition: str = "",
) -> Value:
    """Share of molecules, with Wilson's interval."""
    n = len(passed)
    rate = float(passed.mean())
    sem = (rate * (1 - rate) / n) ** 0.5
    low, high = rate_interval(rate, Z_95 * sem, n)
    return Value(name, label, rate, "fraction", better, kind, low, high, sem, definition=definition)


def _count(name: str, label: str, n: int, of: int) -> Value:
    return Value(name, label, float(n), "count", Better.LOWER, DIAGNOSTIC, definition=f"of {of} molecules")


# ---------------------------------------------------------------------- distributions


@dataclass(frozen=True)
class Profile:
    """The distributions of a set of molecules, by the name of the quantity."""

    coordinates: dict[str, Coordinates]

    @classmethod
    def of(cls, structures: Structures, bonds: Bonds) -> Profile:
        """Bond lengths by pair of elements, angles by triple, torsions by quadruple, valences by element; sizes and
        elements in one class."""
        numbers, sizes = structures.numbers, structures.n_atoms
        return cls(
            {
                "bond_length": geometry.bond_lengths(structures, bonds),
                "angle": geometry.bond_angles(structures, bonds),
                "torsion": geometry.torsions(structures, bonds),
                "valence": Coordinates(numbers, bonds.order_sums(structures).astype(np.float64)),
                "size": Coordinates(np.zeros(len(sizes), np.int64), sizes.astype(np.float64)),
                "element": Coordinates(np.zeros(len(numbers), np.int64), numbers.astype(np.float64)),
            }
        )


def distances(sample: Profile, reference: Profile) -> list[Value]:
    """Wasserstein-1 and Jensen-Shannon distance of every quantity, and what of it cannot be compared."""
    values = []
    for name, quantity in QUANTITIES.items():
        ours, theirs = sample.coordinates[name], reference.coordinates[name]
        found = by_class(ours, theirs, quantity.bins, quantity.period)
        if found is not None:
            if name == "element":
                found = replace(found, w1=total_variation(ours, theirs, quantity.bins))
            values += _of_distance(name, quantity, found)
    return values


def total_variation(sample: Coordinates, reference: Coordinates, bins: Bins) -> float:
    """Wasserstein-1 of labels, of which any two are at distance 1."""
    p, q = (counts / counts.sum() for counts in (bins.histogram(sample.values), bins.histogram(reference.values)))
    return float(np.abs(p - q).sum() / 2)


def _of_distance(name: str, quantity: Quantity, found: Distance) -> list[Value]:
    about = "averaged over classes by their share of the reference"
    quality = Kind.QUALITY if name in ("bond_length", "angle", "torsion") else DIAGNOSTIC
    lower = Better.LOWER
    made = [
        Value(f"w1_{name}", f"W1 of {quantity.label}", found.w1, quantity.unit, lower, quality, definition=about),
        Value(f"js_{name}", f"JS distance of {quantity.label}", found.js, "", lower, DIAGNOSTIC, definition=about),
    ]
    shares = {
        "lacking": ("share of the reference in classes that the sample lacks", found.lacking),
        "foreign": ("share of the sample in classes that the reference lacks", found.foreign),
        "overflow": ("share of the sample beyond the bins", found.overflow),
    }
    for key, (meaning, share) in shares.items():
        label = f"{quantity.label.capitalize()}, {key}"
        made.append(Value(f"{key}_{name}", label, share, "fraction", lower, DIAGNOSTIC, definition=meaning))
    return made
