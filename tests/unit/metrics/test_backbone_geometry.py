"""Geometry of C-alpha traces: ideal helices and strands are recognised, mirror images by their hand."""

from __future__ import annotations

import numpy as np
import pytest
from chain_files import dihedrals, helix

from bench.metrics import backbones
from bench.structures.chains import structures_of

STRAND = (-120.0, 130.0)


def random_walk(n: int, seed: int = 0) -> np.ndarray:
    step = np.random.default_rng(seed).normal(size=(n, 3))
    return np.cumsum(3.8 * step / np.linalg.norm(step, axis=1, keepdims=True), axis=0)


def test_an_ideal_helix_is_a_helix_of_its_hand():
    """All residues but the ends, which have no full windows. Control: a strand and a random walk have none."""
    x = helix(20)[:, 1]
    found, mirrored = backbones.secondary_structure(x), backbones.secondary_structure(-x)
    assert found.right.sum() >= 17
    assert not found.left.any()
    assert np.array_equal(mirrored.left, found.right)
    assert not mirrored.right.any()
    for other in (dihedrals(20, *STRAND)[:, 1], random_walk(200)):
        assert not backbones.secondary_structure(other).right.any()


def test_an_ideal_strand_is_a_strand():
    found = backbones.secondary_structure(dihedrals(20, *STRAND)[:, 1])
    assert found.strand.sum() >= 17
    assert not backbones.secondary_structure(helix(20)[:, 1]).strand.any()


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_short_chains_have_no_secondary_structure_to_speak_of(n: int):
    found = backbones.secondary_structure(helix(n)[:, 1])
    assert len(found.right) == n
    assert not found.right.any()


def test_geometry_turns_with_nothing_and_mirrors_with_the_sign_of_dihedrals():
    x, Q = helix(12)[:, 1], np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    Q *= np.sign(np.linalg.det(Q))
    turned, mirrored = x @ Q.T + 5, x @ -Q.T
    for of in (backbones.angles, backbones.dihedrals, backbones.radius_of_gyration):
        assert np.allclose(of(turned), of(x))
    assert np.allclose(backbones.dihedrals(mirrored), -backbones.dihedrals(x))
    assert np.allclose(backbones.angles(mirrored), backbones.angles(x))
    assert (backbones.dihedrals(x) > 40).all()  # IUPAC: clockwise is positive, and the alpha helix is right-handed


def test_angles_and_dihedrals_of_known_points():
    square = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
    assert backbones.angles(square) == pytest.approx([90, 90])
    assert abs(backbones.dihedrals(square)[0]) == pytest.approx(90)
    assert backbones.dihedrals(square) == pytest.approx(-backbones.dihedrals(square * [1, 1, -1]))
    line = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]])
    assert backbones.angles(line) == pytest.approx([180])


def test_clashes_are_of_residues_that_are_no_neighbours():
    x = np.arange(10)[:, None] * np.array([[2.0, 0, 0]])
    assert not backbones.in_clash(x, 3.6).any()  # neighbours alone are that near
    x[7] = x[2] + [0, 1, 0]
    assert np.flatnonzero(backbones.in_clash(x, 3.6)).tolist() == [1, 2, 3, 7]


def test_traces_are_the_alpha_carbons():
    x = helix(6)
    assert np.allclose(backbones.traces_of(structures_of([x]))[0], x[:, 1])
    assert np.allclose(backbones.traces_of(structures_of([x[:, 1:2]]))[0], x[:, 1])


def test_in_a_row():
    marked = np.array([1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1], bool)
    assert np.flatnonzero(backbones.in_a_row(marked, 3)).tolist() == [3, 4, 5, 7, 8, 9, 10]
    assert not backbones.in_a_row(marked, 5).any()


def test_secondary_structure_is_that_of_biotite():
    """Helices and strands of the embedded backbones; segments may be shorter at their ends here."""
    biotite = pytest.importorskip("biotite.structure", reason="a second implementation of P-SEA")
    x = helix(20)[:, 1]
    atoms = biotite.AtomArray(20)
    atoms.coord, atoms.atom_name, atoms.res_id = x, np.full(20, "CA"), np.arange(20)
    atoms.res_name = np.full(20, "ALA")
    theirs = biotite.annotate_sse(atoms) == "a"
    assert not (backbones.secondary_structure(x).right & ~theirs).any()
