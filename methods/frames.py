"""Frames: the network is asked in the molecule's own principal axes, so that any network becomes equivariant.

    D(z) = mean over R in F(z) of  R k(R^-1 z),    F(z) = {orthonormal eigenvectors of C(z) as columns of R},
C(z) = sum_n x_n x_n^T with eigenvalues in decreasing order (Puny et al., Frame averaging, arXiv:2110.03336). Where the
eigenvalues differ, only the signs of the columns are free: |F| = 8 in O(3), 4 in SO(3). C(Q z) = Q C(z) Q^T makes
F(Q z) = Q F(z), and with it D(Q z) = mean of Q R k((Q R)^-1 Q z) = Q D(z), at any weights. One member of F drawn at
random instead of the mean ('stochastic frame averaging' of FAENet, arXiv:2305.05577) gives a D that is equivariant in
law.

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

import itertools
import math
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from bench.diffusion.parametrisation import Predict
from bench.geometry.groups import RotationGroup
from bench.geometry.noised import Level
from bench.geometry.state import State
from bench.references import Reference
from bench.registry import methods
from bench.symmetry.contract import Guarantee, Method, NoOptions, Setting
from bench.symmetry.symmetrise import TURNED_BACK, symmetrised, symmetrised_mean

TIE = 1e-12  # of the trace: above rounding in float64, below anything that float32 positions tell apart


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


PUNY_2021 = Reference(
    "puny2021frame",
    "Frame Averaging for Invariant and Equivariant Network Design",
    (
        *("Puny, Omri", "Atzmon, Matan", "Ben-Hamu, Heli", "Misra, Ishan", "Grover, Aditya", "Smith, Edward J."),
        "Lipman, Yaron",
    ),
    2021,
    arxiv="2110.03336",
)
DUVAL_2023 = Reference(  # stochastic frame averaging
    "duval2023faenet",
    "FAENet: Frame Averaging Equivariant GNN for Materials Modeling",
    (
        *("Duval, Alexandre", "Schmidt, Victor", "Hernandez Garcia, Alex", "Miret, Santiago"),
        *("Malliaros, Fragkiskos D.", "Bengio, Yoshua", "Rolnick, David"),
    ),
    2023,
    arxiv="2305.05577",
)
DYM_2024 = Reference(
    "dym2024equivariant",
    "Equivariant Frames and the Impossibility of Continuous Canonicalization",
    ("Dym, Nadav", "Lawrence, Hannah", "Siegel, Jonathan W."),
    2024,
    arxiv="2402.16077",
)


@methods.register("frames", NoOptions)
class Frames(Method):
    """One of the molecule's PCA frames, drawn at random at every call; equivariant in law at any weights."""

    guarantee = Guarantee.IN_LAW
    needs_group = RotationGroup
    on_equivariant_backbone = TURNED_BACK
    references = (PUNY_2021, DUVAL_2023)

    def draw(self, z_t: State, rng: torch.Generator) -> Float[Tensor, "B 3 3"]:
        """R in F(z_t), one per molecule; 3x3 arithmetic in float64."""
        H = self.group.haar(len(z_t), rng, z_t.x.dtype).double()
        x = z_t.x.detach().double()
        C = z_t.sum_over_atoms(x[:, :, None] * x[:, None, :])
        size = C.diagonal(dim1=1, dim2=2).sum(1).clamp_min(torch.finfo(torch.float64).tiny)
        h1, h3 = H[:, :, 0], H[:, :, 2]
        W = h1[:, :, None] * h1[:, None, :] - h3[:, :, None] * h3[:, None, :]
        V = principal_axes(C / size[:, None, None] + TIE * W)
        r1, r2, _ = torch.where((V * H).sum(1, keepdim=True) < 0, -V, V).unbind(2)
        r3 = torch.linalg.det(H).sign()[:, None] * torch.linalg.cross(r1, r2)
        return torch.stack([r1, r2, r3], dim=2).to(z_t.x.dtype)

    def predict(self, denoiser: Predict, z_t: State, level: Level, rng: torch.Generator) -> State:
        return symmetrised(self.group, self.draw(z_t, rng), denoiser, z_t, level)


@methods.register("frames_averaged", NoOptions)
class FramesAveraged(Frames):
    """Mean over all 8 (O3) or 4 (SO3) PCA frames; equivariant except on a null set, at 8 or 4 network calls."""

    guarantee = Guarantee.EXACT
    references = (PUNY_2021, DYM_2024)
    signs: Tensor

    def __init__(self, cfg: NoOptions, setting: Setting) -> None:
        super().__init__(cfg, setting)
        signs = itertools.product((1.0, -1.0), repeat=3)
        inside = [s for s in signs if math.prod(s) > 0 or not cast(RotationGroup, self.group).proper]
        self.register_buffer("signs", torch.tensor(inside), persistent=False)

    def predict(self, denoiser: Predict, z_t: State, level: Level, rng: torch.Generator) -> State:
        R = self.draw(z_t, rng)
        return symmetrised_mean(self.group, (R * s for s in self.signs), denoiser, z_t, level)
