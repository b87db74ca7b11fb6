"""Principal axes of point clouds: eigenvectors of symmetric 3x3 matrices, without a wait for the device."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def principal_axes(C: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B 3 3"]:
    """Orthonormal eigenvectors of symmetric matrices as columns, by decreasing eigenvalue; signs are arbitrary.

    Closed form, as backward stable as an iteration and without a wait for the device, where torch.linalg.eigh checks
    for convergence. Of the deviator D = C - tr(C)/3, signed so that det D >= 0, the largest eigenvalue is
    2 p cos(arccos(r) / 3), p^2 = tr(D^2) / 6, r = det(D / p) / 2 (Smith 1961), at least sqrt(3) p away from the others,
    so its eigenvector, a cross product of two rows of D - lambda, is well conditioned. The other two solve a 2x2
    problem in the plane orthogonal to it, which half an arctangent does at any gap (after Eberly, A robust eigensolver
    for 3x3 symmetric matrices, 2014). A multiple of the identity gives some orthonormal basis.
    """
    one = torch.eye(3, dtype=C.dtype, device=C.device)
    D = C
    for _ in range(2):  # again for the rounding of the first time, which is all that is left of C near a multiple of 1
        D = D - D.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * one
    D = D / (D.square().sum((1, 2), keepdim=True) / 6).sqrt().clamp_min(torch.finfo(C.dtype).tiny)
    r = torch.linalg.det(D) / 2
    reverse = (r < 0)[:, None, None]
    D = torch.where(reverse, -D, D)
    largest = 2 * torch.cos(torch.acos(r.abs().clamp_max(1)) / 3)

    rows = D - largest[:, None, None] * one
    normals = torch.linalg.cross(rows, rows.roll(1, dims=1))
    longest = normals.square().sum(2).argmax(1)[:, None, None]
    v1 = torch.take_along_dim(normals, longest, dim=1)[:, 0]
    v1 = v1 / torch.linalg.vector_norm(v1, dim=1, keepdim=True)

    # an orthonormal basis (a, b) of the plane, without a division by something small (Duff et al., JCGT 2017)
    x, y, z = v1.unbind(1)
    side = torch.where(z < 0, -1.0, 1.0).to(C.dtype)
    w = -1 / (side + z)
    a = torch.stack([1 + side * x * x * w, side * x * y * w, -side * x], dim=1)
    b = torch.stack([x * y * w, side + y * y * w, -y], dim=1)
    Da, Db = (D @ a[:, :, None])[:, :, 0], (D @ b[:, :, None])[:, :, 0]
    angle = torch.atan2(2 * (a * Db).sum(1), (a * Da).sum(1) - (b * Db).sum(1))[:, None] / 2
    v2 = angle.cos() * a + angle.sin() * b
    V = torch.stack([v1, v2, torch.linalg.cross(v1, v2)], dim=2)
    return torch.where(reverse, V.flip(2), V)
