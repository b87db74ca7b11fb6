"""Distances of bond lengths, angles and torsions on ensembles whose difference is known."""

from __future__ import annotations

import numpy as np
import pytest
from rdkit import Chem

from bench.metrics.conformer_geometry import geometry_values
from bench.metrics.conformer_rows import embedded

BUTANE = Chem.AddHs(Chem.MolFromSmiles("CCCC"))
REFERENCES = [(BUTANE, embedded(BUTANE, 4, seed=2))]


def values_of(samples: np.ndarray) -> dict[str, float | None]:
    return {value.name: value.value for value in geometry_values(REFERENCES, [samples])}


def test_equal_ensembles_have_no_distance():
    found = values_of(np.concatenate([REFERENCES[0][1]] * 2))
    for kind in ("bond_length", "angle", "torsion"):
        assert found[f"w1_{kind}"] == pytest.approx(0, abs=1e-6)
        assert found[f"js_{kind}"] == pytest.approx(0, abs=1e-6)


def test_swollen_molecules_differ_in_lengths_alone():
    x = REFERENCES[0][1]
    found = values_of(1.1 * x)
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in BUTANE.GetBonds()]
    lengths = [np.linalg.norm(x[:, i] - x[:, j], axis=1) for i, j in bonds]
    assert found["w1_bond_length"] == pytest.approx(0.1 * np.mean(lengths))
    assert found["w1_angle"] == pytest.approx(0, abs=1e-6)
    assert found["w1_torsion"] == pytest.approx(0, abs=1e-6)


def test_mirrored_torsions_differ_and_lengths_and_angles_do_not():
    drawn = embedded(BUTANE, 10, seed=2)
    normals = [np.cross(drawn[:, k + 1] - drawn[:, k], drawn[:, k + 2] - drawn[:, k + 1]) for k in (0, 1)]
    turned = np.linalg.norm(np.cross(*normals), axis=1) / np.prod([np.linalg.norm(n, axis=1) for n in normals], axis=0)
    gauche = drawn[[np.argmax(turned)]]
    found = {value.name: value.value for value in geometry_values([(BUTANE, gauche)], [-gauche])}
    assert found["w1_bond_length"] == pytest.approx(0, abs=1e-6)
    assert found["w1_angle"] == pytest.approx(0, abs=1e-6)
    assert found["w1_torsion"] is not None
    assert found["w1_torsion"] > 1


def test_failed_samples_are_left_out_and_none_at_all_gives_no_values():
    x = REFERENCES[0][1].copy()
    x[0] = np.nan
    assert values_of(x)["w1_bond_length"] is not None
    assert geometry_values(REFERENCES, [np.full_like(x, np.nan)]) == []
