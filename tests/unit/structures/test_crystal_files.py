"""Files of crystals by pymatgen: what is read, reduced, kept in the cache, and what counts as a fault."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crystal_examples import cif, examples

from bench.structures import crystal_files
from bench.structures.crystal_files import read_entries
from bench.structures.elements import FileError
from bench.structures.lattices import fractions_of, parameters_of, volumes
from bench.structures.structures import Structures

pytest.importorskip("pymatgen.core")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EQUIBENCH_CACHE", str(tmp_path / "cache"))


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def arrays_of(made: Structures) -> dict[str, np.ndarray]:
    assert made.cells is not None
    cell = parameters_of(made.cells)
    return {"cell": cell, "ptr": made.ptr, "atomic_numbers": made.numbers, "frac": fractions_of(made)}


def test_cif_files_are_read_in_order_and_named(tmp_path: Path):
    paths = [written(tmp_path / "a.cif", cif()), written(tmp_path / "b.cif", cif(a=4.2) + cif("second", a=4.3))]
    found = read_entries(paths)
    assert found.names == ["a.cif", "b.cif block 1", "b.cif block 2"]
    assert found.faults == []
    assert np.allclose(volumes(found.structures.cells), [3.9**3, 4.2**3, 4.3**3])  # type: ignore[arg-type]
    assert sorted(found.structures[0][0].tolist()) == [8, 8, 8, 22, 38]


def with_sum(formula: str, **options: Any) -> str:
    """CIF text that states its formula."""
    return cif(**options).replace("loop_", f"_chemical_formula_sum '{formula}'\nloop_", 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (cif(occupancy="0.5"), "partial occupancy or disorder: a site of Sr:0.5"),
        ("no cif at all", "no CIF that pymatgen can read"),
        (cif().replace("_cell_length_a", "_length"), "no CIF that pymatgen can read"),
        (cif(symbols=["Es", "Ti", "O", "O", "O"]), "element 99, expected 1 to 96"),
        (cif(symbols=["X", "Ti", "O", "O", "O"]), "which is no element"),
        (with_sum("H2 Sr Ti O3"), "formula is H2 Sr Ti O3, that of its sites SrTiO3"),
        (with_sum("Ti O3", symbols=["Vac", "Ti", "O", "O", "O"]), "that of its sites TiVO3"),
        (with_sum("Sr Ti O3", occupancy="0"), "that of its sites TiO3"),
        (with_sum("Sr-Ti"), "its formula, Sr-Ti, cannot be read"),
    ],
    ids=["occupancy", "text", "no length", "element", "dummy", "no H", "vacancy", "no occupancy", "no formula"],
)
def test_what_is_no_ordered_crystal_is_a_named_fault(text: str, reason: str, tmp_path: Path):
    """Control: the good file beside it is read."""
    found = read_entries([written(tmp_path / "bad.cif", text), written(tmp_path / "good.cif", cif())])
    assert len(found.faults) == 1
    assert found.faults[0].startswith("bad.cif")
    assert reason in found.faults[0]
    assert found.names == ["good.cif"]


def test_each_block_of_a_cif_stands_for_itself(tmp_path: Path):
    """A bad one is a fault, its neighbours are read, those of one name too; control: a block without sites is none."""
    bad = cif("bad").replace("_cell_length_a", "_length")
    text = "data_global\n_journal_year 2026\n" + with_sum("?") + bad + with_sum("O3 Sr Ti", a=4.2)
    found = read_entries([written(tmp_path / "a.cif", text)])
    assert found.names == ["a.cif block 1", "a.cif block 3"]
    assert np.allclose(volumes(found.structures.cells), [3.9**3, 4.2**3])  # type: ignore[arg-type]
    assert len(found.faults) == 1
    assert found.faults[0].startswith("a.cif block 2: no CIF that pymatgen can read")


def test_bytes_that_are_no_utf_8_stop_nothing(tmp_path: Path):
    """Of an author's name they do not matter; control: of a formula they make a fault, of that entry alone."""
    latin = "_publ_author_name 'J\xf6rg'\nloop_"
    (tmp_path / "a.cif").write_bytes(cif().replace("loop_", latin, 1).encode("latin-1"))
    assert read_entries([tmp_path / "a.cif"]).names == ["a.cif"]
    rows = f'material_id,formula,cif\n1,SrTiO\xf6,"{cif()}"\n2,nan,"{cif()}"\n3,SrTiO3,"{cif()}"\n'
    (tmp_path / "a.csv").write_bytes(rows.encode("latin-1"))
    found = read_entries([tmp_path / "a.csv"])
    assert found.names == ["a.csv 3"]
    assert [fault.split(":")[0] for fault in found.faults] == ["a.csv 1", "a.csv 2"]
    assert "its formula, nan, cannot be read" in found.faults[1]


