"""A PCA frame of each molecule, drawn at random: orthonormal eigenvectors of C = sum_n x_n x_n^T, as columns of R.

Where the eigenvalues differ, only the signs of the columns are free: the set F(z) of frames has 8 members in O(3) and 4
in SO(3). C(Q z) = Q C(z) Q^T makes F(Q z) = Q F(z).

The draw. All that is random comes from one Haar element H of the group. Its columns choose the signs,
r_j = sign(v_j . h_j) v_j for j = 1, 2, and its determinant the third, r_3 = det(H) r_1 x r_2, so R lies in the group.
Replace z by Q z and couple H to Q H: the eigenvectors v_j turn by Q up to a sign, r_j turns by Q and R becomes Q R.
Haar measure is invariant under H -> H S for sign matrices S of the group, so every member of F is drawn equally often.

Ties. Where eigenvalues coincide (one or two atoms, linear molecules, symmetric and spherical tops, all atoms in one
point) the eigenvectors are not defined up to signs, F is a continuum, and the basis that an eigensolver happens to
return does not turn with z. Taken instead are the eigenvectors of C / tr C + TIE W, W = h_1 h_1^T - h_3 h_3^T. W turns
as C does under the coupling above, so all of that argument holds at ties too. A rotation of a tie's eigenspace leaves C
alone and turns H into another Haar element, so the basis taken there is Haar. Away from ties W turns axes by TIE over
the gap, less than the rounding of float32 positions does. There is no threshold and no branch.
Hence: one frame drawn is equivariant in law for every z. The mean over signs is equivariant exactly wherever the
non-zero eigenvalues differ, and in law elsewhere. (A tie of zeros, as of one or two atoms, does no harm: R^-1 z does
not depend on the basis of the empty directions, along which the mean over signs of the answer is zero.) The exceptions
have probability zero for a noised state, whose law has a density. Near them D is discontinuous, as every D made of
finitely many unweighted frames is (Dym et al., arXiv:2402.16077); and of float32 positions, relative gaps below 1e-7
are a matter of rounding, which no guarantee reaches.

No gradient passes through R. It is a function of z_t, which is data: no weight stands before it, so the gradient of the
loss is complete. (Derivatives of the prediction with respect to z_t, as guidance would take them, would lack a term,
and one that grows as 1 over the gap.)
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from bench.geometry.axes import principal_axes
from bench.geometry.groups import RotationGroup
from bench.geometry.state import State

TIE = 1e-12  # of the trace: above rounding in float64, below anything that float32 positions tell apart


def pca_frame(group: RotationGroup, z_t: State, rng: torch.Generator) -> Float[Tensor, "B 3 3"]:
    """R in F(z_t), one per molecule, every member equally often; 3x3 arithmetic in float64."""
    H = group.haar(len(z_t), rng, z_t.x.dtype).double()
    x = z_t.x.detach().double()
    C = z_t.sum_over_atoms(x[:, :, None] * x[:, None, :])
    size = C.diagonal(dim1=1, dim2=2).sum(1).clamp_min(torch.finfo(torch.float64).tiny)
    h1, h3 = H[:, :, 0], H[:, :, 2]
    W = h1[:, :, None] * h1[:, None, :] - h3[:, :, None] * h3[:, None, :]
    V = principal_axes(C / size[:, None, None] + TIE * W)
    r1, r2, _ = torch.where((V * H).sum(1, keepdim=True) < 0, -V, V).unbind(2)
    r3 = torch.linalg.det(H).sign()[:, None] * torch.linalg.cross(r1, r2)
    return torch.stack([r1, r2, r3], dim=2).to(z_t.x.dtype)
