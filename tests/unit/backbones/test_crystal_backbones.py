"""Backbones of crystals: the published count, invariances that hold at any weights, and those that do not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from crystal_examples import examples
from support import generator, randomise, relative_error
from torch import nn

from bench.backbones.cspnet import CSPNet, CSPNetConfig, time_features
from bench.config.run import RunConfig, build, reason_to_skip
from bench.geometry.groups import O3
from bench.geometry.layout import Layout
from bench.geometry.state import State
from bench.geometry.torus import TorusShift
from bench.nn.composition import COMPOSITION, DESCRIBED
from bench.registry import backbones
from bench.structures.graphs import compositions
from bench.structures.prompts import WIDTH

CHANNELS = {"frac": 3, "cell": 9}
PAIRS = "fractions with pairs"
ALL = ["cspnet", "fractions", PAIRS]
F64 = torch.float64


def network(name: str, seed: int = 0, context: str = COMPOSITION) -> nn.Module:
    """A tiny one with random weights, none of them zero."""
    entry, options = backbones[name.split()[0]], {"n_pair_harmonics": 3} if name == PAIRS else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = entry.build(entry.config(**entry.build.sizes["tiny"], **options), CHANNELS, context=context)
    randomise(made, seed)
    return made.double()


def states(names: list[str] | None = None) -> tuple[State, torch.Tensor]:
    made = examples(names)
    layout, rng = Layout(made.n_atoms), generator(1)
    parts = {
        "frac": torch.rand(layout.n_total, 3, generator=rng, dtype=F64),
        "cell": torch.from_numpy(made.cells).flatten(1) + torch.randn(len(made), 9, generator=rng, dtype=F64),  # type: ignore[arg-type]
    }
    return State(parts, layout, compositions(made)), torch.rand(len(made), generator=rng, dtype=F64)


def error(a: State, b: State) -> float:
    return max(relative_error(a.parts[part], b.parts[part]) for part in a.parts)


def test_cspnet_has_the_published_count():
    """12 294 656 parameters at 512 x 6; one more layer, or another width, gives another count."""

    def count(context: str = COMPOSITION, **options: int) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in CSPNet(CSPNetConfig(**options), CHANNELS, context).parameters())

    assert count(**CSPNet.sizes["published"]) == 12_294_656
    assert count() == 12_294_656  # the default is the published size
    assert count(depth=5) != 12_294_656
    assert count(n_harmonics=127) != 12_294_656
    assert count(DESCRIBED) == 12_688_896  # TGDMat's, with its text head


def test_time_features_are_those_of_the_published_index():
    """Levels 0 and 999 of 999 have the indices 1 and 1000."""
    found = time_features(torch.tensor([0.0, 1.0], dtype=F64))
    index, k = torch.tensor([[1.0], [1000.0]], dtype=F64), torch.arange(128, dtype=F64)
    angle = index * 10000 ** (-k / 127)
    torch.testing.assert_close(found, torch.cat([angle.sin(), angle.cos()], dim=1))
    assert relative_error(time_features(torch.tensor([0.001, 0.999], dtype=F64)), found) > 0.1  # control


@pytest.mark.parametrize("name", ALL)
def test_whole_turns_of_a_fraction_change_nothing(name: str):
    z, t = states()
    net = network(name)
    turns = torch.randint(-3, 4, z.frac.shape, generator=generator(2)).double()
    assert error(net(z.replace(frac=z.frac + turns), t), net(z, t)) < 1e-9
    assert error(net(z.replace(frac=z.frac + 0.3 * turns), t), net(z, t)) > 1e-3  # control: parts of turns do


def test_cspnet_is_invariant_under_common_shifts_and_the_transformer_is_not():
    z, t = states()
    group = TorusShift()
    moved = group.act(group.haar(len(z), generator(3), F64), z)
    found = {name: error(network(name)(moved, t), network(name)(z, t)) for name in ALL}
    assert found["cspnet"] < 1e-9
    assert min(found["fractions"], found[PAIRS]) > 1e-3
    one = z.frac.clone()
    one[0] += 0.2  # control: a single site moves
    assert error(network("cspnet")(z.replace(frac=one), t), network("cspnet")(z, t)) > 1e-3


def test_a_turned_cell_turns_its_noise():
    """L -> L Q: fractions' noise stays, the cell's becomes noise Q, det Q = +1 and -1; the transformer's does not."""
    z, t = states()
    Q = O3().haar(len(z), generator(4), F64)
    assert (torch.linalg.det(Q) < 0).any()

    def turned(cell: torch.Tensor) -> torch.Tensor:
        return (cell.unflatten(1, (3, 3)) @ Q).flatten(1)

    def of(name: str) -> float:
        net = network(name)
        here = net(z, t)
        return error(net(z.replace(cell=turned(z.cell)), t), here.replace(cell=turned(here.cell)))

    assert of("cspnet") < 1e-9
    assert of("fractions") > 1e-3


