"""Distances between samples against their closed forms, and internal coordinates against molecules drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from bench.metrics.distances import Bins, by_class, circular_w1, js_distance
from bench.metrics.geometry import Coordinates, bond_angles, bond_lengths, class_name, n_fragments, torsions
from bench.metrics.stability import Bonds
from bench.structures.structures import Structures

BINS = Bins(0.0, 10.0, 0.5)


def sample(values, key: int = 0) -> Coordinates:
    values = np.asarray(values, float)
    return Coordinates(np.full(len(values), key), values)


def together(*parts: Coordinates) -> Coordinates:
    return Coordinates(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("classes", "values")))


def bonded(numbers, positions, pairs) -> tuple[Structures, Bonds]:
    pairs = np.array(pairs, np.int32).reshape(-1, 2)
    structures = Structures.from_list([(np.array(numbers), np.array(positions, float))])
    return structures, Bonds(pairs, np.ones(len(pairs), np.int8), np.array([0, len(pairs)]))


def test_w1_of_two_gaussians_of_one_width_is_the_distance_of_their_means():
    rng = np.random.default_rng(0)
    found = by_class(sample(rng.normal(3, 1, 200_000)), sample(rng.normal(5, 1, 200_000)), BINS)
    assert found is not None
    assert found.w1 == pytest.approx(2, abs=0.02)


def test_w1_of_two_centred_gaussians_is_the_difference_of_widths_times_the_mean_of_a_half_normal():
    rng = np.random.default_rng(1)
    found = by_class(sample(rng.normal(5, 1, 200_000)), sample(rng.normal(5, 2, 200_000)), BINS)
    assert found is not None
    assert found.w1 == pytest.approx(np.sqrt(2 / np.pi), abs=0.02)


def test_js_is_a_distance_in_bits():
    assert js_distance(np.array([1.0, 0]), np.array([0, 7.0])) == pytest.approx(1)
    assert js_distance(np.array([1.0, 3]), np.array([2, 6.0])) == 0
    # divergence of (1, 0) and (1/2, 1/2): H(3/4) - H(1/2) / 2, in bits
    entropy = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))
    assert js_distance(np.array([1.0, 0]), np.array([1.0, 1])) == pytest.approx(np.sqrt(entropy - 0.5))


def test_what_lies_beyond_the_bins_is_counted():
    assert BINS.histogram(np.array([-1e9, -0.1, 0, 0.4, 9.99, 10, 1e9])).tolist() == [2, 2, *[0] * 18, 1, 2]
    within, beyond = sample([1.0] * 8), sample([1.0] * 4 + [99.0] * 4)
    found = by_class(beyond, within, BINS)
    assert found is not None
    assert found.overflow == 0.5
    assert found.js == pytest.approx(js_distance(np.array([1.0, 1]), np.array([1.0, 0])))
    # a control: without bins beyond the ends the two could not be told apart
    edges = np.arange(0, 10.5, 0.5)
    dropped = [np.histogram(some.values, edges)[0].astype(float) for some in (beyond, within)]
    assert js_distance(*dropped) == 0


def test_classes_count_by_their_share_of_the_reference():
    reference = together(sample([1.0] * 3, 0), sample([5.0], 1))
    found = by_class(together(sample([1.0] * 9, 0), sample([7.0] * 9, 1)), reference, BINS)
    assert found is not None
    assert (found.w1, found.js, found.lacking, found.foreign) == (pytest.approx(2 / 4), pytest.approx(1 / 4), 0, 0)


def test_classes_that_one_side_lacks_are_told():
    reference = together(sample([1.0] * 3, 0), sample([5.0], 1))
    found = by_class(together(sample([1.0] * 2, 0), sample([5.0] * 6, 2)), reference, BINS)
    assert found is not None
    assert (found.w1, found.js, found.lacking, found.foreign) == (0, 0.25, 0.25, 0.75)
    apart = by_class(sample([1.0], 3), reference, BINS)
    assert apart is not None
    assert (apart.w1, apart.js, apart.lacking, apart.foreign) == (None, 1, 1, 1)
    nothing = by_class(sample([], 0), reference, BINS)
    assert nothing is not None
    assert (nothing.w1, nothing.js, nothing.foreign, nothing.overflow) == (None, 1, 0, 0)
    assert by_class(reference, sample([], 0), BINS) is None


def test_circular_w1_goes_the_short_way():
    assert circular_w1(np.array([179.0]), np.array([-179.0]), 360.0) == pytest.approx(2)
    assert wasserstein_distance([179.0], [-179.0]) == pytest.approx(358)  # the control
    assert circular_w1(np.array([0.0, 10]), np.array([350.0, 0]), 360.0) == pytest.approx(10)


def test_circular_w1_of_a_point_and_the_whole_circle_is_a_quarter_of_it():
    circle = (np.arange(100_000) + 0.5) * 360 / 100_000 - 180
    assert circular_w1(np.array([33.0]), circle, 360.0) == pytest.approx(90, abs=0.01)
    assert circular_w1(circle, circle + 77, 360.0) == pytest.approx(0, abs=0.01)


def test_circular_w1_does_not_depend_on_where_the_circle_is_opened():
    rng = np.random.default_rng(2)
    a, b = rng.vonmises(2, 2, 400) * 180 / np.pi, rng.vonmises(-2.5, 1, 300) * 180 / np.pi
    expected = circular_w1(a, b, 360.0)
    for shift in (11.0, 100, 200, 333):
        assert circular_w1(a + shift, b + shift, 360.0) == pytest.approx(expected)
    assert circular_w1(b, a, 360.0) == pytest.approx(expected)
    narrow = rng.normal(0, 10, (2, 500))  # far from the cut the circle is a line
    assert circular_w1(*narrow, 360.0) == pytest.approx(wasserstein_distance(*narrow))


def test_coordinates_of_a_chain_drawn_by_hand():
    """F-C-C-O with right angles and a torsion of 90 degrees: the sign is checked against RDKit below."""
    x = [[1, 0, 0], [0, 0, 0], [0, 0, 2], [0, -3, 2]]
    found = bonded([9, 6, 6, 8], x, [[1, 0], [2, 1], [3, 2]])
    lengths, angles, turns = (f(*found) for f in (bond_lengths, bond_angles, torsions))
    assert {class_name(k, 2): v for k, v in zip(lengths.classes.tolist(), lengths.values, strict=True)} == {
        "C-F": 1,
        "C-C": 2,
        "C-O": 3,
    }
    assert sorted(class_name(k, 3) for k in angles.classes.tolist()) == ["C-C-F", "C-C-O"]
    assert angles.values == pytest.approx([90, 90])
    assert [class_name(k, 4) for k in turns.classes.tolist()] == ["O-C-C-F"]
    (turn,) = turns.values
    assert abs(turn) == pytest.approx(90)
    mirrored = found[0].positions * [1, -1, 1]
    assert torsions(Structures(found[0].numbers, mirrored, found[0].ptr), found[1]).values == pytest.approx([-turn])


def test_the_sign_of_a_torsion_is_that_of_rdkit():
    from rdkit import Chem
    from rdkit.Chem import AllChem, rdMolTransforms

    mol = Chem.AddHs(Chem.MolFromSmiles("CC(O)C(=O)N"))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    pairs = [[b.GetEndAtomIdx(), b.GetBeginAtomIdx()] for b in mol.GetBonds()]
    conformer = mol.GetConformer()
    found = bonded([a.GetAtomicNum() for a in mol.GetAtoms()], conformer.GetPositions(), pairs)
    expected = []
    for b, c in pairs:
        for a in mol.GetAtomWithIdx(b).GetNeighbors():
            for d in mol.GetAtomWithIdx(c).GetNeighbors():
                if a.GetIdx() != c and d.GetIdx() != b and a.GetIdx() != d.GetIdx():
                    expected.append(rdMolTransforms.GetDihedralDeg(conformer, a.GetIdx(), b, c, d.GetIdx()))
    assert np.sort(torsions(*found).values) == pytest.approx(np.sort(expected))
    n_angles = sum(a.GetDegree() * (a.GetDegree() - 1) // 2 for a in mol.GetAtoms())
    assert len(bond_angles(*found).values) == n_angles


def test_atoms_in_a_line_have_no_torsion_and_rings_of_three_none_inside():
    line = bonded([6, 6, 6, 6], [[0, 0, k] for k in range(4)], [[1, 0], [2, 1], [3, 2]])
    assert len(torsions(*line).values) == 0
    assert bond_angles(*line).values == pytest.approx([180, 180])
    ring = bonded([6, 6, 6], [[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[1, 0], [2, 0], [2, 1]])
    assert len(torsions(*ring).values) == 0
    assert sorted(bond_angles(*ring).values) == pytest.approx([45, 45, 90])


def test_a_collapsed_molecule_has_bonds_and_fragments_but_no_angles():
    rng = np.random.default_rng(0)
    n = 30
    found = bonded([6] * n, rng.normal(size=(n, 3)), [[i, j] for i in range(n) for j in range(i)])
    assert len(bond_lengths(*found).values) == n * (n - 1) // 2
    assert len(bond_angles(*found).values) == len(torsions(*found).values) == 0
    assert n_fragments(found[0].n_atoms, found[1]).tolist() == [1]


def test_pieces_are_counted_molecule_by_molecule():
    pairs = np.array([[1, 0], [3, 2], [1, 0]], np.int32)
    bonds = Bonds(pairs, np.ones(3, np.int8), np.array([0, 2, 2, 3]))
    assert n_fragments(np.array([5, 1, 2]), bonds).tolist() == [3, 1, 1]
