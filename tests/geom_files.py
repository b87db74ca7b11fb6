"""Small files in the layout of GEOM's official ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem.rdDistGeom import EmbedMultipleConfs, ETKDGv3


def crude(smiles: str, n: int = 3) -> dict[str, Any]:
    """A molecule as GEOM has it: atoms in an order of their own, conformers in no order of energy."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    parameters = ETKDGv3()
    parameters.randomSeed = 1
    EmbedMultipleConfs(mol, n, parameters)
    order = np.random.default_rng(0).permutation(mol.GetNumAtoms())
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], float)[order]
    rows = [np.column_stack([numbers, conformer.GetPositions()[order]]).tolist() for conformer in mol.GetConformers()]
    energies = [-10.0 - 0.001 * ((k * 2) % 3) for k in range(n)]
    return {
        "totalconfs": n,
        "charge": Chem.GetFormalCharge(mol),
        "conformers": [
            {"geom_id": k, "totalenergy": energy, "boltzmannweight": 1 / n, "xyz": xyz}
            for k, (energy, xyz) in enumerate(zip(energies, rows, strict=True))
        ],
    }


def packed(*molecules: tuple[str, Any], per_map: int = 2) -> bytes:
    msgpack = pytest.importorskip("msgpack")
    maps = [dict(molecules[start : start + per_map]) for start in range(0, len(molecules), per_map)]
    return b"".join(msgpack.packb(one) for one in maps)
