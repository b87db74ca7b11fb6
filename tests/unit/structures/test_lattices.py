"""Cells, fractions and volumes, and crystals as structures: selected, joined, written and read with their cells."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from crystal_examples import PEROVSKITE, examples

from bench.structures import files
from bench.structures.dataset import DataError, DataSet
from bench.structures.elements import FileError
from bench.structures.lattices import crystals, fractions_of, parameters_of, standard_cells, volumes
from bench.structures.structures import Structures

ODD = np.array([[3.0, 4, 5, 80, 95, 110], [2, 2, 2, 60, 60, 60], [7, 3, 4, 90, 90, 90]])


def test_cells_have_the_lengths_and_angles_asked_for_in_the_standard_orientation():
    cells = standard_cells(ODD)
    assert np.allclose(parameters_of(cells), ODD)
    assert np.allclose(cells[:, 2, :2], 0)  # c along z
    assert np.allclose(cells[:, 0, 1], 0)  # a in the plane of x and z
    assert (np.linalg.det(cells) > 0).all()
    assert np.allclose(volumes(cells)[2], 84)
    turned = cells @ np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    assert np.allclose(standard_cells(parameters_of(turned)), cells)
    assert not np.allclose(turned, cells)  # control: orientation was lost on the way


def test_the_standard_orientation_is_pymatgens():
    core = pytest.importorskip("pymatgen.core")
    for row in ODD:
        assert np.allclose(core.Lattice.from_parameters(*row.tolist()).matrix, standard_cells(row[None])[0])


@pytest.mark.parametrize("wrong", [[3, 4, 5, 10, 20, 90], [0, 4, 5, 90, 90, 90], [3, 4, 5, 90, 90, 180]])
def test_cells_without_a_volume_are_refused(wrong):
    with pytest.raises(ValueError, match="of a cell without a volume"):
        standard_cells(np.array([wrong], dtype=float))


def test_fractions_come_back_within_the_cell():
    made = examples()
    off = fractions_of(made)[:5] - PEROVSKITE
    assert np.allclose(off, np.round(off))
    moved = crystals(made.numbers, fractions_of(made) + np.array([1.0, -2.0, 0.25]), made.cells, made.ptr)  # type: ignore[arg-type]
    found = fractions_of(moved)
    assert (found >= 0).all()
    assert (found < 1).all()
    off = found[:5] - PEROVSKITE - np.array([0, 0, 0.25])
    assert np.allclose(off, np.round(off), atol=1e-9)
    assert not np.allclose(off + 0.25, np.round(off + 0.25), atol=1e-9)  # control: a part of a turn stays
    with pytest.raises(ValueError, match="molecules have no cells"):
        fractions_of(dataclasses.replace(made, cells=None))


def test_cells_stay_with_their_crystals(tmp_path: Path):
    """Selected, joined, told apart, written and read; control: other cells are another data set."""
    made = examples(lengths=(3.9, 4.0, 4.1))
    wider = examples(lengths=(5.0, 5.0, 5.0))
    both = Structures.concatenate([made, wider])
    assert both.cells is not None
    assert np.array_equal(both.select(np.array([5, 0])).cells, both.cells[[5, 0]])  # type: ignore[arg-type]
    assert len(both.distinct()[0]) == len(both)
    assert len(dataclasses.replace(both, cells=None).distinct()[0]) == len(both)  # positions differ too
    squeezed = dataclasses.replace(made, cells=made.cells * 1.01)  # type: ignore[operator]
    assert len(Structures.concatenate([made, squeezed, made]).distinct()[0]) == 2 * len(made)
    files.write(tmp_path / "crystals.npz", both)
    back = files.read(tmp_path / "crystals.npz")
    assert np.array_equal(back.cells, both.cells)  # type: ignore[arg-type]
    assert np.array_equal(back.numbers, both.numbers)  # uranium included
    files.write(tmp_path / "crystals.xyz", made)
    assert 'Lattice="' in (tmp_path / "crystals.xyz").read_text()
    elements = tuple(np.unique(made.numbers).tolist())
    prints = {DataSet("x", "x", "x", elements, s, s, s).fingerprint for s in (made, squeezed)}
    assert len(prints) == 2
    mixed = Structures.concatenate([made, dataclasses.replace(wider, cells=None)])
    assert mixed.cells is None


def test_broken_cells_are_refused_with_a_line(tmp_path: Path):
    made = examples()
    assert made.cells is not None
    with pytest.raises(ValueError, match=r"cells have shape \(2, 3, 3\), expected \(4, 3, 3\)"):
        dataclasses.replace(made, cells=made.cells[:2])
    broken = dataclasses.replace(made, cells=np.where(np.arange(4)[:, None, None] == 1, np.nan, made.cells))
    with pytest.raises(FileError, match="molecule 1 has a cell that is not finite"):
        files.write(tmp_path / "x.npz", broken)
    with pytest.raises(DataError, match="not finite"):
        DataSet("x", "x", "x", tuple(np.unique(made.numbers).tolist()), broken, made, made)
    np.savez(tmp_path / "y.npz", num_atoms=[1], charges=[11], positions=np.zeros((1, 3)), cells=np.zeros((2, 3, 3)))
    with pytest.raises(FileError, match=r"'cells' is float64 of shape \(2, 3, 3\), expected reals \(1, 3, 3\)"):
        files.read(tmp_path / "y.npz")
