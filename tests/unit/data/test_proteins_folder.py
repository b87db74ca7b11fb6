"""The data sets of protein backbones: a folder of files, split by family, and the embedded set made by geometry."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from chain_files import helix, lines_of, sequence, write_npz, write_pdb

from bench.config.run import resolve
from bench.data.mini_proteins import PATH
from bench.mini.proteins import N_OF_KIND
from bench.records.inputs import read_arrays
from bench.records.store import read_json
from bench.registry import datasets
from bench.run.batches import load_or_stand_in
from bench.structures.chains import ChainAtoms
from bench.structures.dataset import DataError, DataSet
from bench.structures.fetch import CannotStartError

COPIES = (("a", 1), ("b", -1))


def load(name: str = "proteins", **options) -> DataSet:
    entry = datasets[name]
    return entry.build(entry.config(**options))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty chains of forty residues, each twice under two entries, one of them mirrored so that both can be told."""
    made = tmp_path / "mine"
    made.mkdir()
    chains = [(f"{copy}{k}:A", sequence(40, k), sign * helix(40)) for k in range(20) for copy, sign in COPIES]
    write_npz(made / "chains.npz", chains)
    return made


def test_a_family_is_in_one_split(folder: Path):
    """As many right-handed as left-handed chains in each split. Control: without words in common they are apart."""
    data = load(dir=str(folder))
    for part in data.splits.values():
        handed = [np.linalg.det(x[[1, 2, 3]] - x[0]) > 0 for _, x in part]
        assert 2 * sum(handed) == len(handed)
    assert sum(len(part) for part in data.splits.values()) == 40
    assert "pieces of families: train 32 of 16, valid 4 of 2, test 4 of 2; 40 chains in all" in data.notes
    other = [(f"{k}:A", sequence(40, k), helix(40)) for k in range(40)]
    write_npz(folder / "chains.npz", other)
    assert "train 32 of 32" in load(dir=str(folder)).notes[0]


def test_lengths_and_seed_decide_the_pieces(folder: Path):
    data = load(dir=str(folder), min_residues=10, max_residues=16)
    sizes = np.concatenate([part.n_atoms for part in data.splits.values()])
    assert sizes.min() >= 10
    assert sizes.max() <= 16
    again, other = (load(dir=str(folder), min_residues=10, max_residues=16, seed=seed) for seed in (0, 1))
    assert again.fingerprint == data.fingerprint != other.fingerprint


def test_files_in_another_order_make_the_same_data(folder: Path, tmp_path: Path):
    arrays = read_arrays(folder / "chains.npz")
    rows = np.split(arrays["xyz_centi_angstrom"], arrays["ptr"][1:-1])
    turned = [
        (str(name), bytes(arrays["seq"][40 * k : 40 * k + 40]).decode(), rows[k][:, :3] / 100)
        for k, name in reversed(list(enumerate(arrays["name"])))
    ]
    there = tmp_path / "there"
    there.mkdir()
    write_npz(there / "chains.npz", turned)
    assert load(dir=str(there)).fingerprint == load(dir=str(folder)).fingerprint


def test_backbones_have_three_atoms_per_residue(folder: Path):
    data = load(dir=str(folder), atoms=ChainAtoms.BACKBONE)
    assert data.elements == (6, 7)
    assert data.train.n_atoms.tolist() == [120] * 32
    assert load(dir=str(folder)).elements == (6,)


def test_flaws_and_faults_are_counted_and_named(folder: Path):
    pytest.importorskip("gemmi")
    lines = lines_of(helix(40), sequence(40, 99))
    del lines[3 * 35 + 1]
    write_pdb(folder / "1gap.pdb", lines)
    (folder / "broken.cif").write_text("loop_ '")
    notes = load(dir=str(folder)).notes
    assert notes[0].startswith("1 files left out: broken.cif: it cannot be parsed")
    assert notes[1] == "1 residues lack a backbone atom and break their chain, in 1 entries: 1gap"
    assert notes[2] == "1 chains, or stretches of them, are shorter than 32 residues"


def test_what_is_missing_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path):
    monkeypatch.delenv("PROTEINS_DIR", raising=False)
    with pytest.raises(CannotStartError, match=r"set data\.dir or PROTEINS_DIR"):
        load()
    with pytest.raises(DataError, match=r"does not exist; correct data\.dir"):
        load(dir=str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"has no file ending in \.pdb"):
        load(dir=str(tmp_path))
    with pytest.raises(DataError, match="split is empty: no chain is long enough"):
        load(dir=str(folder), min_residues=50)
    with pytest.raises(ValueError, match="'min_residues' and 'max_residues' are 50 and 40"):
        load(dir=str(folder), min_residues=50, max_residues=40)
    with pytest.raises(ValueError, match="expected positive ones below 1"):
        load(dir=str(folder), test_fraction=0.95)
    monkeypatch.setenv("PROTEINS_DIR", str(folder))
    assert len(load().train) == 32


def test_the_embedded_set_stands_in_and_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PROTEINS_DIR", raising=False)
    given = {"name": "proteins", "offline": "mini_proteins", "atoms": "backbone", "max_residues": 64}
    chosen, data = load_or_stand_in(resolve(datasets, given, "data"))
    assert chosen.name == "mini_proteins"
    assert data.elements == (6, 7)
    assert "in place of proteins" in data.label


def test_the_embedded_file_is_the_one_of_the_record():
    record, arrays = read_json(PATH.with_suffix(".json")), read_arrays(PATH)
    assert sha256(PATH.read_bytes()).hexdigest() == record["sha256"]
    assert {kind: int((arrays["kind"] == kind).sum()) for kind in N_OF_KIND} == record["kinds"]
    data = load("mini_proteins")
    assert {name: len(part) for name, part in data.splits.items()} == record["in_split"]
    whole = load("mini_proteins", atoms=ChainAtoms.BACKBONE)
    assert np.array_equal(whole.train.positions[1::3], data.train.positions)
