"""Rows that a generator of conformers is read against: ETKDG, ETKDG with MMFF94s, data against data, mirrored data.

ETKDG draws 2n conformers for n references, as many as a generator has to. Data against data draws no 2n: one half of
each ensemble is held against the other, so that its recall is that of m = n, and an ensemble's own spread, not zero, is
what it shows. Mirrored data is what a generator gives that knows the data perfectly up to reflections: its chirality is
all wrong, and its RMSD is that between mirror images.

References: Riniker & Landrum (2015), ETKDG, doi:10.1021/acs.jcim.5b00654; Halgren (1999), MMFF94s,
doi:10.1002/(SICI)1096-987X(199905)20:7<720::AID-JCC7>3.0.CO;2-X.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem.rdDistGeom import EmbedMultipleConfs, ETKDGv3
from rdkit.Chem.rdForceFieldHelpers import MMFFHasAllMoleculeParams, MMFFOptimizeMoleculeConfs

from bench.metrics.conformers import Reference, evaluate_ensembles
from bench.metrics.pool import in_workers
from bench.records.values import Better, Kind, Value

PER_REFERENCE = 2
MMFF_ITERATIONS = 2000


class Row(StrEnum):
    """Samples that no trained model made."""

    ETKDG = "ETKDG"
    MMFF = "ETKDG + MMFF94s"
    HALVES = "data against data"
    MIRRORED = "mirrored data"


def embedded(mol: Chem.Mol, n: int, seed: int, mmff: bool = False) -> np.ndarray:
    """Conformers of ETKDGv3 [n, A, 3] in angstrom, NaN for each that could not be found.

    Args:
        mol: with hydrogens and stereochemistry.
        seed: above 0: seed 0 draws the same conformer n times.
        mmff: relax with MMFF94s; a molecule that it has no parameters for has no conformer then.
    Raises:
        ValueError: the seed is not positive.
    """
    if seed < 1:
        raise ValueError(f"the seed of ETKDG is {seed}, expected at least 1: from 0 it draws one conformer n times")
    found = np.full((n, mol.GetNumAtoms(), 3), np.nan)
    drawn = Chem.Mol(mol, True)
    parameters = ETKDGv3()
    parameters.randomSeed = seed
    with rdBase.BlockLogs():
        n_drawn = len(EmbedMultipleConfs(drawn, n, parameters))
        if mmff and n_drawn:
            if not MMFFHasAllMoleculeParams(drawn):
                return found
            MMFFOptimizeMoleculeConfs(drawn, maxIters=MMFF_ITERATIONS, mmffVariant="MMFF94s")
    for k, conformer in enumerate(drawn.GetConformers()):
        found[k] = conformer.GetPositions()
    return found


def _embedded(task: tuple[Chem.Mol, int, int, bool]) -> np.ndarray:
    return embedded(*task)


def row_samples(
    row: Row, references: Sequence[Reference], seed: int = 0, n_workers: int = 1
) -> tuple[list[Reference], list[np.ndarray]]:
    """References and samples of a row, as `evaluate_ensembles` takes them.

    Args:
        references: molecules and conformers [n, A, 3]; data against data leaves out those with one conformer.
        seed: of the row, from 0.
    """
    if row is Row.MIRRORED:
        return list(references), [-positions for _, positions in references]
    if row is Row.HALVES:
        rng = np.random.default_rng(seed)
        shuffled = [(mol, rng.permutation(positions)) for mol, positions in references if len(positions) > 1]
        halves = [(mol, *np.array_split(positions, 2)) for mol, positions in shuffled]
        return [(mol, first) for mol, first, _ in halves], [second for _, _, second in halves]
    tasks = [
        (mol, PER_REFERENCE * len(positions), 1 + seed * len(references) + k, row is Row.MMFF)
        for k, (mol, positions) in enumerate(references)
    ]
    return list(references), list(in_workers(_embedded, tasks, n_workers))


def row_values(
    references: Sequence[Reference], seed: int = 0, n_workers: int = 1, rows: Sequence[Row] = tuple(Row)
) -> list[Value]:
    """The metrics of each row, at {'samples': row}, and how many molecules it leaves out."""
    values = []
    for row in rows:
        known, samples = row_samples(row, references, seed, n_workers)
        left_out = Value(
            "molecules_left_out",
            "Molecules left out",
            float(len(references) - len(known)),
            "count",
            Better.NEITHER,
            Kind.DIAGNOSTIC,
            definition="of one conformer, which has no halves",
        )
        found = [left_out, *(evaluate_ensembles(known, samples, n_workers) if known else [])]
        values += [replace(value, at={**value.at, "samples": str(row)}, items=None) for value in found]
    return values
