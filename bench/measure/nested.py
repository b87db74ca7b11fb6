"""Nested analysis of variance of vectors: the variance that each of several nested draws brings, without bias.

Let y be drawn in a tree: a molecule, given it a pose, given both the noise, and so on. The law of total variance splits
tr Cov y into one component per draw,

    c_1 = tr Var E[y | d_1],   c_2 = E tr Var(E[y | d_1, d_2] | d_1),   ...,   sum_k c_k = tr Cov y.

With n_k independent draws at depth k below each draw at depth k - 1, let s_k be the sample variance (over n_k - 1,
summed over coordinates) of the means at depth k below one parent, averaged over parents. Each mean carries the scatter
of what it is the mean of, E s_k = c_k + c_{k+1} / n_{k+1} + c_{k+2} / (n_{k+1} n_{k+2}) + ..., so

    c_k = E[s_k - s_{k+1} / n_{k+1}]

(analysis of variance of balanced nested data; Searle, Casella & McCulloch 1992, Variance Components). Estimates are
unbiased, and so negative at times where a component is zero.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def components(y: Float[Tensor, "*n D"]) -> Float[Tensor, "K n1"]:
    """Estimates of the components c_1..c_K, one from each draw of the outermost factor; their means are unbiased.

    Args:
        y: vectors by their draws at depths 1..K; n_1 at least 2. A depth with one draw counts as none: its component
            is 0.
    Returns:
        row k - 1: terms whose mean is c_k. Their scatter gives a standard error: they are independent, but for those of
        c_1, which share the overall mean.
    Raises:
        ValueError: a single draw of the outermost factor, which has no variance.
    """
    sizes = y.shape[:-1]
    if sizes[0] < 2:
        raise ValueError("components of variance need at least 2 draws of the outermost factor, got 1")
    found, means, below = [], y, y.new_zeros(sizes[0])
    for depth in reversed(range(len(sizes))):
        n, centre = sizes[depth], means.mean(depth, keepdim=True)
        if n == 1:
            scatter = below
        elif depth == 0:
            scatter = (means - centre).square().sum(-1) * n / (n - 1)
        else:
            scatter = (means - centre).square().sum((depth, -1)).reshape(sizes[0], -1).mean(1) / (n - 1)
        found.append(scatter - below)
        means, below = centre.squeeze(depth), scatter / n
    return torch.stack(found[::-1])


def between_strata(y: Float[Tensor, "T M D"]) -> tuple[float, float]:
    """tr Var E[y | stratum] over T strata of equal weight, from M independent draws in each, and its standard error.

    The standard error is the jackknife's, which leaves out one draw of every stratum at a time.
    """

    def estimate(y: Tensor) -> float:
        n_strata, n = y.shape[:2]
        scatter = y.mean(1).var(0, correction=0).sum()
        return (scatter - (1 - 1 / n_strata) * y.var(1).sum(-1).mean() / n).item()

    n = y.shape[1]
    left_out = torch.tensor([estimate(torch.cat([y[:, :i], y[:, i + 1 :]], dim=1)) for i in range(n)])
    return estimate(y), (left_out.var(correction=0) * (n - 1)).sqrt().item()


class Sketch:
    """A random projection y -> S y that keeps inner products on average, E[S^T S] = 1.

    Squared norms, and so traces of covariances, are unbiased, with a relative standard error of at most sqrt(2 / size).
    Vectors no longer than `size` are left as they are. Count sketch: Charikar, Chen & Farach-Colton (2002), Finding
    frequent items in data streams.

    Args:
        length: of the vectors.
        size: of their projections.
        rng: draws S.
    """

    def __init__(self, length: int, size: int, rng: torch.Generator) -> None:
        self.size = size if length > size else 0
        if self.size:
            self.place = torch.randint(size, (length,), generator=rng, device=rng.device)
            self.sign = 2 * torch.randint(2, (length,), generator=rng, device=rng.device, dtype=torch.int8) - 1

    def __call__(self, y: Float[Tensor, "P"]) -> Float[Tensor, "D"]:
        """S y, float64."""
        if not self.size:
            return y.double()
        return y.new_zeros(self.size, dtype=torch.float64).index_add(0, self.place, (self.sign * y).double())
