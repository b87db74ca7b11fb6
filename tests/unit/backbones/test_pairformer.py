"""The pairformer against a plain reference, atom by atom, from the formulas of its docstring."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support import core, permutation, randomise, relative_error, states
from torch.nn.functional import layer_norm, silu

from bench.backbones.pairformer import Pairformer, PairformerConfig
from bench.geometry.layout import Layout
from bench.geometry.state import State

F = core().n_features
CFG = PairformerConfig(width=12, depth=2, n_heads=3, n_gaussians=5)
OPTIONS = {"none": {}, "qk_norm": {"qk_norm": True}, "registers": {"n_registers": 4}}
OPTIONS["both"] = {**OPTIONS["qk_norm"], **OPTIONS["registers"]}
BOTH = replace(CFG, **OPTIONS["both"])


def network(cfg: PairformerConfig = CFG) -> Pairformer:
    net = Pairformer(cfg, {"x": 3, "h": F}).double()
    randomise(net, seed=0)
    return net


def reference(net: Pairformer, z: State, t: torch.Tensor, self_pair: bool = True) -> torch.Tensor:
    """[A, 3 + F], with explicit loops over molecules, blocks, heads and tokens i; registers follow the atoms here."""
    d_head, outputs = CFG.width // CFG.n_heads, []
    sizes = z.layout.sizes.tolist()
    for x, h, c in zip(z.x.split(sizes), z.h.split(sizes), silu(net.time(t)), strict=True):
        n, tokens = len(x), net.embedding(torch.cat([x, h], dim=1))
        if net.registers is not None:
            tokens = torch.cat([tokens, net.registers.tokens.view(-1, CFG.width)])
        for b, block in enumerate(net.blocks):
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.modulation(c).chunk(6)
            normed = layer_norm(tokens, [CFG.width], eps=1e-6) * (1 + scale_a) + shift_a
            q, k, v = block.attention.qkv(normed).chunk(3, dim=1)
            rows = []
            for i in range(len(tokens)):
                r = x[i % n] - x
                d = (r.square().sum(1) + 1e-12).sqrt()
                g = torch.exp(-0.5 * ((d[:, None] - net.pair_features.centres) / net.pair_features.widths) ** 2)
                p = torch.cat([g, (g[:, :, None] * (r / d[:, None])[:, None]).flatten(1)], dim=1)
                bias = g @ net.bias.weight.T + net.bias.bias
                if i >= n:
                    p, bias = torch.zeros_like(p), torch.zeros_like(bias)
                p, bias = ((torch.cat([some, some.new_zeros(len(tokens) - n, some.shape[1])])) for some in (p, bias))
                of_atoms, of_pairs = [], []
                for head in range(CFG.n_heads):
                    s, row = slice(head * d_head, (head + 1) * d_head), b * CFG.n_heads + head
                    query, keys = block.attention.q_norm(q[i, s]), block.attention.k_norm(k[:, s])
                    logits = keys @ query / d_head**0.5 + bias[:, row]
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
        outputs.append(net.head(layer_norm(tokens[:n], [CFG.width], eps=1e-6) * (1 + scale) + shift))
    return torch.cat(outputs)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@torch.no_grad()
def test_outputs_are_those_of_the_formulas(options: dict[str, Any]):
    """Molecules of different sizes in one batch, so empty slots exist; leaving out i = j is noticed (control).

    With registers too: a pair with one has no bias and no values.
    """
    net = network(replace(CFG, **options))
    z = states()[0]
    assert len(set(z.layout.sizes.tolist())) > 1
    t = torch.linspace(0, 1, len(z), dtype=torch.float64)
    out = net(z, t)
    found = torch.cat([out.x, out.h], dim=1)
    assert relative_error(found, reference(net, z, t)) < 1e-12
    assert relative_error(found, reference(net, z, t, self_pair=False)) > 1e-3


@torch.no_grad()
def test_registers_and_norms_keep_what_a_backbone_promises():
    """Predictions permute with atoms, ignore the rest of the batch and the order of registers, not their content."""
    net, z = network(BOTH), states()[0]
    assert net.registers is not None
    t = torch.linspace(0.1, 0.9, len(z), dtype=torch.float64)
    here, order = net(z, t).x, permutation(z.layout)
    moved = State({name: part[order] for name, part in z.parts.items()}, Layout(z.layout.sizes))
    assert relative_error(net(moved, t).x, here[order]) < 1e-12
    assert relative_error(net(moved, t).x, here) > 1e-3  # control
    n, largest = int(z.layout.sizes[0]), z.layout.sizes.max()
    assert n < largest  # so that it is padded in the batch and not alone
    alone = State({name: part[:n] for name, part in z.parts.items()}, Layout([n]))
    assert relative_error(net(alone, t[:1]).x, here[:n]) < 1e-12
    tokens = net.registers.tokens.view(4, -1)
    net.registers.tokens.copy_(tokens.flip(0).flatten())
    assert relative_error(net(z, t).x, here) < 1e-12
    net.registers.tokens.zero_()
    assert relative_error(net(z, t).x, here) > 1e-4  # control


@torch.no_grad()
def test_normed_queries_do_not_grow_with_their_weights():
    """Without pair biases, weights of queries and keys ten times as large change nothing. Control: without the norm."""
    z, t = states()[0], torch.full((len(states()[0]),), 0.3, dtype=torch.float64)
    changes = []
    for options in (OPTIONS["qk_norm"], {}):
        net = network(replace(CFG, **options))
        before = net(z, t).x
        for block in net.blocks:
            block.attention.qkv.weight[: 2 * CFG.width] *= 10
            block.attention.qkv.bias[: 2 * CFG.width] *= 10
        changes.append(relative_error(net(z, t).x, before))
    assert changes[0] < 1e-4  # of EPS
    assert changes[1] > 1e-3


def test_the_options_off_add_no_weights():
    """So that published checkpoints load. Control: both on add a scale and a shift for q and k, and the registers."""
    plain, both = network(), network(BOTH)
    more = set(both.state_dict()) - set(plain.state_dict())
    assert more == {
        "registers.tokens",
        *(f"blocks.{b}.attention.{x}_norm.{w}" for b in range(2) for x in "qk" for w in ("weight", "bias")),
    }
    assert set(plain.state_dict()) <= set(both.state_dict())


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
    net = Pairformer(BOTH, {"x": 3, "h": F})
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


@pytest.mark.parametrize(
    ("options", "word"),
    [({"n_heads": 5}, "n_heads"), ({"n_gaussians": 1}, "n_gaussians"), ({"n_registers": -1}, "n_registers")],
)
def test_impossible_sizes_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        Pairformer(PairformerConfig(**{**vars(CFG), **options}), {"x": 3, "h": F})
