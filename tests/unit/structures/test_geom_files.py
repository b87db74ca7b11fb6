"""GEOM's official files: read as a stream, bonds from SMILES, pickles refused; on small files of their layout."""

from __future__ import annotations

import io
import pickle
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from geom_files import crude, packed
from rdkit import Chem

from bench.structures import geom
from bench.structures.elements import FileError
from bench.structures.perception import collect

SMILES = ("C[C@H](N)O", "C[NH2+]CC([O-])=O", "c1ccoc1", "F/C=C/Cl")


def write(path: Path, *molecules: tuple[str, Any]) -> Path:
    path.write_bytes(packed(*molecules))
    return path


def test_molecules_are_read_over_all_maps_and_sorted_by_energy(tmp_path: Path):
    path = write(tmp_path / "qm9_crude.msgpack", *((smiles, crude(smiles)) for smiles in SMILES))
    found = list(geom.ensembles(path))
    assert [one.smiles for one in found] == list(SMILES)
    stored = crude(SMILES[0])["conformers"]
    assert found[0].energies.tolist() == sorted(one["totalenergy"] for one in stored)
    assert np.array_equal(found[0].positions[0], np.array(stored[1]["xyz"])[:, 1:])
    assert [len(one.positions) for one in geom.ensembles(path, at_most=1)] == [1] * 4
    assert next(geom.ensembles(path, at_most=1)).energies[0] == min(one["totalenergy"] for one in stored)


def test_bonds_and_charges_are_those_of_the_smiles_whatever_the_order_of_the_atoms(tmp_path: Path):
    path = write(tmp_path / "qm9_crude.msgpack", *((smiles, crude(smiles)) for smiles in SMILES))
    faults: list[str] = []
    ensembles, left_out = collect(geom.records(path, faults))
    assert faults == left_out == []
    assert set(ensembles.graphs.smiles) == {Chem.CanonSmiles(smiles) for smiles in SMILES}
    assert len(ensembles) == 12


def test_conformers_that_reacted_are_left_out_and_told(tmp_path: Path):
    reacted = crude("CO")
    away = np.array(reacted["conformers"][2]["xyz"])
    oxygen = int(np.argmax(away[:, 0] == 8))
    away[oxygen, 1:] += 5.0
    reacted["conformers"][2]["xyz"] = away.tolist()
    path = write(tmp_path / "qm9_crude.msgpack", ("CO", reacted), ("CCO", crude("COC")), ("C1C", crude("CO")))
    faults: list[str] = []
    records = list(geom.records(path, faults))
    assert len(records) == 2
    assert "molecule 1 (CO): 1 of 3 conformers have other bonds" in faults[0]
    assert "molecule 2 (CCO): no conformer has the bonds" in faults[1]
    assert "molecule 3 (C1C): RDKit refuses" in faults[2]


def test_an_archive_is_read_like_the_file_in_it(tmp_path: Path):
    content = packed(*((smiles, crude(smiles)) for smiles in SMILES))
    path = tmp_path / "qm9_crude.msgpack.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("qm9_crude.msgpack")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    assert [one.smiles for one in geom.ensembles(path)] == list(SMILES)
    assert geom.find(tmp_path, "qm9") == path
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(FileError, match=r"damaged|cut short"):
        list(geom.ensembles(path))


def test_memory_does_not_grow_with_the_file(tmp_path: Path):
    """The control holds the whole file's molecules and does grow."""
    one = crude(SMILES[0], n=40)

    def peak(n: int, keep: bool) -> int:
        path = tmp_path / f"{n}.msgpack"
        path.write_bytes(packed(*((f"molecule {k}", one) for k in range(n)), per_map=n))
        tracemalloc.start()
        held = list(geom.ensembles(path)) if keep else [len(found.positions) for found in geom.ensembles(path)]
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(held) == n
        return used

    assert peak(600, keep=False) < 1.2 * peak(150, keep=False)  # both files exceed the reader's buffer
    assert peak(600, keep=True) > 1.5 * peak(150, keep=True)


class Harmful:
    """What a pickle may do: here it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("inner", [".", "qm9", "rdkit_folder/qm9"])
def test_pickled_molecules_are_refused_with_the_way_out(tmp_path: Path, inner: str):
    harm = tmp_path / "harm"
    folder = tmp_path / "geom"
    (folder / inner).mkdir(parents=True)
    content = pickle.dumps(Harmful(harm))
    (folder / inner / "CO.pickle").write_bytes(content)
    with pytest.raises(FileError, match=r"CO\.pickle is a pickled molecule.*qm9_crude\.msgpack.*docs/data\.md"):
        geom.find(folder, "qm9")
    pytest.importorskip("msgpack")
    with pytest.raises(FileError, match="pickled"):
        list(geom.ensembles(folder / inner / "CO.pickle"))
    archive = tmp_path / "rdkit_folder.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, "rdkit_folder")
    with pytest.raises(FileError, match="holds pickled molecules"):
        list(geom.ensembles(archive))
    assert not harm.exists()
    pickle.loads(content)  # the control: the pickle is one that does harm
    assert harm.exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: content[:-30], "cut short after 3 molecules"),
        (lambda content: content + b"\x01", "no msgpack of GEOM's layout after 4"),
        (lambda content: b"\xc1" + content, "no msgpack of GEOM's layout after 0"),
    ],
)
def test_a_damaged_file_is_told(tmp_path: Path, spoil, message: str):
    path = tmp_path / "qm9_crude.msgpack"
    path.write_bytes(spoil(packed(*((smiles, crude(smiles)) for smiles in SMILES))))
    with pytest.raises(FileError, match=message):
        list(geom.ensembles(path))


@pytest.mark.parametrize(
    "found",
    [
        {"conformers": []},
        {"molecules": []},
        {"conformers": [{"totalenergy": 0.0, "xyz": [[1.0, 2.0]]}]},
        {"conformers": [{"totalenergy": 0.0, "xyz": [[6.0, 0.0, 0.0, float("nan")]]}]},
        {"conformers": [{"totalenergy": 0.0, "xyz": [[6.0, 0, 0, 0]]}, {"totalenergy": 0.0, "xyz": [[7.0, 0, 0, 0]]}]},
        {"conformers": [{"totalenergy": 0.0, "xyz": [[0.0, 0, 0, 0]]}]},
        [1, 2],
    ],
)
def test_a_molecule_of_another_layout_is_told(tmp_path: Path, found):
    path = write(tmp_path / "qm9_crude.msgpack", ("C", found))
    with pytest.raises(FileError, match=r"molecule 1 \(C\)"):
        list(geom.ensembles(path))


def test_a_folder_without_the_file_is_told(tmp_path: Path):
    with pytest.raises(FileError, match=r"has no drugs_crude\.msgpack"):
        geom.find(tmp_path, "drugs")
    with pytest.raises(FileError, match="does not exist"):
        geom.find(tmp_path / "nowhere", "drugs")
