"""Matrix-Fisher normalisation and mean in forty digits, by another formula than `bench.geometry.matrix_fisher` uses.

    python tests/theory/matrix_fisher.py        # writes matrix_fisher.json beside this file again

With the quaternion's quadratic form, c(s) = e^{s1+s2+s3} B(l), l = (0, 2(s2+s3), 2(s1+s3), 2(s1+s2)). The Bingham
constant is an inverse Laplace transform, B = 1/(2 pi i) int e^p prod_i (p + l_i)^(-1/2) dp (Kume & Wood 2005,
Saddlepoint approximations for the Bingham and Fisher-Bingham normalising constants). Its contour shrinks onto the two
cuts between the four branch points -l_i, where x = l + width sin^2(phi) takes the ends' singularities away:

    B = 2/pi int_0^{pi/2} e^{-x} / sqrt((l3 - x)(l4 - x)) dphi,  x from l1 to l2,
      - 2/pi int_0^{pi/2} e^{-x} / sqrt((x - l1)(x - l2)) dphi,  x from l3 to l4.

No Bessel function, and no node in common. Not for s1 = s2, where the middle points meet. d is a central difference of
log B with a step of 1e-12 in forty digits. Over O(3) the mean's diagonal is assembled from c and d of s and of
(s1, s2, -s3).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mpmath import exp, log, mp, mpf, pi, quad, sin, sqrt

Real = Any  # a number of mpmath, which carries no types

STORED = Path(__file__).with_suffix(".json")
DIGITS = 40
STEP = "1e-12"
SHAPES = {
    "generic": ("1", "0.5", "0.3"),
    "generic, improper": ("1", "0.5", "-0.3"),
    "planar": ("1", "0.5", "0"),
    "collinear": ("1", "0", "0"),
}
CONCENTRATIONS = ("0.01", "1", "30", "1e4", "1e6", "1e8")
# beside the grid: nearly collinear and nearly planar, where the improper half of O(3) weighs neither 0 nor 1/2
OTHERS = (("1e3", "2", "-0.7"), ("1e6", "3", "0.5"), ("1e6", "5e5", "0.4"), ("1e8", "4e7", "-0.6"), ("1e8", "1", "0.9"))


def spectra() -> list[tuple[str, ...]]:
    with mp.workdps(DIGITS):
        grid = [tuple(str(mpf(scale) * mpf(part)) for part in s) for s in SHAPES.values() for scale in CONCENTRATIONS]
    return [*grid, *OTHERS]


def log_bingham(s: list[Real]) -> Real:
    """log c(s) - s1 - s2 - s3."""
    ends = [mpf(0), 2 * (s[1] + s[2]), 2 * (s[0] + s[2]), 2 * (s[0] + s[1])]

    def cut(low: Real, high: Real, a: Real, b: Real) -> Real:
        width = high - low

        def f(phi: Real) -> Real:
            x = low + width * sin(phi) ** 2
            return exp(-x) / sqrt((x - a) * (x - b))

        # the peak at phi = 0 has a width of 1 / sqrt(width)
        peak = min(pi / 2, 1 / sqrt(max(abs(width), 1)))
        points = [mpf(0)]
        while points[-1] < pi / 2:
            points.append(min(pi / 2, 2 * points[-1] if points[-1] else peak))
        return 2 / pi * quad(f, points)

    return log(cut(ends[0], ends[1], ends[2], ends[3]) - cut(ends[2], ends[3], ends[0], ends[1]))


def moments(s: list[Real]) -> tuple[Real, list[Real]]:
    """log c - s1 - s2 - s3 and d = grad log c."""
    h = mpf(STEP)

    def slope(k: int) -> Real:
        above, below = ([v + sign * h * (n == k) for n, v in enumerate(s)] for sign in (1, -1))
        return (log_bingham(above) - log_bingham(below)) / (2 * h)

    return log_bingham(s), [1 + slope(k) for k in range(3)]


def row(spectrum: tuple[str, ...]) -> dict[str, list[float] | float]:
    """What is stored of one spectrum: s, log c - sum(s), d, and the diagonal of the mean over O(3) of diag(s)."""
    with mp.workdps(DIGITS):
        s = [mpf(part) for part in spectrum]
        log_c, d = moments(s)
        log_mirrored, e = moments([s[0], s[1], -s[2]])
        p = 1 / (1 + exp(log_mirrored - log_c - 2 * s[2]))
        o3 = [p * d[0] + (1 - p) * e[0], p * d[1] + (1 - p) * e[1], p * d[2] - (1 - p) * e[2]]
        return {
            "s": [float(v) for v in s],
            "log_c_less_sum": float(log_c),
            "d": [float(v) for v in d],
            "mean_O3": [float(v) for v in o3],
        }


if __name__ == "__main__":
    STORED.write_text("[\n" + ",\n".join(json.dumps(row(s)) for s in spectra()) + "\n]\n")
