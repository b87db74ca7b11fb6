"""The `equibench` command. Nothing heavy is imported before a subcommand needs it."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from bench.cli import data as data_command
from bench.cli import score

RUNS = Path("runs")
RESULTS = Path("results")


def main(argv: list[str] | None = None) -> int:
    """Parse and run; errors that a user can mend are one line, others a traceback."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("equibench", "bench", "analysis"):  # libraries keep to warnings
        logging.getLogger(name).setLevel(logging.WARNING if args.quiet else logging.INFO)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        logging.getLogger("equibench").error("interrupted; the same command continues")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, RuntimeError) as error:
        # our own errors are these classes with a line that says what to do; EQUIBENCH_TRACEBACK=1 shows where
        if os.environ.get("EQUIBENCH_TRACEBACK"):
            raise
        logging.getLogger("equibench").error("equibench: %s", error)
        return 2


def parser() -> argparse.ArgumentParser:
    """All subcommands."""
    top = argparse.ArgumentParser(
        prog="equibench", description=__doc__ and "Equivariance strategies of 3D molecular diffusion, side by side."
    )
    top.add_argument("--quiet", action="store_true", help="warnings and errors only")
    sub = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, run, text: str) -> argparse.ArgumentParser:
        command = sub.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(run=run)
        return command

    command = add("list", list_all, "methods, backbones, data sets and studies, a line each")
    command.add_argument("--matrix", action="store_true", help="which method runs on which backbone, and why not")
    data_command.add_arguments(add("data", data_command.run, "fetch, verify and describe a data set"))

    command = add("run", run_study, "execute what is missing of a study, resume what was cut")
    command.add_argument("study", help="name of a study (see `equibench list`) or path of its YAML page")
    command.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. train.n_steps=2000 launch.cluster=slurm"
    )
    command.add_argument("--retry", action="store_true", help="also execute runs that have failed before")
    command.add_argument(
        "--until",
        choices=["sampled", "evaluated"],
        default="evaluated",
        help="sampled: needs no RDKit (see `evaluate`)",
    )

    command = add("evaluate", evaluate, "evaluate runs that were executed --until sampled, perhaps elsewhere")
    command.add_argument("run_folders", metavar="RUN", nargs="+", type=Path, help="folders of runs")

    command = add("plan", plan, "measure what a study would take and refuse what does not fit the memory")
    command.add_argument("study")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="as for `run`")
    command.add_argument("--memory", type=float, metavar="GIB", help="of the machine or GPU (default: this one's)")

    command = add("status", status, "how the runs of a study stand, also while it goes")
    command.add_argument("study", help="name of a study with records in runs/ or results/, or path of such a folder")

    command = add("logs", logs, "the end of a run's log and of its job's errors")
    command.add_argument("run_name", metavar="RUN", help="name of a run, a prefix that no other has, or a folder")
    command.add_argument("-n", type=int, default=40, metavar="LINES", help="of each (default 40)")
    command.add_argument("--follow", action="store_true", help="go on printing the log until the run stops")

    command = add("report", report, "tables and figures of a study, from its records")
    command.add_argument("study", help="name of a study with records in runs/ or results/, or path of such a folder")
    command.add_argument("--out", type=Path, help="folder to write (default: report/ in the study's folder)")

    command = add("trace", trace, "the runs behind a cell of the main table, and how to make them again")
    command.add_argument("table", metavar="TABLE", help="study in runs/ or results/, or path of its folder")
    command.add_argument("row", metavar="ROW", help="method, or 'method backbone' where it has several; or data")
    command.add_argument("column", metavar="COLUMN", help="as in main.csv, e.g. atom_stability")

    command = add("publish", publish, "copy a study's records, curves and small weights into results/")
    command.add_argument("study")

    command = add("sample", sample, "sample molecules from a trained run")
    command.add_argument("run_folder", metavar="RUN", type=Path, help="a run's folder in runs/ or results/")
    command.add_argument("-n", type=int, default=100, help="number of molecules (default 100)")
    command.add_argument("-o", "--out", type=Path, required=True, help="file to write: .xyz, .sdf or .npz")
    command.add_argument("--steps", type=int, help="sampling steps (default: as the run was evaluated)")
    command.add_argument("--seed", type=int, default=0)

    score.add_arguments(add("score", score.run, "metrics of molecules in files"))

    command = add("parity", parity, "hold files of the published code's numbers against this code")
    command.add_argument("files", nargs="+", type=Path, metavar="FILE", help="npz, see tests/parity/README.md")
    command.add_argument("--json", action="store_true", help="print a JSON list instead of the table")

    command = add("import", import_checkpoint, "turn a published EDM or SymDiff checkpoint into a run to sample")
    command.add_argument("file", type=Path, metavar="FILE", help="state dict: torch.save, safetensors or npz")
    command.add_argument("-o", "--out", type=Path, required=True, help="run folder to make, e.g. runs/published/edm")
    command.add_argument("--page", type=Path, help="YAML with what the file does not tell (docs/published.md)")

    command = add("time", time, "seconds and memory of a training step")
    command.add_argument("--method", required=True)
    command.add_argument("--backbone", required=True)
    command.add_argument("--batch", type=int, default=64, help="molecules (default 64)")
    command.add_argument("--atoms", type=int, metavar="N", help="molecules of N atoms each (made up if there are none)")
    command.add_argument("--steps", type=int, default=10, help="timed steps (default 10)")
    timing_arguments(command)
    command.add_argument("--json", action="store_true", help="print one JSON object instead of the table")

    command = add("scaling", scaling, "growth of seconds and memory with atoms and with batch, each cell as by `time`")
    command.add_argument("--method", nargs="+", help="default: all")
    command.add_argument("--backbone", nargs="+", help="default: all")
    command.add_argument(
        "--atoms", type=int, nargs="+", default=[9, 18, 29, 44, 90, 181], help="from QM9's sizes to GEOM's by default"
    )
    command.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64])
    command.add_argument("--steps", type=int, default=3, help="timed steps of a cell (default 3)")
    timing_arguments(command)
    command.add_argument("-o", "--out", type=Path, default=RUNS / "scaling.json", help="record (default %(default)s)")
    return top


