"""Rotation groups: Haar draws, matrix-Fisher means and 3x3 orthonormalisation, on the device.

A group element is a matrix R [3, 3] that acts on the rows of x, x_n -> R x_n. Methods are handed a `Group`, so a test
can hand in a translated one (`Translated`, Q R for R) and require a stochastic prediction to turn by Q exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from bench.geometry.matrix_fisher import Envelope, mean_O3, mean_SO3


def gram_schmidt(M: Float[Tensor, "*B 3 3"], proper: bool = False) -> Float[Tensor, "*B 3 3"]:
    """Orthonormalise the columns: the Q of M = Q T with T upper triangular and a positive diagonal.

    Closed form for 3x3, so nothing leaves the device and gradients are those of the QR factor. A column whose
    residual is exactly nothing becomes zero, with zero gradient, instead of NaN. The second column is orthogonalised
    twice, which keeps Q^T Q = I to rounding for condition numbers near 1/precision.

    Returns:
        Q with det Q = sign det M, det Q = +1 where det M = 0; with `proper` the same but for the sign of the third
        column, which makes det Q = +1 throughout.
    """
    floor = torch.finfo(M.dtype).tiny ** 0.5

    def unit(v: Tensor) -> Tensor:
        # scaling first keeps the squares of very small or large columns in range; the sum is then at least 1, unless
        # there is no column left to speak of, through which no gradient passes either
        size = v.detach().abs().amax(-1, keepdim=True)
        v = torch.where(size > floor, v, 0) / size.clamp_min(floor)
        return v / v.square().sum(-1, keepdim=True).clamp_min(1).sqrt()

    q1 = unit(M[..., 0])
    v2 = M[..., 1] - (q1 * M[..., 1]).sum(-1, keepdim=True) * q1
    q2 = unit(v2)
    q2 = unit(q2 - (q1 * q2).sum(-1, keepdim=True) * q1)
    q3 = torch.linalg.cross(q1, q2)
    if not proper:
        orientation = (q3 * M[..., 2]).sum(-1, keepdim=True)
        # sign(0) would zero the column, hence the comparison; the sign carries no gradient
        q3 = torch.where(orientation < 0, -q3, q3)
    return torch.stack([q1, q2, q3], dim=-1)


def product(A: Float[Tensor, "*B 3 3"], B: Float[Tensor, "*B 3 3"]) -> Float[Tensor, "*B 3 3"]:
    """A B, element by element: autocast would make a matrix product in bf16, and no rotation would be left."""
    return (A[..., :, :, None] * B[..., None, :, :]).sum(-2)


class GroupName(StrEnum):
    """Symmetry group of the data: O3 for de novo generation, SO3 where chirality is given."""

    O3 = "O3"
    SO3 = "SO3"


class Group(ABC):
    """A compact group of 3x3 matrices that methods average or sample over.

    Attributes:
        proper: whether every element has determinant 1.
    """

    proper: bool

    @abstractmethod
    def haar(self, n: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Float[Tensor, "n 3 3"]:
        """n independent draws from the Haar measure, on the generator's device."""

    @abstractmethod
    def matrix_fisher_mean(self, F: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B 3 3"]:
        """Mean of p(R) ~ exp(tr(F^T R)) over the group (`bench.geometry.matrix_fisher`)."""

    @abstractmethod
    def envelope(self, F: Float[Tensor, "N 3 3"]) -> Envelope:
        """A distribution near p(R) ~ exp(tr(F^T R)) over the group, to draw from."""


class O3(Group):
    """Rotations and reflections. Draws: QR of a standard normal matrix with positive diagonal (Mezzadri 2007)."""

    proper = False

    def haar(self, n: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Float[Tensor, "n 3 3"]:
        return gram_schmidt(torch.randn(n, 3, 3, generator=rng, device=rng.device, dtype=dtype))

    def matrix_fisher_mean(self, F: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B 3 3"]:
        return mean_O3(F)

    def envelope(self, F: Float[Tensor, "N 3 3"]) -> Envelope:
        return Envelope(F, improper=True)


class SO3(Group):
    """Proper rotations. A Haar draw of O(3) whose third column is turned so that det R = 1 is Haar on SO(3)."""

    proper = True

    def haar(self, n: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Float[Tensor, "n 3 3"]:
        return gram_schmidt(torch.randn(n, 3, 3, generator=rng, device=rng.device, dtype=dtype), proper=True)

    def matrix_fisher_mean(self, F: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B 3 3"]:
        return mean_SO3(F)

    def envelope(self, F: Float[Tensor, "N 3 3"]) -> Envelope:
        return Envelope(F, improper=False)


class Translated(Group):
    """Draws Q R where the inner group draws R: the coupling by which 'in law' is tested to rounding error."""

    def __init__(self, inner: Group, Q: Float[Tensor, "3 3"]) -> None:
        self.inner, self.Q, self.proper = inner, Q, inner.proper

    def haar(self, n: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Float[Tensor, "n 3 3"]:
        return self.Q.to(dtype) @ self.inner.haar(n, rng, dtype)

    def matrix_fisher_mean(self, F: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B 3 3"]:
        return self.inner.matrix_fisher_mean(F)  # Haar measure is invariant: no coupling enters an average

    def envelope(self, F: Float[Tensor, "N 3 3"]) -> Envelope:
        return self.inner.envelope(F)


GROUPS: dict[GroupName, type[Group]] = {GroupName.O3: O3, GroupName.SO3: SO3}
