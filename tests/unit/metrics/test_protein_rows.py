"""Rows that backbones are read against: what each gets right, and what it does not."""

from __future__ import annotations

import numpy as np
import pytest

from bench.metrics import backbones, proteins
from bench.metrics.protein_rows import Row, random_chain, row_samples, row_values
from bench.registry import datasets
from bench.structures.chains import ChainAtoms
from bench.structures.dataset import DataSet


def data(atoms: ChainAtoms = ChainAtoms.CA) -> DataSet:
    entry = datasets["mini_proteins"]
    return entry.build(entry.config(atoms=atoms))


def test_rows_differ_in_what_they_should(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(proteins, "version", lambda: "1")
    found = {(value.at["samples"], value.name): value.value for value in row_values(data())}

    def of(row: Row, name: str) -> float:
        return found[str(row), name]

    assert of(Row.HELD_OUT, "left_handed") == 0
    assert of(Row.MIRRORED, "left_handed") == 1
    assert of(Row.HELD_OUT, "ca_distance_ok") == of(Row.RANDOM, "ca_distance_ok") == 1
    assert of(Row.NOISY, "ca_distance_ok") < 0.8
    assert of(Row.HELD_OUT, "dihedral_js") < of(Row.NOISY, "dihedral_js") < of(Row.MIRRORED, "dihedral_js")
    assert of(Row.HELD_OUT, "angle_js") < of(Row.RANDOM, "angle_js")
    assert of(Row.HELD_OUT, "helix") > 0.3 > of(Row.RANDOM, "helix")


def test_random_chains_keep_their_distances():
    x = random_chain(60, np.random.default_rng(0))
    assert np.allclose(backbones.distances(x, 1), 3.8)
    assert not backbones.in_clash(x, 3.6).any()
    assert backbones.angles(x).std() > 20  # control: an ideal helix has one angle


def test_random_chains_have_no_other_atoms():
    with pytest.raises(ValueError, match="of C-alpha alone"):
        row_samples(Row.RANDOM, data(ChainAtoms.BACKBONE))
    assert len(row_samples(Row.NOISY, data(ChainAtoms.BACKBONE))) == 50
