"""Reference rows of conformers: what each one must show on ensembles that are easy to judge."""

from __future__ import annotations

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem.rdDistGeom import EmbedMultipleConfs, ETKDGv3

from bench.metrics.chirality import tags_violated
from bench.metrics.conformer_rows import Row, embedded, row_samples, row_values

BUTANOL = Chem.AddHs(Chem.MolFromSmiles("C[C@H](O)CC"))
PROPANE = Chem.AddHs(Chem.MolFromSmiles("CCC"))
REFERENCES = [(BUTANOL, embedded(BUTANOL, 4, seed=5)), (PROPANE, embedded(PROPANE, 1, seed=5))]


def values_of(row: Row) -> dict[str, float | None]:
    found = row_values(REFERENCES, rows=[row])
    assert {value.at["samples"] for value in found} == {str(row)}
    return {value.name: value.value for value in found if "threshold" not in value.at}


def test_etkdg_draws_two_different_conformers_for_each_reference_with_the_given_chirality():
    _, samples = row_samples(Row.ETKDG, REFERENCES)
    assert [len(x) for x in samples] == [8, 2]
    assert len({x.round(6).tobytes() for x in samples[0]}) == 8
    assert not tags_violated(BUTANOL, samples[0]).any()
    assert values_of(Row.ETKDG)["samples_per_reference"] == 2


def test_seed_zero_draws_one_conformer_many_times_and_is_refused():
    parameters = ETKDGv3()
    parameters.randomSeed = 0
    mol = Chem.Mol(BUTANOL)
    EmbedMultipleConfs(mol, 3, parameters)
    x = np.array([conformer.GetPositions() for conformer in mol.GetConformers()])
    assert np.ptp(x, axis=0).max() == 0  # if this fails, RDKit has mended it, and the check may go
    with pytest.raises(ValueError, match="at least 1"):
        embedded(BUTANOL, 3, seed=0)


def test_other_seeds_draw_other_conformers():
    first, again, other = (row_samples(Row.ETKDG, REFERENCES, seed=seed)[1][0] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.isclose(first, other).all(axis=(1, 2)).any()


def test_mmff_moves_the_conformers_of_etkdg():
    plain, relaxed = (row_samples(row, REFERENCES)[1][0] for row in (Row.ETKDG, Row.MMFF))
    moved = np.abs(plain - relaxed).max(axis=(1, 2))
    assert (moved > 1e-3).all()
    assert not tags_violated(BUTANOL, relaxed).any()


def test_what_mmff_has_no_parameters_for_is_a_failure():
    unknown = Chem.AddHs(Chem.MolFromSmiles("CB(O)O"))  # MMFF94s has no boron
    assert np.isfinite(embedded(unknown, 2, seed=1)).all()
    assert np.isnan(embedded(unknown, 2, seed=1, mmff=True)).all()
    x = embedded(unknown, 1, seed=1)
    found = row_values([(unknown, x)], rows=[Row.MMFF])
    assert next(value.value for value in found if value.name == "failed_samples") == 1


def test_halves_share_no_conformer_and_leave_out_single_ones():
    ((mol, first),), (second,) = row_samples(Row.HALVES, REFERENCES)
    assert mol is BUTANOL
    together = np.concatenate([first, second])
    assert sorted(x.tobytes() for x in together) == sorted(x.tobytes() for x in REFERENCES[0][1])
    assert values_of(Row.HALVES)["molecules_left_out"] == 1
    assert values_of(Row.ETKDG)["molecules_left_out"] == 0


def test_mirrored_data_has_all_chirality_wrong():
    found = values_of(Row.MIRRORED)
    assert found["chirality_violations"] == 1
    assert found["failed_samples"] == 0
