"""Laws of rotations with known moments, and the measure `rotation_law` of methods that draw from them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import (
    ELEMENTS,
    Z_MAX,
    generator,
    model_of,
    orthogonal,
    relative_error,
    run_config,
    states,
    structures,
    z_score,
)
from torch import Tensor

from bench.config.run import RunConfig, build
from bench.geometry.groups import O3, SO3, RotationGroup
from bench.geometry.noised import Level
from bench.geometry.rotation_laws import (
    angle_test,
    angles,
    between_pairs,
    moments,
    order,
    parity,
    shared_moments,
    spectrum,
    turn,
)
from bench.geometry.state import State
from bench.measure.contract import Subject
from bench.records.values import Value
from bench.registry import measures
from bench.run.batches import load_data
from bench.run.evaluate import subject_of
from bench.run.model import Model
from bench.structures.dataset import DataSet
from bench.symmetry.contract import NoOptions, Setting
from bench.symmetry.symmetrise import InFrame

WIDTH = 2.0  # of the uniform law of angles about an axis, [-WIDTH, WIDTH]


def about_axis(angle: Tensor) -> Tensor:
    """Rotations about (1, 2, 2) / 3 [*n, 3, 3]."""
    x, y, z = 1 / 3, 2 / 3, 2 / 3
    K = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    angle = angle[..., None, None]
    return torch.eye(3, dtype=torch.float64) + angle.sin() * K + (1 - angle.cos()) * (K @ K)


def uniform_angles(K: int, B: int, width: float = WIDTH) -> Tensor:
    return about_axis(width * (2 * torch.rand(K, B, generator=generator(4), dtype=torch.float64) - 1))


def about_axis_moments(width: float) -> tuple[float, float]:
    """S turns by the difference of two angles d: tr S = 1 + 2 cos d, with E cos d = c_1^2, E cos 2d = c_2^2."""
    c_1, c_2 = math.sin(width) / width, math.sin(2 * width) / (2 * width)
    return (1 + 2 * c_1**2) / 3, (1 + 4 * c_1**2 + 2 + 2 * c_2**2 - 1) / 8


def haar(K: int, B: int, group: RotationGroup | None = None) -> Tensor:
    return (group or O3()).haar(K * B, generator(5), torch.float64).view(K, B, 3, 3)


# ---------------------------------------------------------------------- statistics


@pytest.mark.parametrize("n_draws", [2, 5])
def test_moments_about_an_axis_have_their_closed_form(n_draws):
    """Uniform angles about an axis, |z| < 5 at any number of draws; another width is refused, and so is the mean over
    all pairs, a draw with itself among them."""
    R = uniform_angles(n_draws, 4000)
    for own, expected, other in zip(
        moments(R), about_axis_moments(WIDTH), about_axis_moments(0.8 * WIDTH), strict=True
    ):
        assert z_score(own, expected) < Z_MAX
        assert z_score(own, other) > Z_MAX
    assert z_score(shared_moments(R, R).first, about_axis_moments(WIDTH)[0]) > Z_MAX
    assert z_score(shared_moments(R[:1], R[1:2]).second, about_axis_moments(WIDTH)[1]) < Z_MAX


@pytest.mark.parametrize("group", [O3(), SO3()], ids=["O3", "SO3"])
def test_haar_has_no_moments_and_its_angles(group):
    """|z| < 5 and p > 1e-3; turning about random axes by uniform angles has other angles, p < 1e-6."""
    R = haar(4, 2000, group)
    for own in moments(R):
        assert z_score(own) < Z_MAX
    assert z_score(shared_moments(R[:2], uniform_angles(2, 2000)).second) < Z_MAX
    assert z_score(parity(R), float(group.proper)) < Z_MAX if not group.proper else (parity(R) == 1).all()
    assert angle_test(R[0]).p > 1e-3
    assert angle_test(between_pairs(R)).p > 1e-3
    turned = haar(1, 2000, group)[0] @ uniform_angles(1, 2000, math.pi)[0] @ haar(1, 2000, group)[0].mT
    assert angle_test(turned).p < 1e-6


def test_single_rotations_and_sign_frames_are_exact():
    """One element: both moments 1, spectrum (3, 0, ..). Frames up to signs, each once: 0, 1/4 and (1, 1, 1, 0, ..)."""
    Q = orthogonal(-1)
    one = Q.expand(3, 2, 3, 3)
    for own in moments(one):
        torch.testing.assert_close(own, torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(spectrum(one)[0], torch.tensor([3.0, *[0.0] * 8], dtype=torch.float64))
    for proper in (True, False):
        signs = [s for s in itertools.product((1.0, -1.0), repeat=3) if math.prod(s) > 0 or not proper]
        frames = (Q * torch.tensor(signs, dtype=torch.float64)[:, None, :])[:, None]
        first, second = shared_moments(frames, frames)
        assert abs(first.item()) < 1e-12
        assert second.item() == pytest.approx(1 / 4)
        torch.testing.assert_close(spectrum(frames)[0], torch.tensor([1.0] * 3 + [0.0] * 6, dtype=torch.float64))


def test_angles_are_exact_at_both_ends_and_of_reflections():
    a = torch.tensor([0.0, 1e-9, 0.3, 3.0, math.pi - 1e-9, math.pi], dtype=torch.float64)
    torch.testing.assert_close(angles(about_axis(a)), a, rtol=0, atol=1e-15)
    torch.testing.assert_close(angles(-about_axis(a)), a, rtol=0, atol=1e-15)
    by_cosine = ((about_axis(a).diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1).acos()
    assert (by_cosine - a).abs().max() > 1e-10  # control: the arc cosine is not


def test_axes_have_an_order_in_frames_that_follow_them():
    """1 where R is the principal frame up to signs and a fixed rotation, 0 for Haar, |z| < 5, and in between where only
    one axis is followed."""
    V, A = haar(1, 300)[0], orthogonal(1, seed=8)
    signs = torch.randint(0, 2, (40, 300, 1, 3), generator=generator(2)).double() * 2 - 1
    torch.testing.assert_close(order(V, (V * signs) @ A), torch.ones(3, dtype=torch.float64))
    by_draws = torch.stack([order(V, R[None]) for R in haar(40, 300)])
    assert z_score(by_draws) < Z_MAX
    spun = V @ about_axis(math.pi * torch.rand(40, 300, generator=generator(3), dtype=torch.float64) * 2)
    assert 0.1 < order(V, spun).max() < 0.9


def test_turn_is_one_between_independent_elements():
    R = haar(2, 4000)
    assert (turn(R, R) == 0).all()
    assert z_score(turn(R[0], R[1]), 1.0) < Z_MAX
    assert z_score(turn(R[0], R[0] @ about_axis(torch.tensor(1.0))), 1.0) > Z_MAX


# ---------------------------------------------------------------------- the measure


TINY = {"n_levels": 2, "n_molecules": 12, "n_draws": 8, "n_swapped": 12, "n_trajectories": 3, "n_steps": 4}


def data_set() -> DataSet:
    test = structures([6, 4, 5, 6, 7, 8, 5, 9, 6, 7, 8, 4], seed=2)
    return DataSet("synthetic", "synthetic", "tests", ELEMENTS, test, test, test)


class Drawn(InFrame):
    """A method with a law that a test chooses: (z_t, level, rng) -> R."""

    law: Callable[[State, Level, torch.Generator], Tensor]

    def frame(self, z_t: State, level: Level, rng: torch.Generator) -> Tensor:
        return self.law(z_t, level, rng).to(z_t.dtype)


def subject_with(
    method: str | Callable[..., Tensor], backbone: str = "dit", group: RotationGroup | None = None
) -> Subject:
    """A tiny random model; its method is that of a name, or draws from a law."""
    named = method if isinstance(method, str) else "plain"
    model = model_of(named, backbone, group, dtype=torch.float32)
    subject = dataclasses.replace(subject_of(run_config("plain", "dit"), model, data_set()), group=group or O3())
    if isinstance(method, str):
        return subject
    drawn = Drawn(NoOptions(), Setting(group or O3(), model.denoiser.backbone, model.process.channels))
    drawn.law = method
    return dataclasses.replace(
        subject, method=drawn, predict=lambda z, level, rng: drawn.predict(model.denoiser, z, level, rng)
    )


def measured(subject: Subject, **options: Any) -> list[Value]:
    entry = measures["rotation_law"]
    return entry.build(subject, entry.config(**{**TINY, **options}))


def of(values: list[Value], name: str, rotation: str = "own", **at: float) -> list[Value]:
    found = [v for v in values if v.name == f"rotation_law_{name}" and v.at["rotation"] == rotation]
    found = [v for v in found if all(v.at[key] == place for key, place in at.items())]
    assert found
    return found


def one(values: list[Value], name: str, rotation: str = "own") -> Value:
    """A value without a place on an axis."""
    (value,) = of(values, name, rotation)
    return value


def numbers(values: list[Value], name: str, rotation: str = "own", **at: float) -> Tensor:
    return torch.tensor([v.value for v in of(values, name, rotation, **at)], dtype=torch.float64)


def score(value: Value, expected: float = 0.0) -> float:
    assert value.value is not None
    assert value.sem
    return abs(value.value - expected) / value.sem


def test_a_kernel_that_is_haar_has_haars_values():
    """Moments and axes 0, |z| < 5, input unused, p > 1e-3; the values of Haar itself stand beside."""
    found = measured(subject_with("symdiff_haar"), n_draws=16)
    for law in ("own", "Haar"):
        for name in ("first_mean", "second_mean"):
            assert score(one(found, name, law)) < Z_MAX
    assert (numbers(found, "input_turned") == 0).all()
    assert (numbers(found, "input_renoised") == 0).all()
    assert numbers(found, "p").item() > 1e-3
    assert numbers(found, "spectrum", rank=1.0).mean() > 1 / 3  # what finitely many draws spread
    torch.testing.assert_close(numbers(found, "spectrum"), numbers(found, "spectrum", "Haar"), rtol=0.2, atol=0.02)


def test_a_single_rotation_is_the_ceiling():
    """Moments, kept and over molecules, are 1; the input is not used; no angle but 0 occurs."""
    Q = orthogonal(-1)
    found = measured(subject_with(lambda z, *_: Q.expand(len(z), 3, 3)))
    ones = ("first", "second", "parity", "trajectory_first", "trajectory_second", "kept_first", "kept_second")
    for name in (*ones, "marginal_first", "marginal_second", "first_mean", "angle"):
        torch.testing.assert_close(numbers(found, name), torch.ones_like(numbers(found, name)), rtol=0, atol=1e-6)
        if name not in ("angle", "first_mean"):
            assert numbers(found, name, "Haar").abs().max() < 0.5  # control
    assert (numbers(found, "input_turned") == 0).all()
    assert numbers(found, "p").item() < 1e-6
    torch.testing.assert_close(numbers(found, "second_mean", "identity"), numbers(found, "second_mean"))


def test_a_law_about_an_axis_has_its_moments():
    """|z| < 5 of its closed form; that of Haar is refused."""

    def law(z: State, level: Level, rng: torch.Generator) -> Tensor:
        del level
        return about_axis(WIDTH * (2 * torch.rand(len(z), generator=rng, dtype=torch.float64) - 1))

    found = measured(subject_with(law))
    for name, expected in zip(("first", "second"), about_axis_moments(WIDTH), strict=True):
        value = one(found, f"{name}_mean")
        assert score(value, expected) < Z_MAX
        assert score(value) > Z_MAX
        for kept in of(found, f"kept_{name}"):
            assert score(kept, expected) < Z_MAX


def test_frames_follow_the_axes():
    """PCA frames: second moment 1/4, order 1, the input used as if draws were independent; they stand beside others."""
    found = measured(subject_with("frames"), n_draws=32)
    for law in ("own", "PCA frame"):
        torch.testing.assert_close(numbers(found, "axes_mean", law), torch.ones(3, dtype=torch.float64))
        assert score(one(found, "second_mean", law), 0.25) < Z_MAX
    assert numbers(found, "input_turned").min() > 0.5
    assert numbers(found, "axes_mean", "Haar").abs().max() < 0.5


def test_a_kernel_uses_its_input_where_its_weights_read_it():
    """A random kernel does; with its weights on y at zero, distances are left, and turned molecules have the same."""
    subject = subject_with("symdiff")
    kernel: Any = subject.method.kernel
    assert numbers(measured(subject), "input_turned").min() > 1e-4
    with torch.no_grad():
        kernel.embedding.weight[:, :3] = 0
    blind = measured(subject)
    assert numbers(blind, "input_turned").max() < 1e-8
    assert numbers(blind, "input_renoised").max() > 1e-8


def test_the_law_that_a_step_keeps_is_told_from_that_of_one_state():
    """A rotation by an angle in proportion to t: a single one at each state, and (1 + 2 cos d) / 3 kept in a step."""
    speed = 3.0

    def law(z: State, level: Level, rng: torch.Generator) -> Tensor:
        del z, rng
        return about_axis(speed * level.t.double())

    found = measured(subject_with(law))
    torch.testing.assert_close(
        numbers(found, "trajectory_first"), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-6
    )
    kept = (1 + 2 * math.cos(speed / TINY["n_steps"])) / 3
    torch.testing.assert_close(
        numbers(found, "kept_first"), torch.full((4,), kept, dtype=torch.float64), rtol=0, atol=1e-6
    )
    assert kept < 0.9


@pytest.mark.parametrize("method", ["symdiff", "symdiff_haar", "symdiff_as_released", "frames"])
def test_what_is_measured_is_what_runs(method):
    """The frame drawn from a generator is that of the prediction with it; another generator's is not."""
    model = model_of(method, "dit")
    _, _, level, z_t = states()
    assert isinstance(model.method, InFrame)
    R = model.method.frame(z_t, level, generator(1))
    by_hand = model.denoiser(z_t.rotate(R.mT), level).rotate(R)
    assert relative_error(model.predict(z_t, level, generator(1)), by_hand) < 1e-12
    assert relative_error(model.predict(z_t, level, generator(2)), by_hand) > 1e-3


