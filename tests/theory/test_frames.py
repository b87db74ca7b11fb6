"""PCA frames: the set F(z) turns with z, its members are drawn alike, and ties of the spectrum break no promise."""

from __future__ import annotations

import math
from functools import reduce

import pytest
import torch
from support import Z_MAX, generator, model_of, orthogonal, relative_error, states, turned, z_score
from torch import Tensor

from bench.geometry.axes import principal_axes
from bench.geometry.groups import O3, SO3, RotationGroup, Translated
from bench.geometry.layout import Layout
from bench.geometry.noised import Level
from bench.geometry.state import State
from bench.run.model import Model
from bench.symmetry.symmetrise import symmetrised
from methods.frames import Frames, FramesAveraged

GROUPS = [O3(), SO3()]


def named(group: RotationGroup) -> str:
    return type(group).__name__


def frames_of(model: Model) -> Frames:
    assert isinstance(model.method, Frames)
    return model.method


def level_of(n: int, i: int = 300) -> Level:
    return model_of("plain", "dit").task.process.path.at(torch.full((n,), i), torch.float64)


def copies(x: Tensor, n: int = 1, scale: float = 1.5) -> State:
    """n copies of one molecule in float64, its atoms told apart by their features."""
    N = len(x)
    x = scale * (x.double() - x.double().mean(0))
    h = torch.linspace(-1, 1, 6 * N, dtype=torch.float64).view(N, 6).sin()
    return State({"x": x.repeat(n, 1), "h": h.repeat(n, 1)}, Layout([N] * n))


TETRAHEDRON = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
ANGLES = torch.arange(3, dtype=torch.float64) * 2 * math.pi / 3  # in float32 a top is one to 1e-7 only
TRIANGLE = torch.stack([ANGLES.cos(), ANGLES.sin(), 0 * ANGLES], dim=1)
TIES = {  # positions, and the columns of R that no spectrum orders
    "one atom": (torch.zeros(1, 3), [0, 1, 2]),
    "atoms in one point": (torch.zeros(4, 3), [0, 1, 2]),
    "spherical top": (torch.cat([torch.zeros(1, 3), TETRAHEDRON]), [0, 1, 2]),
    "two atoms": (torch.tensor([[0.3, 0.2, -0.5], [-0.3, -0.2, 0.5]]), [1, 2]),
    "linear": (torch.tensor([[-1.0], [0.2], [1.1], [2]]).double() * torch.tensor([0.6, 0.0, 0.8]), [1, 2]),
    "oblate top": (torch.cat([TRIANGLE, 0.3 * torch.tensor([[0.0, 0, 1]])]), [0, 1]),
    "prolate top": (torch.cat([0.3 * TRIANGLE, torch.tensor([[0.0, 0, 1], [0, 0, -1.4]])]), [1, 2]),
}
TIED = pytest.mark.parametrize("tie", list(TIES))
WITHOUT_EMPTY_TIES = ("spherical top", "oblate top", "prolate top")  # ties of eigenvalues that are not zero
COUPLED = 1e-2  # rounding over TIE: how well an axis within a tie is told when z is turned


# ---------------------------------------------------------------------- principal axes


def symmetric(spectrum: Tensor, seed: int = 0) -> Tensor:
    """Matrices with the given eigenvalues [B, 3], float64."""
    Q = O3().haar(len(spectrum), generator(seed), torch.float64)
    A = (Q * spectrum[:, None, :]) @ Q.mT
    return (A + A.mT) / 2


def residual(C: Tensor, V: Tensor) -> float:
    """Largest of |V^T V - 1| and of what V^T C V has beside decreasing eigenvalues, relative to |C|."""
    size = C.abs().amax((1, 2), keepdim=True)
    expected = torch.linalg.eigvalsh(C).flip(1)
    diagonal = ((V.mT @ C @ V - expected.diag_embed()) / size).abs().max().item()
    return max((V.mT @ V - torch.eye(3)).abs().max().item(), diagonal)


def axes_by_rows(C: Tensor) -> Tensor:
    """Control: every eigenvector as a cross product of rows of C - lambda, as closed forms are often written."""
    columns = []
    for value in torch.linalg.eigvalsh(C).flip(1).unbind(1):
        rows = C - value[:, None, None] * torch.eye(3)
        normals = torch.linalg.cross(rows, rows.roll(1, dims=1))
        longest = normals.square().sum(2).argmax(1)[:, None, None]
        columns.append(torch.nn.functional.normalize(torch.take_along_dim(normals, longest, dim=1)[:, 0]))
    return torch.stack(columns, dim=2)


@pytest.mark.parametrize("spectrum", [[3, 2, 1], [2, 1, 1], [2, 2, 1], [1, 1, 1], [1, 0, 0], [1, 1, 0]])
def test_principal_axes_are_those_of_an_iterative_solver_at_every_gap(spectrum):
    """Orthonormal and diagonalising to 1e-14, eigenvalues decreasing, at every gap and of tiny matrices."""
    gap = torch.logspace(-17, 0, 4000, dtype=torch.float64)[:, None]
    noise = torch.randn(4000, 3, generator=generator(1), dtype=torch.float64)
    C = symmetric(torch.tensor(spectrum, dtype=torch.float64) + gap * noise)
    assert residual(C, principal_axes(C)) < 1e-14
    assert residual(1e-120 * C, principal_axes(1e-120 * C)) < 1e-14
    if len(set(spectrum)) < 3:
        assert residual(C, axes_by_rows(C)) > 1e-6  # control


