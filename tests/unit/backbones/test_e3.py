"""The e3 network against e3nn's own tensor product, and what of it is needed for the symmetry that it promises."""

import itertools
import math

import pytest
import torch
from e3nn import o3
from support import core, generator, orthogonal, randomise, relative_error, run_config, states, turned
from torch import Tensor

from bench.backbones import e3
from bench.backbones.e3 import E3, LARGEST, SOFTENING, Block, E3Config
from bench.config.run import RunConfig, build
from bench.geometry.layout import Layout
from bench.geometry.state import State
from bench.nn.padded import slots_of
from bench.nn.pairs import Pairs, pairs_of

CHANNELS = {"x": 3, "h": core().n_features}
CFG = E3Config(width=4, depth=3, lmax=2, n_groups=2, n_basis=8)


def network(cfg: E3Config = CFG, dtype: torch.dtype = torch.float64) -> E3:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = E3(cfg, CHANNELS)
    randomise(net, 0)
    return net.to(dtype)


def rotation_error(net: E3, determinant: int) -> float:
    _, _, level, z = states(dtype=net.velocity.weight.dtype)
    Q = orthogonal(determinant)
    return relative_error(net(turned(z, Q), level.t), turned(net(z, level.t), Q))


# ---------------------------------------------------------------------- against e3nn


