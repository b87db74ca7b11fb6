"""Intervals of rates, which never have zero width and never leave [0, 1]."""

from __future__ import annotations

import math

Z_95 = 1.959964  # 97.5 % quantile of the standard normal distribution


def rate_interval(rate: float, half_width: float, n: int) -> tuple[float, float]:
    """Wilson's interval of a rate that would have a given half-width by the normal approximation.

    With half-width h, k = h^2 / (p (1 - p)) takes the place of z^2 / n in Wilson's formula, that is, n becomes the
    effective number of independent trials: fewer than atoms where atoms of one molecule stand and fall together. At
    p = 0 and p = 1, and where h = 0, the scatter says nothing, and k = z^2 / n.

    Args:
        half_width: of the 95 % interval by the normal approximation, z standard errors; NaN gives NaN.
        n: independent units (molecules), each counted as one trial where the scatter says nothing.
    References: Wilson (1927), J. Am. Stat. Assoc. 22, 209; Korn & Graubard (1998), Survey Methodology 24, 193.
    """
    if math.isnan(rate + half_width):
        return math.nan, math.nan
    variance = rate * (1 - rate)
    k = half_width**2 / variance if variance > 0 and half_width != 0 else Z_95**2 / n
    centre, half = (rate + k / 2) / (1 + k), math.sqrt(k * variance + k * k / 4) / (1 + k)
    return max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half))  # against rounding
