"""Stability, validity and SMILES against EDM's published code (fce07d7): `metrics.npz`, 800 molecules.

Equality with every stored count, flag and string is `equibench parity`'s and tested in `test_published.py`; here, what
that equality sees and what it does not depend on. The SMILES were written by RDKit 2026.09.1.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from bench.metrics.molecules import evaluate_molecules
from bench.metrics.stability import BondTable, infer_bonds
from bench.metrics.validity import smiles_of
from bench.structures import files

REFERENCE = Path(__file__).with_name("metrics.npz")


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(REFERENCE) as file:
        return dict(file)


@pytest.fixture(scope="module")
def molecules():
    return files.read(REFERENCE)


@pytest.mark.parametrize("outcome", ["molecule_stable", "valid"])
def test_the_reference_holds_molecules_of_both_kinds(reference, outcome):
    assert 0.2 < reference[outcome].mean() < 0.8


@pytest.mark.parametrize("suffix", [".xyz", ".extxyz", ".npz"])
def test_scores_do_not_depend_on_the_format(molecules, reference, tmp_path, suffix):
    files.write(tmp_path / f"a{suffix}", molecules)
    read = files.read(tmp_path / f"a{suffix}")
    assert np.array_equal(infer_bonds(read).order_sums(read), reference["bond_order_sum"])


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("change_pm", [-1, 1])
def test_a_margin_off_by_a_picometre_is_noticed(molecules, reference, order, change_pm):
    table = BondTable.load()
    reach = table.reach.copy()
    reach[order] += np.where(reach[order] > 0, change_pm, 0)
    changed = dataclasses.replace(table, reach=reach)
    assert not np.array_equal(infer_bonds(molecules, changed).order_sums(molecules), reference["bond_order_sum"])


def test_the_whole_molecule_as_smiles_is_noticed(molecules, reference):
    assert [smiles or "" for smiles in smiles_of(molecules)] != reference["smiles"].tolist()


@pytest.mark.skipif("QM9_DIR" not in os.environ, reason="QM9_DIR is not set: needs the real QM9 test split")
def test_real_molecules_score_as_the_papers_data_row():
    """EDM's Table 1 gives data 99.0 % stable atoms, 95.2 % stable molecules, 97.7 % valid, on QM9 with fluorine.

    A re-evaluation with the released code quotes 99.4, 95.3 and 97.5 %; the shared split also lacks fluorine. Hence 0.6
    points either way.
    """
    summary = evaluate_molecules(files.read(Path(os.environ["QM9_DIR"]) / "test.npz")).summary()
    for name, published in (("atom_stability", 0.990), ("molecule_stability", 0.952), ("validity", 0.977)):
        assert summary[name] == pytest.approx(published, abs=0.006)
