"""The data card of the embedded ensembles, docs/mini_conformers.md: `mini_conformers` beside GEOM-QM9's test molecules.

    python -m bench.mini.conformers_card --geom FOLDER

FOLDER holds qm9_test_smiles.csv, the list of the 1 000 test molecules of GEOM-QM9 with the number of their reference
conformers (GeoMol's repository, data/QM9/test_smiles.csv); only statistics of it are written.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem.rdMolDescriptors import CalcNumRings, CalcNumRotatableBonds

from bench.metrics.conformer_rows import Row, row_values
from bench.metrics.conformers import Reference
from bench.metrics.rmsd import rmsd_between
from bench.mini.conformers import N_GRAPHS, NAME, with_hydrogens
from bench.mini.make import DATA
from bench.records.inputs import read_arrays
from bench.records.store import read_json, write_atomically
from bench.structures.dataset import SPLITS, grouped

CARBON = Chem.MolFromSmarts("[#6]")
CARD = Path(__file__).parents[2] / "docs" / f"{NAME}.md"
ROW_METRICS = (
    "amr_r",
    "amr_p",
    "cov_r_0.1",
    "cov_p_0.1",
    "cov_r_0.5",
    "cov_p_0.5",
    "chirality_violations",
    "failed_samples",
)


@dataclass(frozen=True)
class Listed:
    """A list of molecules and how many conformers each has."""

    name: str
    smiles: list[str]
    n_conformers: np.ndarray

    @cached_property
    def mols(self) -> list[Chem.Mol]:
        """Those that RDKit does not refuse."""
        with rdBase.BlockLogs():
            return [mol for one in self.smiles if (mol := Chem.MolFromSmiles(one)) is not None]

    @cached_property
    def graphs(self) -> set[str]:
        """Canonical SMILES without stereochemistry."""
        return {Chem.MolToSmiles(mol, isomericSmiles=False) for mol in self.mols}

    def mean(self, property_of: Callable[[Chem.Mol], float]) -> str:
        return f"{np.mean([property_of(mol) for mol in self.mols]):.2f}"

    def share(self, has: Callable[[Chem.Mol], bool]) -> str:
        return f"{100 * np.mean([has(mol) for mol in self.mols]):.1f}"


def of_geom(folder: Path) -> Listed:
    """Test molecules of GEOM-QM9; SystemExit with a line where the list is missing."""
    path = folder / "qm9_test_smiles.csv"
    if not path.is_file():
        raise SystemExit(f"the card compares with GEOM-QM9: {path} is missing; it is GeoMol's data/QM9/test_smiles.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    counts = np.array([int(row["n_conformers"]) for row in rows])
    return Listed("GEOM-QM9, test", [row["smiles"] for row in rows], counts)


def comparison(sets: list[Listed]) -> list[str]:
    """Rows of a Markdown table: a row per statistic, a column per set."""

    def n_centres(mol: Chem.Mol) -> int:
        return len(Chem.FindMolChiralCenters(mol, includeUnassigned=True))

    def n_heteroatoms(mol: Chem.Mol) -> float:
        n_carbon = len(mol.GetSubstructMatches(CARBON))
        return 1 - n_carbon / mol.GetNumHeavyAtoms()

    statistics: dict[str, Callable[[Listed], str]] = {
        "molecules": lambda one: grouped(len(one.smiles)),
        "SMILES that RDKit refuses, left out of the last six rows": lambda one: str(len(one.smiles) - len(one.mols)),
        "conformers": lambda one: grouped(int(one.n_conformers.sum())),
        "conformers per molecule, mean": lambda one: f"{one.n_conformers.mean():.1f}",
        "conformers per molecule, median": lambda one: f"{np.median(one.n_conformers):.0f}",
        "conformers per molecule, largest": lambda one: grouped(int(one.n_conformers.max())),
        "molecules with a single conformer, %": lambda one: f"{100 * np.mean(one.n_conformers == 1):.1f}",
        "heavy atoms, mean": lambda one: one.mean(lambda mol: mol.GetNumHeavyAtoms()),
        "atoms, mean": lambda one: one.mean(lambda mol: Chem.AddHs(mol).GetNumAtoms()),
        "N, O and F, share of the heavy atoms": lambda one: one.mean(n_heteroatoms),
        "rotatable bonds, mean": lambda one: one.mean(CalcNumRotatableBonds),
        "rings, mean": lambda one: one.mean(CalcNumRings),
        "molecules with a stereocentre, %": lambda one: one.share(lambda mol: n_centres(mol) > 0),
    }
    return [
        f"| | {' | '.join(one.name for one in sets)} |",
        "|---|" + "---:|" * len(sets),
        *(f"| {title} | {' | '.join(value(one) for one in sets)} |" for title, value in statistics.items()),
    ]


def references_of(arrays: dict[str, np.ndarray], split: str) -> list[Reference]:
    """Molecules of a split with their conformers."""
    found = []
    for k in np.flatnonzero(arrays["split"] == split).tolist():
        mol = with_hydrogens(str(arrays["smiles"][k]))
        mine = np.flatnonzero(arrays["conf_mol"] == k)
        atoms = slice(arrays["conf_ptr"][mine[0]], arrays["conf_ptr"][mine[-1] + 1])
        found.append((mol, arrays["positions"][atoms].reshape(len(mine), mol.GetNumAtoms(), 3)))
    return found


def rows_table(references: list[Reference], n_workers: int) -> list[str]:
    """Reference rows of the metrics of conformers, as a Markdown table."""
    values = row_values(references, n_workers=n_workers)
    found = {(str(one.at["samples"]), one.name): one for one in values if set(one.at) == {"samples"}}

    def cell(row: Row, name: str) -> str:
        value = found[str(row), name]
        if value.value is None:
            return "none"
        return f"{100 * value.value:.1f} %" if value.unit == "fraction" else f"{value.value:.3f}"

    labels = [found[str(Row.ETKDG), name].label for name in ROW_METRICS]
    return [
        f"| samples | {' | '.join(labels)} |",
        "|---|" + "---:|" * len(labels),
        *(f"| {row} | {' | '.join(cell(row, name) for name in ROW_METRICS)} |" for row in Row),
    ]


def write_card(geom: Path, n_workers: int) -> None:
    """Write docs/mini_conformers.md."""
    record, arrays = read_json(DATA / f"{NAME}.json"), read_arrays(DATA / f"{NAME}.npz")
    counts = np.bincount(arrays["conf_mol"], minlength=len(arrays["smiles"]))
    ours, theirs = Listed(NAME, arrays["smiles"].tolist(), counts), of_geom(geom)
    test = references_of(arrays, "test")
    between = np.concatenate(
        [rmsd_between(mol, x, x).rmsd[np.triu_indices(len(x), 1)] for mol, x in test if len(x) > 1]
    )
    quartiles = ", ".join(f"{q:.2f}" for q in np.quantile(between, (0.25, 0.5, 0.75)))
    energies = arrays["energy_kcal"]
    graphs, settings, candidates = record["graphs"], record["settings"], record["candidates"]
    card = TEXT.format(
        part=PART.format(searched=grouped(graphs["handed_out"]), n_graphs=grouped(N_GRAPHS))
        if graphs["handed_out"] < N_GRAPHS
        else "",
        n=grouped(record["n_molecules"]),
        n_conformers=grouped(record["n_conformers"]),
        size=f"{(DATA / f'{NAME}.npz').stat().st_size / 1e6:.1f}",
        split="; ".join(
            f"{name} {grouped(record['molecules_in_split'][name])} molecules, "
            f"{grouped(record['conformers_in_split'][name])} conformers"
            for name in SPLITS
        ),
        command=record["command"],
        seed=record["seed"],
        sha256=record["sha256"],
        versions=", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        drawn=grouped(graphs["drawn"]),
        handed_out=grouped(graphs["handed_out"]),
        candidates="\n".join(f"| {name} | {grouped(count)} |" for name, count in candidates.items()),
        comparison="\n".join(comparison([ours, theirs])),
        shared=len(ours.graphs & theirs.graphs),
        n_test=grouped(len(test)),
        quartiles=quartiles,
        energy=f"{energies.max():.2f}",
        half=f"{np.median(energies[energies > 0]):.2f}",
        rows="\n".join(rows_table(test, n_workers)),
        **settings,
    )
    write_atomically(CARD, card.encode())


PART = """

