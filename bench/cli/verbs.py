"""Shared by all verbs: adding a verb, the folders of records, plug-in files to load."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

RUNS = Path("runs")
RESULTS = Path("results")
FOLDER_HELP = "name of a study with records in runs/ or results/, or path of such a folder"


# adds a verb: its name, the function that runs it and returns the exit code, and one line of help
AddVerb = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def add_plugin(command: argparse.ArgumentParser) -> None:
    """`--plugin FILE`, which `bench.cli.main` executes before the verb."""
    command.add_argument(
        "--plugin",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="Python file with plug-ins; repeatable",
    )


def add_study(command: argparse.ArgumentParser) -> None:
    """A study to read, with its overrides and plug-ins."""
    command.add_argument("study", help="name of a study (see `equibench list`) or path of its YAML file")
    command.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. train.n_steps=2000 launch.cluster=slurm"
    )
    add_plugin(command)


def study_folder(name: str) -> Path:
    """Where a study's records lie: a path, else runs/NAME, else results/NAME."""
    from bench.config.study import study_of
    from bench.records.store import StudyFolder

    study = study_of(name)
    candidates = [Path(name), RUNS / study, RESULTS / study]
    for folder in candidates:
        if StudyFolder(folder).plan.exists() or StudyFolder(folder).runs():
            return folder
    raise ValueError(f"no records of study {name!r} in {RUNS}/ or {RESULTS}/; execute `equibench run {name}` first")
