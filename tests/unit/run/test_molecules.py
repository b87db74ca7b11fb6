"""Sampled molecules as RDKit and ASE have them, and in files."""

import sys
from types import ModuleType

import numpy as np
import pytest

from bench.metrics.stability import UnknownElementError
from bench.run.molecules import Molecules
from bench.structures import files

WATER = (np.array([8, 1, 1]), np.array([[0, 0, 0.1], [0, 0.76, -0.47], [0, -0.76, -0.47]]))
HYDROXYL = (np.array([8, 1]), np.array([[0, 0, 0.0], [0, 0, 0.97]]))


@pytest.fixture
def molecules() -> Molecules:
    return Molecules.from_list([WATER, HYDROXYL])


def test_rdkit_gets_atoms_bonds_and_positions(molecules):
    water, hydroxyl = molecules.to_rdkit()
    assert [atom.GetSymbol() for atom in water.GetAtoms()] == ["O", "H", "H"]
    assert sorted(sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx())) for b in water.GetBonds()) == [[0, 1], [0, 2]]
    assert hydroxyl.GetNumBonds() == 1
    np.testing.assert_array_equal(water.GetConformer().GetPositions(), WATER[1])


def test_files_hold_the_molecules_and_sdf_its_bonds(molecules, tmp_path):
    for suffix in (".xyz", ".sdf", ".npz"):
        molecules.write(tmp_path / f"x{suffix}")
        found = files.read(tmp_path / f"x{suffix}")
        assert found.numbers.tolist() == molecules.numbers.tolist()
        np.testing.assert_allclose(found.positions, molecules.positions, atol=1e-4)
    assert "  3  2  0  0" in (tmp_path / "x.sdf").read_text()  # three atoms, two bonds


def test_an_element_that_no_rule_knows_is_written_without_bonds_and_refused_by_rdkits_converter(tmp_path):
    """Control: chlorine, which EDM's table lacks and RDKit's rule knows."""
    iron, chlorine = (Molecules.from_list([(np.array([z, z]), np.array([[0, 0, 0.0], [0, 0, 2.0]]))]) for z in (26, 17))
    iron.write(tmp_path / "x.sdf")
    assert "  2  0  0" in (tmp_path / "x.sdf").read_text()
    with pytest.raises(UnknownElementError):
        iron.to_rdkit()
    (mol,) = chlorine.to_rdkit()
    assert mol.GetNumBonds() == 1


def test_ase_gets_charges_and_positions_and_is_named_where_it_is_missing(molecules, monkeypatch):
    ase = ModuleType("ase")
    ase.Atoms = dict  # what ASE's class is called with
    monkeypatch.setitem(sys.modules, "ase", ase)
    (water, _) = molecules.to_ase()
    assert water["numbers"].tolist() == [8, 1, 1]
    np.testing.assert_array_equal(water["positions"], WATER[1])
    monkeypatch.setitem(sys.modules, "ase", None)
    with pytest.raises(ImportError, match=r"to_ase needs ASE.*pip install ase"):
        molecules.to_ase()