**This is a first part of the set**: {searched} of {n_graphs} graphs have been searched. Results on it are trials."""
TEXT = """# The embedded data set `mini_conformers`

<!-- Written by `python -m bench.mini.conformers_card`; do not edit by hand. -->

{n_conformers} conformers of {n} molecules of H, C, N, O and F with at most nine heavy atoms, minima of GFN2-xTB within
{window_kcal:g} kcal/mol of the lowest one found. It ships with the package ({size} MB), so that conformers can be
generated and judged where neither GEOM nor a network is at hand.{part}

**It is no substitute for GEOM.** Numbers obtained on it compare methods with each other on it, and are not to be
put beside published numbers; every table and figure names its data set.

## How it was made

`{command}` (seed {seed}; {versions}) makes it again, up to the last digits of the numerical libraries.

1. *Graphs.* Random valence graphs as those of [`mini`](mini.md), with 12 to 22 atoms: {drawn} drawn, {handed_out}
   passed the filters and had not been drawn before. No database is enumerated.
2. *Stereochemistry.* One stereoisomer of each graph, drawn among those that ETKDGv3 can embed. It is part of the
   molecule: conformers of another one are dropped.
3. *Search.* {embedded} ETKDGv3 conformers, minimised with MMFF94s. Those within {mmff_window_kcal:g} kcal/mol of
   the lowest and at least {same_angstrom} Å from all lower ones (RMSD over symmetries, of heavy atoms and hydrogens
   on N and O) are candidates, at most the lowest {relaxed_at_most} of them.
