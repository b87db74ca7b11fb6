"""A task that gives the elements and asks for positions: its context reaches the network in training and sampling."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from support import ELEMENTS, relative_error, run_config, structures
from torch import Tensor, nn
from torch_geometric.data import Batch

from bench.backbones.visnet import ViSNet, ViSNetConfig
from bench.config.run import SampleConfig
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.process import DiffusionConfig, Process
from bench.diffusion.sampler import Sampler
from bench.geometry.groups import O3
from bench.geometry.layout import Layout
from bench.geometry.spaces import Centred, Spaces
from bench.geometry.state import State
from bench.registry import methods
from bench.run.model import Model
from bench.run.sample import in_order, sample_prompt
from bench.run.train import training_loss
from bench.streams import Streams
from bench.structures.dataset import DataSet
from bench.structures.graphs import to_batch
from bench.structures.structures import Structures
from bench.symmetry.contract import Setting
from bench.tasks.contract import Evaluation, Prompt, Task


class Arrangement(Task):
    """Positions of given elements."""

    groups = {"O3": O3}  # noqa: RUF012

    def __init__(self) -> None:
        self.group, self.process = O3(), Process(Spaces({"x": Centred(3)}), DiffusionConfig(), mean_atoms=7.0)

    def encode(
        self, structures: Structures, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> State:
        x = torch.from_numpy(np.ascontiguousarray(structures.positions)).to(device, dtype)
        return State({"x": x}, Layout(structures.n_atoms, device), to_batch(structures, device=device)).centred()

    def decode(self, state: State) -> Structures:
        assert state.context is not None
        return Structures(state.context["z"].numpy(), state.x.numpy(), state.ptr.numpy())

    def evaluate(self, samples: Structures, data: DataSet, cache: Path) -> Evaluation:
        raise NotImplementedError


def prompts_for(given: Structures) -> list[Prompt]:
    """One prompt for each molecule."""
    sizes, n = given.n_atoms, int(given.n_atoms.max())
    return [Prompt(i, np.array([i]), sizes[i : i + 1], n, to_batch(given, [i])) for i in range(len(given))]


class ByElement(nn.Module):
    """An estimate that scales positions by a number of each element; `looks` at the context or not."""

    equivariant = True

    def __init__(self, looks: bool) -> None:
        super().__init__()
        self.looks, self.weight = looks, nn.Parameter(torch.linspace(0.1, 1.0, max(ELEMENTS) + 1))

    def forward(self, z: State, t: Tensor) -> State:
        if not self.looks:
            return z.replace(x=self.weight[0] * z.x)
        assert isinstance(z.context, Batch)
        return z.replace(x=self.weight[z.context["z"]][:, None] * z.x)


def arrangement_model(method: str, looks: bool = True) -> Model:
    task, network = Arrangement(), ByElement(looks)
    options = run_config(method, "egnn").method.options
    built = methods[method].build(options, Setting(task.group, network, task.process.channels))
    return Model(task, Denoiser(network, task.process.spaces), built)


def with_other_elements(given: Structures) -> Structures:
    return dataclasses.replace(given, numbers=given.numbers % 9 + 1)


METHODS = ["plain", "edm", "haar", "orbit_rb", "orbit_rb_exact", "orbit_average", "frames", "target_symmetrisation"]


@pytest.mark.parametrize("method", METHODS)
def test_context_decides_the_training_loss(method):
    """Under every method. Control: a network that does not look has one loss whatever is given."""
    given = structures()
    for looks in (True, False):
        model = arrangement_model(method, looks)
        losses = [
            training_loss(model, model.task.encode(molecules), Streams(0).at(0))
            for molecules in (given, with_other_elements(given))
        ]
        if looks:
            assert relative_error(losses[1], losses[0]) > 1e-3
        else:
            assert torch.equal(losses[1], losses[0])


@pytest.mark.parametrize("sampler", [Sampler.ANCESTRAL, Sampler.EULER])
def test_context_decides_the_samples(sampler):
    """Each prompt's, in the order of the prompts. Control: a network that does not look draws the same positions."""
    given = structures([3, 4, 5])
    for looks in (True, False):
        model, samples = arrangement_model("plain", looks), []
        for molecules in (given, with_other_elements(given)):
            prompts = prompts_for(molecules)
            drawn = [sample_prompt(model, prompt, SampleConfig(n_steps=4, sampler=sampler)) for prompt in prompts]
            samples.append(in_order(prompts, drawn))
            assert np.array_equal(samples[-1].numbers, molecules.numbers)
        same = np.array_equal(samples[0].positions, samples[1].positions)
        assert same is not looks


def test_visnet_is_trained_on_given_elements():
    """Gradients reach the embedding of the elements that occur, and of no others."""
    task, model = Arrangement(), arrangement_model("plain")
    visnet = ViSNet(ViSNetConfig(width=8, depth=2, n_heads=2, given_elements=True), task.process.channels)
    built = Model(task, Denoiser(visnet, task.process.spaces), model.method)
    training_loss(built, task.encode(structures()), Streams(0).at(0)).sum().backward()
    assert visnet.elements is not None
    assert visnet.elements.weight.grad is not None
    reached = visnet.elements.weight.grad.abs().sum(1).nonzero()[:, 0].tolist()
    assert reached == sorted(set(structures().numbers.tolist()))
