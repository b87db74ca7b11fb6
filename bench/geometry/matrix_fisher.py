"""The matrix-Fisher distribution p(R) ~ exp(tr(F^T R)) on SO(3) and O(3): its mean, and an envelope to sample it from.

Derivation. Let F = U diag(s) V^T with U, V proper rotations and s1 >= s2 >= |s3| (s3 carries the sign of det F).
Invariance of the Haar measure under R -> U R V^T makes the mean U diag(d) V^T with d_k = d log c(s) / d s_k, where
c(s) = int exp(tr(diag(s) R)) dR. Writing R by a unit quaternion, the exponent is a quadratic form on S^3, and
integrating out all but one angle leaves, for any ordering {i, j, k} of {1, 2, 3},

    c = e^{s1+s2+s3} c_k,   c_k = 1/2 int_0^2 f_k(v) dv,
    f_k(v) = I0e(|s_i - s_j| v / 2) I0e((s_i + s_j)(2 - v) / 2) exp(-(min(s_i, s_j) + s_k) v),

I0e(x) = exp(-|x|) I0(x), with v = 1 - u and u the element R_kk of the rotation in the frames of U and V. All three c_k
are equal. Differentiating, d_k is the mean of u, so 1 - d_k = int v f_k / int f_k, which has no cancellation at
high concentration.

Quadrature. At concentration s the integrand lives on scales 1/s at either end of [0, 2], so each half is integrated in
the logarithm of the distance to its end, in which every scale has a width of order one: Gauss-Legendre with N_NODES
nodes per half gives d to better than 1e-6 from s = 0 to 1e8, for generic, planar and collinear F alike
(tests/theory/test_matrix_fisher.py).

Nothing here waits for the device: no branch on values, a fixed number of sweeps in the SVD (torch.linalg.svd asks
whether it converged), and the quadrature's nodes are copied to a device once, at their first use there.

References: Khatri & Mardia (1977), The von Mises-Fisher matrix distribution in orientation statistics; Lee (2018),
Bayesian attitude estimation with the matrix Fisher distribution on SO(3), arXiv:1710.03746; Kent, Ganeiber & Mardia
(2013), A new method to simulate the Bingham and related distributions, arXiv:1310.8110 (the envelope).
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

N_SWEEPS = 6  # of Jacobi rotations; five leave nothing but rounding on every kind of spectrum tried
N_NODES = 48
# what lies nearer to an end than exp(-LOG_RANGE) is left out: at s = 1e8 that is 1e-7 of a peak of width 1e-8
LOG_RANGE = 34.0


@functools.cache
def _nodes(device: torch.device) -> tuple[Tensor, Tensor]:
    """Distances from an end of [0, 2] in (0, 1], logarithmically spread, and their weights, float64."""
    x, w = np.polynomial.legendre.leggauss(N_NODES)
    distance = np.exp(0.5 * LOG_RANGE * (x - 1))
    with torch.inference_mode(False):  # a later caller may want gradients
        return torch.from_numpy(distance).to(device), torch.from_numpy(0.5 * LOG_RANGE * w * distance).to(device)


def proper_svd(F: Float[Tensor, "B 3 3"]) -> tuple[Tensor, Tensor, Tensor]:
    """F = U diag(s) V^T with det U = det V = 1 and s1 >= s2 >= |s3| (to rounding); U, V [B, 3, 3], s [B, 3].

    One-sided Jacobi (Hestenes 1958, Inversion of matrices by biorthogonalization and related results): columns of F are
    turned in pairs until all are orthogonal, which makes F V = U diag(s). The angle that makes p and q orthogonal and p
    the longer is half of that of the vector (|p|^2 - |q|^2, 2 <p, q>), so columns come out sorted, and V is a product
    of rotations. Backward stable, also for collinear, planar and zero F: F^T F, of which V are the eigenvectors, is not
    formed, and where a column is zero to rounding U takes any vector orthogonal to the first.
    """
    eye = torch.eye(3, dtype=F.dtype, device=F.device)
    precision = torch.finfo(F.dtype)
    scale = F.abs().amax((1, 2), keepdim=True).clamp_min(precision.tiny)
    columns = list(torch.cat([F / scale, eye.expand_as(F)], dim=1).unbind(2))  # of F V, with those of V below
    for _ in range(N_SWEEPS):
        for i, j in ((0, 1), (0, 2), (1, 2)):
            p, q = columns[i], columns[j]
            difference, inner = ((p - q) * (p + q))[:, :3].sum(1), (p * q)[:, :3].sum(1)
            angle = 0.5 * torch.atan2(2 * inner, difference)[:, None]
            cos, sin = angle.cos(), angle.sin()
            columns[i], columns[j] = cos * p + sin * q, cos * q - sin * p
    turned = torch.stack(columns, dim=2)
    G, V = turned[:, :3], turned[:, 3:]

    def unit(v: Tensor, otherwise: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(v, dim=1, keepdim=True)
        return torch.where(size > 8 * precision.eps, v / size, otherwise)  # of scaled columns: the longest is 1 or more

    u1 = unit(G[:, :, 0], eye[0])
    u2 = unit(G[:, :, 1], eye.index_select(0, u1.abs().argmin(1)))
    u2 = u2 - (u1 * u2).sum(1, keepdim=True) * u1
    u2 = u2 / torch.linalg.vector_norm(u2, dim=1, keepdim=True)
    U = torch.stack([u1, u2, torch.linalg.cross(u1, u2)], dim=2)
    s = (U * G).sum(1) * scale[:, 0]
    return U, s, V


def moments(s: Float[Tensor, "B 3"]) -> tuple[Float[Tensor, "B"], Float[Tensor, "B 3"]]:
    """log c(s) and d(s) = grad log c for proper singular values s (float64), c normalised to 1 at s = 0.

    d is right to 2e-7 everywhere, log c itself to less: the quadrature's relative error of c grows to 1.5e-3 at
    s = 1e8, where nearly all mass lies in a peak of width 1/s between a few of the nodes. 1 - d, which is as small as
    the peak is narrow, hardly notices. `mean_O3` needs log c(s1, s2, s3) - log c(s1, s2, -s3), to whose sigmoid
    errors matter only while |s3| is of order one. Then both peaks lie at the same place among the same nodes, and the
    errors cancel: 1e-8 is left of the mean (tests/theory/matrix_fisher.py).
    """
    near, weight = _nodes(s.device)
    v = torch.cat([near, 2 - near])
    far = torch.cat([2 - near, near])  # 2 - v without cancellation
    weight = torch.cat([weight, weight])
    s1, s2, s3 = s.unbind(1)  # not s[:, [1, 0, 0]]: the list would be copied to the device
    i, j, k = torch.stack([s2, s1, s1], dim=1), torch.stack([s3, s3, s2], dim=1), s
    difference, total = (i - j).abs()[..., None], (i + j)[..., None]
    rate = (torch.minimum(i, j) + k)[..., None]
    f = torch.special.i0e(difference * v / 2) * torch.special.i0e(total * far / 2) * torch.exp(-rate * v) * weight
    mass = f.sum(-1)
    return torch.log(0.5 * mass[:, 0]) + s.sum(1), 1 - (f * v).sum(-1) / mass


def mean_SO3(F: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B 3 3"]:  # noqa: N802 - the group's name
    """Mean rotation of p(R) ~ exp(tr(F^T R)) over SO(3); 3x3 arithmetic in float64.

    Args:
        F: for diffusion, (alpha / sigma^2) sum_n z_n x_n^T; dimensionless.
    Returns:
        [B, 3, 3], spectral norm at most 1; a rotation only in the limit of no noise.
    """
    U, s, V = proper_svd(F.double())
    _, d = moments(s)
    return ((U * d[:, None, :]) @ V.mT).to(F.dtype)


def mean_O3(F: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B 3 3"]:  # noqa: N802
    """Mean of p(R) ~ exp(tr(F^T R)) over O(3), half of whose Haar mass lies on either determinant.

    The improper elements are -R with R in SO(3), weighted by exp(tr((-F)^T R)); -F has the proper singular values
    (s1, s2, -s3) on the frames (U diag(-1, -1, 1), V). With p the mass of the proper half,
    M = U diag(p d_1 + q d'_1, p d_2 + q d'_2, p d_3 - q d'_3) V^T, q = 1 - p, d' = d(s1, s2, -s3).
    """
    U, s, V = proper_svd(F.double())
    log_c, d = moments(s)
    log_c_improper, d_improper = moments(_mirrored(s))
    p = torch.sigmoid(log_c - log_c_improper)[:, None]
    return ((U * (p * d + (1 - p) * _mirrored(d_improper))[:, None, :]) @ V.mT).to(F.dtype)


def log_normaliser_SO3(F: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B"]:  # noqa: N802
    """log of the Haar mean of exp(tr(F^T R)) over SO(3), float64; relative error of the mean below 1.5e-3."""
    return moments(proper_svd(F.double())[1])[0]


def _mirrored(s: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3"]:
    """(s1, s2, -s3)."""
    return torch.cat([s[:, :2], -s[:, 2:]], dim=1)


class Envelope:
    """A distribution near p(R) ~ exp(tr(F^T R)) that is easy to draw from and whose density is in closed form.

    In the frames of the proper SVD, R = U R(q) V^T with a unit quaternion q = (w, x, y, z), the exponent is

        tr(F^T R) = s1 + s2 + s3 - q^T A q,   A = 2 diag(0, s2 + s3, s1 + s3, s1 + s2),

    so p is a Bingham distribution on S^3. Its envelope is the angular central Gaussian of Omega = 1 + 2 A: q = y / |y|
    with y ~ N(0, Omega^-1), whose density relative to the uniform one is |Omega|^(1/2) (q^T Omega q)^-2. Because
    q^T A q is s1 + s2 + s3 - tr(F^T R) =: delta, neither needs a quaternion once R is at hand:

        log density(R) = log |Omega| / 2 - 2 log(1 + 2 delta),

    and p / density ~ exp(-delta) (1 + 2 delta)^2 is bounded by 16 exp(-3/2) times its value at the mode, for every F.
    The density is nowhere zero; at F = 0 it is the uniform one.

    For O(3) the improper elements U diag(1, 1, -1) R(q) V^T have the same form with s3 -> -s3. The two halves are mixed
    in proportion to exp(s1 + s2 + s3) |Omega|^(-1/2), which makes the ratio above one function of delta on both.

    Args:
        F: [N, 3, 3].
        improper: over O(3), else over SO(3).
    """

    def __init__(self, F: Float[Tensor, "N 3 3"], improper: bool) -> None:
        self.F = F.double()
        self.U, s, self.V = proper_svd(self.F)
        halves = [s, _mirrored(s)] if improper else [s]
        s = torch.stack(halves, dim=1)
        self.mode = s.sum(-1, keepdim=True)  # largest exponent of each half
        self.omega = 1 + 4 * (self.mode - s).clamp_min(0)  # of x, y, z; that of w is 1
        self.mode, self.log_scale = self.mode[..., 0], 0.5 * self.omega.log().sum(-1)
        self.log_share = torch.log_softmax(self.mode - self.log_scale, dim=1)

    def draw(self, n: int, rng: torch.Generator, shared: bool = False) -> Float[Tensor, "N n 3 3"]:
        """n independent draws for each F, float64; `shared`: made of the same normal draws for every F."""
        rows = 1 if shared else len(self.F)
        y = torch.randn(rows, n, 4, generator=rng, device=rng.device, dtype=torch.float64).expand(len(self.F), n, 4)
        omega, sign = self.omega[:, :1], y.new_ones(())
        if self.omega.shape[1] == 2:
            u = torch.rand(rows, n, generator=rng, device=rng.device, dtype=torch.float64)
            proper = (u < self.log_share[:, :1].exp())[..., None]
            omega, sign = torch.where(proper, omega, self.omega[:, 1:]), torch.where(proper, sign, -sign)
        R = rotation_of(torch.cat([y[..., :1], y[..., 1:] / omega.sqrt()], dim=-1))
        R = torch.cat([R[..., :2, :], R[..., 2:, :] * sign[..., None]], dim=-2)
        return self.U[:, None] @ R @ self.V.mT[:, None]

    def log_density(self, R: Float[Tensor, "N n 3 3"]) -> Float[Tensor, "N n"]:
        """Log density relative to the Haar measure of the group, of which each determinant has half in O(3)."""
        exponent = torch.einsum("nij,nkij->nk", self.F, R)
        half = torch.zeros_like(exponent, dtype=torch.long)
        if self.omega.shape[1] == 2:
            half = ((torch.linalg.cross(R[..., 0], R[..., 1]) * R[..., 2]).sum(-1) < 0).long()
        delta = (self.mode.gather(1, half) - exponent).clamp_min(0)
        scale = (self.log_share + self.log_scale + math.log(self.omega.shape[1])).gather(1, half)
        return scale - 2 * torch.log1p(2 * delta)


def rotation_of(y: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N 3 3"]:
    """Rotation matrix of the quaternion y / |y|, y = (w, x, y, z) not zero."""
    w, a, b, c = (y / y.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        *(w * w + a * a - b * b - c * c, 2 * (a * b - w * c), 2 * (a * c + w * b)),
        *(2 * (a * b + w * c), w * w - a * a + b * b - c * c, 2 * (b * c - w * a)),
        *(2 * (a * c - w * b), 2 * (b * c + w * a), w * w - a * a - b * b + c * c),
    ]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))
