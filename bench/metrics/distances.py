"""Distances between two samples of one quantity: Wasserstein-1, on a line and on a circle, and Jensen-Shannon."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

from bench.metrics.geometry import Coordinates


@dataclass(frozen=True)
class Bins:
    """Bins of equal width between `low` and `high`, and one beyond each end, where there is anything beyond.

    numpy.histogram drops what lies outside, so that two samples whose values lie outside alike seem alike.
    """

    low: float
    high: float
    width: float

    def histogram(self, values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "k"]:
        """Counts below `low`, in each bin, and at `high` or above."""
        n = round((self.high - self.low) / self.width)
        index = np.clip(np.floor((values - self.low) / self.width), -1, n).astype(np.int64) + 1
        return np.bincount(index, minlength=n + 2).astype(np.float64)


@dataclass(frozen=True)
class Distance:
    """Distance of a sample to a reference, averaged over classes by their frequency in the reference.

    Attributes:
        w1: Wasserstein-1 in the unit of the quantity, over the classes that both have; None where they share none.
        js: Jensen-Shannon distance (the square root of the divergence), base 2, on [0, 1]; 1 for a class that the
            sample lacks.
        lacking: share of the reference in classes that the sample lacks.
        foreign: share of the sample in classes that the reference lacks.
        overflow: share of the sample beyond the ends of the bins.
    """

    w1: float | None
    js: float
    lacking: float
    foreign: float
    overflow: float


def by_class(sample: Coordinates, reference: Coordinates, bins: Bins, period: float | None = None) -> Distance | None:
    """Distance of each class, averaged; None where the reference is empty.

    Args:
        period: of a circular quantity.
    """
    ours, theirs = _grouped(sample), _grouped(reference)
    if not theirs:
        return None
    n_ours, n_theirs = len(sample.values), len(reference.values)
    js = w1 = 0.0
    n_shared = 0
    for key, values in theirs.items():
        share = len(values) / n_theirs
        if key not in ours:
            js += share
            continue
        n_shared += len(values)
        js += share * js_distance(bins.histogram(ours[key]), bins.histogram(values))
        w1 += share * (
            wasserstein_distance(ours[key], values) if period is None else circular_w1(ours[key], values, period)
        )
    foreign = sum(len(values) for key, values in ours.items() if key not in theirs)
    outside = bins.histogram(sample.values)[[0, -1]].sum()
    return Distance(
        w1=float(w1 * n_theirs / n_shared) if n_shared else None,
        js=float(js),
        lacking=1 - n_shared / n_theirs,
        foreign=foreign / n_ours if n_ours else 0.0,
        overflow=float(outside / n_ours) if n_ours else 0.0,
    )


def js_distance(p: Float[np.ndarray, "k"], q: Float[np.ndarray, "k"]) -> float:
    """Jensen-Shannon distance, base 2, of two histograms: the root of the divergence, 0 for equal shares, 1 for
    disjoint ones. Counts need not be normalised."""
    return float(np.nan_to_num(jensenshannon(p, q, base=2)))  # rounding may leave a root of -1e-17


def circular_w1(a: Float[np.ndarray, "n"], b: Float[np.ndarray, "m"], period: float) -> float:
    """Wasserstein-1 of two samples on a circle: the integral of |F_a - F_b - c|, least over c.

    The least is at c = a median of F_a - F_b over the circle. Opening the circle at some point and measuring on the
    line instead would make 179 and -179 degrees 358 degrees apart.

    Args:
        period: length of the circle, in the unit of the values; so is the result.
    References: Delon, Salomon & Sobolevski (2010), Fast transport optimization for Monge costs on the circle, SIAM J.
        Appl. Math. 70, 2239.
    """
    places = np.concatenate([a, b]) % period
    steps = np.concatenate([np.full(len(a), 1 / len(a)), np.full(len(b), -1 / len(b))])
    order = np.argsort(places)
    places, difference = places[order], np.cumsum(steps[order])
    lengths = np.diff(places, append=places[0] + period)  # on which each difference holds
    by_height = np.argsort(difference)
    middle = np.searchsorted(np.cumsum(lengths[by_height]), period / 2)
    return float(np.abs(difference - difference[by_height][min(middle, len(places) - 1)]) @ lengths)


def _grouped(found: Coordinates) -> dict[int, np.ndarray]:
    """Values of each class."""
    order = np.argsort(found.classes, kind="stable")
    classes, start = np.unique(found.classes[order], return_index=True)
    return dict(zip(classes.tolist(), np.split(found.values[order], start[1:]), strict=False))
