"""Bonds from distances and the stability that follows, held against the rule written out pair by pair."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bench.metrics import stability
from bench.metrics.molecules import evaluate_molecules
from bench.metrics.stability import (
    BondRule,
    BondTable,
    UnknownElementError,
    determined_bonds,
    infer_bonds,
    natural_rule,
    perceived,
    stable_atoms,
)
from bench.structures.structures import Structures

SYMBOL = {1: "H", 6: "C", 7: "N", 8: "O", 9: "F"}
# fmt: off
SINGLE = {"HH": 74, "HC": 109, "HN": 101, "HO": 96, "HF": 92, "CC": 154, "CN": 147, "CO": 143, "CF": 135,
          "NN": 145, "NO": 140, "NF": 136, "OO": 148, "OF": 142, "FF": 142}
# fmt: on
DOUBLE = {"CC": 134, "CN": 129, "CO": 120, "NN": 125, "NO": 121, "OO": 121}
TRIPLE = {"CC": 120, "CN": 116, "CO": 113, "NN": 110}


def order_by_rule(a: int, b: int, x: np.ndarray, y: np.ndarray) -> int:
    pair = "".join(sorted((SYMBOL[a], SYMBOL[b]), key="HCNOF".index))
    d = 100 * np.linalg.norm(x.astype(np.float32) - y.astype(np.float32))
    order = 0
    if d < SINGLE[pair] + 10:
        order = 1
        if pair in DOUBLE and d < DOUBLE[pair] + 5:
            order = 2
            if pair in TRIPLE and d < TRIPLE[pair] + 3:
                order = 3
    return order


def random_molecules(n_molecules: int, seed: int = 0) -> Structures:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 12, n_molecules)
    return Structures.from_list([(rng.choice(list(SYMBOL), n), rng.normal(scale=1.0, size=(n, 3))) for n in sizes])


def pair(a: int, b: int, distance: float) -> Structures:
    return Structures.from_list([(np.array([a, b]), np.array([[0, 0, 0], [distance, 0, 0]]))])


def order_of(structures: Structures) -> int:
    bonds = infer_bonds(structures)
    return int(bonds.order[0]) if len(bonds.order) else 0


def test_bonds_equal_the_rule_written_out_pair_by_pair():
    molecules = random_molecules(200)
    bonds = infer_bonds(molecules)
    for k, (numbers, positions) in enumerate(molecules):
        expected = [
            [i, j, order]
            for i in range(len(numbers))
            for j in range(i)
            if (order := order_by_rule(int(numbers[i]), int(numbers[j]), positions[i], positions[j]))
        ]
        assert bonds[k].tolist() == expected
    assert {1, 2, 3} == set(bonds.order.tolist())


@pytest.mark.parametrize(("a", "b"), itertools.combinations_with_replacement(SYMBOL, 2))
def test_every_limit_is_strict(a, b):
    name = SYMBOL[a] + SYMBOL[b]
    limits = [lengths[name] + margin for lengths, margin in ((SINGLE, 10), (DOUBLE, 5), (TRIPLE, 3)) if name in lengths]
    for order, limit in enumerate(limits, start=1):
        at = np.float32(limit / 100)
        if 100 * at != limit:  # no float32 is 106 pm when multiplied by 100; the next one up is beyond
            at = np.nextafter(at, np.float32(9))
        for first, second in ((a, b), (b, a)):
            assert order_of(pair(first, second, float(at))) == order - 1  # at the limit: not yet
            assert order_of(pair(first, second, float(at) - 1e-6)) == order


def test_a_triple_bond_is_looked_for_inside_the_double_test_alone():
    # O-O has a double bond and no triple one; H-H neither: however close, no higher order
    assert order_of(pair(8, 8, 0.5)) == 2
    assert order_of(pair(1, 1, 0.3)) == 1
    # a table whose triple reach exceeds its double reach separates nested from independent tests
    table = BondTable.load()
    odd = BondTable("odd", table.reach * np.array([1, 1, 2], np.float32)[:, None, None], table.valences)
    between = pair(6, 6, 1.45)  # beyond 139 pm, within twice 123 pm
    assert infer_bonds(between, odd).order.tolist() == [1]
    assert infer_bonds(pair(6, 6, 1.38), odd).order.tolist() == [3]


def test_margins_and_valences_are_those_of_the_paper():
    table = BondTable.load()
    for k, (lengths, margin) in enumerate(((SINGLE, 10), (DOUBLE, 5), (TRIPLE, 3))):
        for a, b in itertools.product(SYMBOL, SYMBOL):
            name = "".join(sorted((SYMBOL[a], SYMBOL[b]), key="HCNOF".index))
            assert table.reach[k, a, b] == (lengths[name] + margin if name in lengths else 0)
    assert valences(table) == {1: [1], 6: [4], 7: [3], 8: [2], 9: [1]}


def valences(table: BondTable) -> dict[int, list[int]]:
    return {int(z): np.flatnonzero(table.valences[z]).tolist() for z in table.elements}


def test_the_table_for_geom_holds_that_for_qm9_and_more_elements():
    """Phosphorus may have two valences; a pair without a length is no bond, however close. Control: PH4."""
    edm, geom = BondTable.load(), BondTable.load("edm_geom")
    known = np.ix_(range(3), edm.elements, edm.elements)
    assert np.array_equal(edm.reach[known], geom.reach[known])
    more = {5: [3], 14: [4], 15: [3, 5], 16: [4], 17: [1], 33: [3], 35: [1], 53: [1]}
    assert valences(geom) == valences(edm) | more
    assert infer_bonds(pair(15, 35, 2.2), geom).order.tolist() == [1]
    assert infer_bonds(pair(15, 53, 2.4), geom).order.tolist() == []  # P-I has no length
    with pytest.raises(UnknownElementError):
        infer_bonds(pair(15, 35, 2.2))
    x = np.array([[0, 0, 0], [0.83, 0.83, 0.83], [-0.83, -0.83, 0.83], [-0.83, 0.83, -0.83], [0.83, -0.83, -0.83]])
    for n_hydrogens, stable in ((3, True), (4, False)):  # PH3 is stable by the table, PH4 is not
        molecule = Structures.from_list([(np.array([15] + [1] * n_hydrogens), x[: n_hydrogens + 1])])
        evaluation = evaluate_molecules(molecule, bonds=infer_bonds(molecule, geom))
        assert evaluation.molecule_stable.tolist() == [stable]


def test_charged_and_wrongly_bonded_atoms_are_not_stable():
    oxygen_with_one_hydrogen = pair(8, 1, 0.97)
    evaluation = evaluate_molecules(oxygen_with_one_hydrogen)
    assert evaluation.stable_atoms.tolist() == [1]
    assert evaluation.molecule_stable.tolist() == [False]
    assert evaluate_molecules(pair(1, 9, 0.92)).molecule_stable.tolist() == [True]


def test_two_stable_molecules_far_apart_count_as_one_stable_molecule():
    x = np.array([[0, 0, 0], [0.74, 0, 0], [50, 0, 0], [50.74, 0, 0]])
    assert evaluate_molecules(Structures.from_list([(np.ones(4, int), x)])).molecule_stable.tolist() == [True]


def test_bonds_do_not_depend_on_chunks_or_on_the_other_molecules(monkeypatch):
    molecules = random_molecules(60)
    alone = [infer_bonds(molecules.select(np.array([k])))[0].tolist() for k in range(len(molecules))]
    for at_once in (1, 7, 40, 10**6):
        monkeypatch.setattr(stability, "PAIRS_AT_ONCE", at_once)
        bonds = infer_bonds(molecules)
        assert [rows.tolist() for rows in bonds] == alone
        assert len(bonds) == len(molecules)


def test_bonds_do_not_depend_on_pose_or_atom_order():
    rng = np.random.default_rng(3)
    molecules = random_molecules(50)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turned = Structures(molecules.numbers, molecules.positions @ rotation.T + 5, molecules.ptr)
    sums = infer_bonds(molecules).order_sums(molecules)
    assert np.array_equal(infer_bonds(turned).order_sums(turned), sums)
    backwards = Structures.from_list([(numbers[::-1], x[::-1]) for numbers, x in molecules])
    reversed_sums = infer_bonds(backwards).order_sums(backwards)
    assert all(np.array_equal(sums[a:b], reversed_sums[a:b][::-1]) for a, b in itertools.pairwise(molecules.ptr))
    stretched = Structures(molecules.numbers, molecules.positions * 1.1, molecules.ptr)  # control
    assert not np.array_equal(infer_bonds(stretched).order_sums(stretched), sums)


def test_an_element_outside_the_table_is_named():
    molecules = Structures.concatenate([pair(1, 1, 0.74), pair(6, 14, 1.8)])
    with pytest.raises(UnknownElementError, match=r"molecule 1 .* Si, but bond table 'edm' covers H, C, N, O, F;"):
        infer_bonds(molecules)
    with pytest.raises(UnknownElementError, match="element Be"):  # inside the range of the table, but not in it
        infer_bonds(pair(4, 1, 1.3))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("rule", [BondRule.EDM, BondRule.RDKIT])
def test_a_molecule_that_is_not_finite_has_no_bonds_no_stable_atom_and_is_not_valid(rule, bad):
    """Even where some of its atoms are bonded. Controls: its neighbours; finite atoms out of reach are valid to EDM,
    which looks at the largest piece."""
    numbers, x = np.array([1, 1, 1]), np.array([[0.0, 0, 0], [0, 0, 0.74], [9, 0, 0]])
    broken = x.copy()
    broken[2, 1] = bad
    some = Structures.concatenate([pair(1, 1, 0.74), Structures.from_list([(numbers, broken)]), pair(1, 1, 0.74)])
    found = perceived(some, rule)
    assert [len(rows) for rows in found] == [1, 0, 1]
    assert stable_atoms(some, found).tolist() == [True, True, False, False, False, True, True]
    evaluation = evaluate_molecules(some, bonds=found)
    assert evaluation.valid.tolist() == [True, False, True]
    assert evaluation.connected_and_valid.tolist() == [True, False, True]
    apart = Structures.from_list([(numbers, x)])
    assert evaluate_molecules(apart).valid.tolist() == [True]


def test_atoms_too_far_apart_for_float32_are_not_bonded():
    assert order_of(pair(1, 1, 1e300)) == 0


def test_a_sample_of_an_element_without_valences_has_no_bonds_by_rdkit_and_stops_nothing():
    """Control: data that consist of it are refused, and its neighbour in the batch has its bond."""
    x = np.array([[0.0, 0, 0], [0, 0, 0.74]])
    some = Structures.from_list([(np.array([80, 1]), x), (np.array([1, 1]), x)])
    found = determined_bonds(some).found
    assert found is not None
    assert found.tolist() == [False, True]
    with pytest.raises(UnknownElementError, match="element Hg"):
        natural_rule(some)
