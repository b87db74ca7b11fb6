"""The data card of the embedded set, docs/mini.md and docs/figures/mini.png: `mini` compared with QM9 up to 14 atoms.

Both sets are described from their geometries alone, by the same code; bonds are those of EDM's distance rule. Called
by `python -m bench.mini.card`. Only these statistics of QM9 are written, none of its molecules.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from rdkit import Chem
from rdkit.Chem.rdMolDescriptors import CalcNumRings

from bench.metrics.molecules import MoleculeEvaluation, evaluate_molecules
from bench.mini.graphs import MAX_ATOMS
from bench.mini.make import COMMAND, DATA
from bench.records.store import read_json, write_atomically
from bench.registry import datasets
from bench.structures.dataset import DataError, DataSet, grouped
from bench.structures.elements import SYMBOL
from bench.structures.structures import Structures

ROOT = Path(__file__).parents[2]
CARD, FIGURE = ROOT / "docs" / "mini.md", ROOT / "docs" / "figures" / "mini.png"
ELEMENTS = (1, 6, 7, 8, 9)
BOND_KINDS = {  # nuclear charges and order, as the table names them
    "C-H": (6, 1, 1),
    "N-H": (7, 1, 1),
    "O-H": (8, 1, 1),
    "C-C": (6, 6, 1),
    "C=C": (6, 6, 2),
    "C≡C": (6, 6, 3),
    "C-N": (7, 6, 1),
    "C=N": (7, 6, 2),
    "C≡N": (7, 6, 3),
    "C-O": (8, 6, 1),
    "C=O": (8, 6, 2),
    "N-N": (7, 7, 1),
    "C-F": (9, 6, 1),
}


@dataclass(frozen=True)
class Description:
    """Statistics of one set of M molecules."""

    name: str
    structures: Structures

    @classmethod
    def of(cls, name: str, data: DataSet) -> Description:
        return cls(name, Structures.concatenate(list(data.splits.values())))

    @cached_property
    def evaluation(self) -> MoleculeEvaluation:
        return evaluate_molecules(self.structures)

    @cached_property
    def smiles(self) -> set[str]:
        return {smiles for smiles in self.evaluation.smiles if smiles is not None}

    @cached_property
    def n_rings(self) -> np.ndarray:
        """Rings of each valid molecule."""
        return np.array([CalcNumRings(Chem.MolFromSmiles(smiles)) for smiles in self.evaluation.smiles if smiles])

    @cached_property
    def bonds(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Nuclear charges, the larger first [E, 2], order [E] and length in angstrom [E] of all bonds."""
        bonds = self.evaluation.bonds
        atoms = np.repeat(self.structures.ptr[:-1], np.diff(bonds.ptr))[:, None] + bonds.pairs
        ends = self.structures.positions[atoms]
        pairs = np.sort(self.structures.numbers[atoms], axis=1)[:, ::-1]
        return pairs, bonds.order, np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)

    def lengths(self, first: int, second: int, order: int | None = None) -> np.ndarray:
        """Bond lengths between two elements (larger nuclear charge first), of one order or of any."""
        pairs, orders, lengths = self.bonds
        kind = (pairs == (first, second)).all(axis=1)
        return lengths[kind if order is None else kind & (orders == order)]

    @cached_property
    def distances(self) -> np.ndarray:
        """Distances of all pairs of atoms within a molecule, in angstrom."""
        return np.concatenate(
            [np.linalg.norm(x[:, None] - x, axis=-1)[np.triu_indices(len(x), 1)] for _, x in self.structures]
        )

    def element_share(self, number: int) -> float:
        return float((self.structures.numbers == number).mean())

    def frame_bias(self) -> list[float]:
        """Mean |cos| between the longest principal axis and x, y, z; 0.5 each if orientations were uniform."""
        axes = [np.linalg.svd(x - x.mean(0))[2][0] for _, x in self.structures]
        return np.abs(axes).mean(0).tolist()


