"""`equibench data NAME`: load a data set, verify it and print what it holds."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from bench.cli.verbs import AddVerb, add_plugin
from bench.registry import datasets

if TYPE_CHECKING:
    from bench.structures.dataset import DataSet


def add_verbs(add: AddVerb) -> None:
    """Add `equibench data`; options that the named data set does not have are refused."""
    parser = add("data", run, "fetch, verify and describe a data set")
    parser.add_argument("name", help="data set, as listed by `equibench list`: qm9, mini, folder, ...")
    parser.add_argument("options", nargs="*", metavar="key=value", help="options of the data set: toy=sign_flip")
    parser.add_argument("--dir", help="folder with the data (for qm9 also the environment variable QM9_DIR)")
    parser.add_argument("--max-atoms", type=int, metavar="N", help="keep molecules of at most N atoms")
    parser.add_argument("--n-train", type=int, metavar="N", help="keep N training molecules, drawn with a fixed seed")
    parser.add_argument("--json", action="store_true", help="print the manifest's entry as JSON and nothing else")
    add_plugin(parser)


def run(args: argparse.Namespace) -> int:
    """Print the table, or JSON; 0, or 1 after one line on standard error."""
    try:
        data = _load(args)
    except (ValueError, OSError) as error:
        print(f"equibench data: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(json.dumps(data.record(), indent=1) if args.json else _table(data))  # noqa: T201
    return 0


def _load(args: argparse.Namespace) -> DataSet:
    from bench.config.run import resolve
    from bench.config.study import parse_override
    from bench.run.batches import load_or_stand_in

    options = {"dir": args.dir, "max_atoms": args.max_atoms, "n_train": args.n_train}
    given = {key: value for key, value in options.items() if value is not None}
    given |= dict(map(parse_override, args.options))
    return load_or_stand_in(resolve(datasets, {"name": args.name, **given}, "data"))[1]


def _table(data: DataSet) -> str:
    """Label, source and fingerprint, a row for each split, and the notes."""
    import numpy as np

    from bench.structures.dataset import grouped
    from bench.structures.elements import SYMBOL

    rows = [["split", "molecules", "atoms", *(SYMBOL[z] for z in data.elements), "smallest", "mean", "largest"]]
    for name, split in data.splits.items():
        counts = np.bincount(split.numbers, minlength=max(data.elements) + 1)
        sizes = split.n_atoms
        numbers = [len(split), len(split.numbers), *(int(counts[z]) for z in data.elements)]
        rows.append([name, *map(grouped, numbers), str(sizes.min()), f"{sizes.mean():.3f}", str(sizes.max())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    facts = {"data": data.label, "source": data.source, "fingerprint": data.fingerprint}
    return "\n".join(
        [
            *(f"{key:<13}{value}" for key, value in facts.items()),
            "",
            *("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows),
            *(f"note: {note}" for note in data.notes),
        ]
    )
