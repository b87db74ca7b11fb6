"""The pairformer against a plain reference, atom by atom, from the formulas of its docstring."""

import pytest
import torch
from support import core, randomise, relative_error, states
from torch.nn.functional import layer_norm, silu

from bench.backbones.pairformer import Pairformer, PairformerConfig
from bench.geometry.layout import Layout
from bench.geometry.state import State

F = core().n_features
CFG = PairformerConfig(width=12, depth=2, n_heads=3, n_gaussians=5)


def network() -> Pairformer:
    net = Pairformer(CFG, {"x": 3, "h": F}).double()
    randomise(net, seed=0)
    return net


def reference(net: Pairformer, z: State, t: torch.Tensor, self_pair: bool = True) -> torch.Tensor:
    """[A, 3 + F], with explicit loops over molecules, blocks, heads and atoms i."""
    d_head, outputs = CFG.width // CFG.n_heads, []
    sizes = z.layout.sizes.tolist()
    for x, h, c in zip(z.x.split(sizes), z.h.split(sizes), silu(net.time(t)), strict=True):
        tokens = net.embedding(torch.cat([x, h], dim=1))
        for b, block in enumerate(net.blocks):
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.modulation(c).chunk(6)
            normed = layer_norm(tokens, [CFG.width], eps=1e-6) * (1 + scale_a) + shift_a
            q, k, v = block.attention.qkv(normed).chunk(3, dim=1)
            rows = []
            for i in range(len(x)):
                r = x[i] - x
                d = (r.square().sum(1) + 1e-12).sqrt()
                g = torch.exp(-0.5 * ((d[:, None] - net.pair_features.centres) / net.pair_features.widths) ** 2)
                p = torch.cat([g, (g[:, :, None] * (r / d[:, None])[:, None]).flatten(1)], dim=1)
                of_atoms, of_pairs = [], []
                for head in range(CFG.n_heads):
                    s, row = slice(head * d_head, (head + 1) * d_head), b * CFG.n_heads + head
                    logits = k[:, s] @ q[i, s] / d_head**0.5 + g @ net.bias.weight[row] + net.bias.bias[row]
                    if not self_pair:
                        logits[i] = float("-inf")
                    a = logits.softmax(0)
                    of_atoms.append(a @ v[:, s])
                    of_pairs.append(a @ p)
                rows.append(torch.cat([*of_atoms, *of_pairs]))
            tokens = tokens + gate_a * block.attention.out(torch.stack(rows))
            normed = layer_norm(tokens, [CFG.width], eps=1e-6) * (1 + scale_m) + shift_m
            tokens = tokens + gate_m * block.mlp(normed)
        shift, scale = net.modulation(c).chunk(2)
        outputs.append(net.head(layer_norm(tokens, [CFG.width], eps=1e-6) * (1 + scale) + shift))
    return torch.cat(outputs)


@torch.no_grad()
def test_outputs_are_those_of_the_formulas():
    """Molecules of different sizes in one batch, so empty slots exist; leaving out i = j is noticed (control)."""
    net = network()
    z = states()[0]
    assert len(set(z.layout.sizes.tolist())) > 1
    t = torch.linspace(0, 1, len(z), dtype=torch.float64)
    out = net(z, t)
    found = torch.cat([out.x, out.h], dim=1)
    assert relative_error(found, reference(net, z, t)) < 1e-12
    assert relative_error(found, reference(net, z, t, self_pair=False)) > 1e-3


@torch.no_grad()
def test_it_sees_directions():
    """Without the pairs' unit vectors in its values the answer changes: they are what the DiT lacks."""
    net = network()
    z, t = states()[0], torch.full((len(states()[0]),), 0.3, dtype=torch.float64)
    before = net(z, t)
    for block in net.blocks:
        of_pairs = block.attention.out.weight[:, CFG.width :].view(CFG.width, CFG.n_heads, -1)
        of_pairs[:, :, CFG.n_gaussians :] = 0
    assert relative_error(net(z, t).x, before.x) > 1e-3


def test_gradients_are_finite_where_atoms_coincide():
    z = State({"x": torch.zeros(3, 3), "h": torch.zeros(3, F)}, Layout([3]))
    z.x.requires_grad_()
    net = Pairformer(CFG, {"x": 3, "h": F})
    randomise(net, seed=0)
    net(z, torch.zeros(1)).x.square().sum().backward()
    assert z.x.grad is not None
    assert z.x.grad.isfinite().all()


def test_distances_are_told_apart_from_a_tenth_of_an_angstrom_to_ten():
    """Some Gaussian changes by more than 1e-2 over a hundredth of an angstrom at bond lengths, a tenth at ten."""
    features = Pairformer(PairformerConfig(), {"x": 3, "h": F}).pair_features
    for d, step in ((1.0, 0.01), (1.5, 0.01), (3.0, 0.03), (10.0, 0.1)):
        x = torch.tensor([[[0.0, 0, 0], [d, 0, 0], [d + step, 0, 0]]])
        g = features(x)[0][0, 0]
        assert (g[1] - g[2]).abs().max() > 1e-2


@pytest.mark.parametrize(("options", "word"), [({"n_heads": 5}, "n_heads"), ({"n_gaussians": 1}, "n_gaussians")])
def test_impossible_sizes_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        Pairformer(PairformerConfig(**{**vars(CFG), **options}), {"x": 3, "h": F})
