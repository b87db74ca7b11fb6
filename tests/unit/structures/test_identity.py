"""Keys of molecules without RDKit, held against RDKit's SMILES; and the warning about units."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem
from rdkit.Chem.Scaffolds import MurckoScaffold

from bench.structures.elements import COVALENT_RADIUS
from bench.structures.identity import graph_keys, scaffold_keys, unit_warning
from bench.structures.structures import Structures

SMILES = [
    "CCO",
    "COC",
    "c1ccccc1",
    "Cc1ccccc1",
    "C1CCCCC1",
    "CC1CCCCC1",
    "CCS",
    "CCCl",
    "BrCC1CC1",
    "C1CC1",
    "CC#N",
    "N",
]


def embedded(smiles: list[str], seed: int = 1) -> Structures:
    found = []
    for text in smiles:
        mol = Chem.AddHs(Chem.MolFromSmiles(text))
        AllChem.EmbedMolecule(mol, randomSeed=seed)
        AllChem.MMFFOptimizeMolecule(mol)
        found.append((np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()]), mol.GetConformer().GetPositions()))
    return Structures.from_list(found)


def test_a_key_tells_molecules_apart_and_not_conformers_or_the_order_of_atoms():
    here, there = embedded(SMILES), embedded(SMILES, seed=2)
    keys = graph_keys(here)
    assert len(set(keys.tolist())) == len(SMILES)
    assert np.array_equal(keys, graph_keys(there))
    assert not np.array_equal(here.positions, there.positions)
    order = np.random.default_rng(0)
    shuffled = Structures.from_list([(n[p], x[p]) for n, x in here for p in [order.permutation(len(n))]])
    assert np.array_equal(keys, graph_keys(shuffled))


def test_a_scaffold_is_murckos_where_there_is_a_ring():
    molecules = embedded(SMILES)
    keys = dict(zip(SMILES, scaffold_keys(molecules).tolist(), strict=True))
    murcko = {text: MurckoScaffold.MurckoScaffoldSmiles(text) for text in SMILES}
    rings = [text for text in SMILES if murcko[text]]
    for a in rings:
        for b in rings:
            # orders are not looked at: benzene and cyclohexane have one scaffold
            same = murcko[a].upper() == murcko[b].upper()
            assert (keys[a] == keys[b]) is same
    acyclic = [keys[text] for text in SMILES if not murcko[text]]
    assert len(set(acyclic)) == len(acyclic)


def test_radii_are_those_of_rdkit():
    table = Chem.GetPeriodicTable()
    assert [table.GetRcovalent(z) for z in range(1, 97)] == pytest.approx(COVALENT_RADIUS[1:].tolist())


def test_bohr_is_warned_of_and_angstrom_is_not():
    molecules = embedded(SMILES)
    assert unit_warning(molecules) is None
    warning = unit_warning(replace(molecules, positions=molecules.positions / 0.529177))
    assert warning is not None
    assert f"in {len(SMILES)} of {len(SMILES)} molecules no two atoms are within bonding distance" in warning
    assert unit_warning(embedded(["[H][H]", "II"])) is None
    assert unit_warning(Structures.from_list([(np.array([18]), np.zeros((1, 3)))])) is None