def test_frames_are_worth_nothing_to_an_equivariant_network():
    """Errors and bounds are the same in frames of every law around EGNN; around DiT they are not."""
    for backbone, same in (("egnn", True), ("dit", False)):
        found = measured(subject_with("symdiff_haar", backbone), n_trajectories=0)
        for law in ("Haar", "identity", "PCA frame"):
            excess = [numbers(found, name, law).abs().item() for name in ("swap_excess", "swap_nll")]
            if law == "Haar":  # own draws with the same random numbers
                assert max(excess) == 0
            else:
                assert (excess[0] < 1e-5) is same
                assert (excess[1] < 1e-2) is same


def test_a_network_made_for_one_frame_is_best_in_it():
    """A prediction that is right in PCA frames alone: any other law has a larger error, PCA frames have none more."""
    subject = subject_with("frames")

    def denoiser(z: State, level: Level) -> State:
        """Zero but for what is out of the principal axes of its input: in PCA frames those are the coordinate axes."""
        C = z.sum_over_atoms(z.x[:, :, None] * z.x[:, None, :])
        tilt = (C - torch.diag_embed(C.diagonal(dim1=1, dim2=2))).square().sum((1, 2)).sqrt()
        return z.replace(x=z.per_atom(tilt)[:, None] * z.x, h=0 * z.h)

    found = measured(dataclasses.replace(subject, denoiser=denoiser), n_trajectories=0)
    assert abs(numbers(found, "swap_excess", "PCA frame").item()) < 1e-5
    for law in ("Haar", "identity"):
        assert score(one(found, "swap_excess", law)) > 2
        assert numbers(found, "swap_excess", law).item() > 0.01


