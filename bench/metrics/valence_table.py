"""Allowed valences of GEOM's elements with aromatic bonds counted apart: `valence/geom.json`, and how it is made.

The table that came with the published evaluations of GEOM-Drugs adds up bond orders in which aromatic bonds, meant as
1.5, had been cut to 1. Every aromatic carbon then has valence 3, so the table allows carbon 3 (and nitrogen 2), and
with it every carbon that lacks a hydrogen. Here the key is an element, its formal charge, the number of its aromatic
bonds and the sum of the orders of its other bonds.

The rule: an atom of charge q has the valences that RDKit lists for the neutral element of as many electrons (N+ as C).
Without aromatic bonds, its orders add up to one of them. With aromatic bonds, two or three, it is flat: it has at most
three neighbours, and in a Kekule form one of its aromatic bonds is double or none is, so that its lowest valence is the
sum of all bonds, plus one or not.

    python -m bench.metrics.valence_table       writes bench/metrics/valence/geom.json

References: Nikitin et al. (2025), GEOM-Drugs Revisited, arXiv:2505.00169 (the defect, and a table from data).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
from rdkit import Chem, rdBase

from bench.records.store import write_atomically

ELEMENTS = ("H", "B", "C", "N", "O", "F", "Al", "Si", "P", "S", "Cl", "As", "Br", "I", "Hg", "Bi")  # of GEOM-Drugs
AROMATIC = ("B", "C", "N", "O", "Si", "P", "S", "As")  # elements that RDKit lets into aromatic rings
CHARGES = (-1, 0, 1)
FILE = "geom.json"

Environment = tuple[str, int, int, int]  # element, charge, aromatic bonds, sum of the orders of the others


def environments(mol: Chem.Mol) -> list[Environment]:
    """Environment of each atom of a sanitised molecule."""
    found = []
    for atom in mol.GetAtoms():  # pyright: ignore[reportGeneralTypeIssues]
        orders = [bond.GetBondTypeAsDouble() for bond in atom.GetBonds() if not bond.GetIsAromatic()]
        n_aromatic = sum(bond.GetIsAromatic() for bond in atom.GetBonds())
        found.append((atom.GetSymbol(), atom.GetFormalCharge(), n_aromatic, round(sum(orders))))
    return found


def allowed_atoms(mol: Chem.Mol | None) -> np.ndarray | None:
    """Whether the environment of each atom is in the table [n]; None for a molecule that RDKit does not sanitise.

    Implicit hydrogens, which are no atoms, do not count.
    """
    if mol is None:
        return None
    mol = Chem.Mol(mol)
    with rdBase.BlockLogs():
        if Chem.SanitizeMol(mol, catchErrors=True):
            return None
    return np.array([environment in load() for environment in environments(mol)], dtype=bool)


@functools.cache
def load() -> frozenset[Environment]:
    """The table."""
    table = json.loads(resources.files("bench.metrics").joinpath(f"valence/{FILE}").read_text())["allowed"]
    return frozenset(
        (symbol, int(charge), n_aromatic, others)
        for symbol, of_charge in table.items()
        for charge, pairs in of_charge.items()
        for n_aromatic, others in pairs
    )


def by_rule(symbol: str, charge: int) -> list[tuple[int, int]]:
    """Pairs (aromatic bonds, sum of the orders of the others) that the rule allows."""
    periodic = Chem.GetPeriodicTable()
    like = periodic.GetAtomicNumber(symbol) - charge
    valences = [v for v in periodic.GetValenceList(like) if v >= 0] if like > 0 else []
    pairs = [(0, valence) for valence in valences]
    if symbol in AROMATIC and valences and min(valences) > 1:
        pairs += list(_aromatic(min(valences)))
    return sorted(pairs)


def _aromatic(valence: int) -> Iterator[tuple[int, int]]:
    for n_aromatic in (2, 3):
        for n_others in range(4 - n_aromatic):  # neighbours by other bonds, of order 1 or 2
            for others in range(n_others, 2 * n_others + 1):
                if n_aromatic + others in (valence, valence - 1):
                    yield n_aromatic, others


def make(path: Path) -> None:
    """Write the table."""
    table = {s: {str(q): pairs for q in CHARGES if (pairs := by_rule(s, q))} for s in ELEMENTS}
    lines = [f"  {json.dumps(symbol)}: {json.dumps(of_charge)}" for symbol, of_charge in table.items() if of_charge]
    text = (
        '{"made by": "python -m bench.metrics.valence_table",\n'
        '"meaning": "element: charge: pairs of aromatic bonds and the sum of the orders of the other bonds",\n'
        '"allowed": {\n' + ",\n".join(lines) + "\n}}\n"
    )
    write_atomically(path, text.encode())


if __name__ == "__main__":
    make(Path(__file__).parent / "valence" / FILE)
