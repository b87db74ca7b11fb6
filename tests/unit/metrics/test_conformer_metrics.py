"""COV, AMR, RMSD over symmetries, chirality and failures on ensembles whose answer is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem.rdDistGeom import EmbedMultipleConfs, ETKDGv3

from bench.metrics import conformers, rmsd
from bench.metrics.chirality import chiral_tags, nearer_hand, tags_violated
from bench.metrics.conformers import CURVE, compare_ensembles, evaluate_ensembles
from bench.metrics.rmsd import rmsd_between, without_hydrogens
from bench.records.values import Value


def embedded(smiles: str, n: int) -> tuple[Chem.Mol, np.ndarray]:
    """A molecule with hydrogens and n conformers [n, A, 3]."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    parameters = ETKDGv3()
    parameters.randomSeed = 7
    assert len(EmbedMultipleConfs(mol, n, parameters)) == n
    return Chem.Mol(mol, True), np.array([conformer.GetPositions() for conformer in mol.GetConformers()])


CHIRAL, CHIRAL_X = embedded("C[C@H](O)CC(N)=O", 4)
ACHIRAL, ACHIRAL_X = embedded("CCCCO", 4)
TOLUENE, TOLUENE_X = embedded("Cc1ccccc1", 1)
ROUNDING = 1e-5  # angstrom: RDKit subtracts squares


def turned(positions: np.ndarray) -> np.ndarray:
    """Each conformer rotated by a proper rotation and moved."""
    Q, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    return positions @ (Q * np.linalg.det(Q)).T + 5.0


def scalars(values: list[Value]) -> dict[str, float | None]:
    return {value.name: value.value for value in values if not value.at}


def test_identical_ensembles_have_full_coverage_and_no_distance():
    references = [(CHIRAL, CHIRAL_X), (ACHIRAL, ACHIRAL_X)]
    found = scalars(evaluate_ensembles(references, [turned(x[::-1]) for _, x in references]))
    for side in "rp":
        assert found[f"amr_{side}"] == pytest.approx(0, abs=ROUNDING)
        assert found[f"cov_{side}_0.1"] == found[f"cov_{side}_1.25"] == found[f"cov_{side}_0.1_median"] == 1
    assert found["chirality_violations"] == found["failed_samples"] == found["rmsd_timeouts"] == 0
    other = scalars(
        evaluate_ensembles(references, [x + np.random.default_rng(0).normal(size=x.shape) for _, x in references])
    )
    assert other["amr_r"] > 0.3
    assert other["cov_r_0.1"] == 0


def test_exchanged_symmetric_atoms_are_no_distance():
    """The two ortho and the two meta carbons of toluene change places, without any movement of the molecule as a whole.

    Atom by atom they are far apart: the control that symmetries are what makes the distance vanish."""
    heavy = [atom.GetIdx() for atom in TOLUENE.GetAtoms() if atom.GetAtomicNum() > 1]
    exchanged = TOLUENE_X.copy()
    exchanged[:, [2, 6, 3, 5]] = exchanged[:, [6, 2, 5, 3]]
    bent = exchanged + 0.0
    bent[:, heavy[0]] += [0.0, 0.0, 0.7]  # the methyl group leaves the plane, so that no rotation undoes the exchange
    original = TOLUENE_X.copy()
    original[:, heavy[0]] += [0.0, 0.0, 0.7]
    assert rmsd_between(TOLUENE, original, bent).rmsd == pytest.approx(0, abs=ROUNDING)
    assert rmsd_between(TOLUENE, original, bent, seconds=-1.0).rmsd > 0.1


def test_hydrogens_do_not_count_unless_they_are_named():
    moved = ACHIRAL_X.copy()
    hydrogen = next(atom.GetIdx() for atom in ACHIRAL.GetAtoms() if atom.GetAtomicNum() == 1)
    moved[:, hydrogen] += 2.0
    assert rmsd_between(ACHIRAL, ACHIRAL_X, moved).rmsd.diagonal() == pytest.approx(0, abs=ROUNDING)
    assert (rmsd_between(ACHIRAL, ACHIRAL_X, moved, hydrogens=[hydrogen]).rmsd.diagonal() > 0.5).all()
    heavy, kept = without_hydrogens(ACHIRAL)
    assert heavy.GetNumAtoms() == 5
    assert kept.tolist() == [0, 1, 2, 3, 4]


def test_the_hydrogen_of_an_imine_counts_where_the_molecule_has_a_configuration():
    for smiles, n in (("[H]/N=C/C", 4), ("N=CC", 3)):
        assert len(without_hydrogens(Chem.AddHs(Chem.MolFromSmiles(smiles)))[1]) == n


