"""What each method costs beside `plain` on the same backbone: `make perf`. Times are shown, never asserted."""

import numpy as np
import pytest
import torch
from support import for_molecules

from bench.config.run import RunConfig, build, reason_to_skip
from bench.geometry.noised import Noised
from bench.geometry.state import State
from bench.registry import datasets, methods
from bench.run.model import Model
from bench.run.train import training_loss
from bench.streams import Streams

N_MOLECULES = 64
SIZE = "small"
RNG = Streams(0)


def runs() -> list[RunConfig]:
    """Every method on every backbone that it accepts."""
    cells = ((method, backbone) for backbone in for_molecules() for method in methods)
    pages = (
        {"study": "perf", "method": {"name": m}, "backbone": {"name": b, "size": SIZE}, "data": {"name": "mini"}}
        for m, b in cells
    )
    return [cfg for page in pages if not reason_to_skip(cfg := build(RunConfig, page))]


@pytest.fixture(params=runs(), ids=lambda cfg: f"{cfg.method.name}-{cfg.backbone.name}")
def case(request: pytest.FixtureRequest) -> tuple[RunConfig, Model, State]:
    """A run, its model, and a batch of the embedded set."""
    cfg: RunConfig = request.param
    data = datasets["mini"].build(cfg.data.options)
    model = Model.build(cfg, data.facts)
    smallest_first = np.argsort(data.train.n_atoms[:N_MOLECULES], kind="stable")
    return cfg, model, model.task.encode(data.train.select(smallest_first))


def test_training_step(benchmark, case):
    cfg, model, x0 = case
    benchmark.group = f"training step on {cfg.backbone.name}, {N_MOLECULES} molecules"

    def step() -> None:
        model.zero_grad(set_to_none=True)
        training_loss(model, x0, RNG.at(0)).mean().backward()

    benchmark(step)


def test_prediction(benchmark, case):
    cfg, model, x0 = case
    benchmark.group = f"prediction on {cfg.backbone.name}, {N_MOLECULES} molecules"
    level = model.process.path.at(torch.full((len(x0),), model.process.path.n_levels // 2))
    with torch.no_grad():
        benchmark(lambda: model.predict(x0, level, RNG.at(0).method))


def test_augmentation(benchmark, case):
    _, model, x0 = case
    benchmark.group = f"augmentation, {N_MOLECULES} molecules"
    benchmark(lambda: model.method.augment(x0, RNG.at(0).method))


def test_target(benchmark, case):
    _, model, x0 = case
    benchmark.group = f"target, {N_MOLECULES} molecules"
    both = noised(model, x0)
    benchmark(lambda: model.method.target(both, RNG.at(0).method))


def test_loss(benchmark, case):
    _, model, x0 = case
    benchmark.group = f"loss, {N_MOLECULES} molecules"
    both = noised(model, x0)
    benchmark(lambda: model.method.loss(both.z_t, both.noise, both))


def noised(model: Model, x0: State) -> Noised:
    """The batch at a level of its own for each molecule."""
    process = model.process
    return process.noised(x0, process.noise(x0.layout, RNG.at(0).noise), process.draw(len(x0), RNG.at(0).time))