def test_principal_axes_of_multiples_of_one():
    """Any orthonormal basis will do, and is found, also for the zero matrix."""
    V = principal_axes(torch.tensor([0.0, 1.0, 1e-3, -5.0], dtype=torch.float64)[:, None, None] * torch.eye(3))
    assert (V.mT @ V - torch.eye(3)).abs().max() < 1e-14


# ---------------------------------------------------------------------- the frame as a set, and the draw from it


def drawn(z: State, group: RotationGroup, seed: int) -> Tensor:
    return frames_of(model_of("frames", "egnn", group)).frame(z, level_of(len(z)), generator(seed))


def distance_to_signs(S: Tensor, group: RotationGroup) -> float:
    """How far S [B, 3, 3] is from diagonal signs of the group."""
    off = (S - S.diagonal(dim1=1, dim2=2).sign().diag_embed()).abs().max().item()
    return off if not group.proper else max(off, (torch.linalg.det(S) - 1).abs().max().item())


@pytest.mark.parametrize("group", GROUPS, ids=named)
def test_frame_turns_with_its_state_as_a_set(group):
    """F(Q z) = Q F(z): of R in F(z) and R' in F(Q z), drawn independently, (Q R)^-1 R' is a matter of signs."""
    z = states()[3]
    R = drawn(z, group, 1)
    for determinant in (1,) if group.proper else (1, -1):
        Q = orthogonal(determinant, 4)
        there = drawn(turned(z, Q), group, 2)
        assert distance_to_signs((Q @ R).mT @ there, group) < 1e-9
        assert distance_to_signs(R.mT @ there, group) > 0.1  # control: not turned


@pytest.mark.parametrize("group", GROUPS, ids=named)
def test_every_member_of_the_frame_is_drawn_equally_often(group):
    """8 in O(3), 4 in SO(3), each with its share of 20 000 draws, |z| < 5."""
    n = 20_000
    one = states([5])[3]
    z = State({"x": one.x.repeat(n, 1), "h": one.h.repeat(n, 1)}, Layout([5] * n))
    reference = drawn(one, group, 1)
    S = (reference.mT @ drawn(z, group, 2)).diagonal(dim1=1, dim2=2)
    which = ((S < 0).long() * torch.tensor([4, 2, 1])).sum(1)
    counts = torch.nn.functional.one_hot(which, 8).double()
    present = counts.any(0)
    assert present.sum() == (4 if group.proper else 8)
    assert z_score(counts[:, present], 1 / present.sum()) < Z_MAX
    by_solver = (reference.mT @ principal_axes((z.x.mT @ z.x)[None])).diagonal(dim1=1, dim2=2)  # control: never varies
    assert len(by_solver.unique(dim=0)) == 1


@pytest.mark.parametrize("group", GROUPS, ids=named)
def test_drawn_frames_predict_the_members_of_the_mean(group):
    """`frames` gives one of the terms whose mean is `frames_averaged`: its law is known by enumeration."""
    z = states()[3]
    level = level_of(len(z))
    one, mean = model_of("frames", "dit", group), model_of("frames_averaged", "dit", group)
    assert isinstance(mean.method, FramesAveraged)
    R = frames_of(one).frame(z, level_of(len(z)), generator(7))
    terms = [symmetrised(group, R * s, one.denoiser, z, level) for s in mean.method.signs]
    average = reduce(lambda a, b: a.combine(b, torch.add), terms).combine(z, lambda total, _: total / len(terms))
    assert relative_error(mean.predict(z, level, generator(1)), average) < 1e-9
    for seed in range(3):
        out = one.predict(z, level, generator(seed))
        error = torch.stack([z.mean_over_atoms((out.x - t.x).square().sum(1)) for t in terms])
        assert error.min(0).values.max() < 1e-18
        assert error.max(0).values.min() > 1e-4  # control: the terms differ


@pytest.mark.parametrize("group", GROUPS, ids=named)
def test_cost_in_network_calls(group):
    """One for a frame drawn, one for each sign choice of the mean."""
    z = states()[3]
    for method, expected in (("frames", 1), ("frames_averaged", 4 if group.proper else 8)):
        model = model_of(method, "egnn", group)
        model.predict(z, level_of(len(z)), generator(0))
        assert model.denoiser.n_calls == expected


def test_mean_over_proper_frames_tells_mirror_images_apart():
    """T40: over SO(3) the mean turns with rotations alone, over O(3) with reflections as well."""
    z = states()[3]
    level = level_of(len(z))

    def error(group: RotationGroup, determinant: int) -> float:
        model, Q = model_of("frames_averaged", "dit", group), orthogonal(determinant, 3)
        here = turned(model.predict(z, level, generator(1)), Q)
        return relative_error(model.predict(turned(z, Q), level, generator(2)), here)

    assert max(error(SO3(), 1), error(O3(), 1), error(O3(), -1)) < 1e-9
    assert error(SO3(), -1) > 0.1


