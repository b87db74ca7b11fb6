"""Haar draws and the 3x3 orthonormalisation (spec 3.2, 6.4, 6.5)."""

import math

import pytest
import torch
from support import Z_MAX, core, generator, orthogonal, z_score
from torch import Tensor

from bench.geometry.groups import O3, SO3, Translated, gram_schmidt
from bench.tasks.denovo import Denovo

N_DRAWS = 200_000


def haar_z(R: Tensor, mean_determinant: float) -> float:
    """Largest |z| of the moments that the Haar measure fixes: E R = 0, E R_ij R_kl = delta_ik delta_jl / 3, E det R."""
    second = torch.einsum("nij,nkl->nijkl", R, R)
    eye = torch.eye(3, dtype=R.dtype)
    determinant = torch.linalg.det(R)
    return max(
        z_score(R),
        z_score(second.flatten(1), (torch.einsum("ik,jl->ijkl", eye, eye) / 3).flatten()),
        z_score(determinant, mean_determinant),
        z_score(R**4, 1 / 5),  # a coordinate of a uniform point of the sphere
    )


class EulerAngles(SO3):
    """Control: three uniform Euler angles, EDM's augmentation, which is not Haar."""

    def haar(self, n: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        R = torch.eye(3, dtype=dtype).expand(n, 3, 3)
        for i, j in ((1, 2), (0, 2), (0, 1)):
            angle = 2 * math.pi * torch.rand(n, generator=rng, dtype=dtype)
            turn = torch.eye(3, dtype=dtype).repeat(n, 1, 1)
            turn[:, i, i] = turn[:, j, j] = angle.cos()
            turn[:, i, j], turn[:, j, i] = -angle.sin(), angle.sin()
            R = turn @ R
        return R


class UnsignedQR(O3):
    """Control: the Q factor as LAPACK returns it, without fixing the signs."""

    def haar(self, n: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.linalg.qr(torch.randn(n, 3, 3, generator=rng, dtype=dtype))[0]


@pytest.mark.parametrize(("group", "mean_determinant"), [(O3(), 0.0), (SO3(), 1.0)])
def test_draws_have_the_moments_of_the_haar_measure(group, mean_determinant):
    """T13: 2e5 draws, |z| < 5: mean, second moments, fraction of proper rotations."""
    R = group.haar(N_DRAWS, generator(0), torch.float64)
    assert haar_z(R, mean_determinant) < Z_MAX
    assert (R.mT @ R - torch.eye(3, dtype=R.dtype)).abs().max() < 1e-12
    determinant = torch.linalg.det(R)
    assert (determinant.abs() - 1).abs().max() < 1e-12
    if mean_determinant == 1:
        assert determinant.min() > 0


@pytest.mark.parametrize(("group", "mean_determinant"), [(EulerAngles(), 1.0), (UnsignedQR(), 0.0)])
def test_draws_that_are_not_haar_are_refused(group, mean_determinant):
    """T13: Euler angles and an unsigned QR factor fail the same comparison."""
    assert haar_z(group.haar(N_DRAWS, generator(0), torch.float64), mean_determinant) > Z_MAX


@pytest.mark.parametrize("determinant", [1, -1])
def test_translated_draws_have_the_law_of_the_draws(determinant):
    """T13: Q R is Haar with R; translated Euler angles are told from Euler angles."""
    Q = orthogonal(determinant)
    assert haar_z(Translated(O3(), Q).haar(N_DRAWS, generator(1), torch.float64), 0.0) < Z_MAX
    assert haar_z(Translated(EulerAngles(), Q).haar(N_DRAWS, generator(1), torch.float64), float(determinant)) > Z_MAX


def test_every_named_group_is_there():
    """The task's groups by their names; any other name is refused with the choices."""
    assert {name: type(core(name).group) for name in Denovo.groups} == {"O3": O3, "SO3": SO3}
    with pytest.raises(ValueError, match="'group' is 'SO2', expected O3 or SO3 for this task"):
        core("SO2")


# ---------------------------------------------------------------------- Gram-Schmidt


def matrices(condition: float, n: int, dtype: torch.dtype) -> Tensor:
    """Random matrices with singular values 1, 1/sqrt(condition), 1/condition."""
    rng = generator(7)
    U, V = O3().haar(n, rng, torch.float64), O3().haar(n, rng, torch.float64)
    s = torch.tensor([1.0, condition**-0.5, 1 / condition], dtype=torch.float64)
    return ((U * s) @ V.mT).to(dtype)


def orthogonality_error(Q: Tensor) -> float:
    return (Q.mT @ Q - torch.eye(3, dtype=Q.dtype)).abs().max().item()


def naive_gram_schmidt(M: Tensor) -> Tensor:
    """Control: classical Gram-Schmidt, which loses orthogonality on ill-conditioned matrices."""
    q = []
    for k in range(3):
        v = M[..., k]
        v = v - sum((u * M[..., k]).sum(-1, keepdim=True) * u for u in q)
        q.append(v / v.norm(dim=-1, keepdim=True))
    return torch.stack(q, dim=-1)


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
def test_columns_are_orthonormal(condition, precision):
    """T14: Q^T Q = I to 1e-6 for condition numbers up to 1e6; classical Gram-Schmidt in float32 fails at 1e6."""
    assert orthogonality_error(gram_schmidt(matrices(condition, 1000, precision))) < 1e-6
    assert orthogonality_error(naive_gram_schmidt(matrices(1e6, 1000, torch.float32))) > 1e-3


def triangular_error(Q: Tensor, M: Tensor) -> float:
    """How far Q^T M is from upper triangular with a positive diagonal, relative to the columns of M."""
    T = Q.mT @ M
    scale = M.norm(dim=-2)
    below = max((T[:, i, j].abs() / scale[:, j]).max().item() for i, j in ((1, 0), (2, 0), (2, 1)))
    return below if (T.diagonal(dim1=-2, dim2=-1) > -1e-6 * scale).all() else math.inf


@pytest.mark.parametrize("condition", [2.0, 1e3, 1e6])
def test_factor_is_that_of_qr_with_positive_diagonal(condition, precision):
    """T14: Q^T M upper triangular, diagonal positive; rows orthonormalised instead are refused."""
    M = matrices(condition, 1000, precision)
    assert triangular_error(gram_schmidt(M), M) < 1e-6
    assert triangular_error(gram_schmidt(M.mT).mT, M) > 0.1
    assert triangular_error(-gram_schmidt(M), M) == math.inf


def test_determinant_has_the_sign_of_the_matrix():
    """T14: det Q = sign det M."""
    M = torch.randn(1000, 3, 3, generator=generator(1), dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.det(gram_schmidt(M)), torch.linalg.det(M).sign())


def test_gradient_is_that_of_the_factor():
    """T14: gradcheck in float64, and agreement with torch's own QR; a detached column is noticed."""
    M = torch.randn(4, 3, 3, generator=generator(2), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gram_schmidt, (M,))

    def reference(M: Tensor) -> Tensor:
        Q, T = torch.linalg.qr(M)
        return Q * T.diagonal(dim1=-2, dim2=-1).sign().detach()[:, None]

    W = torch.randn(4, 3, 3, generator=generator(3), dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((W * f(M)).sum(), M)[0] for f in (gram_schmidt, reference))
    torch.testing.assert_close(ours, theirs)

    def detached(M: Tensor) -> Tensor:
        return gram_schmidt(torch.cat([M[..., :1].detach(), M[..., 1:]], dim=-1))

    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(detached, (M,))


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
def test_gradient_is_finite_on_ill_conditioned_matrices(condition, precision):
    """T14: finite gradients for condition numbers up to 1e6, and on singular and zero matrices."""
    for M in (
        matrices(condition, 1000, precision),
        torch.zeros(2, 3, 3, dtype=precision),
        torch.ones(2, 3, 3, dtype=precision),
    ):
        M = M.requires_grad_()
        (gradient,) = torch.autograd.grad((gram_schmidt(M) * torch.arange(9.0).view(3, 3)).sum(), M)
        assert torch.isfinite(gradient).all()
    zero = torch.zeros(2, 3, 3, dtype=precision, requires_grad=True)
    (gradient,) = torch.autograd.grad(naive_gram_schmidt(zero).sum(), zero)
    assert not torch.isfinite(gradient).all()
