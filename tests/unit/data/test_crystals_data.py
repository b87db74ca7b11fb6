"""Data sets of crystals: what a folder holds, how it is split, what is said of it; and the embedded set."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from crystal_examples import cif, examples

from bench.data.mini_crystals import PATH, system_of
from bench.records.inputs import read_arrays
from bench.records.store import read_json
from bench.registry import datasets
from bench.structures.dataset import SPLITS, DataError, DataSet
from bench.structures.elements import BadMoleculesError, FileError
from bench.structures.lattices import fractions_of, parameters_of, volumes
from bench.structures.prompts import HASHED, Described


def load(**options) -> DataSet:
    entry = datasets["crystals"]
    return entry.build(entry.config(**options))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EQUIBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CRYSTALS_DIR", raising=False)


def save(path: Path, lengths: tuple[float, float, float] = (3.9, 4.0, 4.1)) -> None:
    made = examples(lengths=lengths)
    assert made.cells is not None
    arrays = {"cell": parameters_of(made.cells), "frac": fractions_of(made)}
    np.savez(path, ptr=made.ptr, atomic_numbers=made.numbers, **arrays)


def test_a_folder_of_cif_files_is_a_data_set_by_one_line(tmp_path: Path):
    """Split at random, the same for one seed; control: another for another."""
    pytest.importorskip("pymatgen.core")
    for k in range(12):
        (tmp_path / f"{k:02d}.cif").write_text(cif(a=3.9 + 0.05 * k))
    first, again, other = (load(dir=str(tmp_path), seed=seed) for seed in (0, 0, 1))
    assert [len(part) for part in first.splits.values()] == [10, 1, 1]
    assert "split at random" in first.label
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert any("composition of the training part" in note for note in first.notes)


def test_bad_entries_are_errors_or_counted_and_named(tmp_path: Path):
    pytest.importorskip("pymatgen.core")
    for k in range(6):
        (tmp_path / f"{k:02d}.cif").write_text(cif(a=3.9 + 0.05 * k))
    (tmp_path / "bad.cif").write_text(cif(occupancy="0.5"))
    with pytest.raises(BadMoleculesError, match=r"bad.cif: partial occupancy.*\(1 such entries\); data.skip_bad"):
        load(dir=str(tmp_path))
    notes = load(dir=str(tmp_path), skip_bad=True).notes
    assert any(note.startswith("1 left out: bad.cif: partial occupancy") for note in notes)


def test_validation_and_test_parts_alone_are_a_reduced_split(tmp_path: Path):
    """As in the shared files, which lack the official training part: said in the label and source; control: with it."""
    pytest.importorskip("pymatgen.core")
    save(tmp_path / "crystals_a_val.npz")
    save(tmp_path / "crystals_a_test.npz", (5.0, 5.0, 5.1))
    data = load(dir=str(tmp_path), of="a")
    assert data.label.startswith("a, reduced split: trained on the validation part")
    assert "reduced split" in data.source
    assert [len(part) for part in data.splits.values()] == [3, 1, 4]
    save(tmp_path / "crystals_a_train.npz", (6.0, 6.0, 6.1))
    whole = load(dir=str(tmp_path), of="a")
    assert whole.label == "a, split as the files name it"
    assert [len(part) for part in whole.splits.values()] == [4, 4, 4]
    for part in ("val", "test"):  # a set whose name only begins so is another one
        save(tmp_path / f"crystals_a_binary_{part}.npz", (7.0, 7.0, 7.1))
    assert load(dir=str(tmp_path), of="a").fingerprint == whole.fingerprint
    assert load(dir=str(tmp_path), of="a_binary").fingerprint != whole.fingerprint
    for part in ("val", "test"):
        (tmp_path / f"crystals_a_binary_{part}.npz").unlink()
    save(tmp_path / "crystals_b_test.npz")
    with pytest.raises(DataError, match=r"several data sets: a, b; choose one by data\.of"):
        load(dir=str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "set data.dir or CRYSTALS_DIR"),
        ({"dir": "{}/none"}, "does not exist"),
        ({"dir": "{}"}, "no file ending in .cif, .csv, .npz"),
        ({"dir": "{}", "of": "perov5"}, "called crystals_perov5_PART"),
    ],
    ids=["nothing", "missing", "empty", "no such set"],
)
def test_a_folder_that_is_none_is_refused_with_a_line(options: dict, message: str, tmp_path: Path):
    with pytest.raises(DataError, match=message):
        load(**{key: value.format(tmp_path) for key, value in options.items()})


def test_fractions_of_a_split_are_checked():
    with pytest.raises(ValueError, match="expected positive ones below 1 in sum"):
        load(valid_fraction=0.6, test_fraction=0.5)


# ---------------------------------------------------------------------- the embedded set


def mini(**options) -> DataSet:
    entry = datasets["mini_crystals"]
    return entry.build(entry.config(**options))


def test_the_embedded_file_is_the_one_of_the_record():
    record, arrays = read_json(PATH.with_suffix(".json")), read_arrays(PATH)
    assert sha256(PATH.read_bytes()).hexdigest() == record["sha256"]
    assert {name: len(part) for name, part in mini().splits.items()} == record["splits"]
    kinds = [str(name).split("-")[0] for name in arrays["material_id"]]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == record["crystals"]


def test_embedded_crystals_are_neutral_prototypes_without_clashes():
    """Two sites of a rock salt, five of a perovskite; no composition twice; sites apart, and volumes of real size."""
    data, names = mini(), read_arrays(PATH)["formula"].tolist()
    assert len(set(names)) == len(names)
    for split in SPLITS:
        part = data.splits[split]
        assert set(part.n_atoms.tolist()) <= {2, 5}
        assert part.cells is not None
        per_site = volumes(part.cells) / part.n_atoms
        assert per_site.min() > 8
        assert per_site.max() < 70
        for k, (_, x) in enumerate(part):
            shifts = np.array(np.meshgrid(*[[-1, 0, 1]] * 3)).reshape(3, -1).T @ part.cells[k]
            distance = np.linalg.norm(x[:, None, None] - x[None, :, None] - shifts, axis=3)
            assert np.sort(distance.ravel())[len(x) :].min() > 1.5  # beyond each site with itself


def test_limits_apply_to_crystals():
    assert set(mini(max_atoms=2).train.n_atoms.tolist()) == {2}
    assert len(mini(n_train=7).train) == 7


@pytest.mark.parametrize("name", ["mini_crystals", "crystals"])
def test_descriptions_are_part_of_the_data(name: str, tmp_path: Path):
    """Reproducible, told in the label, in the fingerprint; control: without text no crystal has any."""
    options = {}
    if name == "crystals":
        pytest.importorskip("pymatgen.core")
        for k in range(6):
            (tmp_path / f"{k:02d}.cif").write_text(cif(a=3.9 + 0.05 * k))
        options["dir"] = str(tmp_path)
    entry = datasets[name]
    bare, one, again = (entry.build(entry.config(text=text, **options)) for text in (None, HASHED, HASHED))
    assert one.fingerprint == again.fingerprint != bare.fingerprint
    assert one.label == f"{bare.label}, prompts as hashed attributes (a stand-in for a text encoder)"
    for split in SPLITS:
        described, without = one.splits[split], bare.splits[split]
        assert isinstance(described, Described)
        assert not isinstance(without, Described)
        assert np.array_equal(described.positions, without.positions)
    with pytest.raises(FileError, match=r"has no config\.json"):
        entry.build(entry.config(text=str(tmp_path / "none"), **options))


def test_embedded_crystal_systems_are_those_that_spglib_finds():
    """Of a sample; the polar displacement of the B site lowers none of them."""
    pytest.importorskip("pymatgen.core")
    from pymatgen.core import Lattice, Structure
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    arrays = read_arrays(PATH, ("cell", "ptr", "atomic_numbers", "frac"))
    found = []
    for k in range(0, len(arrays["cell"]), 7):
        sites = slice(arrays["ptr"][k], arrays["ptr"][k + 1])
        lattice = Lattice.from_parameters(*arrays["cell"][k].tolist())
        crystal = Structure(lattice, arrays["atomic_numbers"][sites].tolist(), arrays["frac"][sites])
        found.append(SpacegroupAnalyzer(crystal, symprec=1e-4).get_crystal_system())
        assert system_of(arrays["cell"][k]) == found[-1]
    assert set(found) == {"cubic", "tetragonal", "orthorhombic"}