def timing_arguments(command: argparse.ArgumentParser) -> None:
    """What `time` and `scaling` share."""
    command.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. method.kernel_width=48")
    command.add_argument("--size", help="named size of the backbone, and of the method where it has one of that name")
    command.add_argument("--dtype", choices=["float32", "bf16"], default="float32")
    command.add_argument("--data", metavar="DIR", help="folder with QM9 (else QM9_DIR, else the embedded set)")
    command.add_argument("--device", default="cpu")
    command.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of a CPU (default: all cores)")
    command.add_argument("--compile", action="store_true", help="as train.compile=true")
    command.add_argument("--kernels", choices=["auto", "off"], default="auto", help="off: plain torch (default: auto)")


def list_all(args: argparse.Namespace) -> int:
    """`equibench list`."""
    from bench.cli.listing import listing, matrix

    print(matrix() if args.matrix else listing())  # noqa: T201
    return 0


def run_study(args: argparse.Namespace) -> int:
    """`equibench run`; 1 when a run has failed."""
    from bench.config.study import load_study
    from bench.launch.submit import run_study as execute_study
    from bench.run.execute import Until

    log = logging.getLogger("equibench")
    study = load_study(args.study, args.overrides)
    items = execute_study(study, RUNS, args.retry, args.study, Until(args.until))
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
    """`equibench plan`; 1 when something does not fit."""
    from bench.config.study import load_study
    from bench.launch.plan import MemoryShortError, estimate, table

    study = load_study(args.study, args.overrides)
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
    return 0


def trace(args: argparse.Namespace) -> int:
    """`equibench trace`."""
    from analysis.load import load
    from analysis.trace import trace as follow

    print(follow(load(study_folder(args.table)), args.row, args.column))  # noqa: T201
    return 0


def report(args: argparse.Namespace) -> int:
    """`equibench report`."""
    from analysis.load import load
    from analysis.report import build, print_table

    folder = study_folder(args.study)
    path = build(folder, args.out)
    print(print_table(load(folder)))  # noqa: T201
    print(f"\nreport: {path}")  # noqa: T201
    return 0


