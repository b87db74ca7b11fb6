"""The option `turned`: each molecule in one orientation, drawn at random and fixed by its index."""

import numpy as np
import pytest

from bench.config.study import load_study
from bench.registry import datasets
from bench.structures.dataset import DataSet


def mini(**options) -> DataSet:
    entry = datasets["mini"]
    return entry.build(entry.config(**options))


def test_a_turned_set_is_another_set_of_the_same_molecules():
    stored, turned = mini(), mini(turned=True)
    assert turned.fingerprint != stored.fingerprint
    assert turned.fingerprint == mini(turned=True).fingerprint
    assert "turned at random" in turned.label
    assert stored.label == mini(turned=False).label
    assert stored.test.positions.dtype == turned.test.positions.dtype == np.float32
    for i in (0, 7, len(stored.test) - 1):
        (numbers, x), (same, y) = stored.test[i], turned.test[i]
        assert (numbers == same).all()
        U, _, Vh = np.linalg.svd(y.T.astype(float) @ x)
        assert np.allclose(x @ (U @ Vh).T, y, atol=1e-5)  # an orthogonal matrix takes one to the other
        assert np.linalg.det(U @ Vh) == pytest.approx(1.0)  # and no reflection
        assert np.abs(x - y).max() > 0.1  # control: it does something


def test_a_molecule_has_one_orientation_in_every_subset():
    whole, small, few = mini(turned=True), mini(turned=True, max_atoms=9), mini(turned=True, n_train=100)
    kept = whole.train.select(whole.train.n_atoms <= 9)
    assert small.train.positions.tobytes() == kept.positions.tobytes()
    assert few.test.positions.tobytes() == whole.test.positions.tobytes()
    rows = {x.tobytes() for _, x in whole.train}
    assert all(x.tobytes() in rows for _, x in few.train)
    assert not all(x.tobytes() in rows for _, x in mini(n_train=100).train)  # control: as stored


def test_molecules_of_one_index_are_turned_alike_in_no_two_splits():
    stored, turned = mini(), mini(turned=True)

    def rotation(split: str) -> np.ndarray:
        x, y = stored.splits[split][0][1], turned.splits[split][0][1]
        U, _, Vh = np.linalg.svd(y.T.astype(float) @ x)
        return U @ Vh

    assert np.abs(rotation("train") - rotation("test")).max() > 0.1


def test_the_study_repeats_two_rows_of_the_laptop_study_on_turned_molecules():
    """With the same settings but for the data and for what is measured besides."""
    laptop = {
        (run.method.name, run.seed): run
        for run in load_study("qm9_laptop").runs
        if run.method.name in ("plain", "haar")
    }
    turned = {(run.method.name, run.seed): run for run in load_study("qm9_turned").runs}
    assert turned.keys() == laptop.keys()
    for key, run in turned.items():
        here, there = run.to_dict(), laptop[key].to_dict()
        assert here["data"].pop("turned") is True
        assert there["data"].pop("turned") is False
        for settings in (here, there):
            settings["data"].pop("offline")
        for part in ("method", "backbone", "data", "diffusion", "train", "sample", "task", "group"):
            assert here[part] == there[part]
