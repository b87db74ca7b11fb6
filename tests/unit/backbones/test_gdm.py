"""GDM against a plain padded-free reference written from the released code's structure, on its own weight names."""

import pytest
import torch
from support import core, randomise, relative_error, states
from torch import Tensor
from torch.nn.functional import linear, silu

from bench.backbones.gdm import GDM, GDMConfig
from bench.geometry.state import State
from bench.published.weights import gdm_names, load_named
from bench.symmetry.published import PublishedError, StateDict

WIDTH, DEPTH = 12, 3
F = core().n_features
CHANNELS = {"x": 3, "h": F}


def published_weights() -> dict[str, Tensor]:
    """Random weights under the names of EDM's `EGNN_dynamics_QM9` in mode 'gnn_dynamics'."""
    layers = {"embedding": (F + 4, WIDTH), "embedding_out": (WIDTH, F + 4)}
    for i in range(DEPTH):
        layers |= {f"gcl_{i}.{mlp}_mlp.{k}": (WIDTH * (2 - k // 2), WIDTH) for mlp in ("edge", "node") for k in (0, 2)}
        layers[f"gcl_{i}.att_mlp.0"] = (WIDTH, 1)
    rng = torch.Generator().manual_seed(0)
    weights = {}
    for name, (n_in, n_out) in layers.items():
        weights[f"gnn.{name}.weight"] = torch.randn(n_out, n_in, generator=rng, dtype=torch.float64) / n_in**0.5
        weights[f"gnn.{name}.bias"] = 0.3 * torch.randn(n_out, generator=rng, dtype=torch.float64)
    return weights


def reference(weights: dict[str, Tensor], z: State, t: Tensor, with_itself: bool = True) -> State:
    """Molecule by molecule, on explicit pairs [n, n, 2 H]."""

    def layer(name: str, values: Tensor) -> Tensor:
        return linear(values, weights[f"gnn.{name}.weight"], weights[f"gnn.{name}.bias"])

    outputs = []
    for x, h, time in zip(z.x.split(z.layout.sizes.tolist()), z.h.split(z.layout.sizes.tolist()), t, strict=True):
        n = len(x)
        node = layer("embedding", torch.cat([x, h, time.expand(n, 1)], dim=1))
        for i in range(DEPTH):
            pairs = torch.cat([node[:, None].expand(n, n, -1), node[None].expand(n, n, -1)], dim=2)
            message = silu(layer(f"gcl_{i}.edge_mlp.2", silu(layer(f"gcl_{i}.edge_mlp.0", pairs))))
            message = message * torch.sigmoid(layer(f"gcl_{i}.att_mlp.0", message))
            if not with_itself:
                message = message * (1 - torch.eye(n, dtype=x.dtype))[:, :, None]
            inputs = torch.cat([node, message.sum(1)], dim=1)
            node = node + layer(f"gcl_{i}.node_mlp.2", silu(layer(f"gcl_{i}.node_mlp.0", inputs)))
        outputs.append(layer("embedding_out", node))
    out = torch.cat(outputs)
    return z.replace(x=out[:, :3], h=out[:, 3:-1])


def network(weights: dict[str, Tensor]) -> GDM:
    net = GDM(GDMConfig(WIDTH, DEPTH), CHANNELS).double()
    published = StateDict(weights)
    with torch.no_grad():
        load_named(net, gdm_names(published), published, "GDM")
    return net


def test_output_is_that_of_the_released_structure():
    """The published names load, all of them, and give what explicit pairs give; an atom is its own partner."""
    _, _, level, z = states()
    weights = published_weights()
    out = network(weights)(z, level.t)
    assert relative_error(out, reference(weights, z, level.t)) < 1e-12
    assert relative_error(out, reference(weights, z, level.t, with_itself=False)) > 1e-3


def test_every_weight_is_seen():
    """Control: each published array, changed alone, changes the output."""
    _, _, level, z = states()
    weights = published_weights()
    out = network(weights)(z, level.t)
    for name, value in weights.items():
        changed = {**weights, name: value + 0.1}
        assert relative_error(network(changed)(z, level.t), out) > 1e-6, name


def test_a_foreign_name_is_refused():
    for name in ("gnn.gcl_0.coord_mlp.0.weight", "egnn.embedding.weight", "gnn.embedding.scale"):
        with pytest.raises(PublishedError, match="no parameter of the published GNN"):
            gdm_names(StateDict({name: torch.zeros(1)}))


def test_moving_a_molecule_moves_the_answer():
    """Positions enter as they are: that the state is centred matters, unlike for networks of differences."""
    _, _, level, z = states()
    net = GDM(GDMConfig(WIDTH, DEPTH), CHANNELS).double()
    randomise(net, 0)
    assert relative_error(net(z.replace(x=z.x + 1), level.t), net(z, level.t)) > 1e-2
