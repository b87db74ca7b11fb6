"""`equibench compare` and `equibench reference`: metrics of sets of molecules, beside a floor and a ceiling."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.score import add_reading, asked_rule, read_sets
from bench.cli.verbs import AddVerb, add_plugin
from bench.records.store import write_atomically

if TYPE_CHECKING:
    from analysis.tables.render import Table
    from bench.records.values import Value
    from bench.structures.structures import Structures

log = logging.getLogger("equibench")

ROWS = {"data": "floor: others of B", "noise 0.05": "ceiling: 0.05 Å noise", "noise 0.1": "ceiling: 0.1 Å noise"}


def add_verbs(add: AddVerb) -> None:
    command = add("compare", compare, "judge samples A against molecules B, beside a floor and a ceiling")
    command.add_argument(
        "a", type=Path, metavar="A", help="xyz, sdf (or these with .gz), npz, or a folder of such files"
    )
    command.add_argument("b", type=Path, metavar="B", help="the molecules that A should be like: a test set")
    add_reading(command)
    _add_effort(command)
    command.add_argument("--json", action="store_true", help="print one JSON object instead of the table")

    command = add("reference", reference, "what the metrics of `compare` say of a data set itself")
    command.add_argument("data", help="data set, as listed by `equibench list`")
    command.add_argument("options", nargs="*", metavar="key=value", help="options of the data set: dir=/data/qm9")
    command.add_argument("-n", type=int, default=10_000, help="test molecules, and as many of validation (10000)")
    command.add_argument("-o", "--out", type=Path, required=True, help="writes OUT.md and OUT.csv")
    _add_effort(command)
    add_plugin(command)


def _add_effort(parser: argparse.ArgumentParser) -> None:
    subsets = {
        "--n-posebusters": (300, "PoseBusters' checks"),
        "--n-energy": (20, "PoseBusters' energy ratio"),
        "--n-strain": (100, "strain by MMFF94 and GFN2-xTB"),
    }
    for option, (default, what) in subsets.items():
        parser.add_argument(
            option, type=int, default=default, help=f"molecules of a set for {what} ({default}; 0: none)"
        )
    parser.add_argument("--seed", type=int, default=0, help="of subsets and of the noise (0)")


def compare(args: argparse.Namespace) -> int:
    """`equibench compare`."""
    from analysis.tables.render import natural_widths, text
    from bench.metrics.plausibility import judge, rows_of
    from bench.metrics.stability import natural_rule
    from bench.structures.elements import Contents
    from bench.structures.structures import Structures

    asked = asked_rule(args)
    a, b = (Contents.concatenate(list(read_sets([path], args.skip_bad, asked).values())) for path in (args.a, args.b))
    rule = asked or natural_rule(Structures.concatenate([a.structures, b.structures]))
    rows, others = rows_of(a, b, seed=args.seed)
    found = judge(rows, others, rule, _effort(args), args.seed)
    n = {name: len(given.structures) for name, given in rows.items()} | {"others": len(others.structures)}
    if args.json:
        values = {name: [value.to_dict() for value in of_row] for name, of_row in found.items()}
        print(json.dumps({"bonds": str(rule), "n": n, "values": values}, allow_nan=False))  # noqa: T201
        return 0
    about = (
        f"Bonds by {rule.description}. {n['samples']} molecules of A and {n['data']} of B, each set against the "
        f"{n['others']} others of B."
    )
    table = _table(found, {"samples": f"A: {args.a.name}", **ROWS}, about)
    print("\n".join([about, "", text(table, 2 * sum(natural_widths(table))), "", *table.notes]))  # noqa: T201
    return 0


def reference(args: argparse.Namespace) -> int:
    """`equibench reference`: the committed tables of results/reference."""
    from analysis.tables.render import markdown
    from bench.config.run import resolve
    from bench.config.study import parse_override
    from bench.metrics.plausibility import judge, with_noise
    from bench.metrics.stability import natural_rule
    from bench.registry import datasets
    from bench.run.batches import load_or_stand_in
    from bench.run.evaluate import versions
    from bench.structures.elements import Contents

    choice = resolve(datasets, {"name": args.data, **dict(map(parse_override, args.options))}, "data")
    data = load_or_stand_in(choice)[1]
    held, others = (Contents(_drawn(split, args.n, args.seed)) for split in (data.test, data.valid))
    rule, started = natural_rule(data.train), time.perf_counter()

    def on_row() -> None:
        log.info("%.0f s", time.perf_counter() - started)

    found = judge(with_noise(held, args.seed), others, rule, _effort(args), args.seed, on_row=on_row)
    packages = ", ".join(f"{name} {version}" for name, version in (versions() | _optional_versions()).items())
    about = (
        f"{data.label}: {len(held.structures)} test molecules, as they are and with normal noise on each coordinate, "
        f"against {len(others.structures)} of the validation split. Bonds by {rule.description}. "
        f"Made by `{_command(args)}` with {packages}."
    )
    table = _table(found, ROWS | {"data": "floor: test molecules"}, about)
    page = f"# {data.label}: metrics of its own molecules\n\n{markdown(table)}"
    write_atomically(args.out.with_suffix(".md"), page.encode())
    write_atomically(args.out.with_suffix(".csv"), _csv(found).encode())
    log.info("%s.md and .csv: %.0f s", args.out, time.perf_counter() - started)
    return 0


def _command(args: argparse.Namespace) -> str:
    """The command with the options that change numbers; where the data lie changes none."""
    options = [word for word in args.options if not word.startswith("dir=")]
    numbers = f"-n {args.n} --n-posebusters {args.n_posebusters} --n-energy {args.n_energy} --n-strain {args.n_strain}"
    return " ".join(["equibench reference", args.data, *options, numbers, f"--seed {args.seed} -o {args.out}"])


def _drawn(split: Structures, n: int, seed: int) -> Structures:
    from bench.metrics.plausibility import subset

    return split.select(subset(len(split), n, seed))


def _effort(args: argparse.Namespace):
    from bench.metrics.plausibility import Effort

    return Effort(args.n_posebusters, args.n_energy, args.n_strain)


def _optional_versions() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for package in ("posebusters", "tblite", "scipy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _table(found: Mapping[str, Sequence[Value]], heads: Mapping[str, str], about: str) -> Table:
    """Metrics down, sets across; the notes hold the definitions, and how many molecules were scored."""
    from analysis.tables.render import Cell, Table

    values = {name: {value.name: value for value in of_row} for name, of_row in found.items()}
    first = {value.name: value for of_row in found.values() for value in of_row}
    shown = [key for key in first if not _is_share(key) or any(key in of and of[key].value for of in values.values())]
    rows = [
        [Cell(first[key].label), Cell(first[key].unit), *(_cell(values[name].get(key)) for name in values)]
        for key in shown
    ]
    labels: dict[str, list[str]] = {}  # by definition
    for key in shown:
        told = {heads[name]: of_row[key].definition for name, of_row in values.items() if key in of_row}
        same = len(set(told.values())) == 1  # counts differ from set to set
        meaning = first[key].definition if same else "; ".join(f"{head}, {words}" for head, words in told.items())
        if meaning:
            labels.setdefault(meaning, []).append(first[key].label)
    notes = [f"{', '.join(of_meaning)}: {meaning}." for meaning, of_meaning in labels.items()]
    notes.append("Shares that cannot be compared, or lie beyond the bins, are left out where all are 0.")
    return Table(["Metric", "Unit", *(heads[name] for name in values)], rows, about, n_text=2, notes=tuple(notes))


def _is_share(key: str) -> bool:
    return key.startswith(("lacking_", "foreign_", "overflow_"))


def _cell(value: Value | None):
    from analysis.tables.render import Cell

    if value is None or value.value is None:
        return Cell("none")
    if value.unit == "count":
        return Cell(f"{value.value:.0f}")
    spread = "" if value.low is None or value.high is None else f"({value.low:.4g} to {value.high:.4g})"
    return Cell(f"{value.value:.4g}", spread)


def _csv(found: Mapping[str, Sequence[Value]]) -> str:
    import pandas as pd

    keys = ("name", "label", "unit", "value", "low", "high", "definition")
    rows = [{"row": row, **{key: getattr(v, key) for key in keys}} for row, values in found.items() for v in values]
    return pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")