def e3nn_message(block: Block, h: Tensor, w: Tensor, v: Tensor, pairs: Pairs) -> Tensor:
    """m_i by `o3.TensorProduct` on an explicit list of pairs, weights per pair and channel ('uvu')."""
    C, lmax = h.shape[2], w.shape[1] - 1
    chosen = e3.paths(block.l_in, lmax, block.l_out)
    torch.set_default_dtype(torch.float64)  # of e3nn's constants; in float32 ours would be off by 1e-8
    product = o3.TensorProduct(
        o3.Irreps([(C, (degree, (-1) ** degree)) for degree in range(block.l_in + 1)]),
        o3.Irreps.spherical_harmonics(lmax),
        o3.Irreps([(C, (l3, (-1) ** l3)) for _, _, l3 in chosen]),
        [(l1, l2, k, "uvu", True) for k, (l1, l2, _) in enumerate(chosen)],
        internal_weights=False,
        shared_weights=False,
    )
    torch.set_default_dtype(torch.float32)
    sources = block.source([h[e3.components(degree)] for degree in range(block.l_in + 1)])
    # e3nn keeps a degree's channels outermost: [A, C (2 l + 1)]
    flat = torch.cat([sources[e3.components(d)].permute(1, 2, 0).flatten(1) for d in range(block.l_in + 1)], dim=1)
    Y = o3.spherical_harmonics(o3.Irreps.spherical_harmonics(lmax), v, normalize=False, normalization="component")
    per_channel = w.repeat_interleave(C // w.shape[2], dim=2)  # [P, L, C]
    weights = torch.cat([per_channel[:, l2] for _, l2, _ in chosen], dim=1)
    messages = product(flat[pairs.j], Y, weights)
    summed = torch.zeros(h.shape[1], messages.shape[1], dtype=h.dtype).index_add(0, pairs.i, messages)
    parts: list[list[Tensor]] = [[] for _ in range(block.l_out + 1)]
    for (_, _, l3), part in zip(chosen, summed.split([C * (2 * l3 + 1) for *_, l3 in chosen], dim=1), strict=True):
        parts[l3].append(part.view(-1, C, 2 * l3 + 1).permute(2, 0, 1))
    return block.gather([torch.cat(part, dim=2) for part in parts])


@pytest.mark.parametrize(("l_in", "lmax", "l_out"), [(1, 2, 2), (2, 2, 2), (2, 2, 1), (3, 3, 3)])
def test_message_is_that_of_the_tensor_product_of_e3nn(l_in, lmax, l_out):
    """Coupling after the sum equals a tensor product on each pair; another path's weight would not."""
    layout, rng = Layout([3, 2, 3]), generator(1)
    pairs = pairs_of(layout)
    cfg = E3Config(width=4, depth=1, lmax=lmax, n_groups=2, n_partners=1.0)
    block = Block(cfg, l_in, l_out).double()
    x = torch.randn(8, 3, generator=rng, dtype=torch.float64)
    h = torch.randn((l_in + 1) ** 2, 8, 4, generator=rng, dtype=torch.float64)
    w = torch.randn(len(pairs.i), lmax + 1, 2, generator=rng, dtype=torch.float64)
    v = e3.differences(x, pairs)
    ours = block.message(h, w, e3.harmonics(v, lmax), pairs, slots_of(layout))
    assert relative_error(ours, e3nn_message(block, h, w, v, pairs)) < 1e-12
    assert relative_error(ours, e3nn_message(block, h, w.flip(1), v, pairs)) > 1e-2


def test_vectors_are_in_the_order_of_positions():
    v = torch.randn(5, 3, generator=generator(0), dtype=torch.float64)
    Y = e3.harmonics(v, 2)
    torch.testing.assert_close(Y[:, e3.components(1)], math.sqrt(3) * v)
    assert not torch.allclose(Y[:, e3.components(1)], math.sqrt(3) * v.roll(1, 1))


# ---------------------------------------------------------------------- symmetry


@pytest.mark.parametrize("lmax", [1, 2, 3])
def test_every_lmax_is_equivariant(lmax):
    """T10: f(Rz) = R f(z) for det R = +1 and -1 to 1e-9 in float64, for features of higher order too."""
    net = network(E3Config(width=4, depth=3, lmax=lmax, n_groups=2))
    for determinant in (1, -1):
        assert rotation_error(net, determinant) < 1e-9


def test_a_path_of_wrong_parity_keeps_rotations_and_breaks_reflections(monkeypatch):
    """T10: with l1 + l2 + l3 odd admitted (cross products taken for vectors) SO(3) holds and O(3) does not."""

    def of_any_parity(l_in: int, l_harmonic: int, l_out: int) -> list[tuple[int, int, int]]:
        every = itertools.product(range(l_in + 1), range(l_harmonic + 1), range(l_out + 1))
        return [(l1, l2, l3) for l1, l2, l3 in every if abs(l1 - l2) <= l3 <= l1 + l2]

    monkeypatch.setattr(e3, "paths", of_any_parity)
    net = network()
    assert rotation_error(net, 1) < 1e-9
    assert rotation_error(net, -1) > 1e-3


def test_mixing_components_of_a_degree_breaks_rotations():
    """T10: control: the couplings of another order of components are not equivariant."""
    net = network()
    coupling = net.blocks[1].get_buffer("coupling_1_2")
    coupling.copy_(coupling.roll(1, dims=1))
    assert rotation_error(net, 1) > 1e-3


def test_couplings_keep_double_precision_in_a_network_made_in_single():
    """A network built in float32 and made float64 is exact; couplings that had been rounded on the way are not."""
    net = network()
    assert rotation_error(net, -1) < 1e-12
    for block in net.blocks:
        for name, buffer in block.named_buffers():
            block.register_buffer(name, buffer.float().double(), persistent=False)
    assert rotation_error(net, -1) > 1e-10


# ---------------------------------------------------------------------- higher orders, distances


def test_features_of_degree_two_reach_the_output():
    """Each weight of degree 2 changes vectors and features; taken out together they leave another network."""
    _, _, level, z = states()
    net = network()
    out = net(z, level.t)
    names = [name for name, _ in net.named_parameters() if name.endswith("degrees.2.weight")]
    assert len(names) == 4  # into and out of the middle block, and out of the first and into the last
    for name in names:
        changed = network()
        with torch.no_grad():
            changed.get_parameter(name).mul_(0)
        there = changed(z, level.t)
        assert relative_error(there.x, out.x) > 1e-4, name
        assert relative_error(there.h, out.h) > 1e-6, name


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_no_weight_is_idle(depth):
    """First and last blocks leave out the degrees that nothing has filled or that nothing reads."""
    _, _, level, z = states()
    net = network(E3Config(width=4, depth=depth, lmax=2, n_groups=2))
    out = net(z, level.t)
    (out.x.square().sum() + out.h.square().sum()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_basis_tells_distances_of_noised_states_apart():
    """From 0.1 to 30 neighbouring distances 10 % apart differ by more than 0.09 in some Gaussian."""
    net = network(E3Config(width=4, depth=1, n_groups=2))
    d = torch.logspace(-1, math.log10(LARGEST), 100, dtype=torch.float64)[:, None]
    here, there = (net.basis(0.5 * (x.square() + SOFTENING**2).log()) for x in (d, 1.1 * d))
    assert (here - there).abs().amax(1)[d[:, 0] < LARGEST / 1.1].min() > 0.09
    assert here.amax(1).min() > 0.8


def test_meeting_atoms_are_a_smooth_case():
    """Output is continuous where two atoms meet, with finite first and second derivatives; no atom acts on itself."""
    net = network()
    z = states(sizes=[3])[3]
    t = torch.tensor([0.5], dtype=torch.float64)

    def at(distance: float) -> State:
        x = z.x.clone()
        x[1] = x[0] + torch.tensor([distance, 0.0, 0.0], dtype=torch.float64)
        return z.replace(x=x.requires_grad_())

    together = net(at(0.0), t)
    for distance in (1e-6, 1e-9):
        assert relative_error(net(at(distance), t), together) < 1e3 * distance
    state = at(0.0)
    (first,) = torch.autograd.grad(net(state, t).h.square().sum(), state.x)
    assert torch.isfinite(first).all()
    assert first.any()


def test_a_lone_atom_stays_where_it_is():
    z = states(sizes=[1])[3]
    out = network()(z, torch.tensor([0.5], dtype=torch.float64))
    assert not out.x.any()
    assert torch.isfinite(out.h).all()


def growth(net: E3) -> float:
    """How many times the answer grows from 1e3 to 1e4 times a state: 10 for a network linear in large states."""
    z, t = states(sizes=[5, 9])[3], torch.tensor([0.5, 0.5], dtype=torch.float64)
    small, large = (net(z.replace(x=scale * z.x, h=scale * z.h), t) for scale in (1e3, 1e4))
    return max((large.x.norm() / small.x.norm()).item(), (large.h.norm() / small.h.norm()).item())


@pytest.mark.parametrize("depth", [1, 3])
def test_answer_grows_no_faster_than_the_state(depth, monkeypatch):
    """A block changes features by a bounded amount; without its norm the answer grows at least like the square."""
    net = network(E3Config(width=4, depth=depth, lmax=2, n_groups=2))
    assert growth(net) < 11
    monkeypatch.setattr(e3, "normalise", lambda h: h)
    assert growth(net) > 50


def test_norm_is_of_each_degree_of_each_atom():
    """Mean square 1 of each where features are large, small features stay small, and zero stays zero."""
    h = torch.randn(9, 4, 64, generator=generator(0), dtype=torch.float64) * torch.tensor([1e3, 10.0, 1e-3, 0])[:, None]
    h[e3.components(2)] *= 1e3
    squares = [e3.normalise(h)[e3.components(degree)].square().mean((0, 2)) for degree in range(3)]
    for degree, of_atoms in enumerate(squares):
        torch.testing.assert_close(of_atoms[:2], torch.ones(2, dtype=torch.float64), rtol=1e-3, atol=0)
        assert (of_atoms[2] < 1e-3) == (degree < 2)  # 1e-3 for degrees 0 and 1, 1 for degree 2
        assert not of_atoms[3]


@pytest.mark.parametrize(
    ("refused", "message", "accepted"),
    [
        ({"width": 6, "n_groups": 4}, "'width' of e3 is 6, expected a multiple of n_groups = 4", {"width": 8}),
        ({"lmax": 0}, "'lmax' of e3 is 0, expected at least 1", {"lmax": 1}),
        ({"depth": 0}, "'depth' of e3 is 0, expected at least 1", {"depth": 1}),
        ({"n_groups": 0}, "'n_groups' of e3 is 0, expected at least 1", {"n_groups": 1}),
    ],
    ids=["width", "lmax", "depth", "n_groups"],
)
def test_options_that_make_no_network_are_refused_with_the_page(refused, message, accepted):
    """In one line when a study's page is read, and not when its run starts; the nearest sound options are accepted."""
    cfg = run_config("edm", "e3")
    with pytest.raises(ValueError, match=message) as refusal:
        build(RunConfig, {**cfg.to_dict(), "backbone": {"name": "e3", **refused}})
    assert "\n" not in str(refusal.value)
    build(RunConfig, {**cfg.to_dict(), "backbone": {"name": "e3", **refused, **accepted}})


def test_a_network_built_on_meta_leaves_e3nn_in_order():
    """e3nn caches couplings: made while the default device is 'meta', they would be empty for ever after."""
    with torch.device("meta"):
        E3(E3Config(width=4, depth=3, lmax=4, n_groups=2), CHANNELS)
    assert torch.isfinite(e3.coupling(4, 4, [0, 2])).all()
    assert e3.coupling(4, 4, [0, 2]).device.type == "cpu"
