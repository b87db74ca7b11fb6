"""Evaluation of a set of molecules: per molecule, as a summary, and with intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from bench.metrics.stability import Bonds, BondTable, infer_bonds, stable_atoms
from bench.metrics.validity import smiles_from_bonds
from bench.records.values import Better, Value
from bench.structures.structures import Structures

N_RESAMPLES = 1000
LABELS = {  # name -> label, with the denominator where papers differ, and definition
    "atom_stability": ("Atom stability", "atoms whose bond orders add up to the valence, of all atoms"),
    "molecule_stability": ("Molecule stability", "molecules whose atoms are all stable, of all molecules"),
    "validity": ("Validity", "molecules that RDKit sanitises, of all molecules"),
    "uniqueness": ("Uniqueness of valid", "distinct SMILES, of the valid molecules"),
    "novelty": ("Novelty of unique", "distinct SMILES that are not among the training SMILES, of the distinct SMILES"),
    "valid_and_unique": ("Valid and unique", "distinct SMILES, of all molecules"),
}
Z_95 = 1.959964


@dataclass(frozen=True)
class MoleculeEvaluation:
    """Evaluation of M molecules.

    Attributes:
        n_atoms: atoms of each molecule [M].
        stable_atoms: those whose bond orders add up to the valence [M].
        smiles: SMILES of the largest fragment, None where the molecule is not valid [M].
        train_smiles: SMILES of the training molecules, None leaves novelty out.
        bonds: the bonds from which all of this was computed.
    """

    n_atoms: np.ndarray
    stable_atoms: np.ndarray
    smiles: list[str | None]
    train_smiles: frozenset[str] | None
    bonds: Bonds

    @property
    def molecule_stable(self) -> np.ndarray:
        """Whether all atoms are stable [M]."""
        return self.stable_atoms == self.n_atoms

    @property
    def valid(self) -> np.ndarray:
        """Whether RDKit sanitises the molecule [M]."""
        return np.array([smiles is not None for smiles in self.smiles], dtype=bool)

    def summary(self) -> dict[str, int | float | None]:
        """The metrics of `LABELS`, except valid-and-unique, as fractions; and `n_molecules`.

        Atom stability is over all atoms, molecule stability and validity over all molecules, uniqueness over the valid
        molecules, novelty over the unique ones; a metric without denominator is None, and so is novelty without
        training molecules.
        """
        n_valid, counts = int(self.valid.sum()), self._counts()
        return {
            "n_molecules": len(self.smiles),
            "atom_stability": float(self.stable_atoms.sum() / self.n_atoms.sum()),
            "molecule_stability": float(self.molecule_stable.mean()),
            "validity": n_valid / len(self.smiles),
            "uniqueness": len(counts) / n_valid if n_valid else None,
            "novelty": sum(map(self._is_novel, counts)) / len(counts)
            if counts and self.train_smiles is not None
            else None,
        }

    def values(self, seed: int = 0) -> list[Value]:
        """The metrics of `summary`, and valid-and-unique, as values with the intervals of `intervals(seed)`, and with
        items where a value is a mean over molecules or over their atoms."""
        summary, intervals = self.summary(), self.intervals(seed)
        valid, unique = summary["validity"], summary["uniqueness"]
        found = {**summary, "valid_and_unique": None if valid is None or unique is None else valid * unique}
        items = {
            "atom_stability": np.column_stack([self.stable_atoms, self.n_atoms]),
            "molecule_stability": self.molecule_stable,
            "validity": self.valid,
        }
        return [
            replace(value, value=found[value.name], low=low, high=high, items=items.get(value.name))
            for value in undefined_values()
            for low, high in [intervals.get(value.name, (None, None))]
        ]

    def intervals(self, seed: int) -> dict[str, list[float]]:
        """95 % intervals [low, high] of the metrics that have a value, over the draw of molecules.

        Atom and molecule stability and validity: percentiles of the bootstrap that resamples molecules, so that the
        atoms of one molecule stay together. Uniqueness and novelty: a molecule drawn twice would count as a duplicate,
        so the bootstrap is biased there; they get the delete-one jackknife over molecules and a normal interval within
        [0, 1].
        References: Efron & Tibshirani (1993), An Introduction to the Bootstrap, chapters 11 and 13.
        """
        rng = np.random.default_rng(seed)
        per_molecule = np.column_stack([self.stable_atoms, self.n_atoms, self.molecule_stable, self.valid])
        sums = np.stack([rng.choice(per_molecule, len(per_molecule)).sum(axis=0) for _ in range(N_RESAMPLES)])
        n_molecules = len(per_molecule)
        resampled = {
            "atom_stability": sums[:, 0] / sums[:, 1],
            "molecule_stability": sums[:, 2] / n_molecules,
            "validity": sums[:, 3] / n_molecules,
        }
        intervals = {name: np.quantile(values, [0.025, 0.975]).tolist() for name, values in resampled.items()}
        for name, (value, half_width) in self._jackknife().items():
            intervals[name] = [max(0.0, value - half_width), min(1.0, value + half_width)]
        return intervals

    def _counts(self) -> Counter[str]:
        return Counter(smiles for smiles in self.smiles if smiles is not None)

    def _is_novel(self, smiles: str) -> bool:
        return self.train_smiles is not None and smiles not in self.train_smiles

    def _jackknife(self) -> dict[str, tuple[float, float]]:
        """Value and half width of the ratios that count distinct SMILES."""
        counts = self._counts()
        n_valid, n_unique = sum(counts.values()), len(counts)
        copies = np.array(list(counts.values()))
        single = (copies == 1).astype(int)  # leaving out one of several copies changes no set
        ratios = {"uniqueness": (n_unique, n_unique - single, np.full(n_unique, n_valid - 1), n_valid)}
        if self.train_smiles is not None:
            novel = np.array([self._is_novel(smiles) for smiles in counts], dtype=int)
            ratios["novelty"] = (int(novel.sum()), novel.sum() - single * novel, n_unique - single, n_unique)
        half_widths = {}
        for name, (count, left_counts, left_totals, total) in ratios.items():
            if total < 2 or left_totals.min() < 1:
                continue
            left = left_counts / left_totals
            mean = np.average(left, weights=copies)
            variance = (n_valid - 1) / n_valid * float(copies @ (left - mean) ** 2)
            half_widths[name] = (count / total, Z_95 * variance**0.5)
        return half_widths


def undefined_values() -> list[Value]:
    """The metrics with value None: for molecules that cannot be evaluated, such as those of unknown elements."""
    return [
        Value(name, label, None, "fraction", Better.HIGHER, definition=definition)
        for name, (label, definition) in LABELS.items()
    ]


def evaluate_molecules(
    structures: Structures,
    train_smiles: Iterable[str | None] | None = None,
    n_workers: int | None = None,
    table: BondTable | None = None,
    bonds: Bonds | None = None,
) -> MoleculeEvaluation:
    """Evaluate molecules as EDM's published code does.

    Args:
        structures: at least one molecule; positions in angstrom.
        train_smiles: of `bench.metrics.validity.smiles_of(training molecules)`; None leaves novelty out.
        n_workers: worker processes for the SMILES; by default one per core, and one in all for small sets.
        table: bond lengths and valences; by default EDM's.
        bonds: by another rule (`bench.metrics.stability.perceived`), instead of those of the table.
    Raises:
        ValueError: no molecule, or a position that is not finite.
        UnknownElementError: an element without bond lengths.
    References: Hoogeboom et al. (2022), Equivariant Diffusion for Molecule Generation in 3D, arXiv:2203.17003.
    """
    if not len(structures):
        raise ValueError("got no molecules to evaluate, expected at least one")
    bonds = infer_bonds(structures, table) if bonds is None else bonds
    stable = stable_atoms(structures, bonds, table)
    before = np.concatenate([[0], np.cumsum(stable)])
    return MoleculeEvaluation(
        n_atoms=structures.n_atoms,
        stable_atoms=np.diff(before[structures.ptr]),
        smiles=smiles_from_bonds(structures, bonds, n_workers=n_workers),
        train_smiles=None if train_smiles is None else frozenset(s for s in train_smiles if s is not None),
        bonds=bonds,
    )
