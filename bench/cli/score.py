"""`equibench score`: evaluate files of molecules, several files as one set. Only the result goes to standard output."""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.records.inputs import csv_cell
from bench.records.store import write_atomically

if TYPE_CHECKING:
    import numpy as np

    from bench.metrics.molecules import MoleculeEvaluation
    from bench.metrics.stability import BondRule, Bonds
    from bench.structures.elements import Contents

log = logging.getLogger(__name__)

TITLES = {
    "atom_stability": "atom stability, of all atoms",
    "molecule_stability": "molecule stability, of all molecules",
    "validity": "validity, of all molecules",
    "connected_and_valid": "connected and valid, of all molecules",
    "uniqueness": "uniqueness, of the valid",
    "novelty": "novelty, of the unique",
}
COLUMNS = ("index", "file", "n_atoms", "stable_atoms", "molecule_stable", "valid", "smiles")
RULES = "edm|geom|rdkit|file"  # `bench.metrics.stability.BondRule`, which loads RDKit
MAX_NAMED = 3  # bad molecules that the log names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `equibench score`."""
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="xyz, extxyz, sdf (or these with .gz) or npz, or a folder of such files; evaluated together as one set",
    )
    parser.add_argument("--train", nargs="+", type=Path, metavar="FILE", help="training molecules, for novelty")
    add_reading(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--per-molecule", type=Path, metavar="OUT.csv", help="write one line per molecule to this file")


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Options of verbs that read molecules and need their bonds."""
    parser.add_argument(
        "--bonds",
        metavar=RULES,
        help="where bonds come from: EDM's table (H, C, N, O, F), RDKit, or the sdf file itself (default: EDM's table "
        "where it covers all elements, else RDKit)",
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave out and count molecules that cannot be read")


def asked_rule(args: argparse.Namespace) -> BondRule | None:
    """The rule of `--bonds`; raises ValueError for another word."""
    from bench.metrics.stability import BondRule

    if args.bonds is not None and args.bonds not in set(BondRule):
        raise ValueError(f"--bonds is {args.bonds!r}, expected {RULES.replace('|', ', ')}")
    return BondRule(args.bonds) if args.bonds is not None else None


def run(args: argparse.Namespace) -> int:
    """Evaluate and print; 0, or 2 after one line in the log when a file cannot be evaluated or written."""
    from bench.metrics.molecules import evaluate_molecules
    from bench.metrics.stability import natural_rule, perceived
    from bench.metrics.validity import smiles_of
    from bench.structures.elements import Contents

    try:
        asked = asked_rule(args)
        held = read_sets(args.files, args.skip_bad, asked)
        given = Contents.concatenate(list(held.values()))
        rule = asked or natural_rule(given.structures)
        bonds = perceived(given.structures, rule, given)
        if given.faults:
            log.warning("left out: %s", _some(given.faults))
        for note in _notes(given, bonds, told=asked is not None):
            log.warning("%s", note)
        train_smiles = None
        if args.train:
            train = Contents.concatenate(list(read_sets(args.train, args.skip_bad, rule).values()))
            train_smiles = smiles_of(train.structures, bonds=perceived(train.structures, rule, train))
        evaluation = evaluate_molecules(given.structures, train_smiles, bonds=bonds)
        if args.per_molecule:
            origin = [str(path) for path, part in held.items() for _ in range(len(part.structures))]
            write_atomically(args.per_molecule, _csv(evaluation, origin))
    except (ValueError, OSError) as error:  # FileError, UnknownElementError, a full disk
        log.error("%s", error)
        return 2
    if args.json:
        about = {"bonds": str(rule), "n_left_out": len(given.faults)}
        print(json.dumps(evaluation.summary() | about, allow_nan=False))  # noqa: T201
    else:
        print(_table(evaluation, rule, len(given.faults)))  # noqa: T201
    return 0


def read_sets(paths: Sequence[Path], skip_bad: bool, rule: BondRule | None) -> dict[Path, Contents]:
    """What the files hold, without the molecules that cannot be read, or whose bonds the rule asked for cannot know."""
    import numpy as np

    from bench.metrics.stability import unknown_to
    from bench.structures import files
    from bench.structures.elements import BadMoleculesError

    found: dict[Path, Contents] = {}
    try:
        for path in files.expand(paths):
            held = files.contents(path, skip_bad)
            unknown = unknown_to(rule, held) if rule else {}
            named = [f"{path}: molecule {i} (counted from 0) {why}" for i, why in unknown.items()]
            if named and not skip_bad:
                raise BadMoleculesError(f"{named[0]} ({len(named)} of {len(held.structures)}); choose other --bonds")
            good = np.setdiff1d(np.arange(len(held.structures)), list(unknown))
            held = held.select(good) if named else held
            found[path] = replace(held, faults=held.faults + named)
    except BadMoleculesError as error:
        raise BadMoleculesError(f"{error}; --skip-bad leaves such molecules out") from error
    if not any(len(held.structures) for held in found.values()):
        faults = [fault for held in found.values() for fault in held.faults]
        raise BadMoleculesError(f"no molecule is left to evaluate: {_some(faults)}")
    return found


def _notes(given: Contents, bonds: Bonds, told: bool) -> list[str]:
    """What a reader of the numbers must know of the files, one line each."""
    import numpy as np

    from bench.metrics.stability import BondRule
    from bench.structures.identity import unit_warning

    notes = [] if told or bonds.rule is BondRule.EDM else [f"bonds by {bonds.rule.description}: not EDM's elements"]
    if warning := unit_warning(given.structures):
        notes.append(warning)
    n = len(given.structures)
    if given.n_hydrogens is not None and (k := int((given.n_hydrogens > 0).sum())):
        notes.append(
            f"the bonds of {k} of {n} molecules call for {given.n_hydrogens.sum()} hydrogens that are no atoms of the "
            "file: add them with coordinates (RDKit's AddHs, addCoords=True), or their neighbours count as unstable"
        )
    if given.bonds is not None and bonds.rule is not BondRule.FILE:
        own = [rows for rows in given.bonds if rows is not None and len(rows)]
        if own:
            differ = sum(
                rows is not None and len(rows) > 0 and not np.array_equal(_sorted(rows), _sorted(found))
                for rows, found in zip(given.bonds, bonds, strict=True)
            )
            notes.append(
                f"the file's own bonds and charges are not used (--bonds file uses them); {differ} of {len(own)} "
                "molecules have other bonds by this rule"
            )
    return notes


def _sorted(rows: np.ndarray) -> np.ndarray:
    """Bonds in an order that is the same for the same bonds, the later atom first."""
    import numpy as np

    rows = np.column_stack([rows[:, :2].max(axis=1), rows[:, :2].min(axis=1), rows[:, 2]])
    return rows[np.lexsort(rows.T)]


def _some(faults: Sequence[str]) -> str:
    more = f"; and {len(faults) - MAX_NAMED} more" if len(faults) > MAX_NAMED else ""
    return f"{len(faults)} molecules ({'; '.join(faults[:MAX_NAMED])}{more})"


def _table(evaluation: MoleculeEvaluation, rule: BondRule, n_left_out: int) -> str:
    summary, intervals = evaluation.summary(), evaluation.intervals()
    lines = [f"bonds by {rule.description}", f"{'molecules':36}{summary['n_molecules']:>10}    95 % interval"]
    if n_left_out:
        lines.insert(1, f"{'left out':36}{n_left_out:>10}")
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
