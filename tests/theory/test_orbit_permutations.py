"""Permutations as candidates of an orbit average: classes, uniform draws, automorphisms of a graph."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from support import Z_MAX, generator, noised, states

from bench.geometry.groups import SO3
from bench.geometry.layout import Layout
from bench.geometry.matrix_fisher import mean_SO3, moments, proper_svd
from bench.geometry.noised import Level
from bench.geometry.state import State
from bench.symmetry.orbit import OrbitTargetConfig, Proposal, orbit_target
from bench.symmetry.permutations import (
    Permutations,
    atom_classes,
    automorphisms,
    draw_automorphisms,
    draw_permutations,
)


def molecules(*features: list[list[float]]) -> State:
    h = torch.tensor([row for molecule in features for row in molecule], dtype=torch.float64)
    return State({"x": torch.zeros(len(h), 3, dtype=torch.float64), "h": h}, Layout([len(m) for m in features]))


def test_classes_are_equal_features_within_a_molecule():
    found = atom_classes(molecules([[1, 0], [0, 1], [1, 0], [1, 1e-12]], [[1, 0], [1, 0]])).tolist()
    a, b, c, d = found[0], found[1], found[3], found[4]
    assert found == [a, b, a, c, d, d]
    assert len({a, b, c, d}) == 4


@pytest.mark.parametrize("permutations", [Permutations.CLASSES, Permutations.ALL])
def test_permutations_stay_within_molecules_and_classes(permutations):
    x0 = states()[0]
    cfg = OrbitTargetConfig(permutations=permutations, n_permutations=20)
    order = draw_permutations(x0, cfg, generator(0))
    assert order is not None
    A = len(x0.x)
    assert (order.sort(0).values == torch.arange(A)[:, None]).all()
    assert (order[:, 0] == torch.arange(A)).all()
    assert (x0.layout.molecule[order] == x0.layout.molecule[:, None]).all()
    same = (x0.h[order] == x0.h[:, None]).all()
    assert same if permutations is Permutations.CLASSES else not same


def test_permutations_are_uniform():
    """All 3! x 2! elements of a class group equally often; a class's own order does not matter."""
    z = molecules([[1.0], [2], [1], [2], [1]])
    n = 24_000
    cfg = OrbitTargetConfig(include_generator=False, permutations=Permutations.CLASSES, n_permutations=n)
    order = draw_permutations(z, cfg, generator(1))
    assert order is not None
    counts = Counter(map(tuple, order.T.tolist()))
    assert len(counts) == 12
    assert max(abs(c - n / 12) / (n / 12) ** 0.5 for c in counts.values()) < Z_MAX


METHANOL = (["C", "O", "H", "H", "H", "H"], [(0, 1, 1), (0, 2, 1), (0, 3, 1), (0, 4, 1), (1, 5, 1)])
BUTADIENE = (["C"] * 4, [(0, 1, 2), (1, 2, 1), (2, 3, 2)])


def test_automorphisms_keep_colours_bonds_and_bond_orders():
    """Methanol has 3! of them; a carbon chain C=C-C=C has 2, and none but the identity with its orders unlike (the
    released code looks at neither bonds' orders nor hydrogens, spec 6.19)."""
    assert len(automorphisms(*METHANOL)) == 6
    assert automorphisms(*METHANOL)[0].tolist() == list(range(6))
    assert automorphisms(*BUTADIENE).tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]
    assert len(automorphisms(["C"] * 4, [(0, 1, 2), (1, 2, 1), (2, 3, 1)])) == 1
    assert len(automorphisms(["C", "C", "C", "N"], BUTADIENE[1])) == 1
    with pytest.raises(ValueError, match="more than 100 automorphisms; raise 'at_most'"):
        automorphisms(["H"] * 6, [], at_most=100)


def test_automorphisms_are_drawn_uniformly_and_for_each_molecule():
    groups = [automorphisms(*METHANOL), automorphisms(*BUTADIENE)]
    order = draw_automorphisms(groups, 12_000, generator(2))
    assert (order[:, 0] == torch.arange(10)).all()
    counts = Counter(map(tuple, order[:6].T.tolist()))
    assert set(counts) == {tuple(g) for g in groups[0].tolist()}
    assert max(abs(c - 2000) / 2000**0.5 for c in counts.values()) < Z_MAX
    assert set(map(tuple, (order[6:] - 6).T.tolist())) == {(0, 1, 2, 3), (3, 2, 1, 0)}


def over_enumerated_group(x0: State, z_t: State, level: Level, group: torch.Tensor) -> torch.Tensor:
    """E[R x0_pi] for one molecule over all rotations, in closed form, and all listed permutations: sum_pi p_pi M_pi
    x0_pi with p_pi ~ c(F_pi)."""
    F = SO3().moment(x0.x[group.T], noised(x0, z_t, level))[0]
    p = moments(proper_svd(F)[1])[0].softmax(0)
    return torch.einsum("p,pij,pnj->ni", p, mean_SO3(F), x0.x[group])


def test_average_over_automorphisms_is_that_over_the_enumerated_group():
    """T30: for graphs, draws from the automorphisms of butadiene's carbon chain (2) and of methanol (6) in one batch
    approach rotations in closed form over the listed groups, 2e-2 angstrom; permutations within classes of equal
    features (24 each) do not, and neither does the identity alone."""
    graphs = [BUTADIENE, METHANOL]
    parts = []
    for seed, (colours, _) in enumerate(graphs):
        h = torch.tensor([[float(c == e) for e in "CHO"] for c in colours], dtype=torch.float64)
        x = torch.randn(len(h), 3, generator=generator(seed), dtype=torch.float64)
        parts.append(State({"x": x, "h": h}, Layout([len(h)])).centred())
    x0 = State({"x": torch.cat([m.x for m in parts]), "h": torch.cat([m.h for m in parts])}, Layout([4, 6]))
    alpha, sigma = torch.full((2,), 0.6, dtype=torch.float64), torch.full((2,), 0.8, dtype=torch.float64)
    level = Level(alpha * 0 + 0.5, alpha, sigma)
    noise = x0.replace(x=torch.randn(10, 3, generator=generator(2), dtype=torch.float64)).centred()
    z_t = x0.replace(x=0.6 * x0.x + 0.8 * noise.x)

    groups = [automorphisms(*graph) for graph in graphs]
    states = [z_t.x[:4], z_t.x[4:]]
    one = level[:1]
    expected = torch.cat(
        [over_enumerated_group(m, m.replace(x=z), one, g) for m, z, g in zip(parts, states, groups, strict=True)]
    )

    def deviations(cfg: OrbitTargetConfig, order: torch.Tensor | None) -> list[float]:
        both = noised(x0, z_t, level)
        found = both.clean_of(orbit_target(both, SO3(), generator(3), cfg, order).noise)
        assert torch.equal(found.h, x0.h)
        return [(found.x - expected)[atoms].abs().max().item() for atoms in (slice(4), slice(4, 10))]

    n = 20_000
    cfg = OrbitTargetConfig(8, include_generator=False, proposal=Proposal.LOCAL, n_permutations=n)
    assert max(deviations(cfg, draw_automorphisms(groups, n, generator(4)))) < 2e-2
    classes = OrbitTargetConfig(
        8, include_generator=False, proposal=Proposal.LOCAL, permutations=Permutations.CLASSES, n_permutations=n
    )
    assert min(deviations(classes, None)) > 0.1
    assert min(deviations(cfg, torch.arange(10)[:, None].expand(10, n))) > 0.1
