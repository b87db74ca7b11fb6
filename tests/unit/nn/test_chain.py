"""Chains as inputs: what the order along the chain changes, and what it must not."""

from __future__ import annotations

import pytest
import torch
from support import TOLERANCE, generator, orthogonal, permutation, plug_in, randomise
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from bench.config.run import RunConfig, build, reason_to_skip, resolve
from bench.geometry.layout import Layout
from bench.geometry.state import State
from bench.nn.chain import CHAIN, MAX_SEPARATION
from bench.nn.context import embedding_of
from bench.nn.padded import slots_of
from bench.nn.pairs import pairs_of
from bench.registry import backbones
from bench.structures.graphs import chains_of

SEEING = [name for name in backbones if CHAIN in getattr(backbones[name].build, "contexts", ())]
SIZES = [6, 9, 3]
FLOAT = torch.float64


def network(name: str, context: str | None = CHAIN) -> nn.Module:
    """Random weights, none of them zero."""
    torch.manual_seed(0)
    cfg = resolve(backbones, plug_in(backbones, name), "backbone")
    made = backbones[name].build(cfg.options, {"x": 3}, **({} if context is None else {"context": context}))
    randomise(made, 0)
    return made.to(FLOAT)


def state(per_residue: int = 1, sizes: list[int] = SIZES) -> State:
    layout = Layout(sizes)
    x = torch.randn(layout.n_total, 3, generator=generator(0), dtype=FLOAT)
    return State({"x": x}, layout, chains_of(sizes, per_residue)).centred()


def with_context(z: State, x: Tensor | None = None, **changes: Tensor) -> State:
    assert z.context is not None
    context = z.context.clone()
    for name, value in changes.items():
        context[name] = value
    return State({"x": z.x if x is None else x}, Layout(z.layout.sizes), context)


def out(net: nn.Module, z: State) -> Tensor:
    return net(z, torch.linspace(0.1, 0.9, len(z), dtype=FLOAT)).x


