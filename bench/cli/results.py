"""Verbs on results: report, power, trace, cite."""

from __future__ import annotations

import argparse
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.verbs import FOLDER_HELP, AddVerb, add_plugin, study_folder

if TYPE_CHECKING:
    from bench.config.run import RunConfig
    from bench.references import Reference

REFERENCE_HELP = (
    "what rows are compared with: METHOD on the row's own backbone, or METHOD/BACKBONE for all rows "
    "(default: the method without a strategy on the same backbone)"
)


def add_verbs(add: AddVerb) -> None:
    command = add("report", report, "tables and figures of a study, from its records")
    command.add_argument("study", help=FOLDER_HELP)
    command.add_argument("--out", type=Path, help="folder to write (default: report/ in the study's folder)")

    command.add_argument("--reference", metavar="ROW", help=REFERENCE_HELP)

    command = add("power", power, "how many seeds tell a study's methods apart, by each metric")
    command.add_argument("study", help=FOLDER_HELP)
    command.add_argument("--reference", metavar="ROW", help=REFERENCE_HELP)

    command = add("trace", trace, "the runs behind a cell of the main table, and how to reproduce them")
    command.add_argument("table", metavar="TABLE", help="study in runs/ or results/, or path of its folder")
    command.add_argument("row", metavar="ROW", help="method, or 'method backbone' if it runs on several; or data")
    command.add_argument("column", metavar="COLUMN", help="as in main.csv, e.g. atom_stability")

    command = add("cite", cite, "BibTeX for the methods, backbones, data and metrics that a study, run or file uses")
    command.add_argument("what", metavar="STUDY|RUN|FILE", help="study, folder of a run or study, or plug-in file")
    add_plugin(command)


def report(args: argparse.Namespace) -> int:
    """`equibench report`."""
    from analysis.load import load
    from analysis.report import build, print_table

    folder = study_folder(args.study)
    path = build(folder, args.out, args.reference)
    print(print_table(load(folder)))  # noqa: T201
    print(f"\nreport: {path}")  # noqa: T201
    return 0


def power(args: argparse.Namespace) -> int:
    """`equibench power`."""
    from analysis.load import load
    from analysis.tables.power import power_table
    from analysis.tables.render import text

    folder = study_folder(args.study)
    tables = [table for part in load(folder).parts() if (table := power_table(part, args.reference)) is not None]
    if not tables:
        raise ValueError(f"no two rows of {folder} have two common seeds, so the scatter of differences is not known")
    for table in tables:
        print("\n\n".join([table.caption, text(table), *table.notes]))  # noqa: T201
    return 0


def trace(args: argparse.Namespace) -> int:
    """`equibench trace`."""
    from analysis.load import load
    from analysis.trace import trace as follow

    print(follow(load(study_folder(args.table)), args.row, args.column))  # noqa: T201
    return 0


def cite(args: argparse.Namespace) -> int:
    """`equibench cite`."""
    from bench.references import EQUIBENCH, bibliography

    print(bibliography([EQUIBENCH, *references_of(args.what)]))  # noqa: T201
    return 0


def references_of(what: str) -> list[Reference]:
    """What to cite for a plug-in file, or for all that the runs of a study or a run's folder use."""
    from bench.metrics.references import REFERENCES
    from bench.registry import load_file, registered_by

    path = Path(what)
    if path.suffix == ".py":
        return [ref for _, entry in registered_by(load_file(path)) for ref in entry.references]
    return [*REFERENCES, *chain.from_iterable(map(_references_of_run, _configurations(what)))]


def _configurations(what: str) -> list[RunConfig]:
    """Of a study by its name or file, of a run's folder, or of all runs in a study's folder."""
    from bench.config.run import read_run
    from bench.config.study import load_study, study_names
    from bench.records.store import RunFolder, StudyFolder

    folder = Path(what)
    if folder.suffix in (".yaml", ".yml") or what in study_names():
        return load_study(what).runs
    if not RunFolder(folder).config.is_file():
        return [read_run(path) for path in StudyFolder(study_folder(what)).runs()]
    return [read_run(folder)]


def _references_of_run(cfg: RunConfig) -> list[Reference]:
    from bench.config.run import weights_run
    from bench.registry import backbones, datasets, measures, methods, tasks

    parent = weights_run(cfg)
    entries = [methods[cfg.method.name], backbones[cfg.backbone.name], datasets[cfg.data.name], tasks[cfg.task.name]]
    entries += [measures[name] for name, given in cfg.measures.items() if given is not None]
    return [*(ref for entry in entries for ref in entry.references), *(_references_of_run(parent) if parent else [])]
