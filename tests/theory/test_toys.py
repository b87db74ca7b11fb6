"""Toys end to end: tasks that judge samples, the exact optimum, and the ordinary run on every one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.backbones.equinet import EquiNet, EquiNetConfig
from bench.backbones.mlp import MLP, MLPConfig
from bench.config.run import RunConfig, build, reason_to_skip
from bench.config.study import load_study
from bench.data.toys import Toy, ToysConfig, cyclohexane, load, shapes
from bench.diffusion.parametrisation import Parametrisation
from bench.diffusion.sampler import Sampler, n_calls, sample
from bench.geometry.layout import Layout
from bench.geometry.noised import Level
from bench.geometry.state import State
from bench.measure import field, pushforward
from bench.measure.contract import Subject
from bench.measure.optimum import OptimumConfig, measure, optimum_of
from bench.records.measured import values_of
from bench.records.store import RunFolder
from bench.run.batches import load_data
from bench.run.evaluate import subject_of
from bench.run.execute import execute
from bench.run.model import Model, make_task
from bench.structures.structures import Structures

TOYS = {
    Toy.SIGN_FLIP: ("sign_flip", "sign"),
    Toy.PLANAR_ONE: ("planar", "SO2"),
    Toy.PLANAR_THREE: ("planar", "SO2"),
    Toy.TETRAHEDRON: ("rigid", "O3"),
    Toy.CHIRAL_TETRAHEDRON: ("rigid", "SO3"),
    Toy.MOLECULE: ("rigid", "O3"),
    Toy.TWO_POINTS: ("identical_points", "permutations"),
    Toy.THREE_POINTS: ("identical_points", "permutations"),
    Toy.TORUS_PAIR: ("torus_pair", "torus"),
}


def config(toy: Toy, method: str = "haar", backbone: dict | None = None, **more) -> RunConfig:
    task, group = TOYS[toy]
    exploding = {"path": "variance_exploding", "n_levels": 20}
    page = {
        "study": "tests",
        "task": task,
        "group": group,
        "method": method,
        "backbone": backbone or {"name": "mlp", "size": "tiny", "n_points": len(shapes(toy)[0])},
        "data": {"name": "toys", "toy": toy.value, "n_copies": 16},
        "diffusion": exploding
        if group == "torus"
        else {"path": "linear_sigma", "n_levels": 20, "parametrisation": "clean"},
        "train": {"n_steps": 4, "batch_size": 8, "n_valid": 8, "log_every": 2, "valid_every": 2},
        "sample": {"n_molecules": 8, "n_steps": 10},
    }
    return build(RunConfig, page | more)


@pytest.mark.parametrize("toy", list(Toy), ids=str)
def test_samples_of_the_law_are_at_no_distance_and_others_are_not(toy, tmp_path):
    cfg = config(toy)
    data = load_data(cfg)
    task = make_task(cfg, data.facts)
    rng = torch.Generator().manual_seed(0)
    clean = task.encode(data.test, dtype=torch.float64)
    drawn = task.decode(task.group.act(task.group.haar(len(clean), rng, torch.float64), clean))
    found = {v.name: v.value for v in task.evaluate(drawn, data, tmp_path).values if not v.at}
    assert found["rmsd"] < 1e-6
    noise = np.random.default_rng(0).normal(size=drawn.positions.shape) * 0.05
    off = Structures(drawn.numbers, drawn.positions + noise, drawn.ptr)
    assert {v.name: v.value for v in task.evaluate(off, data, tmp_path).values if not v.at}["rmsd"] > 0.02
    one = task.decode(clean.replace(**{task.part: clean.parts[task.part][: len(clean.parts[task.part])]}))
    still = {v.name: v.value for v in task.evaluate(one, data, tmp_path).values if not v.at}
    if toy is not Toy.TETRAHEDRON:  # whose points may change places, so that no element is told from its like
        assert still["anisotropy"] > 0.5  # control: all at the stored element


def test_a_mirror_image_is_in_the_orbit_of_o3_and_not_of_so3(tmp_path):
    cfg = config(Toy.CHIRAL_TETRAHEDRON)
    data = load_data(cfg)
    mirrored = Structures(data.test.numbers, data.test.positions * np.array([1, 1, -1], np.float32), data.test.ptr)
    distance = []
    for group in ("SO3", "O3"):
        task = make_task(config(Toy.CHIRAL_TETRAHEDRON, group=group), data.facts)
        distance.append(task.evaluate(mirrored, data, tmp_path).values[0].value)
    assert distance[0] > 0.1
    assert distance[1] < 1e-6


def test_cyclohexane_has_tetrahedral_angles_and_the_bond_lengths_asked_for():
    x = np.array(cyclohexane())
    distance = np.linalg.norm(x[:, None] - x[None], axis=2)
    assert np.allclose(np.sort(distance[:6, :6], axis=1)[:, 1:3], 1.53)
    assert np.allclose(np.sort(distance[:6, 6:], axis=1)[:, :2], 1.09)
    a, b = x[1] - x[0], x[5] - x[0]
    assert a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) == pytest.approx(-1 / 3)
    assert len(x) == 18


def test_equinet_has_91_parameters_and_is_odd():
    net = EquiNet(EquiNetConfig(), {"x": 1}).double()
    assert sum(p.numel() for p in net.parameters()) == 91
    z = State({"x": torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]}, Layout([1] * 7))
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    torch.testing.assert_close(net(z.replace(x=-z.x), t).x, -net(z, t).x)
    assert (
        net.f(torch.cat([z.x, t[:, None]], 1)) + net.f(torch.cat([-z.x, t[:, None]], 1))
    ).abs().max() > 1e-3  # control
    with pytest.raises(ValueError, match="points on a line"):
        EquiNet(EquiNetConfig(), {"x": 3})


def test_the_perceptron_takes_one_size_and_knows_the_period_of_the_torus():
    net = MLP(MLPConfig(n_points=2), {"frac": 3}).double()
    z = State({"frac": torch.rand(6, 3, dtype=torch.float64)}, Layout([2] * 3))
    t = torch.rand(3, dtype=torch.float64)
    torch.testing.assert_close(net(z.replace(frac=z.frac + 1), t).frac, net(z, t).frac)
    assert (net(z.replace(frac=z.frac + 0.5), t).frac - net(z, t).frac).abs().max() > 1e-3  # control
    with pytest.raises(ValueError, match="n_points"):
        net(State({"frac": torch.rand(6, 3, dtype=torch.float64)}, Layout([3] * 2)), t[:2])
    reason = reason_to_skip(build(RunConfig, {"study": "s", "method": "plain", "backbone": "mlp", "data": "mini"}))
    assert reason is not None
    assert "states of one size" in reason


def optimum_values(toy: Toy, method, **options) -> dict[str, float]:
    cfg = config(toy, method)
    data = load_data(cfg)
    model = Model.build(cfg, data.facts)
    cfg_of = OptimumConfig(n_levels=4, n_states=256, n_gradients=8, batch_size=16)
    found = measure(subject_of(cfg, model, data), cfg_of)
    return {v.name: v.value for v in found if not v.at}


@pytest.mark.parametrize(
    "toy", [Toy.SIGN_FLIP, Toy.PLANAR_ONE, Toy.CHIRAL_TETRAHEDRON, Toy.TWO_POINTS, Toy.TORUS_PAIR], ids=str
)
def test_targets_scatter_around_the_optimum_as_their_estimator_says(toy):
    exact = optimum_values(toy, "orbit_rb_exact")["target_error_mean"]
    sampled = optimum_values(toy, {"name": "orbit_rb", "n_draws": 8})["target_error_mean"]
    single = optimum_values(toy, "haar")["target_error_mean"]
    assert exact < 1e-9
    assert exact < sampled < single


def test_the_exact_target_scatters_where_there_are_several_shapes():
    """The clouds, not the angle, are then left to guess."""
    exact = optimum_values(Toy.PLANAR_THREE, "orbit_rb_exact")["target_error_mean"]
    assert 1e-3 < exact < optimum_values(Toy.PLANAR_THREE, "haar")["target_error_mean"]


@pytest.mark.parametrize("method", ["haar", {"name": "orbit_rb", "n_draws": 4}, "orbit_rb_exact"], ids=str)
@pytest.mark.parametrize("toy", list(Toy), ids=str)
def test_every_method_runs_on_every_toy(toy, method, tmp_path):
    cfg = config(toy, method, measures={"optimum": {"n_levels": 3, "n_states": 16, "n_gradients": 2, "batch_size": 4}})
    folder = tmp_path / cfg.run_name(load_data(cfg).fingerprint)
    folder.mkdir()
    execute(cfg, folder)
    values = {value.name: value.value for value in values_of(RunFolder(folder))}
    assert {"rmsd", "anisotropy", "denoising_error_mean", "target_error_mean", "gradient_variance"} <= set(values)


@pytest.mark.parametrize("method", ["target_symmetrisation", "plain"])
def test_the_published_toy_runs_on_equinet(method, tmp_path: Path):
    cfg = config(Toy.SIGN_FLIP, method, {"name": "equinet"})
    folder = tmp_path / cfg.run_name(load_data(cfg).fingerprint)
    folder.mkdir()
    execute(cfg, folder)
    values = {value.name: value.value for value in values_of(RunFolder(folder))}
    assert values["parameters"] == 91
    assert {"rmsd", "w2", "w2_balanced", "balance"} <= set(values)


def test_the_published_settings_are_those_of_the_study():
    runs = load_study("toys_sign_flip").runs
    cfg = runs[0]
    assert len({run.seed for run in runs}) >= 10
    assert (cfg.train.n_steps, cfg.train.lr, cfg.train.lr_decay, cfg.train.lr_decay_every) == (100_000, 1e-3, 0.8, 8000)
    assert cfg.diffusion.n_levels == 100
    assert len(load(ToysConfig(Toy.SIGN_FLIP)).train) == cfg.train.batch_size == 200


def exact_subject(toy: Toy, shift: float = 0.0, **more) -> Subject:
    """A subject that answers with the optimal denoiser, its expected noise off by `shift`."""
    cfg = config(toy, "plain", **more)
    data = load_data(cfg)
    subject = subject_of(cfg, Model.build(cfg, data.facts), data)
    optimum = optimum_of(subject)

    def predict(z_t: State, level: Level, rng: torch.Generator) -> State:
        del rng
        z, exact = z_t.to(dtype=torch.float64), level.to(dtype=torch.float64)
        answer = optimum(z, exact).map(lambda noise: noise + shift)
        if subject.process.parametrisation is Parametrisation.CLEAN:
            answer = Parametrisation.NOISE.clean(answer, z, exact)
        return answer.to(dtype=torch.float32)

    return replace(subject, predict=predict)


@pytest.mark.parametrize("toy", [Toy.SIGN_FLIP, Toy.PLANAR_ONE, Toy.MOLECULE, Toy.TORUS_PAIR], ids=str)
def test_the_field_of_the_optimum_is_the_exact_one(toy):
    """Control: off by 0.3 where its noise is."""

    def differences(shift: float) -> np.ndarray:
        found = field.measure(exact_subject(toy, shift), field.FieldConfig(n_levels=2, n_grid=3))
        named = {name: {tuple(v.at.items()): v.value for v in found if v.name == name} for name in field.FIELDS}
        assert named["field"].keys() == named["field_exact"].keys()
        assert len(named["field"]) == 2 * (3 if toy is Toy.SIGN_FLIP else 2 * 9)
        return np.array([named["field"][at] - named["field_exact"][at] for at in named["field"]])

    assert np.abs(differences(0.0)).max() < 1e-5
    assert differences(0.3) == pytest.approx(-0.3, abs=1e-5)


def test_the_field_on_a_line_is_that_of_the_hyperbolic_tangent():
    found = field.measure(exact_subject(Toy.SIGN_FLIP), field.FieldConfig(n_levels=1, n_grid=5))
    level = exact_subject(Toy.SIGN_FLIP).process.path.at(torch.tensor([10]), torch.float64)
    alpha, sigma = level.alpha.item(), level.sigma.item()
    for value in found:
        x = value.at["x"]
        assert value.at["t"] == pytest.approx(0.5)
        assert value.value == pytest.approx((alpha * np.tanh(alpha * x / sigma**2) - x) / sigma, abs=1e-5)


def test_the_sampled_law_of_the_optimum_is_at_no_distance():
    """Control: that of another denoiser is not."""
    cfg = pushforward.PushforwardConfig(n_nodes=2000, n_steps=19)
    exact = {v.name: v.value for v in pushforward.measure(exact_subject(Toy.SIGN_FLIP), cfg)}
    off = {v.name: v.value for v in pushforward.measure(exact_subject(Toy.SIGN_FLIP, 0.5), cfg)}
    assert exact["rmsd_exact"] < 1e-3
    assert exact["w2_exact"] < 0.03
    assert off["rmsd_exact"] > 2 * exact["rmsd_exact"]
    with pytest.raises(ValueError, match="one point on a line"):
        pushforward.measure(exact_subject(Toy.PLANAR_ONE), cfg)
    denoiser = exact_subject(Toy.SIGN_FLIP)

    def drawing(scale: float) -> Callable[[State, Level, torch.Generator], State]:
        def predict(z_t: State, level: Level, rng: torch.Generator) -> State:
            factor = 1 + scale * torch.rand(1, generator=rng).item()
            return denoiser.predict(z_t, level, rng).map(lambda x: factor * x)

        return predict

    assert pushforward.measure(replace(denoiser, predict=drawing(0.1)), cfg) == []
    assert pushforward.measure(replace(denoiser, predict=drawing(0.0)), cfg)  # it draws, and its output does not differ


@pytest.mark.parametrize(("path", "sampler"), [("linear", "euler"), ("linear", "heun"), ("linear_sigma", "ancestral")])
def test_calls_of_a_sampler_are_as_many_as_are_told(path, sampler):
    subject, made = exact_subject(Toy.PLANAR_ONE, diffusion={"path": path, "parametrisation": "clean"}), []

    def predict(z_t: State, level: Level) -> State:
        made.append(level)
        return z_t

    sample(subject.process, predict, Layout([3]), 7, torch.Generator().manual_seed(0), sampler=Sampler(sampler))
    assert len(made) == n_calls(subject.process.path, Sampler(sampler), 7)