def test_a_known_displacement_gives_a_known_distance():
    """Three atoms on a line with the outer ones at -1 and 1; stretched to -1-s and 1+s: RMSD sqrt(2/3) s."""
    mol = Chem.MolFromSmiles("[Ar].[Kr].[Xe]")
    line = np.array([[[-1.0, 0, 0], [0, 0, 0], [1.0, 0, 0]]])
    samples = np.concatenate([line * (1 + s) for s in (0.3, 0.6)])
    found = scalars(evaluate_ensembles([(mol, line)], [samples]))
    unit = np.sqrt(2 / 3)
    assert found["amr_r"] == pytest.approx(0.3 * unit)
    assert found["amr_p"] == pytest.approx(0.45 * unit)
    assert (found["cov_r_0.1"], found["cov_r_0.5"]) == (0, 1)  # 0.245
    assert (found["cov_p_0.1"], found["cov_p_0.5"]) == (0, 1)  # 0.490
    values = evaluate_ensembles([(mol, line)], [samples])
    curve = {value.at["threshold"]: value.value for value in values if value.name == "cov_p" and value.at}
    assert list(curve) == list(CURVE)
    assert [curve[t] for t in (0.2, 0.25, 0.45, 0.5)] == [0, 0.5, 0.5, 1]


def test_coverage_needs_a_distance_below_the_threshold():
    one = conformers.Compared(np.array([0.5]), np.array([0.5, 0.49]), None, 0, False)
    assert one.coverage("r", 0.5) == 0
    assert one.coverage("p", 0.5) == 0.5


def test_molecules_count_alike_whatever_their_number_of_conformers():
    one = conformers.Compared(np.full(9, 1.0), np.full(18, 1.0), None, 0, False)
    two = conformers.Compared(np.full(1, 0.2), np.full(2, 0.2), None, 0, False)
    values = conformers.EnsembleEvaluation([one, two]).values()
    found = scalars(values)
    assert found["amr_r"] == pytest.approx(0.6)
    assert found["cov_p_0.5"] == 0.5
    items = {value.name: value.items for value in values if value.items is not None}
    assert items["amr_r"].tolist() == [1.0, 0.2]
    assert items["cov_p_0.5"].tolist() == [0, 1]
    assert {len(array) for array in items.values()} == {2}


def test_a_mirror_image_violates_the_tags_and_costs_distance():
    assert len(chiral_tags(CHIRAL)) == 1
    assert tags_violated(CHIRAL, np.concatenate([CHIRAL_X, -CHIRAL_X])).tolist() == [0] * 4 + [1] * 4
    found = scalars(evaluate_ensembles([(CHIRAL, CHIRAL_X)], [-CHIRAL_X]))
    assert found["chirality_violations"] == 1
    assert found["amr_p"] > 0.1
    half = scalars(evaluate_ensembles([(CHIRAL, CHIRAL_X)], [np.concatenate([-CHIRAL_X, CHIRAL_X])]))
    assert half["chirality_violations"] == 0.5


def test_mirror_images_are_matched_where_that_violates_fewer_tags():
    """The values of a wrong hand stay beside those of the right one. Controls: one of two centres wrong stays so, and a
    molecule without tags has no such value."""
    x = np.concatenate([CHIRAL_X, -CHIRAL_X])
    found = evaluate_ensembles([(CHIRAL, CHIRAL_X)], [x])
    by = {(v.name, v.at.get("hand")): v.value for v in found if "threshold" not in v.at}
    assert by["amr_p", "matched"] == pytest.approx(0, abs=1e-3)
    assert (by["amr_p", None] or 0) > 0.05
    assert by["chirality_violations", None] == 0.5
    lost = np.concatenate([x, np.full_like(x[:1], np.nan)])
    np.testing.assert_array_equal(nearer_hand(CHIRAL, lost), [*CHIRAL_X, *CHIRAL_X, lost[-1]])
    (two, _), (_, other) = embedded("C[C@H](O)[C@H](C)N", 1), embedded("C[C@H](O)[C@@H](C)N", 1)
    assert tags_violated(two, other).tolist() == tags_violated(two, -other).tolist() == [1]
    np.testing.assert_array_equal(nearer_hand(two, other), other)
    assert not [v for v in evaluate_ensembles([(ACHIRAL, ACHIRAL_X)], [-ACHIRAL_X]) if "hand" in v.at]


def test_a_flat_centre_violates_its_tag():
    flat = CHIRAL_X[:1].copy()
    (centre,) = chiral_tags(CHIRAL)
    around = [atom.GetIdx() for atom in CHIRAL.GetAtomWithIdx(centre).GetNeighbors()]
    flat[0, around] = flat[0, centre] + np.array([[1.5, 0, 0], [0, 1.5, 0], [-1.5, 0, 0], [0, -1.1, 0]])
    assert tags_violated(CHIRAL, flat).tolist() == [1]


