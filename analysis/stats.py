"""Means, intervals and comparisons over trainings (seeds) and molecules; docs/statistics.md derives and tests them.

Trainings of a study are measured on the same molecules: the same test structures, times and noise, or samples of the
same sizes from the same noise. So the value of training s on molecule i is mu + a_s + b_i + e_si, and with S trainings
and n molecules

    Var(mean) = (Var(a) + Var(e) / n) / S + Var(b) / n:

the first part, `between`, shrinks with more trainings and is estimated by s^2 / S, s the standard deviation over seeds;
the second, `shared`, does not, and is estimated by the covariance between trainings over molecules, divided by n. Two
intervals come of it, both at 95 %:

* `Summary.within`: these trained models, other molecules; a normal interval of the mean over seeds of each molecule;
* `Summary.interval`: other trainings and other molecules (`half_width`).

Comparisons are paired over seeds and over molecules: two methods with one seed see the same batches, times and noise,
and all of this applies to their differences. Values of single molecules are the records' `items`. Where a record has
none, the molecules' part of a mean counts as shared entirely, which is the conservative end, and a difference is
judged over trainings alone, that is, on these molecules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np
from scipy.special import nctdtr, ndtr, stdtr, stdtrit

from analysis.labels import Column
from analysis.study import Frame, Study
from bench.records.intervals import Z_95, rate_interval
from bench.records.values import Better

LEVEL = 0.95
NAN = float("nan")
FEW = 2  # seeds with which a comparison alone decides nothing
Group = tuple[str, str]  # method, backbone


@dataclass(frozen=True)
class Summary:
    """One quantity of one (method, backbone) over its n counted runs.

    Attributes:
        values: one per seed, in the record's unit; mean, sd: over them, NaN where n is too small (0 and 1).
        errors: standard error of each over its molecules, where it is known.
        items: what each is the mean of, molecule by molecule, where it is known [M].
        is_rate: whether values lie in [0, 1] by their nature.
        n_molecules: behind each value.
        upper_bound: whether some value is only an upper bound on the quantity.
        borrowed: whether some value was measured on the run whose weights are used.
    """

    values: Mapping[int, float]
    errors: Mapping[int, float] = field(default_factory=dict)
    items: Mapping[int, np.ndarray] = field(default_factory=dict)
    is_rate: bool = False
    n_molecules: int = 1
    upper_bound: bool = False
    borrowed: bool = False

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.values.values()))) if self.n else NAN

    @property
    def sd(self) -> float:
        return float(np.std(list(self.values.values()), ddof=1)) if self.n > 1 else NAN

    @cached_property
    def covariance(self) -> np.ndarray:
        """Covariance of the values over the draw of molecules [n, n]; without items, as if all of it were shared."""
        found = covariance(stacked(self, list(self.values)))
        errors = np.array([self.errors.get(seed, NAN) for seed in self.values])
        return np.outer(errors, errors) if found is None else found

    @property
    def within(self) -> tuple[float, float]:
        """95 % interval of the mean over molecules, the trained models held fixed; NaN where nothing is known of it."""
        if not self.n:
            return NAN, NAN
        return self._around(Z_95 * float(np.sqrt(np.maximum(0.0, self.covariance.mean()))))  # NaN stays NaN

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean over trainings and molecules; NaN for one training."""
        if self.n < 2:
            return NAN, NAN
        unknown = np.isnan(self.covariance).any()  # of the molecules: then over trainings alone
        return self._around(
            half_width(self.sd**2 / self.n, 0.0 if unknown else shared_part(self.covariance), self.n - 1)
        )

    @property
    def arms(self) -> tuple[float, float]:
        """From `mean` down and up to the ends of `within`."""
        low, high = self.within
        return self.mean - low, high - self.mean

    def _around(self, half: float) -> tuple[float, float]:
        if self.is_rate and 0 <= self.mean <= 1:
            return rate_interval(self.mean, half, self.n_molecules)
        return self.mean - half, self.mean + half


@dataclass(frozen=True)
class Difference:
    """Mean of (method - reference) over n common seeds, its 95 % interval and two-sided p-value.

    Attributes:
        low, high, p: NaN for fewer than two seeds, and where all differences are equal, which says nothing of scatter.
        over_molecules: whether they are over trainings and molecules; otherwise over trainings alone.
        sd: of the differences over seeds; shared: variance of `mean` from the molecules that the seeds share.
        bound: whether one of the two, and not the other, is only an upper bound: they are not to be compared.
    """

    n: int
    mean: float
    low: float = NAN
    high: float = NAN
    p: float = NAN
    over_molecules: bool = False
    sd: float = NAN
    shared: float = 0.0
    bound: bool = False

    @property
    def separated(self) -> bool:
        """Whether the interval leaves out zero, rests on more than two seeds, and may be compared."""
        return self.n > FEW and not self.bound and (self.low > 0 or self.high < 0)


