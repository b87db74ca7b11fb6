"""Evaluation of a set of molecules: per molecule, as a summary, and with intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from bench.metrics.geometry import n_fragments
from bench.metrics.stability import Bonds, BondTable, infer_bonds, stable_atoms
from bench.metrics.validity import smiles_from_bonds
from bench.records.intervals import Z_95, rate_interval
from bench.records.values import Better, Value
from bench.structures.structures import Structures

LABELS = {  # name -> label, with the denominator where papers differ, and definition
    "atom_stability": ("Atom stability", "atoms whose bond orders add up to the valence, of all atoms"),
    "molecule_stability": ("Molecule stability", "molecules whose atoms are all stable, of all molecules"),
    "validity": ("Validity", "molecules that RDKit sanitises, of all molecules"),
    "connected_and_valid": ("Connected and valid", "valid molecules in one piece, of all molecules"),
    "uniqueness": ("Uniqueness of valid", "distinct SMILES, of the valid molecules"),
    "novelty": ("Novelty of unique", "distinct SMILES that are not among the training SMILES, of the distinct SMILES"),
    "valid_and_unique": ("Valid and unique", "distinct SMILES, of all molecules"),
}


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

    @property
    def connected_and_valid(self) -> np.ndarray:
        """Whether the molecule is valid and bonds connect all of its atoms [M]."""
        return self.valid & (n_fragments(self.n_atoms, self.bonds) == 1)

    def summary(self) -> dict[str, int | float | None]:
        """The metrics of `LABELS`, except valid-and-unique, as fractions; and `n_molecules`.

        Atom stability is over all atoms, molecule stability and both validities over all molecules, uniqueness over
        the valid molecules, novelty over the unique ones; a metric without denominator is None, and so is novelty
        without training molecules.
        """
        n_valid, counts = int(self.valid.sum()), self._counts()
        return {
            "n_molecules": len(self.smiles),
            "atom_stability": float(self.stable_atoms.sum() / self.n_atoms.sum()),
            "molecule_stability": float(self.molecule_stable.mean()),
            "validity": n_valid / len(self.smiles),
            "connected_and_valid": float(self.connected_and_valid.mean()),
            "uniqueness": len(counts) / n_valid if n_valid else None,
            "novelty": sum(map(self._is_novel, counts)) / len(counts)
            if counts and self.train_smiles is not None
            else None,
        }

    def values(self) -> list[Value]:
        """The metrics of `summary`, and valid-and-unique, as values with standard errors and intervals, and with items
        where a value is a mean over molecules or over their atoms."""
        summary, errors, intervals = self.summary(), self.standard_errors(), self.intervals()
        valid, unique = summary["validity"], summary["uniqueness"]
        found = {**summary, "valid_and_unique": None if valid is None or unique is None else valid * unique}
        items = {
            "atom_stability": np.column_stack([self.stable_atoms, self.n_atoms]),
            "molecule_stability": self.molecule_stable,
            "validity": self.valid,
            "connected_and_valid": self.connected_and_valid,
        }
        return [
            replace(value, value=found[name], low=low, high=high, sem=errors.get(name), items=items.get(name))
            for value in undefined_values()
            for name, (low, high) in [(value.name, intervals.get(value.name, (None, None)))]
        ]

    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % intervals [low, high] of the metrics that have a standard error, over the draw of molecules.

        Wilson's, with the number of trials that the standard error stands for (`bench.records.intervals`), so that a
        rate of 0 or 1 has an interval too.
        """
        summary = self.summary()
        n_molecules, n_valid, n_unique = len(self.smiles), int(self.valid.sum()), len(self._counts())
        units = dict.fromkeys(LABELS, n_molecules) | {"uniqueness": n_valid, "novelty": n_unique}
        return {
            name: rate_interval(float(summary[name] or 0), Z_95 * error, units[name])
            for name, error in self.standard_errors().items()
        }

    def standard_errors(self) -> dict[str, float]:
        """Standard errors over the draw of molecules.

        Atom and molecule stability and validity are ratios of sums over molecules, linearised, so that the atoms of one
        molecule stay together. Uniqueness and novelty: a molecule drawn twice would count as a duplicate, so that
        resampling is biased there; they get the delete-one jackknife over molecules.
        References: Cochran (1977), Sampling Techniques, chapter 6; Efron & Tibshirani (1993), An Introduction to the
        Bootstrap, chapter 11.
        """
        one_each = np.ones(len(self.smiles))
        ratios = {
            "atom_stability": (self.stable_atoms, self.n_atoms),
            "molecule_stability": (self.molecule_stable, one_each),
            "validity": (self.valid, one_each),
            "connected_and_valid": (self.connected_and_valid, one_each),
        }
        return {name: error_of_ratio(*sums) for name, sums in ratios.items()} | self._jackknife()

    def _counts(self) -> Counter[str]:
        return Counter(smiles for smiles in self.smiles if smiles is not None)

    def _is_novel(self, smiles: str) -> bool:
        return self.train_smiles is not None and smiles not in self.train_smiles

    def _jackknife(self) -> dict[str, float]:
        """Standard errors of the ratios that count distinct SMILES."""
        counts = self._counts()
        n_valid, n_unique = sum(counts.values()), len(counts)
        copies = np.array(list(counts.values()))
        single = (copies == 1).astype(int)  # leaving out one of several copies changes no set
        ratios = {"uniqueness": (n_unique - single, np.full(n_unique, n_valid - 1), n_valid)}
        if self.train_smiles is not None:
            novel = np.array([self._is_novel(smiles) for smiles in counts], dtype=int)
            ratios["novelty"] = (novel.sum() - single * novel, n_unique - single, n_unique)
        errors = {}
        for name, (left_counts, left_totals, total) in ratios.items():
            if total < 2 or left_totals.min() < 1:
                continue
            left = left_counts / left_totals
            mean = np.average(left, weights=copies)
            variance = (n_valid - 1) / n_valid * float(copies @ (left - mean) ** 2)
            errors[name] = variance**0.5
        return errors


def error_of_ratio(numerators: np.ndarray, denominators: np.ndarray) -> float:
    """Standard error of sum(numerators) / sum(denominators) over M independent molecules; 0 for one molecule."""
    n, total = len(numerators), denominators.sum()
    residuals = numerators - numerators.sum() / total * denominators
    return float(np.sqrt(n / max(n - 1, 1) * np.sum(residuals**2)) / total)


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
        structures: at least one molecule; positions in angstrom. One with a position that is not finite has no stable
            atom and is not valid.
        train_smiles: of `bench.metrics.validity.smiles_of(training molecules)`; None leaves novelty out.
        n_workers: worker processes for the SMILES; by default one per core, and one in all for small sets.
        table: bond lengths and valences; by default EDM's.
        bonds: by another rule (`bench.metrics.stability.perceived`), instead of those of the table.
    Raises:
        ValueError: no molecule.
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