@pytest.mark.parametrize("name", ALL)
def test_sites_permute_and_crystals_do_not_see_one_another(name: str):
    net = network(name)
    made = examples(["SrTiO3", "NaCl"])
    layout, t = Layout(made.n_atoms), torch.tensor([0.2, 0.7], dtype=F64)
    cell = torch.from_numpy(made.cells).flatten(1)  # type: ignore[arg-type]
    z = State({"frac": torch.rand(7, 3, generator=generator(5), dtype=F64), "cell": cell}, layout, compositions(made))
    here = net(z, t)
    order = torch.tensor([3, 1, 0, 4, 2, 6, 5])
    context = compositions(made)
    context.z = context.z[order]
    there = net(State({"frac": z.frac[order], "cell": cell}, layout, context), t)
    assert relative_error(there.frac, here.frac[order]) < 1e-9
    assert relative_error(there.cell, here.cell) < 1e-9
    unmoved = net(State({"frac": z.frac[order], "cell": cell}, layout, compositions(made)), t)
    assert relative_error(unmoved.frac, here.frac[order]) > 1e-3  # control: elements do not follow
    alone = net(State({"frac": z.frac[5:], "cell": cell[1:]}, Layout([2]), compositions(examples(["NaCl"]))), t[1:])
    assert relative_error(alone.frac, here.frac[5:]) < 1e-9
    assert relative_error(alone.cell, here.cell[1:]) < 1e-9
    assert relative_error(alone.cell, here.cell[:1]) > 1e-3  # control: the other crystal


@pytest.mark.parametrize("name", ALL)
def test_a_description_reaches_the_prediction_of_its_own_crystal_alone(name: str):
    """Another one changes what is predicted; descriptions change nothing about shifts, and the others' change nothing.
    Control: without the context's text the network refuses, and one built for compositions does not read it."""
    made = examples(["SrTiO3", "NaCl"])
    z, t = states(["SrTiO3", "NaCl"])
    net = network(name, context=DESCRIBED)
    text = torch.randn(2, WIDTH, generator=generator(6), dtype=F64).numpy()

    def of(net: nn.Module, text: np.ndarray, z: State = z) -> State:
        return net(State(z.parts, z.layout, compositions(made, text=text)), t)

    here = of(net, text)
    shuffled, changed = of(net, text[::-1].copy()), of(net, np.stack([text[0], -text[1]]))
    assert error(shuffled, here) > 1e-3
    assert relative_error(changed.frac[:5], here.frac[:5]) < 1e-12
    assert relative_error(changed.cell[:1], here.cell[:1]) < 1e-12
    assert relative_error(changed.frac[5:], here.frac[5:]) > 1e-3
    assert relative_error(changed.cell[1:], here.cell[1:]) > 1e-3
    group = TorusShift()
    moved = of(net, text, group.act(group.haar(2, generator(3), F64), z))
    assert (error(moved, here) < 1e-9) == (name == "cspnet")
    with pytest.raises(ValueError, match="without descriptions in its context"):
        net(z, t)
    bare = network(name)
    assert error(of(bare, text), bare(z, t)) == 0


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_finite_where_sites_coincide(name: str):
    z, t = states(["SrTiO3", "NaCl"])
    net = network(name)
    net(z.replace(frac=torch.zeros_like(z.frac)), t).squared_norm().sum().backward()
    gradients = [p.grad for p in net.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)


def test_pairs_alone_are_invariant_under_common_shifts():
    """Of the transformer with pairs, tokens alone see where the origin is. Control: with them it does."""
    z, t = states()
    group, net = TorusShift(), network(PAIRS)
    moved = group.act(group.haar(len(z), generator(3), F64), z)
    assert error(net(moved, t), net(z, t)) > 1e-3
    with torch.no_grad():
        net.places.weight.zero_()
    assert error(net(moved, t), net(z, t)) < 1e-9


@pytest.mark.parametrize("name", ["cspnet", "fractions"])
def test_other_states_are_refused_with_a_line(name: str):
    build_it: Callable[..., nn.Module] = backbones[name].build
    with pytest.raises(ValueError, match="choose task 'crystals', or another backbone"):
        build_it(backbones[name].config(), {"x": 3, "h": 6})
    z, t = states()
    net, bare = network(name), State(z.parts, z.layout)
    with pytest.raises(ValueError, match="without one in its context"):
        net(bare, t)
    page = {"study": "s", "method": "plain", "backbone": {"name": name, "size": "tiny"}}
    assert "denovo" in (reason_to_skip(build(RunConfig, page | {"data": "mini"})) or "")
    crystals = page | {"task": "crystals", "data": "mini_crystals"}
    crystals["diffusion"] = {"path": "variance_exploding"}
    assert reason_to_skip(build(RunConfig, crystals)) is None  # control
    toys = build(RunConfig, crystals | {"backbone": {"name": "mlp", "size": "tiny"}})
    assert "cannot see the composition" in (reason_to_skip(toys) or "")
