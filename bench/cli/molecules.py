"""Verbs on molecules: sample, score."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.cli import score
from bench.cli.verbs import AddVerb, add_plugin


def add_verbs(add: AddVerb) -> None:
    command = add("sample", sample, "sample molecules from a trained run")
    command.add_argument("run_folder", metavar="RUN", type=Path, help="a run's folder in runs/ or results/")
    command.add_argument("-n", type=int, default=100, help="number of molecules (default 100)")
    command.add_argument("-o", "--out", type=Path, required=True, help="file to write: .xyz, .sdf or .npz")
    command.add_argument("--steps", type=int, help="sampling steps (default: as the run was evaluated)")
    command.add_argument("--seed", type=int, default=0)
    add_plugin(command)

    score.add_arguments(add("score", score.run, "metrics of molecules in files"))


def sample(args: argparse.Namespace) -> int:
    """`equibench sample`."""
    from tqdm import tqdm

    from bench.diffusion.sampler import n_calls
    from bench.run.sample import load_run
    from bench.structures import files

    if args.n < 1 or args.out.suffix not in (".xyz", ".extxyz", ".sdf", ".npz"):
        raise ValueError(
            f"-n {args.n} -o {args.out}: expected at least one molecule and a file .xyz, .extxyz, .sdf or .npz"
        )
    run = load_run(args.run_folder)
    steps = args.steps or run.cfg.sample.n_steps
    n_prompts = len(run.model.task.prompts(args.n, run.cfg.sample.batch_size, args.seed))
    total = n_prompts * n_calls(run.process.path, run.cfg.sample.sampler, steps)
    with tqdm(total=total, unit="call", disable=not sys.stderr.isatty()) as bar:

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