def draw(sets: list[Description], path: Path) -> None:
    """Draw histograms of the sets, one panel per property, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 4).ravel()
    colours = ["#d1495b", "#30638e"]
    numbers = sorted({int(z) for one in sets for z in np.unique(one.structures.numbers)})
    counted: list[tuple[str, list, Callable[[Description], list[float]]]] = [
        (
            "atoms per molecule",
            sizes := list(range(3, MAX_ATOMS + 1)),
            lambda d: [np.mean(d.structures.n_atoms == n) for n in sizes],
        ),
        ("share of atoms", [SYMBOL[z] for z in numbers], lambda d: [d.element_share(z) for z in numbers]),
        ("rings per molecule", rings := list(range(6)), lambda d: [np.mean(d.n_rings == n) for n in rings]),
    ]
    for axis, (title, labels, shares) in zip(axes, counted, strict=False):
        for k, one in enumerate(sets):
            axis.bar(np.arange(len(labels)) + 0.4 * (k - 0.5), shares(one), 0.4, color=colours[k], label=one.name)
        axis.set_xticks(range(len(labels)), labels)
        axis.set(xlabel=title, ylabel="fraction")
    measured: list[tuple[str, tuple[float, float], Callable[[Description], np.ndarray]]] = [
        ("distance of any two atoms (Å)", (0.8, 8.0), lambda d: d.distances),
        ("C-H bond (Å)", (1.04, 1.14), lambda d: d.lengths(6, 1)),
        ("C-C bond, any order (Å)", (1.15, 1.65), lambda d: d.lengths(6, 6)),
        ("C-N bond, any order (Å)", (1.1, 1.6), lambda d: d.lengths(7, 6)),
        ("C-O bond, any order (Å)", (1.15, 1.55), lambda d: d.lengths(8, 6)),
    ]
    for axis, (title, limits, values) in zip(axes[len(counted) :], measured, strict=True):
        for k, one in enumerate(sets):
            axis.hist(values(one), 100, limits, density=True, histtype="step", color=colours[k], label=one.name)
        axis.set(xlabel=title, ylabel="density (1/Å)", xlim=limits)
        axis.locator_params(axis="x", nbins=5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(sets), frameon=False)
    axes[0].tick_params(axis="x", labelsize="small")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    write_atomically(path, content.getvalue())


def comparison(sets: list[Description]) -> list[str]:
    """Rows of a Markdown table: a row per statistic, a column per set."""

    def row(title: str, value: Callable[[Description], str]) -> str:
        return f"| {title} | {' | '.join(value(one) for one in sets)} |"

    def length(one: Description, kind: tuple[int, int, int]) -> str:
        found = one.lengths(*kind)
        return f"{found.mean():.3f} ± {found.std():.3f} ({grouped(len(found))})" if len(found) else "none"

    summaries = {one.name: one.evaluation.summary() for one in sets}
    percent = {"atom stability": 2, "molecule stability": 1, "validity": 1, "uniqueness": 1}
    return [
        f"| | {' | '.join(one.name for one in sets)} |",
        "|---|" + "---:|" * len(sets),
        row("molecules", lambda one: grouped(len(one.structures))),
        row("atoms per molecule, mean", lambda one: f"{one.structures.n_atoms.mean():.2f}"),
        *(row(f"{SYMBOL[z]}, % of atoms", lambda one, z=z: f"{100 * one.element_share(z):.1f}") for z in ELEMENTS),
        *(
            row(
                f"{name} (EDM's rule), %",
                lambda one, name=name, n=n: f"{100 * (summaries[one.name][name.replace(' ', '_')] or 0):.{n}f}",
            )
            for name, n in percent.items()
        ),
        row("rings per molecule, mean", lambda one: f"{one.n_rings.mean():.2f}"),
        row("molecules without a ring, %", lambda one: f"{100 * np.mean(one.n_rings == 0):.1f}"),
        *(
            row(f"{name} length in Å, mean ± sd (n)", lambda one, kind=kind: length(one, kind))
            for name, kind in BOND_KINDS.items()
        ),
        row("mean \\|cos\\| of longest axis with x, y, z", lambda one: ", ".join(f"{c:.2f}" for c in one.frame_bias())),
    ]


def write_card() -> None:
    """Write docs/mini.md and its figure.

    Raises SystemExit with one line when QM9 is not available.
    """
    mini, qm9 = datasets["mini"], datasets["qm9"]
    record = read_json(DATA / "mini.json")
    try:
        reference = qm9.build(qm9.config(max_atoms=MAX_ATOMS))
    except DataError as error:
        raise SystemExit(f"the card compares with QM9: {error}") from error
    ours = Description.of("mini", mini.build(mini.config()))
    theirs = Description.of(reference.label, reference)
    draw([ours, theirs], FIGURE)
    shared = len(ours.smiles & theirs.smiles) / len(ours.smiles)
    graphs, relaxation, bonds = record["graphs"], record["relaxation"], record["bonds"]
    n_failed = sum(relaxation["failed"].values())
    card = TEXT.format(
        n=grouped(record["n_molecules"]),
        split=", ".join(f"{name} {grouped(count)}" for name, count in record["n_in_split"].items()),
        command=COMMAND,
        seed=record["seed"],
        sha256=record["sha256"],
        versions=", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        drawn=grouped(graphs["drawn"]),
        handed_out=grouped(graphs["handed_out"]),
        refused="\n".join(f"| {name} | {grouped(count)} |" for name, count in graphs["refused"].items()),
        converged=grouped(relaxation["converged"]),
        failed="; ".join(f"{reason}: {count}" for reason, count in relaxation["failed"].items()) or "none",
        n_failed=n_failed,
        max_gradient=relaxation["max_gradient_ev_per_angstrom"],
        otherwise=grouped(bonds["otherwise"]),
        share=f"{100 * bonds['as_in_graph'] / relaxation['converged']:.1f}",
        before=f"{100 * record['stability_before_this_filter']['atom_stability']:.2f}",
        comparison="\n".join(comparison([ours, theirs])),
        shared=f"{100 * shared:.1f}",
        reference=reference.label,
        size=f"{(DATA / 'mini.npz').stat().st_size / 1e6:.2f}",
    )
    write_atomically(CARD, card.encode())


TEXT = """# The embedded data set `mini`