def study_folder(name: str) -> Path:
    """Where a study's records lie: a path, else runs/NAME, else results/NAME."""
    from bench.config.study import study_of

    study = study_of(name)
    candidates = [Path(name), RUNS / study, RESULTS / study]
    for folder in candidates:
        if (folder / "runs.json").exists() or (folder.is_dir() and any(folder.glob("*/manifest.json"))):
            return folder
    raise ValueError(f"no records of study {name!r} in {RUNS}/ or {RESULTS}/; execute `equibench run {name}` first")


def publish(args: argparse.Namespace) -> int:
    """`equibench publish`."""
    from analysis.report import build
    from bench.config.study import study_of
    from bench.launch.publish import publish as copy

    target = copy(study_of(args.study), RUNS, RESULTS)
    print(f"published: {build(target)}")  # noqa: T201
    return 0


def sample(args: argparse.Namespace) -> int:
    """`equibench sample`."""
    from tqdm import tqdm

    from bench.run.sample import load_run
    from bench.structures import files

    if args.n < 1 or args.out.suffix not in (".xyz", ".extxyz", ".sdf", ".npz"):
        raise ValueError(
            f"-n {args.n} -o {args.out}: expected at least one molecule and a file .xyz, .extxyz, .sdf or .npz"
        )
    run = load_run(args.run_folder)
    steps = args.steps or run.cfg.sample.n_steps
    n_prompts = len(run.model.task.prompts(args.n, run.cfg.sample.batch_size, args.seed))
    with tqdm(total=n_prompts * (steps + 1), unit="call", disable=not sys.stderr.isatty()) as bar:

        def count() -> None:
            bar.update()

        molecules = run.sample(args.n, steps, args.seed, on_step=count)
    bonds = None
    if args.out.suffix == ".sdf":
        from bench.metrics.stability import infer_bonds

        inferred = infer_bonds(molecules)
        bonds = [inferred[i] for i in range(len(molecules))]
    files.write(args.out, molecules, bonds=bonds)
    print(f"{args.n} molecules, {steps} sampling steps, seed {args.seed}: {args.out}")  # noqa: T201
    return 0


def parity(args: argparse.Namespace) -> int:
    """`equibench parity`; 1 when a number differs, 2 when a file cannot be compared."""
    from bench.published.parity import run

    return run(args.files, args.json)


def import_checkpoint(args: argparse.Namespace) -> int:
    """`equibench import`."""
    from bench.published.importing import import_weights, read_page

    print(import_weights(args.file, args.out, read_page(args.page)))  # noqa: T201
    print(f"now: equibench sample {args.out} -n 100 -o molecules.sdf")  # noqa: T201
    return 0


def time(args: argparse.Namespace) -> int:
    """`equibench time`."""
    from bench.run.timing import run_config, table, time_steps

    if args.steps < 1 or (args.atoms is not None and args.atoms < 1):
        raise ValueError(f"--steps {args.steps} --atoms {args.atoms}: expected at least 1")
    train = {
        "batch_size": args.batch,
        "bf16": args.dtype == "bf16",
        "compile": args.compile,
        "n_threads": args.threads,
        "device": args.device,
        "kernels": args.kernels,
    }
    cfg = run_config(args.method, args.backbone, args.size, args.data, args.overrides, **train)
    result = time_steps(cfg, args.steps, args.atoms)
    print(json.dumps(result) if args.json else table(result))  # noqa: T201
    return 0


def scaling(args: argparse.Namespace) -> int:
    """`equibench scaling`."""
    from bench.records.store import write_json
    from bench.run.scaling import sweep, table

    shared = [*args.overrides, "--dtype", args.dtype, "--device", args.device, "--threads", str(args.threads)]
    shared += ["--kernels", args.kernels, "--steps", str(args.steps), *(["--compile"] if args.compile else [])]
    shared += [part for flag in ("size", "data") if (value := getattr(args, flag)) for part in (f"--{flag}", value)]
    record = sweep(args.method, args.backbone, args.atoms, args.batch, shared)
    write_json(args.out, record)
    print(f"{table(record)}\n\nrecord: {args.out}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