def test_molecules_without_tags_are_left_out_of_chirality():
    values = {value.name: value for value in evaluate_ensembles([(ACHIRAL, ACHIRAL_X)], [-ACHIRAL_X])}
    assert values["chirality_violations"].value is None
    both = evaluate_ensembles([(ACHIRAL, ACHIRAL_X), (CHIRAL, CHIRAL_X)], [-ACHIRAL_X, -CHIRAL_X])
    items = next(value for value in both if value.name == "chirality_violations").items
    assert items is not None
    assert np.isnan(items[0]).all()
    assert items[1].tolist() == [4, 4]


def test_failed_samples_are_counted_and_are_misses():
    samples = np.concatenate([CHIRAL_X, CHIRAL_X])
    samples[4:, 0, 0] = [np.nan, np.inf, np.nan, -np.inf]
    found = scalars(evaluate_ensembles([(CHIRAL, CHIRAL_X)], [samples]))
    assert found["failed_samples"] == 0.5
    assert found["cov_p_0.1"] == 0.5
    assert found["cov_r_0.1"] == 1
    assert found["amr_p"] == pytest.approx(0, abs=ROUNDING)
    assert found["molecules_without_samples"] == 0
    assert found["samples_per_reference"] == 2


@pytest.mark.parametrize("lost", [np.zeros((0, 15, 3)), np.full((4, 15, 3), np.nan)])
def test_a_molecule_without_usable_samples_is_counted(lost: np.ndarray):
    assert ACHIRAL.GetNumAtoms() == 15
    values = evaluate_ensembles([(CHIRAL, CHIRAL_X), (ACHIRAL, ACHIRAL_X)], [CHIRAL_X, lost])
    found = scalars(values)
    assert found["molecules_without_samples"] == 1
    assert found["cov_r_0.5"] == found["cov_p_0.5"] == 0.5
    assert found["amr_r"] == pytest.approx(0, abs=ROUNDING)
    items = next(value.items for value in values if value.name == "amr_r")
    assert items is not None
    assert np.isnan(items[1])


def test_a_timeout_is_counted_and_gives_an_upper_bound():
    references = [(TOLUENE, TOLUENE_X)]
    in_time = scalars(evaluate_ensembles(references, [TOLUENE_X]))
    late = scalars(evaluate_ensembles(references, [TOLUENE_X], seconds=-1.0))
    assert in_time["rmsd_timeouts"] == 0
    assert late["rmsd_timeouts"] == 1
    noisy = CHIRAL_X + np.random.default_rng(0).normal(size=CHIRAL_X.shape)
    best, bound = (rmsd_between(CHIRAL, CHIRAL_X, noisy, seconds).rmsd for seconds in (60.0, -1.0))
    assert (bound >= best - 1e-6).all()


def test_symmetries_beyond_the_cap_are_counted(monkeypatch: pytest.MonkeyPatch):
    mol, x = embedded("CC(C)(C)C(C)(C)C", 1)  # 2 * 6 * 6 maps
    assert not rmsd_between(mol, x, x).capped
    monkeypatch.setattr(rmsd, "MAX_MATCHES", 72)
    assert rmsd_between(mol, x, x).capped
    assert scalars(evaluate_ensembles([(mol, x)], [x]))["rmsd_capped_molecules"] == 1
    monkeypatch.setattr(rmsd, "MAX_MATCHES", 73)
    assert not rmsd_between(mol, x, x).capped


def test_workers_find_the_same():
    references = [(CHIRAL, CHIRAL_X), (ACHIRAL, ACHIRAL_X)]
    samples = [x + np.random.default_rng(1).normal(size=x.shape) for _, x in references]
    alone, several = (compare_ensembles(references, samples, n_workers=n).values() for n in (1, 2))
    assert alone == several


@pytest.mark.parametrize(
    ("references", "samples", "message"),
    [
        ([], [], "0 molecules"),
        ([(ACHIRAL, ACHIRAL_X)], [], "samples of 0"),
        ([(ACHIRAL, ACHIRAL_X)], [ACHIRAL_X[:, :5]], "samples have shape"),
        ([(ACHIRAL, ACHIRAL_X[:0])], [ACHIRAL_X], "at least 1"),
        ([(ACHIRAL, np.full_like(ACHIRAL_X, np.nan))], [ACHIRAL_X], "not finite"),
    ],
)
def test_what_does_not_fit_is_refused(references, samples, message: str):
    with pytest.raises(ValueError, match=message):
        evaluate_ensembles(references, samples)