@pytest.mark.parametrize("method", ["plain", "haar", "frames_averaged", "orbit_average"])
def test_methods_without_one_random_frame_are_refused_in_one_line(method):
    with pytest.raises(
        ValueError, match=r"takes a method that asks its network in one frame .* got \w+; leave it out"
    ) as info:
        measured(subject_with(method))
    assert "\n" not in str(info.value)


def toy(task: str, toy: str, group: str, **more: Any) -> RunConfig:
    page = {
        "study": "tests",
        "task": task,
        "group": group,
        "method": "symdiff_haar",
        "backbone": {"name": "egnn", "size": "tiny"},
        "data": {"name": "toys", "toy": toy, "n_copies": 16},
        "diffusion": {"path": "linear_sigma", "n_levels": 20, "parametrisation": "clean"},
        "sample": {"n_steps": 4},
    }
    return build(RunConfig, page | more)


@pytest.mark.parametrize("flow", [False, True])
def test_toys_in_space_are_measured_and_planar_ones_refused(flow):
    linear = {"diffusion": {"path": "linear", "parametrisation": "velocity"}} if flow else {}
    cfg = toy("rigid", "tetrahedron", "O3", **linear)
    data = load_data(cfg)
    found = measured(subject_of(cfg, Model.build(cfg, data.facts), data))
    assert score(one(found, "second_mean")) < Z_MAX
    assert all(v.value is not None and math.isfinite(v.value) for v in found)
    assert not any(v.name == "rotation_law_swap_nll" for v in found)

    cfg = toy("planar", "planar_one", "SO2")
    data = load_data(cfg)
    with pytest.raises(ValueError, match="rotations in space, got SO2"):
        measured(subject_of(cfg, Model.build(cfg, data.facts), data))


def test_options_below_their_least_are_refused():
    with pytest.raises(ValueError, match="'n_draws' of rotation_law is 1, expected at least 2"):
        measures["rotation_law"].config(n_draws=1)


def test_values_repeat():
    """The same subject gives the same values: every draw follows from the seed."""
    subject = subject_with("symdiff")
    assert measured(subject) == measured(subject)
    assert measured(subject) != measured(dataclasses.replace(subject, seed=1))
