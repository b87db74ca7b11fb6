"""Conformers from a folder: npz and sdf, what is refused with which line, and splits that keep molecules together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conformer_examples import SYMMETRIES, ensembles, mirrored, records_of, shuffled
from rdkit import Chem

from bench.data.conformers import ConformersConfig, ConformerSplit, load
from bench.diffusion.process import DiffusionConfig
from bench.registry import datasets
from bench.structures.conformer_files import read_npz
from bench.structures.dataset import DataError
from bench.structures.elements import FileError
from bench.structures.perception import Record
from bench.tasks.denovo import Denovo, DenovoConfig

LINEAR = ["C" * n + end for n in range(1, 7) for end in ("O", "N", "F")]  # 18 molecules


def arrays() -> dict[str, np.ndarray]:
    """The ensembles of the examples in the layout of an npz file."""
    some = ensembles()
    graphs = some.graphs
    return {
        "atom_ptr": graphs.ptr,
        "atomic_numbers": graphs.numbers.astype(np.uint8),
        "formal_charge": graphs.charges.astype(np.int8),
        "bond_ptr": graphs.bond_ptr,
        "bonds": graphs.bonds[:, :3].astype(np.int16),
        "conf_mol": some.molecule.astype(np.int32),
        "conf_ptr": some.ptr,
        "positions": some.positions,
    }


def write_sdf(path: Path, records: list[Record], hydrogens: bool = True) -> None:
    with Chem.SDWriter(str(path)) as writer:
        for record in records:
            from bench.structures.chemistry import molecule_of

            mol = molecule_of(record.numbers, record.bonds, record.charges, record.positions[None])
            writer.write(mol if hydrogens else Chem.RemoveHs(mol))


def test_npz_files_hold_what_was_written(tmp_path: Path):
    """The same molecules and positions, with either way to store orders of bonds."""
    some, stored = ensembles(), arrays()
    np.savez(tmp_path / "a.npz", **stored)
    twice = np.array([0, 2, 4, 6, 3])[stored["bonds"][:, 2]]
    other = {k: v for k, v in stored.items() if k != "bonds"}
    np.savez(tmp_path / "b.npz", **other, bonds_i_j_twice_order=np.column_stack([stored["bonds"][:, :2], twice]))
    for name in ("a.npz", "b.npz"):
        found = read_npz(tmp_path / name)
        assert found.ensembles.graphs.smiles == some.graphs.smiles
        assert np.array_equal(found.ensembles.positions, some.positions)
        assert not found.faults
    stored["bond_source"] = (np.arange(len(some.graphs)) != 2).astype(np.int8)
    np.savez(tmp_path / "c.npz", **stored)
    found = read_npz(tmp_path / "c.npz")
    assert len(found.ensembles.graphs) == len(some.graphs) - 1
    assert found.faults == ["c.npz: molecule 2: its bonds are not known"]


BROKEN = {
    "positions": (lambda v: v[:-1], "array 'conf_ptr' .* to end at"),
    "bonds": (lambda v: v[:, :2], r"expected \[K, 3\]"),
    "conf_mol": (lambda v: v + 1, "expected a molecule from 0 to 7"),
    "atomic_numbers": (lambda v: v * 0, "expected nuclear charges from 1 to 96"),
    "atom_ptr": (lambda v: v[::-1], "expected rising from 0"),
    "conf_ptr": (lambda v: v[[0, 2, *range(2, len(v))]], "as many atoms in each conformer as its molecule has"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_arrays_that_do_not_fit_are_refused_with_the_file_and_the_array(tmp_path: Path, name: str):
    change, line = BROKEN[name]
    np.savez(tmp_path / "a.npz", **{**arrays(), name: change(arrays()[name])})
    with pytest.raises(FileError, match=line) as error:
        read_npz(tmp_path / "a.npz")
    assert str(error.value).startswith(str(tmp_path / "a.npz"))
    assert "\n" not in str(error.value)


def test_a_missing_array_and_bonds_out_of_reach_are_refused(tmp_path: Path):
    stored = arrays()
    for key in ("conf_mol", "bonds"):
        np.savez(tmp_path / "a.npz", **{k: v for k, v in stored.items() if k != key})
        with pytest.raises(FileError, match=key):
            read_npz(tmp_path / "a.npz")
    stored["bonds"][0, 1] = 99
    np.savez(tmp_path / "a.npz", **stored)
    with pytest.raises(FileError, match="expected two different atoms of the molecule"):
        read_npz(tmp_path / "a.npz")


def folder_of_sdf(tmp_path: Path) -> Path:
    """Two files: molecules in turn, atoms in other orders in the second."""
    records = [records_of(smiles, 4) for smiles in LINEAR]
    write_sdf(tmp_path / "one.sdf", [r for some in records for r in some[:2]])
    write_sdf(tmp_path / "two.sdf", [shuffled(r, seed=k) for k, some in enumerate(records) for r in some[2:]])
    return tmp_path


def test_a_folder_of_sdf_files_is_one_data_set_split_by_molecule(tmp_path: Path):
    """Conformers of both files come together. Control: split by conformer, molecules are shared."""
    data = load(ConformersConfig(str(folder_of_sdf(tmp_path)), valid_fraction=0.2, test_fraction=0.2))
    parts = [set(part.molecule.tolist()) for part in data.splits.values()]  # type: ignore[attr-defined]
    assert sum(map(len, parts)) == len(LINEAR)
    assert not parts[0] & parts[2]
    assert len(data.train) + len(data.valid) + len(data.test) == 4 * len(LINEAR)
    assert any(note.startswith("conformers of molecules: train") for note in data.notes)
    mixed = load(ConformersConfig(str(tmp_path), split=ConformerSplit.CONFORMER, valid_fraction=0.2, test_fraction=0.2))
    assert set(mixed.train.molecule.tolist()) & set(mixed.test.molecule.tolist())  # type: ignore[attr-defined]
    assert data.fingerprint != mixed.fingerprint


def test_one_file_and_a_size_can_be_chosen(tmp_path: Path):
    folder_of_sdf(tmp_path)
    data = load(ConformersConfig(str(tmp_path), file="one.sdf", max_atoms=12))
    assert sum(map(len, data.splits.values())) == 2 * sum(
        r.numbers.size <= 12 for smiles in LINEAR for r in records_of(smiles, 1)
    )
    assert max(part.n_atoms.max() for part in data.splits.values()) <= 12
    assert data.label.startswith("one.sdf")


def test_missing_hydrogens_are_told_and_can_be_left_out(tmp_path: Path):
    good = [r for smiles in LINEAR for r in records_of(smiles, 2)]
    write_sdf(tmp_path / "a.sdf", good)
    write_sdf(tmp_path / "b.sdf", records_of("CCO", 1), hydrogens=False)
    with pytest.raises(FileError, match=r"b.sdf: molecule 1 lacks 6 hydrogens .*, or leave such records out"):
        load(ConformersConfig(str(tmp_path)))
    data = load(ConformersConfig(str(tmp_path), skip_bad=True))
    assert sum(map(len, data.splits.values())) == len(good)
    assert any(note.startswith("1 left out: ") and "hydrogens" in note for note in data.notes)


def test_copies_are_noted(tmp_path: Path):
    """As RDKit draws them with seed 0. Control: other conformers are none."""
    records = [r for smiles in LINEAR for r in records_of(smiles, 2)]
    write_sdf(tmp_path / "a.sdf", [*records, *records[:3]])
    assert "3 conformers are copies of others, coordinate by coordinate" in load(ConformersConfig(str(tmp_path))).notes
    write_sdf(tmp_path / "a.sdf", records)
    assert not any("copies" in note for note in load(ConformersConfig(str(tmp_path))).notes)


def test_test_molecules_that_a_file_names_are_the_test_molecules(tmp_path: Path):
    stored = arrays()
    stored["split"] = np.array(["train"] * 5 + ["test"] * (len(SYMMETRIES) - 5))
    np.savez(tmp_path / "a.npz", **stored)
    data = load(ConformersConfig(str(tmp_path)))
    assert set(data.test.molecule.tolist()) == {5, 6, 7}  # type: ignore[attr-defined]
    assert data.source == "conformers, split by molecule, as the file names it"
    assert len(set(data.valid.molecule.tolist())) == 1  # type: ignore[attr-defined]


def test_mirror_images_in_a_folder_are_molecules_of_their_own(tmp_path: Path):
    records = records_of("C[C@H](O)F", 4)
    others = [r for smiles in LINEAR for r in records_of(smiles, 1)]
    write_sdf(tmp_path / "a.sdf", [*records[:2], *map(mirrored, records[2:]), *others])
    data = load(ConformersConfig(str(tmp_path)))
    graphs = data.train.graphs  # type: ignore[attr-defined]
    assert len(graphs) == 2 + len(LINEAR)


def test_what_is_missing_is_told_in_one_line(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("CONFORMERS_DIR", raising=False)
    with pytest.raises(DataError, match=r"set data.dir or CONFORMERS_DIR"):
        load(ConformersConfig())
    with pytest.raises(DataError, match="does not exist"):
        load(ConformersConfig(str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match=r"has no file ending in .sdf, .sdf.gz, .npz"):
        load(ConformersConfig(str(tmp_path)))
    np.savez(tmp_path / "a.npz", **arrays())
    np.savez(tmp_path / "b.npz", **arrays())
    monkeypatch.setenv("CONFORMERS_DIR", str(tmp_path))
    with pytest.raises(DataError, match=r"several npz files: a.npz, b.npz; choose one by data.file"):
        load(ConformersConfig())
    with pytest.raises(DataError, match=r"has no sdf or npz file 'c.npz'"):
        load(ConformersConfig(file="c.npz"))
    assert len(load(ConformersConfig(file="b.npz")).train)
    with pytest.raises(DataError, match="expected positive ones below 1 in sum"):
        load(ConformersConfig(file="b.npz", valid_fraction=0.0))
    with pytest.raises(DataError, match="the train split is empty: 2 molecules with 6 conformers"):
        load(ConformersConfig(file="b.npz", max_atoms=6))


def one_conformer_each() -> dict[str, np.ndarray]:
    """The first conformer of each molecule, in the layout of one pointer."""
    some, stored = ensembles(1), arrays()
    return {
        "ptr": some.ptr,
        "positions": some.positions,
        **{name: stored[name] for name in ("atomic_numbers", "formal_charge", "bond_ptr", "bonds")},
    }


def test_one_pointer_stands_for_molecules_of_one_conformer(tmp_path: Path):
    """Control: a pointer that is none is refused, and so is no pointer."""
    stored = one_conformer_each()
    np.savez(tmp_path / "a.npz", **stored)
    found = read_npz(tmp_path / "a.npz")
    assert np.array_equal(found.ensembles.positions, ensembles(1).positions)
    assert len(found.ensembles) == len(SYMMETRIES)
    for wrong in ({**stored, "ptr": stored["ptr"][:-1]}, {k: v for k, v in stored.items() if k != "ptr"}):
        np.savez(tmp_path / "b.npz", **wrong)
        with pytest.raises(FileError, match="atom_ptr"):
            read_npz(tmp_path / "b.npz")


def test_molecules_of_several_files_are_one(tmp_path: Path):
    np.savez(tmp_path / "a.npz", **arrays())
    np.savez(tmp_path / "b.npz", **one_conformer_each())
    found = read_npz(tmp_path / "a.npz", tmp_path / "b.npz")
    assert found.ensembles.graphs.smiles == ensembles().graphs.smiles
    assert len(found.ensembles) == 4 * len(SYMMETRIES)
    assert read_npz(tmp_path / "a.npz").ensembles.molecule.max() == found.ensembles.molecule.max()


def test_the_stand_in_is_both_files_split_by_molecule_with_the_elements_of_geom_drugs(tmp_path: Path):
    """Control: without one of the files it is refused, with its name."""
    np.savez(tmp_path / "conformers_druglike.npz", **arrays())
    entry = datasets["drugs_standin"]
    cfg = entry.config(dir=str(tmp_path), valid_fraction=0.2, test_fraction=0.2)
    with pytest.raises(DataError, match=r"lacks ligands_fep\.npz"):
        entry.build(cfg)
    np.savez(tmp_path / "ligands_fep.npz", **one_conformer_each())
    data = entry.build(cfg)
    parts = [set(part.molecule.tolist()) for part in data.splits.values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(SYMMETRIES)
    assert sum(map(len, data.splits.values())) == 4 * len(SYMMETRIES)
    assert len(data.elements) == 16
    assert "stand-in" in data.label
    task = Denovo(DenovoConfig(include_charges=False), DiffusionConfig(), "O3", data.facts)
    state = task.encode(data.train)
    assert state.h.shape[1] == 16
    assert np.array_equal(task.decode(state).numbers, data.train.numbers)
