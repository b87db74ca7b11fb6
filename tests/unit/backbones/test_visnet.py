"""The visnet network against PyTorch Geometric's own, and what of it is needed for the symmetry that it promises."""

import dataclasses
from typing import Any

import pytest
import torch
from support import core, generator, orthogonal, randomise, relative_error, run_config, states, structures, turned
from torch import Tensor
from torch_geometric.nn.models.visnet import ViS_MP, ViSNetBlock

from bench.backbones import visnet
from bench.backbones.visnet import ViSNet, ViSNetConfig
from bench.config.run import RunConfig, build
from bench.geometry.layout import Layout
from bench.geometry.state import State
from bench.nn.pairs import pairs_of
from bench.structures.graphs import to_batch

CHANNELS = {"x": 3, "h": core().n_features}
CFG = ViSNetConfig(width=8, depth=3, n_heads=2, n_basis=8)


def network(cfg: ViSNetConfig = CFG) -> ViSNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ViSNet(cfg, CHANNELS)
    randomise(net, 0)
    return net.double()


def rotation_error(net: ViSNet, determinant: int) -> float:
    _, _, level, z = states()
    Q = orthogonal(determinant)
    return relative_error(net(turned(z, Q), level.t), turned(net(z, level.t), Q))


# ---------------------------------------------------------------------- against PyTorch Geometric