def summarise(study: Study, group: Group, column: Column) -> Summary:
    """`column` over the counted runs of a (method, backbone); seeds without a value are left out."""
    rows = study.scalars_of.get((column.name, *group), study.scalars[:0])
    seeds = [int(seed) for seed in rows["seed"]]
    items = {
        seed: per_molecule(study.items[run][column.name])
        for seed, run in zip(seeds, rows["source"], strict=True)
        if column.name in study.items.get(run, {})
    }
    counts = study.runs.get("eval.n_samples")
    own = study.runs["run"].isin(rows["source"])
    known = [len(values) for values in items.values()] or ([] if counts is None else counts[own].dropna().tolist())
    return Summary(
        dict(zip(seeds, rows["value"].astype(float), strict=True)),
        dict(zip(seeds, standard_errors(rows), strict=True)),
        items,
        is_rate=bool((rows["unit"] == "fraction").any()),
        n_molecules=int(min(known, default=1)),
        upper_bound=bool(rows["upper_bound"].any()),
        borrowed=bool((rows["source"] != rows["run"]).any()),
    )


def standard_errors(rows: Frame) -> list[float]:
    """Standard error of each value: its own, else the longer arm of its interval over 1.96 (the other may have been cut
    off at a bound), else NaN."""
    arms = np.fmax(rows["high"] - rows["value"], rows["value"] - rows["low"]) / Z_95
    return rows["sem"].fillna(arms).astype(float).tolist()


def per_molecule(items: np.ndarray) -> np.ndarray:
    """Items as contributions [M] whose mean is the value; a ratio of sums is linearised. NaN where not measured."""
    items = np.asarray(items, dtype=float)
    if items.ndim == 1:
        return items
    numerators, denominators = items.T
    ratio = np.nansum(numerators) / np.nansum(denominators)
    return ratio + (numerators - ratio * denominators) / np.nanmean(denominators)


def stacked(summary: Summary, seeds: Sequence[int]) -> np.ndarray | None:
    """Items of some seeds [S, M]; None where some seed has none, or they are of other molecules."""
    found = [summary.items[seed] for seed in seeds if seed in summary.items]
    same = len(found) == len(seeds) and len({len(values) for values in found}) == 1
    return np.stack(found) if same else None


def covariance(items: np.ndarray | None) -> np.ndarray | None:
    """Covariance over molecules of the means of the rows of `items` [S, M]; None for fewer than two molecules."""
    if items is None:
        return None
    items = items[:, np.isfinite(items).all(axis=0)]
    n = items.shape[1]
    return np.atleast_2d(np.cov(items)) / n if n > 1 else None


def shared_part(covariance: np.ndarray) -> float:
    """Variance of a mean over S > 1 trainings that more trainings would not reduce: their mean covariance."""
    n = len(covariance)
    return max(0.0, float(covariance.sum() - np.trace(covariance)) / (n * (n - 1)))


def half_width(between: float, shared: float, freedom: int) -> float:
    """Half-width of the 95 % interval of a mean, from a variance with few degrees of freedom and one with many.

    The wider of Student's interval over trainings and the normal one over both parts. Either alone is too narrow where
    the other part rules; together they cover 93.5 to 95.5 % at any ratio of the parts for three trainings or more. For
    two (t = 12.7) they would cover up to 97.7 %, so Student's is narrowed by `_allowance`: 94.6 to 96.7 %.
    """
    student = stdtrit(freedom, (1 + LEVEL) / 2) ** 2 * between - _allowance(shared, freedom)
    return math.sqrt(max(student, Z_95**2 * (between + shared)))


def p_value(mean: float, between: float, shared: float, freedom: int) -> float:
    """Two-sided, of a mean of zero: below 0.05 where the interval of `half_width` leaves out zero."""
    student = math.sqrt((mean**2 + _allowance(shared, freedom)) / between) if between > 0 else math.inf
    return max(2 * float(stdtr(freedom, -student)), 2 * float(ndtr(-abs(mean) / math.sqrt(between + shared))))


def _allowance(shared: float, freedom: int) -> float:
    return 2 * Z_95**2 * shared if freedom == 1 else 0.0


