"""GEOM as a data set: splits by molecule and by conformer, limits, what is left out; on small files of its layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from geom_files import crude, packed
from rdkit import Chem

from bench.data.conformers import ConformerSplit
from bench.registry import datasets
from bench.structures.dataset import DataError
from bench.structures.ensembles import Ensembles

SMILES = ("CO", "CN", "CCO", "CCN", "CC(=O)N", "C[C@H](F)O", "C[C@@H](F)O", "NCCO", "OCCO", "CC#N", "CC=O", "COC")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "qm9_crude.msgpack").write_bytes(packed(*((smiles, crude(smiles, 5)) for smiles in SMILES)))
    return tmp_path


def load(folder: Path, **options: Any):
    entry = datasets["geom_qm9"]
    return entry.build(entry.config(dir=str(folder), **options))


def molecules(part: Any) -> set[str]:
    assert isinstance(part, Ensembles)
    return {part.graphs.smiles[k] for k in part.present}


def test_a_split_by_molecule_shares_no_molecule(folder: Path):
    data = load(folder, valid_fraction=0.2, test_fraction=0.2)
    parts = [molecules(part) for part in data.splits.values()]
    assert [len(part) for part in parts] == [8, 2, 2]
    assert set.union(*parts) == {Chem.CanonSmiles(smiles) for smiles in SMILES}
    assert sum(map(len, data.splits.values())) == 60
    assert data.elements == (1, 6, 7, 8, 9)
    assert load(folder, valid_fraction=0.2, test_fraction=0.2).fingerprint == data.fingerprint
    assert load(folder, valid_fraction=0.2, test_fraction=0.2, seed=1).fingerprint != data.fingerprint


def test_a_split_by_conformer_does(folder: Path):
    data = load(folder, split=ConformerSplit.CONFORMER, valid_fraction=0.2, test_fraction=0.2)
    assert [len(part) for part in data.splits.values()] == [36, 12, 12]
    assert molecules(data.train) & molecules(data.test)
    assert "without its geom_permutation.npy" in data.notes[0]


def test_the_published_permutation_gives_validation_test_and_training_conformers_in_this_order(folder: Path):
    np.save(folder / "geom_permutation.npy", np.arange(60)[::-1].astype(np.int32))
    data = load(folder, split=ConformerSplit.CONFORMER, valid_fraction=0.2, test_fraction=0.2)
    assert molecules(data.valid) == {"CC=O", "COC", "CC#N"}
    assert data.notes == []
    np.save(folder / "geom_permutation.npy", np.zeros(60, np.int32))
    with pytest.raises(DataError, match="expected a permutation of the 60 conformers"):
        load(folder, split=ConformerSplit.CONFORMER)
    np.save(folder / "geom_permutation.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match=r"geom_permutation\.npy"):
        load(folder, split=ConformerSplit.CONFORMER)


def test_listed_test_molecules_are_the_test_split(folder: Path):
    (folder / "qm9_test_smiles.csv").write_text("smiles,n_conformers\nF[C@@H](C)O,5\nOC,5\nC1CC1,2\nc1cncc1,3\n")
    data = load(folder)
    assert molecules(data.test) == {"CO", Chem.CanonSmiles("F[C@@H](C)O")}
    assert "2 of the 4 molecules" in data.notes[0]
    (folder / "qm9_test_smiles.csv").write_text("name\nOC\n")
    with pytest.raises(DataError, match="no column 'smiles'"):
        load(folder)


def test_conformers_and_molecules_are_limited(folder: Path):
    options = {"valid_fraction": 0.2, "test_fraction": 0.2}
    assert sum(map(len, load(folder, n_conformers=2, **options).splits.values())) == 24
    few = load(folder, n_molecules=5, **options)
    assert set.union(*map(molecules, few.splits.values())) == {Chem.CanonSmiles(smiles) for smiles in SMILES[:5]}
    assert few.label == "GEOM-QM9, at most 30 conformers of the first 5 molecules"
    with pytest.raises(DataError, match="n_conformers is 0"):
        load(folder, n_conformers=0)


def test_models_of_drugs_know_sixteen_elements_whatever_a_part_of_the_file_has(folder: Path):
    (folder / "qm9_crude.msgpack").rename(folder / "drugs_crude.msgpack")
    entry = datasets["geom_drugs"]
    data = entry.build(entry.config(dir=str(folder)))
    assert len(data.elements) == 16
    assert set(np.unique(data.train.numbers).tolist()) < set(data.elements)


def test_without_a_folder_the_way_to_one_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GEOM_DIR", raising=False)
    entry = datasets["geom_drugs"]
    with pytest.raises(DataError, match=r"drugs_crude\.msgpack; set data.dir or GEOM_DIR"):
        entry.build(entry.config())