# ---------------------------------------------------------------------- ties


def moments(R: Tensor) -> Tensor:
    """First and second moments of R beyond those of orthogonality: entries, and products of pairs of columns."""
    return torch.cat([R.flatten(1), (R[:, :, None, :, None] * R[:, None, :, None, :]).flatten(1)], dim=1)


@TIED
@pytest.mark.parametrize("group", GROUPS, ids=named)
def test_draw_at_a_tie_turns_with_its_state(tie, group):
    """R is orthogonal, of the group, and R(Q z; Q H) = Q R(z; H): in law at ties too."""
    z = copies(TIES[tie][0], 50)
    R, Q = drawn(z, group, 3), orthogonal(1, 6)
    assert (R.mT @ R - torch.eye(3)).abs().max() < 1e-12
    if group.proper:
        assert (torch.linalg.det(R) - 1).abs().max() < 1e-12
    assert (drawn(turned(z, Q), Translated(group, Q), 3) - Q @ R).abs().max() < COUPLED
    assert (drawn(turned(z, Q), group, 3) - Q @ R).abs().max() > 0.1  # control: draws not translated


@TIED
def test_draw_within_a_tie_is_haar(tie):
    """Turning the columns of a tie by a fixed rotation of its eigenspace leaves the law of R as it is, |z| < 5."""
    n = 20_000
    z, columns = copies(TIES[tie][0], n), torch.tensor(TIES[tie][1])

    def change(R: Tensor) -> float:
        inner = torch.eye(3, dtype=torch.float64)
        inner[columns[:, None], columns] = HAAR_INNER[len(columns)]
        return z_score(moments(R @ inner) - moments(R))

    R = drawn(z, O3(), 3)
    assert change(R) < Z_MAX
    C = z.sum_over_atoms(z.x[:, :, None] * z.x[:, None, :])
    assert change(principal_axes(C) * (2.0 * torch.randint(0, 2, (n, 1, 3), generator=generator(1)) - 1)) > 10 * Z_MAX


HAAR_INNER = {2: torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64), 3: orthogonal(1, 9)}


def tie_error(method: str, tie: str, coupled: bool, group: RotationGroup) -> float:
    """|D(Q z) - Q D(z)| at a tie; draws of the two independent, or coupled by Q."""
    z, Q = copies(TIES[tie][0], 8), orthogonal(1, 8)
    level = level_of(8)
    here = model_of(method, "dit", group).predict(z, level, generator(1))
    there = model_of(method, "dit", Translated(group, Q) if coupled else group)
    out = there.predict(turned(z, Q), level, generator(1 if coupled else 2))
    return ((out.x - turned(here, Q).x).norm() / (out.x.norm() + out.h.norm())).item()


@TIED
@pytest.mark.parametrize("group", GROUPS, ids=named)
@pytest.mark.parametrize("method", ["frames", "frames_averaged"])
def test_predictions_at_a_tie_are_equivariant_in_law(tie, group, method):
    """To the rounding that is left at ties, on a network that is not equivariant by itself."""
    assert tie_error(method, tie, True, group) < COUPLED


@TIED
@pytest.mark.parametrize("group", GROUPS, ids=named)
def test_mean_over_frames_at_a_tie_is_exact_where_the_tie_is_of_zeros(tie, group):
    """One and two atoms, linear molecules: exact. Ties of non-zero eigenvalues, a null set: in law alone."""
    error = tie_error("frames_averaged", tie, False, group)
    assert error > 1e-2 if tie in WITHOUT_EMPTY_TIES else error < 1e-9


def test_mean_over_frames_is_discontinuous_at_a_tie():
    """The documented defect: states 1e-6 apart, on either side of a symmetric top, get predictions far apart."""
    model = model_of("frames_averaged", "dit")

    def predict(along: list[float]) -> State:
        z = copies(TIES["oblate top"][0] * (1 + 1e-6 * torch.tensor(along, dtype=torch.float64)))
        return model.predict(z, level_of(1), generator(1))

    assert relative_error(predict([1, 0, 0]), predict([0, 0, 1])) > 1e-2
    assert relative_error(predict([1, 0, 0]), predict([2, 0, 0])) < 1e-4  # control: on one side of it, near


def test_gradients_stop_at_the_frame_and_are_finite_at_ties():
    """Weights get theirs; z's contains no derivative of an eigenvector, which a tie would make infinite."""
    for tie in TIES:
        model = model_of("frames_averaged", "dit")
        z = copies(TIES[tie][0])
        z = z.replace(x=z.x.requires_grad_())
        assert not frames_of(model).frame(z, level_of(len(z)), generator(1)).requires_grad
        out = model.predict(z, level_of(1), generator(1))
        (out.x.square().sum() + out.h.square().sum()).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        assert z.x.grad is not None
        assert torch.isfinite(z.x.grad).all()