<!-- Written by `python -m bench.mini.card`; do not edit by hand. -->

{n} small molecules of H, C, N, O and F with at most 14 atoms, hydrogens counted, in GFN2-xTB geometries. It ships
with the package ({size} MB), so that every command runs where neither QM9 nor a network is at hand.

**It is no substitute for QM9.** Numbers obtained on it compare methods with each other on it, and are not to be put
beside numbers obtained on QM9; every table and figure names its data set.

## How it was made

`{command}` (seed {seed}; {versions}) makes it again.

1. *Graphs.* A random tree of C, N, O and F, then ring closures (3 to 7 atoms) and higher bond orders at random, until
   the number of hydrogens that fill the valences is the one wanted. No database is enumerated. {drawn} graphs were
   drawn; what the filters below refused, or what had been drawn before (same canonical SMILES), was dropped, until
   {handed_out} were left. All are neutral, closed-shell and in one piece.
2. *Geometry.* One ETKDG conformer of each graph (any stereoisomer), relaxed with GFN2-xTB (tblite, BFGS) until no
   component of the gradient exceeded {max_gradient} eV/Å: {converged} converged, {n_failed} did not ({failed}).
3. *Bonds.* Kept are geometries in which EDM's distance rule finds the bonds of the graph, every valence filled:
   {share} % of those relaxed; {otherwise} were dropped. Before this filter the atom stability was {before} %.
4. *Split.* The first {n} of what was left, by one seeded permutation: {split}.

`bench/data/mini.npz` (SHA-256 `{sha256}`)
holds `num_atoms`, `charges`, `positions` (angstrom, mean at the origin, each molecule turned by a random rotation of
its own) and `split` (0 train, 1 valid, 2 test); `bench/data/mini.json` holds the counts on this page.

| a graph is refused for (first filter that matches) | graphs |
|---|---:|
{refused}

## Beside QM9

Both columns come from the geometries alone, through the same code; bonds are those of EDM's rule, lengths in angstrom.

![Histograms of mini and of QM9 up to 14 atoms](figures/mini.png)

{comparison}

{shared} % of the molecules of `mini` (SMILES from the bonds of the geometry, no stereo) also occur in {reference}.

## Limits

- The rule of step 3 makes stability, validity and uniqueness perfect *by selection*: molecules whose bonds the rule
  misjudges are missing, aromatic six-rings and cyanamides foremost. On QM9 the same rule finds fewer stable molecules,
  so the ceiling on `mini` is another one.
- The chemistry is what random valence rules make, thinned by hand-written filters. Groups are mixed more freely than
  in QM9, imines and fluorine are common, and nothing says that each molecule could be made or kept in a bottle.
- GFN2-xTB is not B3LYP/6-31G(2df,p); the table shows how far mean bond lengths differ. One conformer, a stationary
  point by its gradient: no frequencies were computed, no lower conformer was sought.
- Orientations are Haar-random (last row: 0.50 each would be uniform), unlike those of QM9, where a method that sees
  orientation, such as `plain`, finds a preferred frame to profit from.
- Chirality is whatever the embedding drew; there are no charges, radicals, zwitterions or molecules in several pieces.
"""


if __name__ == "__main__":
    write_card()
