"""`equibench score`: evaluate files of molecules, several files as one set. Only the result goes to standard output."""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.records.inputs import csv_cell
from bench.records.store import write_atomically

if TYPE_CHECKING:
    from bench.metrics.molecules import MoleculeEvaluation
    from bench.structures.structures import Structures

log = logging.getLogger(__name__)

TITLES = {
    "atom_stability": "atom stability, of all atoms",
    "molecule_stability": "molecule stability, of all molecules",
    "validity": "validity, of all molecules",
    "uniqueness": "uniqueness, of the valid",
    "novelty": "novelty, of the unique",
}
COLUMNS = ("index", "file", "n_atoms", "stable_atoms", "molecule_stable", "valid", "smiles")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `equibench score`."""
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="xyz, extxyz, sdf or npz; evaluated together as one set"
    )
    parser.add_argument("--train", nargs="+", type=Path, metavar="FILE", help="training molecules, for novelty")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--per-molecule", type=Path, metavar="OUT.csv", help="write one line per molecule to this file")


def run(args: argparse.Namespace) -> int:
    """Evaluate and print; 0, or 2 after one line in the log when a file cannot be evaluated or written."""
    from bench.metrics.molecules import evaluate_molecules
    from bench.metrics.validity import smiles_of
    from bench.structures.structures import Structures

    try:
        sets = [_read(path) for path in args.files]
        train_smiles = smiles_of(Structures.concatenate([_read(path) for path in args.train])) if args.train else None
        evaluation = evaluate_molecules(Structures.concatenate(sets), train_smiles)
        if args.per_molecule:
            origin = [str(path) for path, part in zip(args.files, sets, strict=True) for _ in range(len(part))]
            write_atomically(args.per_molecule, _csv(evaluation, origin))
    except (ValueError, OSError) as error:  # FileError, UnknownElementError, a full disk
        log.error("%s", error)
        return 2
    print(json.dumps(evaluation.summary(), allow_nan=False) if args.json else _table(evaluation))  # noqa: T201
    return 0


def _read(path: Path) -> Structures:
    from bench.metrics.stability import BondTable, UnknownElementError
    from bench.structures import files

    structures = files.read(path)
    try:
        BondTable.load().check(structures)
    except UnknownElementError as error:
        raise UnknownElementError(f"{path}: {error}") from error
    return structures


def _table(evaluation: MoleculeEvaluation) -> str:
    summary, intervals = evaluation.summary(), evaluation.intervals(seed=0)
    lines = [f"{'molecules':36}{summary['n_molecules']:>10}    95 % interval"]
    for name, title in TITLES.items():
        value = summary[name]
        cell = "none" if value is None else f"{100 * value:.2f} %"
        low_high = " to ".join(f"{100 * bound:.2f}" for bound in intervals.get(name, ()))
        lines.append(f"{title:36}{cell:>10}    {low_high}".rstrip())
    return "\n".join(lines)


def _csv(evaluation: MoleculeEvaluation, origin: Sequence[str]) -> bytes:
    """One line per molecule; `index` counts over all files, booleans are 0 and 1, no SMILES where not valid."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    columns = (
        evaluation.n_atoms,
        evaluation.stable_atoms,
        evaluation.molecule_stable.astype(int),
        evaluation.valid.astype(int),
    )
    for index, (file, *values, smiles) in enumerate(
        zip(origin, *(c.tolist() for c in columns), evaluation.smiles, strict=True)
    ):
        writer.writerow([index, csv_cell(file), *values, csv_cell(smiles or "")])
    return text.getvalue().encode()
