"""The embedded ensembles: the file is the recorded one, split by molecule, of the stereochemistry that it names."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest

from bench.data.mini_conformers import PATH
from bench.mini.conformers import WINDOW, isomer_of, with_hydrogens
from bench.mini.conformers_card import references_of
from bench.records.inputs import read_arrays
from bench.records.store import read_json
from bench.registry import datasets
from bench.structures.ensembles import Ensembles

pytestmark = pytest.mark.skipif(not PATH.exists(), reason="bench/data/mini_conformers.npz has not been made")


def test_the_file_is_the_one_of_the_record():
    record, arrays = read_json(PATH.with_suffix(".json")), read_arrays(PATH)
    assert sha256(PATH.read_bytes()).hexdigest() == record["sha256"]
    assert len(arrays["smiles"]) == record["n_molecules"]
    assert len(arrays["conf_mol"]) == record["n_conformers"] == record["candidates"]["kept"]
    energies = np.split(arrays["energy_kcal"], np.flatnonzero(np.diff(arrays["conf_mol"])) + 1)
    assert all(one[0] == 0 and one.max() <= WINDOW for one in energies)


def test_no_molecule_is_in_two_splits():
    entry = datasets["mini_conformers"]
    data = entry.build(entry.config())
    seen = []
    for part in data.splits.values():
        assert isinstance(part, Ensembles)
        seen += [part.graphs.smiles[k] for k in part.present]
    assert len(seen) == len(set(seen)) == len(read_arrays(PATH)["smiles"])


def test_conformers_have_the_stereochemistry_of_their_smiles():
    """The control: their mirror images do not, where the molecule is chiral."""
    references = references_of(read_arrays(PATH), "test")
    smiles = [str(one) for one in read_arrays(PATH)["smiles"][read_arrays(PATH)["split"] == "test"]]
    for one, (mol, positions) in zip(smiles, references, strict=True):
        assert mol.GetNumAtoms() == with_hydrogens(one).GetNumAtoms()
        assert set(isomer_of(mol, positions)) == {one}
    chiral = [(one, pair) for one, pair in zip(smiles, references, strict=True) if one.count("@") % 3 == 1]
    assert any(isomer_of(mol, -positions[:1]) != [one] for one, (mol, positions) in chiral)
