"""Statistics of laws on SO(3) and O(3), from independent draws R_1..R_K of each.

All rests on the element S = R_1^T R_2 between two independent draws, which stays where all draws are turned by one
element. Its trace has the mean |E R|^2 and the mean square |E R (x) R|^2 (Frobenius norms). Under the Haar measure S is
Haar too: tr S has mean 0 and mean square 1, and the angle of det(S) S the density (1 - cos a) / pi on [0, pi] (Miles,
On random rotations in R^3, 1965). Means are over all pairs of different draws, so they are unbiased, and an estimate of
a square can be negative.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class Moments(NamedTuple):
    """Strength of the first two moments of B laws, each [B]: 0 for the Haar measure, 1 for a single element.

    Attributes:
        first: |E R|^2 / 3.
        second: (|E R (x) R|^2 - 1) / 8. The 8 (O3) or 4 (SO3) frames that differ by signs of columns, drawn alike, have
            first 0 and second 1/4.
    """

    first: Float[Tensor, "B"]
    second: Float[Tensor, "B"]


def moments(R: Float[Tensor, "K B 3 3"]) -> Moments:
    """Moments of B laws from K >= 2 independent draws of each."""
    traces = _traces(R, R)
    return Moments(mean_over_pairs(traces) / 3, (mean_over_pairs(traces.square()) - 1) / 8)


def shared_moments(R: Float[Tensor, "K B 3 3"], other: Float[Tensor, "K B 3 3"]) -> Moments:
    """<E R, E R'> / 3 and (<E R (x) R, E R' (x) R'> - 1) / 8 of B pairs of laws, from independent draws of both.

    Those of `moments` where the two laws are one, 0 where one of them is Haar.
    """
    traces = _traces(R, other)
    return Moments(traces.mean((1, 2)) / 3, (traces.square().mean((1, 2)) - 1) / 8)


def _traces(R: Tensor, other: Tensor) -> Float[Tensor, "B K K"]:
    """tr(R_k^T R'_l), float64."""
    return torch.einsum("kbij,lbij->bkl", R.double(), other.double())


def mean_over_pairs(products: Float[Tensor, "B K K"]) -> Float[Tensor, "B"]:
    """Mean of the entries off the diagonal."""
    K = products.shape[1]
    return (products.sum((1, 2)) - products.diagonal(dim1=1, dim2=2).sum(1)) / (K * (K - 1))


def parity(R: Float[Tensor, "K B 3 3"]) -> Float[Tensor, "B"]:
    """(E det R)^2 of B laws: 0 where both signs are as likely, 1 where one occurs alone."""
    signs = torch.linalg.det(R.double()).sign().T
    return mean_over_pairs(signs[:, :, None] * signs[:, None, :])


def spectrum(R: Float[Tensor, "K B 3 3"]) -> Float[Tensor, "B 9"]:
    """Eigenvalues of the mean of vec(R) vec(R)^T over the K draws of each law, decreasing; their sum is 3.

    All 1/3 for the Haar measure, (3, 0, ..) for one element, (1, 1, 1, 0, ..) for frames that differ by signs of
    columns. Not unbiased: K draws spread equal eigenvalues, by a factor of about (1 +- 3/sqrt(K))^2, so that they
    compare with those of as many Haar draws alone.
    """
    rows = R.double().flatten(2)
    return torch.linalg.eigvalsh(torch.einsum("kbi,kbj->bij", rows, rows) / len(R)).flip(1)


def angles(R: Float[Tensor, "*B 3 3"]) -> Float[Tensor, "*B"]:
    """Angle of det(R) R in [0, pi], float64, exact at both ends."""
    R = R.double()
    R = R * torch.linalg.det(R).sign()[..., None, None]
    twice_sine = torch.stack([R[..., i, j] - R[..., j, i] for i, j in ((2, 1), (0, 2), (1, 0))], dim=-1).norm(dim=-1)
    return torch.atan2(twice_sine, R.diagonal(dim1=-2, dim2=-1).sum(-1) - 1)


class AngleTest(NamedTuple):
    """Kolmogorov-Smirnov test of angles against those of the Haar measure.

    Attributes:
        distance: largest difference of the distribution functions.
        p: its p-value for independent angles.
    """

    distance: float
    p: float


def angle_test(R: Float[Tensor, "N 3 3"]) -> AngleTest:
    """Whether the angles of N independent elements have the distribution function (a - sin a) / pi."""
    from scipy.stats import kstest  # here, because scipy is slow to load

    found = kstest(angles(R).cpu().numpy(), lambda a: (a - np.sin(a)) / np.pi)
    return AngleTest(float(found.statistic), float(found.pvalue))


def between_pairs(R: Float[Tensor, "K B 3 3"]) -> Float[Tensor, "N 3 3"]:
    """S of the disjoint pairs of draws (1, 2), (3, 4), .. of each law: independent elements."""
    first, second = R[0 : len(R) - 1 : 2], R[1::2]
    return (first.mT @ second).flatten(0, 1)


def order(V: Float[Tensor, "B 3 3"], R: Float[Tensor, "K B 3 3"]) -> Float[Tensor, "3"]:
    """How far the axes of B bodies, the columns of V, have one direction in their frames: the nematic order parameter.

    u = R^T v is an axis as it is seen from the frame R, without its sign. (3 E (u . u')^2 - 1) / 2 over pairs of
    different bodies is 0 for Haar frames, whatever the axes, and 1 where each body's frame is the same function of its
    axes up to signs.
    """
    u = torch.einsum("kbij,bil->klbj", R.double(), V.double())  # the l-th axis of each body
    squares = torch.einsum("klbj,klcj->klbc", u, u).square()
    return ((3 * mean_over_pairs(squares.flatten(0, 1)) - 1) / 2).view(len(R), 3).mean(0)


def turn(R: Float[Tensor, "*B 3 3"], other: Float[Tensor, "*B 3 3"]) -> Float[Tensor, "*B"]:
    """|R - R'|^2 / 6: 0 for the same element, 1 on average for independent Haar ones, at most 2."""
    return (R.double() - other.double()).square().sum((-2, -1)) / 6