4. *Relaxation.* GFN2-xTB (tblite, BFGS) until no component of the gradient exceeds {max_gradient_ev_per_angstrom}
   eV/Å. Candidates that change a bond or their stereochemistry are dropped.
5. *Ensemble.* Kept are those within {window_kcal:g} kcal/mol of the lowest, and at least {same_angstrom} Å from all
   lower ones, by the same RMSD. Mirror images of achiral molecules count as different, as does the RMSD.
6. *Split* by molecule, by one seeded permutation: {split}.

| what became of the candidates | |
|---|---:|
{candidates}

`bench/data/mini_conformers.npz` (SHA-256 `{sha256}`) holds the molecules (`smiles`, `split`, `atom_ptr`,
`atomic_numbers`, `formal_charge`, `bond_ptr`, `bonds_i_j_twice_order`: the order is twice that of the bond, 3 for
aromatic) and the conformers (`conf_mol`, `conf_ptr`, `positions` in angstrom, centred, each turned by a random
rotation of its own, `energy_kcal` above the lowest). Atoms are in the order of RDKit's
`AddHs(MolFromSmiles(smiles))`; `bench/data/mini_conformers.json` has the counts on this page.

## Beside GEOM-QM9

The right column is taken from the published list of test molecules alone; CREST found their conformers.

{comparison}

{shared} of our molecules (SMILES without stereochemistry) are among those test molecules. RMSD of two conformers of one
test molecule of ours, heavy atoms, quartiles: {quartiles} Å. Energies above the lowest: median {half}, largest {energy}
kcal/mol.

## Reference rows

On the {n_test} test molecules; metrics as in [metrics.md](metrics.md), means over molecules, distances in angstrom.

{rows}

## Limits

- The search is ETKDG's: what ETKDG with MMFF94s never proposes is missing, so ETKDG with MMFF94s has an easier task
  here than against CREST. At most {relaxed_at_most} candidates are relaxed, so large ensembles are cut.
- Stationary points by their gradient: no frequencies were computed.
- Conformers have equal weight, as in GEOM's evaluation; `energy_kcal` gives Boltzmann weights to whoever wants
  them.
- The chemistry is what random valence rules make ([`mini`](mini.md), limits): more heteroatoms than in QM9, groups
  mixed freely.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.mini.conformers_card", description="Writes the data card.")
    parser.add_argument("--geom", type=Path, required=True, help="folder with qm9_test_smiles.csv")
    parser.add_argument("--workers", type=int, default=1, help="processes (1)")
    arguments = parser.parse_args()
    write_card(arguments.geom, arguments.workers)


if __name__ == "__main__":
    main()