def error(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def test_those_that_should_see_chains_do():
    assert {"egnn", "pairformer"} <= set(SEEING)


@pytest.mark.parametrize("name", SEEING)
def test_only_differences_of_places_are_seen_and_their_direction(name: str):
    """A shift of all places changes nothing; the chain read backwards, or a network without it, differs."""
    net, z = network(name), state()
    here, place = out(net, z), z.context["place"]
    assert error(out(net, with_context(z, place=place + 7)), here) < TOLERANCE[FLOAT]
    assert error(out(net, with_context(z, place=-place)), here) > 1e-4
    blind = network(name, context=None)
    assert torch.equal(out(blind, with_context(z, place=-place)), out(blind, z))


@pytest.mark.parametrize("name", SEEING)
def test_the_kind_of_atom_is_seen(name: str):
    net, z = network(name), state(3)
    assert error(out(net, with_context(z, atom=2 - z.context["atom"])), out(net, z)) > 1e-5


@pytest.mark.parametrize("name", SEEING)
def test_far_apart_counts_as_one_distance(name: str):
    """Control: within reach, one place more is another separation."""
    net, z = network(name), state(sizes=[2])
    far, farther, near = (
        out(net, with_context(z, place=torch.tensor([0, k]))) for k in (MAX_SEPARATION, 10 * MAX_SEPARATION, 1)
    )
    assert torch.equal(far, farther)
    assert error(near, far) > 1e-5


@pytest.mark.parametrize("name", SEEING)
def test_prediction_permutes_with_atoms_and_their_places(name: str):
    """Control: with the places left where they were, it does not."""
    net, z = network(name), state(3)
    order = permutation(z.layout)
    here = out(net, z)[order]
    moved = with_context(z, z.x[order], place=z.context["place"][order], atom=z.context["atom"][order])
    assert error(out(net, moved), here) < TOLERANCE[FLOAT]
    assert error(out(net, with_context(z, z.x[order])), here) > 1e-3


@pytest.mark.parametrize("name", SEEING)
def test_prediction_does_not_depend_on_the_rest_of_the_batch(name: str):
    net, z = network(name), state()
    alone = State({"x": z.x[6:15]}, Layout([9]), chains_of([9], 1))
    t = torch.linspace(0.1, 0.9, 3, dtype=FLOAT)
    assert error(net(alone, t[1:2]).x, net(z, t).x[6:15]) < TOLERANCE[FLOAT]
    assert error(net(alone, t[2:3]).x, net(z, t).x[6:15]) > 1e-4  # control: another time


@pytest.mark.parametrize("determinant", [1, -1])
@pytest.mark.parametrize("name", [name for name in SEEING if backbones[name].build.equivariant])
def test_equivariant_networks_stay_so(name: str, determinant: int):
    """Control: the pairformer does not turn."""
    z, Q = state(), orthogonal(determinant)
    turned = z.rotate(Q.expand(len(z), 3, 3))
    assert error(out(network(name), turned), out(network(name), z) @ Q.T) < TOLERANCE[FLOAT]
    other = network("pairformer")
    assert error(out(other, turned), out(other, z) @ Q.T) > 1e-2


@pytest.mark.parametrize("name", SEEING)
def test_every_table_gets_a_gradient(name: str):
    net = network(name)
    out(net, state(3)).square().sum().backward()
    tables = {key: weight.grad for key, weight in net.named_parameters() if key.startswith("graph.")}
    assert len(tables) == 2
    for grad in tables.values():
        assert grad is not None
        assert grad.isfinite().all()
        assert grad.abs().sum() > 0


def test_chains_are_what_pyg_collates():
    made = chains_of(SIZES, 3)
    single = [chains_of([n], 3) for n in SIZES]
    parts = [Data(place=b.place, atom=b.atom, edge_index=b.edge_index, num_nodes=b.num_nodes) for b in single]
    expected = Batch.from_data_list(parts)
    for key in ("place", "atom", "edge_index", "batch", "ptr"):
        assert torch.equal(made[key], expected[key])
    for one, part in zip(made.to_data_list(), parts, strict=True):
        assert torch.equal(one.place, part.place)
        assert torch.equal(one.edge_index, part.edge_index)
    assert made.atom[:6].tolist() == [0, 1, 2, 0, 1, 2]
    assert set(chains_of([4], 1).atom.tolist()) == {1}


def test_a_context_of_another_name_and_a_state_without_chain_are_refused():
    with pytest.raises(ValueError, match="the context is 'cell', expected graph or chain"):
        embedding_of("cell", 8, 8)
    assert embedding_of(None, 8, 8) is None
    z = state()
    with pytest.raises(ValueError, match="got a state without one in its context"):
        out(network("egnn"), State(z.parts, z.layout))


def test_a_backbone_that_sees_no_chain_is_refused_with_a_line():
    def skipped(backbone: str) -> str | None:
        parts = {"method": "plain", "backbone": plug_in(backbones, backbone), "data": "mini_proteins"}
        return reason_to_skip(build(RunConfig, {"study": "s", "task": "proteins", **parts}))

    assert "cannot see the chain that task 'proteins' gives" in str(skipped("gdm"))
    assert skipped("pairformer") is None


def test_separations_are_of_pairs_in_both_forms():
    """The list of pairs and the padded form read one table. Control: the other direction reads another row."""
    torch.manual_seed(0)
    z, made = state(), embedding_of(CHAIN, 4, 5)
    assert made is not None
    pairs = pairs_of(z.layout, include_self=True)
    padded = slots_of(z.layout).pad_pairs(made.pairs(z, pairs), pairs)
    filled = slots_of(z.layout).filled
    both = filled[:, :, None] & filled[:, None]
    assert torch.equal(made.padded_pairs(z)[both], padded[both])
    assert not torch.equal(made.padded_pairs(z)[both], padded.transpose(1, 2)[both])
