"""Verbs on molecules: sample, score, compare, reference."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from bench.cli import compare, score
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
    compare.add_verbs(add)


def sample(args: argparse.Namespace) -> int:
    """`equibench sample`; 1 where some molecules are not finite and so not written."""
    import numpy as np
    from tqdm import tqdm

    from bench.diffusion.sampler import n_calls, require_sampler
    from bench.run.molecules import Molecules
    from bench.run.sample import load_run

    if args.n < 1 or (args.steps is not None and args.steps < 1):
        raise ValueError(f"-n {args.n} --steps {args.steps}: expected at least one molecule and one step")
    _check_output(args.out)  # now: sampling takes long
    run = load_run(args.run_folder)
    steps = run.cfg.sample.n_steps if args.steps is None else args.steps
    require_sampler(run.process, run.cfg.sample.sampler, steps)
    n_prompts = len(run.model.task.prompts(args.n, run.cfg.sample.batch_size, args.seed))
    total = n_prompts * n_calls(run.process.path, run.cfg.sample.sampler, steps)
    with tqdm(total=total, unit="call", disable=not sys.stderr.isatty()) as bar:

        def count() -> None:
            bar.update()

        molecules = run.sample(args.n, steps, args.seed, on_step=count)
    finite = np.array([np.isfinite(positions).all() for _, positions in molecules], dtype=bool)
    n_broken = int((~finite).sum())
    if n_broken == len(molecules):
        raise ValueError(f"none of {args.n} molecules has finite positions; nothing is written: the run has diverged")
    molecules = Molecules.of(molecules.select(finite))
    molecules.write(args.out)
    lost = f", {n_broken} more left out: their positions are not finite" if n_broken else ""
    print(f"{len(molecules)} molecules, {steps} sampling steps, seed {args.seed}: {args.out}{lost}")  # noqa: T201
    return 1 if n_broken else 0


def _check_output(path: Path) -> None:
    """Raise ValueError or OSError for a path that cannot be written."""
    from bench.structures import files

    if files.kind(path) not in files.WRITTEN:
        raise ValueError(f"-o {path}: unknown kind of file {files.kind(path)!r}, expected {', '.join(files.WRITTEN)}")
    if path.is_dir():
        raise ValueError(f"-o {path}: is a folder, expected a file to write")
    if not path.parent.is_dir():
        raise ValueError(f"-o {path}: folder {path.parent} does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"-o {path}: no permission to write in folder {path.parent}")
