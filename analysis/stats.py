"""Means, spreads, intervals and paired comparisons over training seeds.

Two sources of uncertainty stand side by side and are never mixed:

* between trainings: the sample standard deviation over seeds, s = sqrt(sum_i (v_i - mean)^2 / (n - 1));
* within a training: the 95 % interval that evaluation found over the finite number of samples of one run. The mean
  over n runs with half-widths w_i, independent of each other, has half-width sqrt(sum_i w_i^2) / n.

Comparisons are paired, since two methods with one seed see the same batches, times and noise: with differences d_i on
the n common seeds, mean d +- t_{n-1, 0.975} s_d / sqrt(n) (Student's t). At n = 2 the factor t is 12.7, so intervals
are wide; that is what two seeds can tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from analysis.labels import Column
from analysis.load import Frame, Study
from bench.records.values import Better

LEVEL = 0.95
Z_95 = 1.96
Group = tuple[str, str]  # method, backbone


@dataclass(frozen=True)
class Summary:
    """One quantity of one (method, backbone) over its n counted runs.

    Attributes:
        values: one per seed, in the record's unit; mean, sd: over them, NaN where n is too small (0 and 1).
        sampling: half-width of the 95 % interval of `mean` from the finite number of samples, NaN if unknown.
        upper_bound: whether some value is only an upper bound on the quantity.
        borrowed: whether some value was measured on the run whose weights are used.
    """

    values: Mapping[int, float]
    sampling: float = float("nan")
    upper_bound: bool = False
    borrowed: bool = False

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.values.values()))) if self.n else float("nan")

    @property
    def sd(self) -> float:
        return float(np.std(list(self.values.values()), ddof=1)) if self.n > 1 else float("nan")


@dataclass(frozen=True)
class Difference:
    """Mean of (method - reference) over n common seeds, its 95 % t-interval and two-sided p-value (NaN when n < 2)."""

    n: int
    mean: float
    low: float
    high: float
    p: float


def summarise(study: Study, group: Group, column: Column) -> Summary:
    """`column` over the counted runs of a (method, backbone); seeds without a value are left out."""
    rows = study.scalars
    rows = rows[(rows["column"] == column.name) & (rows["method"] == group[0]) & (rows["backbone"] == group[1])]
    rows = rows[rows["value"].notna()].sort_values("seed", kind="stable")
    values = {int(seed): float(value) for seed, value in zip(rows["seed"], rows["value"], strict=True)}
    borrowed = bool((rows["source"] != rows["run"]).any())
    return Summary(values, combined_half_width(half_widths(rows)), bool(rows["upper_bound"].any()), borrowed)


def combined_half_width(half_widths: Sequence[float]) -> float:
    """Half-width for the mean of independent runs, sqrt(sum w_i^2) / n; NaN when any is unknown or none is given."""
    w = np.asarray(half_widths, dtype=float)
    return float(np.sqrt(np.sum(w**2)) / len(w)) if len(w) else float("nan")


def half_widths(rows: Frame) -> list[float]:
    """Half-width of the 95 % interval of each value: from its own interval, else 1.96 standard errors, else NaN."""
    return ((rows["high"] - rows["low"]) / 2).fillna(Z_95 * rows["sem"]).tolist()


def t_interval(differences: Sequence[float], level: float = LEVEL) -> Difference:
    """Student's t-interval and two-sided p-value for the mean of paired differences.

    With one pair the interval is unknown (NaN). Differences that are all equal give an interval of width zero and
    p = 0, or p = 1 when they are all zero.
    """
    d = np.asarray(differences, dtype=float)
    n, nan = len(d), float("nan")
    if n < 2:
        return Difference(n, float(d[0]) if n else nan, nan, nan, nan)
    mean, error = float(d.mean()), float(d.std(ddof=1) / np.sqrt(n))
    half = float(stdtrit(n - 1, (1 + level) / 2)) * error
    p = float(mean == 0) if error == 0 else 2 * float(stdtr(n - 1, -abs(mean) / error))
    return Difference(n, mean, mean - half, mean + half, p)


def paired(a: Summary, b: Summary) -> Difference:
    """a - b on the common seeds."""
    return t_interval([a.values[seed] - b.values[seed] for seed in sorted(a.values.keys() & b.values.keys())])


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (Holm 1979, Scand. J. Statist. 6, 65); NaN stays NaN and is not counted."""
    p = np.asarray(p_values, dtype=float)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = (
        np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1))) if len(order) else []
    )
    return adjusted.tolist()


def separated_from_best(rows: Mapping[Group, Summary], better: Better, alpha: float = 0.05) -> dict[Group, bool]:
    """Which rows are significantly worse than the row of best mean, seeds being the blocks of the comparison.

    With values v_is of k rows on n common seeds, residuals r_is = v_is - v_i. - v_.s + v_.. have variance
    s^2 = sum r_is^2 / ((k - 1) (n - 1)), pooled over rows, and t_i = (v_best. - v_i.) / (s sqrt(2 / n)) is tested with
    (k - 1) (n - 1) degrees of freedom, two-sided, with Holm's correction (randomised blocks: Fisher 1935, The Design of
    Experiments). For two rows this is the paired t-test. Pooling assumes that rows scatter alike; single pairs of two
    seeds tell too little of their own scatter to order a table by. The best is chosen on the same data, which favours
    rejection slightly: read the grouping as a guard against calling a tie a win, no more.

    Returns:
        For each row of the comparison (those with two seeds or more): True when significantly worse than the best.
        Empty when there are fewer than two such rows or common seeds: nothing can be said.
    """
    repeated = {group: summary for group, summary in rows.items() if summary.n > 1}
    seeds = sorted(set.intersection(*(set(summary.values) for summary in repeated.values()))) if repeated else []
    k, n = len(repeated), len(seeds)
    if k < 2 or n < 2:
        return {}
    v = np.array([[summary.values[seed] for seed in seeds] for summary in repeated.values()])
    means = v.mean(axis=1)
    residuals = v - means[:, None] - v.mean(axis=0) + v.mean()
    freedom = (k - 1) * (n - 1)
    error = float(np.sqrt(np.sum(residuals**2) / freedom * 2 / n))
    best = int(np.argmax(means if better is Better.HIGHER else -means))
    gaps = np.delete(np.abs(means[best] - means), best)
    # Residuals that are rounding alone mean that rows differ by the same amount on every seed.
    exact = error <= 1e-12 * np.abs(v).max()
    p = (gaps <= 1e-12 * np.abs(v).max()).astype(float) if exact else 2 * stdtr(freedom, -gaps / error)
    worse = iter(adjusted < alpha for adjusted in holm(list(p)))
    return {group: False if index == best else next(worse) for index, group in enumerate(repeated)}


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


def reference_group(study: Study, reference: str | None = None) -> Group | None:
    """The row that others are compared with: method `reference`, else the first evaluated one without a guarantee, else
    the first evaluated one.

    Raises:
        ValueError: `reference` is no method of the study.
    """
    groups = evaluated(study)
    if reference is not None:
        if reference not in study.methods:
            raise ValueError(
                f"no method {reference!r} in study {study.name!r} to compare with; "
                f"choose from {', '.join(study.methods)}"
            )
        return next((group for group in groups if group[0] == reference), None)
    bare = [group for group in groups if (study.of(*group)["guarantee"] == "none").all()]
    return next(iter(bare or groups), None)


def reference_for(group: Group, reference: Group, groups: Sequence[Group]) -> Group:
    """The reference method on the row's own backbone where that exists, else the study's reference row."""
    same_backbone = (reference[0], group[1])
    return same_backbone if same_backbone in groups else reference