class Edges(torch.nn.Module):
    """All pairs, where `ViSNetBlock` would ask `torch-cluster` for those within the cutoff."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pairs = pairs_of(self.layout)
        vector = pos[pairs.j] - pos[pairs.i]
        return torch.stack([pairs.j, pairs.i]), vector.norm(dim=1), vector


def representation_error(cfg: ViSNetConfig, monkeypatch: pytest.MonkeyPatch, cutoff: float) -> float:
    """Scalars and vectors before the readout, where all that we add to the published network is taken out."""
    monkeypatch.setattr(visnet, "SOFTENING", 1e-12)
    net, layout, rng = network(cfg), Layout([4, 6]), generator(1)
    x, number = torch.randn(10, 3, generator=rng, dtype=torch.float64), torch.tensor([1, 6, 7, 8, 9] * 2)
    theirs = ViSNetBlock(
        cfg.lmax,
        None,
        False,
        cfg.n_heads,
        cfg.depth,
        cfg.width,
        cfg.n_basis,
        max_z=visnet.MAX_NUMBER + 1,
        cutoff=cutoff,
    ).double()
    assert net.elements is not None
    with torch.no_grad():
        for parameter in (net.embedding.weight, net.embedding.bias, net.position.weight):
            parameter.zero_()
        for theirs_embedding, ours in zip(
            (theirs.embedding, theirs.neighbor_embedding.embedding), net.elements.weight.chunk(2, dim=1), strict=True
        ):
            theirs_embedding.weight.copy_(ours)
    theirs.add_module("distance", Edges(layout))
    names = {"basis": "distance_expansion", "neighbours": "neighbor_embedding", "edges": "edge_embedding"}
    for ours, name in {**names, "layers": "vis_mp_layers", "norm": "out_norm"}.items():
        getattr(theirs, name).load_state_dict(getattr(net, ours).state_dict(), strict=ours != "neighbours")
    seen = []
    net.readout.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    context: Any = to_batch(structures([4, 6]))
    context.z = number
    z = State({"x": x, "h": torch.zeros(10, CHANNELS["h"], dtype=torch.float64)}, layout, context)
    net(z, torch.zeros(2, dtype=torch.float64))
    scalars, vectors = theirs(number, z.centre(x), layout.molecule)
    return max(relative_error(seen[0], scalars), relative_error(seen[1], vectors))


@pytest.mark.parametrize("lmax", [1, 2])
def test_representation_is_that_of_pytorch_geometric(lmax, monkeypatch):
    """Without softening, initial vectors and features it is `ViSNetBlock`; control: one of another cutoff is not."""
    cfg = dataclasses.replace(CFG, lmax=lmax, cutoff=5.0, given_elements=True)
    assert representation_error(cfg, monkeypatch, cutoff=5.0) < 1e-9
    assert representation_error(cfg, monkeypatch, cutoff=6.0) > 1e-3


# ---------------------------------------------------------------------- symmetry


@pytest.mark.parametrize("lmax", [1, 2])
def test_every_lmax_is_equivariant(lmax):
    """T10: f(Rz) = R f(z) for det R = +1 and -1 to 1e-9 in float64."""
    net = network(dataclasses.replace(CFG, lmax=lmax))
    for determinant in (1, -1):
        assert rotation_error(net, determinant) < 1e-9


def test_a_cross_product_keeps_rotations_and_breaks_reflections(monkeypatch):
    """T10: control: with a pseudovector among the vectors SO(3) holds and O(3) does not."""
    monkeypatch.setattr(
        ViS_MP, "vector_rejection", staticmethod(lambda v, d: v + torch.linalg.cross(v, d[:, :, None], dim=1))
    )
    net = network()
    assert rotation_error(net, 1) < 1e-9
    assert rotation_error(net, -1) > 1e-3


def test_harmonics_in_another_order_break_rotations(monkeypatch):
    """T10: control: components of degree 2 taken for those of degree 1."""
    net = network(dataclasses.replace(CFG, lmax=2))
    forward = net.sphere.forward
    monkeypatch.setattr(net.sphere, "forward", lambda v: forward(v).roll(1, 1))
    assert rotation_error(net, 1) > 1e-3


@pytest.mark.parametrize(("depth", "lmax"), [(1, 1), (2, 1), (3, 2)])
def test_no_weight_is_idle(depth, lmax):
    _, _, level, z = states()
    net = network(dataclasses.replace(CFG, depth=depth, lmax=lmax))
    out = net(z, level.t)
    (out.x.square().sum() + out.h.square().sum()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


# ---------------------------------------------------------------------- distances, large states


def test_meeting_atoms_are_a_smooth_case(monkeypatch):
    """Output is continuous where two atoms meet; with hardly any softening the direction decides."""
    z, t = states(sizes=[3])[3], torch.tensor([0.5], dtype=torch.float64)

    def jump() -> float:
        """From one atom just left of another to just right of it."""
        offset = torch.tensor([1e-7, 0.0, 0.0], dtype=torch.float64)
        left, right = (z.x.index_copy(0, torch.tensor([1]), (z.x[0] + side * offset)[None]) for side in (-1, 1))
        return relative_error(network()(z.replace(x=left), t), network()(z.replace(x=right), t))

    assert jump() < 1e-4
    monkeypatch.setattr(visnet, "SOFTENING", 1e-12)
    assert jump() > 1e-3


def test_a_lone_atom_stays_where_it_is():
    z = states(sizes=[1])[3]
    out = network()(z, torch.tensor([0.5], dtype=torch.float64))
    assert not out.x.any()
    assert torch.isfinite(out.h).all()


def test_atoms_beyond_the_cutoff_are_alone_and_reach_it_smoothly():
    net, t = network(dataclasses.replace(CFG, cutoff=2.0)), torch.tensor([0.5], dtype=torch.float64)
    z = states(sizes=[2])[3]

    def features(distance: float) -> Tensor:
        x = torch.tensor([[0.0, 0, 0], [distance, 0, 0]], dtype=torch.float64)
        return net(z.replace(x=x), t).h

    assert relative_error(features(2.0 - 1e-4), features(2.0)) < 1e-4
    assert relative_error(features(1.0), features(2.0)) > 1e-3


def growth(net: ViSNet) -> float:
    """How many times the answer grows from 1e3 to 1e4 times a state: 10 for a network linear in large states."""
    z, t = states(sizes=[5, 9])[3], torch.tensor([0.5, 0.5], dtype=torch.float64)
    small, large = (net(z.replace(x=scale * z.x, h=scale * z.h), t) for scale in (1e3, 1e4))
    return max((large.x.norm() / small.x.norm()).item(), (large.h.norm() / small.h.norm()).item())


def test_answer_grows_no_faster_than_the_state(monkeypatch):
    """Inputs are bounded; without that the answer grows at least like the square."""
    assert growth(network()) < 11
    monkeypatch.setattr(visnet, "bounding", lambda values, mean=False: torch.ones_like(values[:, :1]))
    assert growth(network()) > 50


# ---------------------------------------------------------------------- given elements, options


def test_given_elements_decide_the_answer():
    """The context's nuclear charges do, in a network that is asked to look; without them it says what is missing."""
    _, _, level, z = states()
    given = to_batch(structures())
    others: Any = to_batch(structures())
    others.z = others.z % 9 + 1
    looking, blind = network(dataclasses.replace(CFG, given_elements=True)), network()
    here, there = (State(z.parts, z.layout, context) for context in (given, others))
    assert relative_error(looking(there, level.t), looking(here, level.t)) > 1e-2
    assert relative_error(blind(there, level.t), blind(here, level.t)) == 0
    with pytest.raises(ValueError, match="needs nuclear charges `z` in the context") as refusal:
        looking(z, level.t)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("refused", "message", "accepted"),
    [
        ({"width": 10, "n_heads": 4}, "'width' of visnet is 10, expected a multiple of n_heads = 4", {"width": 8}),
        ({"lmax": 3}, "'lmax' of visnet is 3, expected 1 or 2", {"lmax": 2}),
        ({"depth": 0}, "'depth' of visnet is 0, expected at least 1", {"depth": 1}),
        ({"n_basis": 1}, "'n_basis' of visnet is 1, expected at least 2", {"n_basis": 2}),
        ({"cutoff": 0.0}, "'cutoff' of visnet is 0.0, expected a positive length", {"cutoff": 1.0}),
    ],
    ids=["width", "lmax", "depth", "n_basis", "cutoff"],
)
def test_options_that_make_no_network_are_refused(refused, message, accepted):
    """In one line, when a study file is read; the nearest sound options are accepted."""
    cfg = run_config("edm", "visnet")
    with pytest.raises(ValueError, match=message) as refusal:
        build(RunConfig, {**cfg.to_dict(), "backbone": {"name": "visnet", **refused}})
    assert "\n" not in str(refusal.value)
    build(RunConfig, {**cfg.to_dict(), "backbone": {"name": "visnet", **refused, **accepted}})