def test_official_csv_files_are_read_and_their_formula_checked(tmp_path: Path):
    path = tmp_path / "val.csv"
    rows = [("1", cif(), "TiSrO3"), ("2", cif(), "BaTiO3"), ("3", "broken", "NaCl"), ("4", cif(a=4.0), "")]
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["", "material_id", "cif", "formula"])
        out.writerows([[k, *row] for k, row in enumerate(rows)])
    found = read_entries([path])
    assert found.names == ["val.csv 1", "val.csv 4"]
    assert "formula is BaTiO3, that of its sites SrTiO3" in found.faults[0]
    assert "val.csv 3" in found.faults[1]
    with pytest.raises(FileError, match="expected one called cif"):
        read_entries([written(tmp_path / "other.csv", "a,b\n1,2\n")])


def test_cells_are_reduced(tmp_path: Path):
    """A crystal in another basis of its lattice comes back in the same cell; control: unreduced it has another."""
    made = examples(["SrTiO3"], lengths=(3.8, 4.0, 4.3))
    assert made.cells is not None
    skewed = np.array([[1, 0, 0], [1, 1, 0], [0, 2, 1]]) @ made.cells[0]
    other = dataclasses.replace(made, cells=skewed[None])
    for name, one in (("first", made), ("other", other)):
        np.savez(tmp_path / f"{name}.npz", **arrays_of(one))
    first, second = (read_entries([tmp_path / f"{name}.npz"]).structures for name in ("first", "other"))
    assert first.cells is not None
    assert second.cells is not None
    assert np.allclose(parameters_of(first.cells), parameters_of(second.cells), atol=1e-4)
    assert not np.allclose(parameters_of(other.cells), parameters_of(first.cells), atol=0.1)  # type: ignore[arg-type]


def test_reading_happens_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The second time nothing is parsed; control: a changed file is, and a damaged cache too."""
    path = written(tmp_path / "a.cif", cif())
    calls = []
    parsed = crystal_files.parsed
    monkeypatch.setattr(crystal_files, "parsed", lambda text: calls.append(text) or parsed(text))
    first, second = read_entries([path]), read_entries([path])
    assert len(calls) == 1
    assert np.array_equal(first.structures.positions, second.structures.positions)
    assert np.array_equal(first.structures.cells, second.structures.cells)  # type: ignore[arg-type]
    read_entries([written(path, cif(a=5.0))])
    assert len(calls) == 2
    for cached in (tmp_path / "cache").glob("crystals-*.npz"):
        cached.write_bytes(b"no archive")
    read_entries([path])
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ptr": np.array([0, 4, 20])}, "expected cell"),
        ({"frac": np.zeros((3, 3))}, "expected cell"),
        ({"cell": None}, "'cell' is missing"),
    ],
    ids=["ptr", "frac", "cell"],
)
def test_npz_files_of_another_layout_are_refused(change: dict, message: str, tmp_path: Path):
    arrays = {name: array for name, array in (arrays_of(examples()) | change).items() if array is not None}
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(FileError, match=message):
        read_entries([tmp_path / "x.npz"])


def test_entries_of_npz_files_can_be_faults(tmp_path: Path):
    arrays = arrays_of(examples())
    arrays["frac"][0, 0] = np.nan
    np.savez(tmp_path / "x.npz", material_id=np.array(list("abcd")), **arrays)
    found = read_entries([tmp_path / "x.npz"])
    assert found.faults == ["x.npz a: a nuclear charge of 0, or a number that is not finite"]
    assert len(found.structures) == 3
