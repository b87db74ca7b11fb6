"""`equibench measure`: apply measures to trained runs, and keep what they find beside the runs' records."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli.verbs import AddVerb, add_plugin, study_folder

if TYPE_CHECKING:
    from tqdm import tqdm

    from bench.config.run import PlugIn
    from bench.run.measure import Bench

log = logging.getLogger("equibench")


def add_verbs(add: AddVerb) -> None:
    command = add("measure", measure, "measure trained models; what is there already is not measured again")
    command.add_argument(
        "target", metavar="RUN|STUDY", help="folder of a run or study, or name of a study in runs/ or results/"
    )
    command.add_argument(
        "options",
        nargs="*",
        metavar="[NAME.]key=value",
        help="options of a measure; its name may be left out where --only names one",
    )
    command.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="these measures (default: all that apply to a run)"
    )
    command.add_argument(
        "--weights",
        choices=["trained", "initial"],
        default="trained",
        help="initial: those that training began with, kept beside what was measured of the trained ones",
    )
    command.add_argument("--device", help="where to compute (default: as in training, where that is here)")
    command.add_argument("--force", action="store_true", help="measure again what is there, e.g. with newer code")
    add_plugin(command)


def measure(args: argparse.Namespace) -> int:
    """`equibench measure`; 1 where something failed, or a measure named by --only applied to no run."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from bench.run.measure import chosen_measures, has_weights, opened, read_run

    only = [name for name in args.only if "=" not in name]
    given = _options([*args.options, *(item for item in args.only if "=" in item)], only)
    folders = _folders(args.target)
    there = [folder for folder in folders if args.weights == "initial" or len(folders) == 1 or has_weights(folder)]
    chosen = {folder: chosen_measures(read_run(folder), only, given) for folder in there}
    outcomes: list[tuple[str, str]] = []  # (measure, what became of it)
    with (
        tqdm(total=sum(map(len, chosen.values())), unit="measure", disable=not sys.stderr.isatty()) as bar,
        logging_redirect_tqdm(),
    ):
        for folder, wanted in chosen.items():
            try:
                with opened(folder, args.weights, args.device) as bench:
                    outcomes += _measure(bench, wanted, args.force, bar)
            except (ValueError, OSError, RuntimeError) as error:
                if len(folders) == 1:
                    raise
                log.error("%s: %s", folder.name, error)
                outcomes += [(plugin.name, "failed") for plugin in wanted]
    _tell(outcomes, len(folders) - len(there))
    unused = [name for name in only if {word for of, word in outcomes if of == name} == {"does not apply"}]
    return 1 if unused or any(word == "failed" for _, word in outcomes) else 0


def _measure(bench: Bench, wanted: list[PlugIn], force: bool, bar: tqdm) -> Iterator[tuple[str, str]]:
    """Apply measures to one run; yields what became of each."""
    for plugin in wanted:
        bar.set_description(f"{bench.run.path.name}: {plugin.name}")
        n_batches = 0

        def count() -> None:
            nonlocal n_batches
            n_batches += 1
            bar.set_postfix_str(f"batch {n_batches}")

        word = "there already"
        if force or not bench.is_measured(plugin):
            try:
                bench.measure(plugin, count)
                word = "measured"
            except ValueError as error:
                log.info("%s: %s does not apply: %s", bench.run.path.name, plugin.name, error)
                word = "does not apply"
            except RuntimeError as error:
                log.error("%s: %s: %s", bench.run.path.name, plugin.name, error)
                word = "failed"
        bar.update()
        yield plugin.name, word


def _options(arguments: list[str], only: list[str]) -> dict[str, dict[str, Any]]:
    """Options by name of the measure."""
    from bench.config.study import parse_override
    from bench.registry import measures

    found: dict[str, dict[str, Any]] = {}
    for argument in arguments:
        key, value = parse_override(argument)
        name, dot, option = key.partition(".")
        if not dot:
            if len(only) != 1:
                raise ValueError(f"{argument!r}: of which measure? Write NAME.{argument}, or name one with --only")
            name, option = only[0], key
        found.setdefault(measures[name].name, {})[option] = value
    return found


def _folders(target: str) -> list[Path]:
    """The run, or all runs of a study."""
    from bench.records.store import RunFolder, StudyFolder

    folder = Path(target)
    if RunFolder(folder).manifest.exists():
        return [folder]
    return StudyFolder(study_folder(target)).runs()


def _tell(outcomes: list[tuple[str, str]], n_without: int) -> None:
    """A line for each measure, and one for the runs left out."""
    names = list(dict.fromkeys(name for name, _ in outcomes))
    for name in names:
        words = [word for of, word in outcomes if of == name]
        counts = {word: words.count(word) for word in dict.fromkeys(words)}
        print(f"{name:24}{', '.join(f'{n} {word}' for word, n in counts.items())}")  # noqa: T201
    if n_without:
        print(f"left out: {n_without} runs without weights here")  # noqa: T201