def difference(values: Sequence[float], items: np.ndarray | None = None) -> Difference:
    """Interval and p-value for the mean of paired differences.

    Args:
        values: one per seed. items: of each, molecule by molecule [S, M]; None: over trainings alone.
    """
    d = np.asarray(values, dtype=float)
    n = len(d)
    if n < 2:
        return Difference(n, float(d[0]) if n else NAN)
    mean, sd, found = float(d.mean()), float(d.std(ddof=1)), covariance(items)
    shared = 0.0 if found is None else shared_part(found)
    facts = {"over_molecules": found is not None, "sd": sd, "shared": shared}
    if sd**2 + shared <= (1e-12 * float(np.abs(d).max())) ** 2:  # rounding alone
        return Difference(n, mean, **facts)
    half = half_width(sd**2 / n, shared, n - 1)
    return Difference(n, mean, mean - half, mean + half, p_value(mean, sd**2 / n, shared, n - 1), **facts)


def paired(a: Summary, b: Summary) -> Difference:
    """a - b on the common seeds, and molecule by molecule where both have items of the same ones."""
    seeds = sorted(a.values.keys() & b.values.keys())
    mine, theirs = stacked(a, seeds), stacked(b, seeds)
    items = None if mine is None or theirs is None or mine.shape != theirs.shape else mine - theirs
    found = difference([a.values[seed] - b.values[seed] for seed in seeds], items)
    return replace(found, bound=a.upper_bound != b.upper_bound)


def separated_from_best(rows: Mapping[Group, Summary], better: Better) -> dict[Group, bool]:
    """Which rows are significantly worse than the row of best mean, seeds being the blocks of the comparison.

    With values v_is of k rows on S common seeds, the residuals r_is = v_is - v_i. - v_.s + v_.. have variance
    s^2 = sum r_is^2 / f, f = (k - 1) (S - 1), pooled over rows (randomised blocks: Fisher 1935, The Design of
    Experiments). To s^2 / S is added what seeds share, from the interaction of rows and molecules (`interaction`). A
    row is worse when its distance to the best exceeds the 95 % point of the range of k such means (Tukey's studentised
    range), so that among rows that are all equal some is called worse in 5 % of studies, although the best is chosen
    on the same data. Both forms of the range are required, as in `half_width`: with s and f alone, and with the sum of
    both variances and infinite f. For two rows and three seeds or more this is the paired comparison. Pooling assumes
    that rows scatter alike; single pairs of two seeds tell too little of their own scatter to order a table by.

    Returns:
        For each row of the comparison (those with two seeds or more): True when significantly worse than the best.
        Empty when nothing can be said: fewer than two such rows or common seeds, one degree of freedom, no scatter.
    """
    repeated = {group: summary for group, summary in rows.items() if summary.n > 1}
    seeds = sorted(set.intersection(*(set(summary.values) for summary in repeated.values()))) if repeated else []
    k, n = len(repeated), len(seeds)
    freedom = (k - 1) * (n - 1)
    if k < 2 or freedom < 2:
        return {}
    v = np.array([[summary.values[seed] for seed in seeds] for summary in repeated.values()])
    between = float(np.sum(_centred(v) ** 2)) / freedom / n
    shared = interaction([stacked(summary, seeds) for summary in repeated.values()])
    if between + shared <= (1e-12 * np.abs(v).max()) ** 2:  # rounding alone
        return {}
    least = max(
        critical_range(k, freedom) * math.sqrt(between), critical_range(k, math.inf) * math.sqrt(between + shared)
    )
    means = v.mean(axis=1) if better is Better.HIGHER else -v.mean(axis=1)
    return dict(zip(repeated, (means.max() - means > least).tolist(), strict=True))


def interaction(items: Sequence[np.ndarray | None]) -> float:
    """Variance of a row's mean that seeds share and rows do not, from items [S, M] of each row; 0 where some has none.

    Mean square of the interaction of rows and molecules, less its part from single trainings, divided by molecules.
    """
    known = [values for values in items if values is not None]
    if len(known) < len(items) or len({values.shape for values in known}) > 1:
        return 0.0
    y = np.stack(known)
    y = y[:, :, np.isfinite(y).all(axis=(0, 1))]
    k, n_seeds, n = y.shape
    if n < 2:
        return 0.0
    of_rows = float(np.sum(_centred(y.mean(axis=1)) ** 2)) / ((k - 1) * (n - 1))
    of_trainings = float(np.sum(_centred(y) ** 2)) / ((k - 1) * (n_seeds - 1) * (n - 1))
    return max(0.0, of_rows - of_trainings / n_seeds) / n


