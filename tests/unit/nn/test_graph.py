"""Codes of pairs against networkx, and in the order of the pair lists."""

from __future__ import annotations

import networkx as nx
import numpy as np
import torch
from conformer_examples import ensembles, mirrored, records_of

from bench.geometry.layout import Layout
from bench.geometry.state import State
from bench.nn.graph import MAX_STEPS, handedness, pair_codes, topological_distance
from bench.nn.pairs import pairs_of
from bench.structures.graphs import bond_graphs
from bench.structures.perception import collect


def test_codes_are_those_of_each_molecule():
    """Topological distances as networkx finds them, at most MAX_STEPS + 1, and bonds in both directions."""
    chain, _ = collect(records_of("C" * 12, 1))
    for part in (ensembles(1), chain):
        batch, layout = bond_graphs(part.graphs, part.molecule), Layout(part.n_atoms)
        pairs, codes = pairs_of(layout, include_self=True), pair_codes(batch, layout)
        graph = nx.Graph(batch.edge_index.T.tolist())
        lengths = dict(nx.all_pairs_shortest_path_length(graph))
        expected = [min(lengths[i][j], MAX_STEPS + 1) for i, j in zip(pairs.i.tolist(), pairs.j.tolist(), strict=True)]
        assert topological_distance(batch, layout).tolist() == expected
        kinds = torch.where(batch.bond_configuration > 0, 4 + batch.bond_configuration, batch.bond_type)
        bonded = codes.bond > 0
        found = torch.stack([pairs.i[bonded], pairs.j[bonded], codes.bond[bonded]], dim=1)
        given = torch.cat([batch.edge_index, kinds[None]]).T
        assert sorted(found.tolist()) == sorted(given.tolist())
        turned = torch.stack([pairs.i, pairs.j, codes.turn], dim=1)[codes.turn > 0]
        given = torch.cat([batch.edge_index, batch.bond_turn[None]]).T
        assert sorted(turned.tolist()) == sorted(row for row in given.tolist() if row[2])
    assert max(expected) == MAX_STEPS + 1
    assert {5, 6} <= set(pair_codes(bond_graphs(ensembles(1).graphs, [3, 4]), two_layout()).bond.tolist())


def two_layout() -> Layout:
    return Layout(ensembles(1).graphs.n_atoms[[3, 4]])


def test_codes_are_cached_for_one_context_alone():
    graphs, layout = ensembles(1).graphs, Layout(ensembles(1).graphs.n_atoms[[3]])
    cis, trans = (bond_graphs(graphs, [k]) for k in (3, 4))
    first = pair_codes(cis, layout)
    assert pair_codes(cis, layout) is first
    assert not torch.equal(pair_codes(trans, layout).bond, first.bond)
    assert np.array_equal(pair_codes(cis, layout).bond, first.bond)


def test_handedness_is_positive_for_the_hand_that_was_asked_for():
    """Of each stereocentre, and each neighbour lies on the side of its normal. Controls: mirrored positions with the
    same graph have the other sign; other atoms have zeros; a mirrored molecule with its own graph is right again."""
    record = records_of("C[C@H](F)[C@@H](O)CS(=O)C", 1)[0]
    both, _ = collect([record, mirrored(record)])
    layout = Layout(both.n_atoms)
    x = torch.from_numpy(both.positions).double()
    graph = bond_graphs(both.graphs, both.molecule)
    z = State({"x": x}, layout, graph)
    found = handedness(z)
    centres = torch.from_numpy(both.graphs.chirality != 0)
    assert centres.sum() == 6
    assert (found[centres, 0] > 0.1).all()
    assert not found[~centres].any()
    torch.testing.assert_close(handedness(z.replace(x=-x))[:, 0], -found[:, 0])
    first, second = graph["edge_index"]
    for k in (1, 2, 3):
        chosen = graph["bond_turn"] == k
        normal = found[first[chosen], 3 * k - 2 : 3 * k + 1]
        assert (((x[second[chosen]] - x[first[chosen]]) * normal).sum(1) > 0.1).all()
    Q = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    Q = Q * torch.linalg.det(Q)
    turned = handedness(z.replace(x=x @ Q.T))
    torch.testing.assert_close(turned[:, 0], found[:, 0])
    torch.testing.assert_close(turned[:, 1:].unflatten(1, (3, 3)), found[:, 1:].unflatten(1, (3, 3)) @ Q.T)
