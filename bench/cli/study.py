"""Verbs on a study: run, evaluate, plan, status, logs, remove, publish."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from bench.cli.verbs import FOLDER_HELP, RESULTS, RUNS, AddVerb, add_plugin, add_study, study_folder


def add_verbs(add: AddVerb) -> None:
    command = add("run", run_study, "run a study: start missing runs, resume interrupted ones, skip finished ones")
    add_study(command)
    command.add_argument("--retry", action="store_true", help="also retry runs that have failed")
    command.add_argument("--force", action="store_true", help="also finished runs, which are moved to .old/ first")
    command.add_argument(
        "--only", nargs="+", default=[], metavar="key=value", help="these runs alone, e.g. method=haar seed=[0,1]"
    )
    command.add_argument("--dry-run", action="store_true", help="say what would be run, and run nothing")
    command.add_argument(
        "--until",
        choices=["sampled", "evaluated"],
        default="evaluated",
        help="stop after sampling, which needs no RDKit (see `evaluate`), or after evaluation (default)",
    )

    command = add("evaluate", evaluate, "evaluate runs that stopped at `run --until sampled`, perhaps elsewhere")
    command.add_argument("run_folders", metavar="RUN", nargs="+", type=Path, help="folders of runs")
    add_plugin(command)

    command = add("plan", plan, "estimate time and memory of a study; fail if it does not fit into memory")
    add_study(command)
    command.add_argument(
        "--memory", type=float, metavar="GIB", help="memory there is, e.g. of a GPU (default: this machine's)"
    )

    command = add("status", status, "state of a study's runs, also while they run")
    command.add_argument("study", help=FOLDER_HELP)

    command = add("logs", logs, "end of a run's log and of its job's standard error")
    command.add_argument("run_name", metavar="RUN", help="name of a run, a unique prefix of one, or a folder")
    command.add_argument("-n", type=int, default=40, metavar="LINES", help="lines of each (default 40)")
    command.add_argument("--follow", action="store_true", help="keep printing the log until the run stops")

    command = add("remove", remove, "remove one run, after showing what that would remove")
    command.add_argument("run_name", metavar="RUN", help="name of a run, a unique prefix of one, or a folder")
    command.add_argument("--yes", action="store_true", help="remove it; without this, it is only shown")

    command = add("publish", publish, "copy a study's records, curves and small weights into results/")
    command.add_argument("study")
    add_plugin(command)


def run_study(args: argparse.Namespace) -> int:
    """`equibench run`; 1 when a run has failed."""
    from bench.config.study import load_study, selection
    from bench.launch.choose import changes, preview, with_needed
    from bench.launch.items import plan
    from bench.launch.submit import run_study as execute_study
    from bench.run.execute import Until

    log = logging.getLogger("equibench")
    study, until = load_study(args.study, args.overrides, args.plugin), Until(args.until)
    only = selection(args.only, study.runs)
    if args.dry_run:
        items = plan(study, RUNS, until)
        for line in changes(RUNS / study.name, items):
            log.warning("%s", line)
        print(preview(with_needed(items, only), args.retry, lambda cfg: args.force and only(cfg)))  # noqa: T201
        return 0
    items = execute_study(study, RUNS, args.retry, args.study, until, only, args.force)
    unfinished = [item for item in items if item.status not in ("done", "skipped")]
    for item in unfinished:
        log.error("%s: %s; `equibench logs %s`", item.folder.name, item.outcome or item.reason, item.folder.name)
    before = sum(item.outcome is None for item in unfinished)
    if before:
        log.error("%d failed before and left alone; `equibench run %s --retry` takes them up again", before, args.study)
    done, skipped = (sum(item.status == word for item in items) for word in ("done", "skipped"))
    words = "%s: %d done, %d skipped, %d not finished; now `equibench report %s`"
    log.info(words, study.name, done, skipped, len(unfinished), study.name)
    return 1 if unfinished else 0


def evaluate(args: argparse.Namespace) -> int:
    """`equibench evaluate`."""
    from bench.run.execute import evaluate_folder

    for folder in args.run_folders:
        evaluate_folder(folder)
        print(f"evaluated: {folder}")  # noqa: T201
    return 0


def plan(args: argparse.Namespace) -> int:
    """`equibench plan`; 1 when the study does not fit into memory."""
    from bench.config.study import load_study
    from bench.launch.plan import MemoryShortError, estimate, table

    study = load_study(args.study, args.overrides, args.plugin)
    try:
        print(table(estimate(study, RUNS, args.memory)))  # noqa: T201
    except MemoryShortError as error:
        logging.getLogger("equibench").error("equibench: %s", error)
        return 1
    return 0


def status(args: argparse.Namespace) -> int:
    """`equibench status`."""
    from bench.launch.status import status as display

    print(display(study_folder(args.study)))  # noqa: T201
    return 0


def logs(args: argparse.Namespace) -> int:
    """`equibench logs`."""
    from bench.launch import status

    folder = status.find_run(args.run_name, [RUNS])
    print(status.logs(folder, args.n), flush=True)  # noqa: T201
    for text in status.follow(folder) if args.follow else ():
        print(text, end="", flush=True)  # noqa: T201
        if not sys.stdout.writable():
            break
    return 0


def remove(args: argparse.Namespace) -> int:
    """`equibench remove`; 1 when nothing was removed."""
    from bench.launch.choose import describe_removal
    from bench.launch.choose import remove as remove_run
    from bench.launch.status import find_run

    folder = find_run(args.run_name, [RUNS])
    print(describe_removal(folder))  # noqa: T201
    if not args.yes:
        print(f"nothing removed; `equibench remove {folder} --yes` removes it")  # noqa: T201
        return 1
    remove_run(folder)
    print("removed")  # noqa: T201
    return 0


def publish(args: argparse.Namespace) -> int:
    """`equibench publish`."""
    from analysis.report import build
    from bench.config.study import study_of
    from bench.launch.publish import publish as copy

    target = copy(study_of(args.study), RUNS, RESULTS)
    print(f"published: {build(target)}")  # noqa: T201
    return 0
