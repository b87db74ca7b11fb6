"""Backbones that see bond graphs: what the graph changes, and what it must not.

Each is a check of the contract with a context, and each has a model or a graph that it must catch.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from conformer_examples import ensembles
from support import TOLERANCE, generator, orthogonal, permutation, plug_in, randomise
from torch import Tensor, nn
from torch_geometric.data import Batch

from bench.config.run import RunConfig, build, reason_to_skip, resolve
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.process import DiffusionConfig
from bench.geometry.groups import SO3
from bench.geometry.layout import Layout
from bench.geometry.state import State
from bench.nn.graph import GRAPH
from bench.registry import backbones, methods, tasks
from bench.run.acceleration import accelerate
from bench.run.model import Model
from bench.run.train import training_loss
from bench.streams import Streams
from bench.structures.dataset import Facts
from bench.structures.ensembles import Ensembles
from bench.structures.graphs import bond_graphs
from bench.symmetry.contract import Setting

SEEING = [name for name in backbones if GRAPH in getattr(backbones[name].build, "contexts", ())]
MOLECULES = [5, 0, 6, 4, 1]  # places of conformers, unsorted
FLOAT = torch.float64


def network(name: str, context: str | None = GRAPH, dtype: torch.dtype = FLOAT) -> nn.Module:
    """Random weights, none of them zero."""
    torch.manual_seed(0)
    cfg = resolve(backbones, plug_in(backbones, name), "backbone")
    made = backbones[name].build(cfg.options, {"x": 3}, **({} if context is None else {"context": context}))
    randomise(made, 0)
    return made.to(dtype)


def state(part: Ensembles | None = None, dtype: torch.dtype = FLOAT, noise: float = 0.3) -> State:
    part = ensembles(1).select(np.array(MOLECULES)) if part is None else part
    task = tasks["conformers"]
    z = task.build(task.config(), DiffusionConfig(), "SO3", facts_of(part)).encode(part, dtype=dtype)
    eps = torch.randn(z.x.shape, generator=generator(0), dtype=torch.float64).to(dtype)
    return z.replace(x=z.x + noise * eps).centred()


def facts_of(part: Ensembles) -> Facts:
    return Facts(tuple(np.unique(part.numbers).tolist()), 10.0, {10: 1})


def times(z: State) -> Tensor:
    return torch.linspace(0.1, 0.9, len(z), dtype=z.dtype)


def error(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def with_bonds(part: Ensembles, change) -> Ensembles:
    bonds = part.graphs.bonds.copy()
    change(bonds)
    return dataclasses.replace(part, graphs=dataclasses.replace(part.graphs, bonds=bonds))


def test_those_that_should_see_graphs_do():
    assert {"egnn", "dit", "pairformer", "e3", "visnet"} <= set(SEEING)


@pytest.mark.parametrize("name", SEEING)
def test_another_bond_changes_the_output(name: str):
    """Of the molecule that has it alone. Control: a network built without a context has one output for both."""
    part = ensembles(1).select(np.array(MOLECULES))
    first = part.graphs.bond_ptr[part.molecule[0]]

    def change(bonds: np.ndarray) -> None:
        bonds[first, 2] = 3

    here, there = state(part), state(with_bonds(part, change))
    net = network(name)
    a, b = net(here, times(here)).x, net(there, times(there)).x
    mine = here.layout.molecule == 0
    assert error(b[mine], a[mine]) > 1e-4
    assert error(b[~mine], a[~mine]) < TOLERANCE[FLOAT]
    blind = network(name, context=None)
    assert torch.equal(blind(here, times(here)).x, blind(there, times(there)).x)


@pytest.mark.parametrize("attribute", ["z", "formal_charge", "chirality", "bond_configuration", "bond_turn"])
@pytest.mark.parametrize("name", SEEING)
def test_all_that_is_given_is_seen(name: str, attribute: str):
    z = state()
    assert z.context is not None
    other = z.context.clone()
    changes = {"z": lambda z: 9 - z % 3, "bond_turn": lambda turn: torch.tensor([0, 2, 1, 3, 4])[turn]}
    other[attribute] = changes.get(attribute, lambda given: (given == 0).long())(other[attribute])
    net = network(name)
    changed = State(z.parts, Layout(z.layout.sizes), other)
    assert error(net(changed, times(z)).x, net(z, times(z)).x) > 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", SEEING)
def test_prediction_permutes_with_atoms_and_their_graph(name: str, dtype: torch.dtype):
    """Control: with the graph left where it was, it does not."""
    z = state(dtype=dtype)
    assert z.context is not None
    order = permutation(z.layout)
    context = permuted_graph(z.context, order)
    net = network(name, dtype=dtype)
    here = net(z, times(z)).x[order]
    moved = State({"x": z.x[order]}, Layout(z.layout.sizes), context)
    assert error(net(moved, times(z)).x, here) < TOLERANCE[dtype]
    stayed = State({"x": z.x[order]}, Layout(z.layout.sizes), z.context)
    assert error(net(stayed, times(z)).x, here) > 1e-3


def permuted_graph(context: Batch, order: Tensor) -> Batch:
    place = order.argsort()
    made = context.clone()
    for key in ("z", "formal_charge", "chirality"):
        made[key] = context[key][order]
    made.edge_index = place[context.edge_index]
    return made


@pytest.mark.parametrize("name", SEEING)
def test_an_automorphism_leaves_the_estimate_in_place(name: str):
    """D(pi z) = pi D(z) with the graph as it is. Control: an exchange of two unlike atoms."""
    some = ensembles(1)
    k = next(k for k in range(len(some)) if len(some.graphs.automorphisms(int(some.molecule[k]), 64)) > 1)
    image = torch.tensor(some.graphs.automorphisms(int(some.molecule[k]), 64)[1])
    z = state(some.select(np.array([k])))
    net = network(name)
    here = net(z, times(z)).x
    assert error(net(z.replace(x=z.x[image]), times(z)).x, here[image]) < TOLERANCE[FLOAT]
    swapped = torch.arange(len(image))
    numbers = some.graphs.numbers[some.graphs.atoms(int(some.molecule[k]))]
    pair = torch.tensor([0, int(np.flatnonzero(numbers != numbers[0])[0])])
    swapped[pair] = pair.flip(0)
    assert error(net(z.replace(x=z.x[swapped]), times(z)).x, here[swapped]) > 1e-3


@pytest.mark.parametrize("name", SEEING)
def test_prediction_does_not_depend_on_the_rest_of_the_batch(name: str):
    """Control: a batch with another molecule in this place."""
    some = ensembles(1)
    z, net = state(), network(name)
    alone = state(some.select(np.array(MOLECULES[2:3])))
    atoms = z.layout.molecule == 2
    alone = alone.replace(x=z.x[atoms])
    t = times(z)
    assert error(net(alone, t[2:3]).x, net(z, t).x[atoms]) < TOLERANCE[FLOAT]
    assert alone.layout.n_total != int((z.layout.molecule == 1).sum())


@pytest.mark.parametrize("determinant", [1, -1])
@pytest.mark.parametrize("name", [name for name in SEEING if backbones[name].build.equivariant])
def test_equivariant_networks_stay_so(name: str, determinant: int):
    """Control: the pairformer does not turn."""
    z, Q = state(), orthogonal(determinant)
    turned = z.rotate(Q.expand(len(z), 3, 3))
    net = network(name)
    assert error(net(turned, times(z)).x, net(z, times(z)).x @ Q.T) < TOLERANCE[FLOAT]
    other = network("pairformer")
    assert error(other(turned, times(z)).x, other(z, times(z)).x @ Q.T) > 1e-2


@pytest.mark.parametrize("name", SEEING)
def test_every_table_gets_a_gradient_and_kernels_change_nothing(name: str):
    losses = []
    for kernels in (False, True):
        model = model_of(name)
        if kernels:
            accelerate(model, run_config(name).train)
        z = state(dtype=torch.float32)
        loss = training_loss(model, z, Streams(0).at(0)).sum()
        loss.backward()
        losses.append(loss.item())
        tables = [weight.grad for key, weight in model.named_parameters() if ".graph." in key]
        assert len(tables) == 6
        for grad in tables:
            assert grad is not None
            assert grad.isfinite().all()
            assert grad.abs().sum() > 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def run_config(backbone: str, method: str = "plain") -> RunConfig:
    parts = {"method": method, "backbone": plug_in(backbones, backbone), "data": "mini", "task": "conformers"}
    return build(RunConfig, {"study": "contract", **parts})


def model_of(backbone: str) -> Model:
    cfg = run_config(backbone)
    net = network(backbone, dtype=torch.float32)
    task = tasks["conformers"].build(cfg.task.options, cfg.diffusion, "SO3", facts_of(ensembles(1)))
    method = methods["plain"].build(cfg.method.options, Setting(SO3(), net, task.process.channels))
    return Model(task, Denoiser(net, task.process.spaces), method)


def test_a_backbone_that_sees_no_graph_is_refused_with_a_line():
    """Control: it is not refused where no graph is given, nor is one that sees it."""
    reason = reason_to_skip(run_config("gdm"))
    assert reason is not None
    assert reason.startswith("backbone 'gdm' cannot see the graph that task 'conformers' gives; choose ")
    assert "egnn" in reason
    assert reason_to_skip(run_config("egnn")) is None
    assert (
        reason_to_skip(build(RunConfig, {"study": "s", "method": "plain", "backbone": "gdm", "data": "mini"})) is None
    )
    # and no such network is proposed where an equivariant one is asked for
    wanted = reason_to_skip(run_config("dit", "edm"))
    assert wanted is not None
    assert "egnn" in wanted


def test_a_network_built_for_graphs_says_what_it_lacks():
    z = state()
    with pytest.raises(ValueError, match="got a state without one in its context"):
        network("egnn")(State(z.parts, Layout(z.layout.sizes)), times(z))


def test_bond_graphs_of_another_molecule_are_not_cached():
    """One layout, two contexts of molecules of one size. Control: the same context is looked up."""
    some = ensembles(1)
    cis, trans = 3, 4
    z = state(some.select(np.array([cis])))
    other = State(z.parts, z.layout, bond_graphs(some.graphs, some.molecule[[trans]]))
    net = network("egnn")
    assert error(net(other, times(z)).x, net(z, times(z)).x) > 1e-5
    assert torch.equal(net(z, times(z)).x, net(z, times(z)).x)