def _centred(values: np.ndarray) -> np.ndarray:
    """Residuals after the means over each axis are taken out, one after the other."""
    for axis in range(values.ndim):
        values = values - values.mean(axis=axis, keepdims=True)
    return values


@lru_cache
def critical_range(k: int, freedom: float) -> float:
    """95 % point of the studentised range of k means."""
    from scipy.stats import studentized_range  # here: it takes a second to import

    return float(studentized_range.ppf(LEVEL, k, freedom))


def best_group(rows: Mapping[Group, Summary], better: Better) -> set[Group]:
    """Rows to set in bold: the best and those not significantly worse, when at least one row is significantly worse.

    Empty when the seeds separate nothing (a best mean alone is no finding), when neither direction is better, and when
    some rows are upper bounds and others are not, which cannot be ranked.
    """
    bounds = {summary.upper_bound for summary in rows.values() if summary.n}
    if better is Better.NEITHER or len(bounds) > 1:
        return set()
    verdicts = separated_from_best(rows, better)
    return {group for group, worse in verdicts.items() if not worse} if any(verdicts.values()) else set()


def evaluated(study: Study) -> list[Group]:
    """Rows of the study with a counted run."""
    return [group for group in study.groups if study.of(*group)["counted"].any()]


def references(study: Study, reference: str | None = None) -> dict[Group, Group]:
    """The row that each evaluated row is compared with; rows without one, and references themselves, are left out.

    By default the row without a strategy on the same backbone (the manifest's `baseline`; in older records the first
    that guarantees nothing), else the first one there: rows on other backbones differ in more than the strategy. A row
    that is alone on its backbone is compared with rows on the same network in another size, such as a method whose own
    parameters are taken off the network's.

    Args:
        reference: METHOD, on the row's own backbone; or METHOD/BACKBONE, for rows of all backbones.
    Raises:
        ValueError: no such method or row was evaluated.
    """
    groups = evaluated(study)
    asked = None if reference is None else " ".join(reference.replace("/", " ").split())
    if asked is not None and asked not in [name for group in groups for name in (group[0], " ".join(group))]:
        raise ValueError(
            f"no evaluated row {reference!r} in study {study.name!r} to compare with; choose a method "
            f"({', '.join(dict.fromkeys(method for method, _ in groups))}), or METHOD/BACKBONE"
        )
    chosen = {}
    for group in groups:
        beside = [other for other in groups if other[1] == group[1]]
        if len(beside) == 1:
            beside = [other for other in groups if _network(study, other) == _network(study, group)]
        if asked is None:
            other = next((g for g in beside if _is_baseline(study, g)), beside[0])
        else:
            fitting = [*(g for g in beside if g[0] == asked), *(g for g in groups if " ".join(g) == asked)]
            other = next(iter(fitting), None)
        if other is not None and other != group:
            chosen[group] = other
    return chosen


def _network(study: Study, group: Group) -> str:
    return str(study.of(*group)["backbone.name"].iloc[0])


def _is_baseline(study: Study, group: Group) -> bool:
    runs = study.of(*group)
    told = runs["baseline"].dropna()
    return bool(told.all()) if len(told) else bool((runs["guarantee"] == "none").all())


def power(effect: float, sd: float, shared: float, n: int, alpha: float = 0.05) -> float:
    """Probability that the two-sided paired t-test over n seeds finds a difference.

    Args:
        effect: the true difference; sd: of paired differences over seeds.
        shared: variance of a difference from the molecules that seeds share, which more seeds do not reduce; the
            degrees of freedom are then Satterthwaite's.
    """
    between = sd**2 / n
    if n < 2 or between + shared <= 0:
        return NAN
    freedom = min((n - 1) * ((between + shared) / between) ** 2, 1e6) if between > 0 else 1e6
    away, least = abs(effect) / math.sqrt(between + shared), float(stdtrit(freedom, 1 - alpha / 2))
    return float(1 - nctdtr(freedom, away, least) + nctdtr(freedom, away, -least))


def seeds_needed(effect: float, sd: float, shared: float, wanted: float = 0.8, most: int = 1000) -> int | None:
    """Least number of seeds with which `power` reaches `wanted`; None where `most` do not suffice."""
    enough = (n for n in range(2, most + 1) if power(effect, sd, shared, n) >= wanted)
    return next(enough, None)


def least_effect(sd: float, shared: float, n: int, wanted: float = 0.8) -> float:
    """The difference that n seeds find with probability `wanted`."""
    if sd**2 + shared <= 0:
        return NAN
    low, high = 0.0, 1e3 * math.sqrt(sd**2 + shared)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, sd, shared, n) < wanted else (low, middle)
    return high
