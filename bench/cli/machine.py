"""Verbs on cost: time, scaling."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from bench.cli.verbs import RUNS, AddVerb, add_plugin


def add_verbs(add: AddVerb) -> None:
    command = add("time", time, "time and memory of a training step")
    command.add_argument("--method", required=True)
    command.add_argument("--backbone", required=True)
    command.add_argument("--batch", type=int, default=64, help="molecules (default 64)")
    command.add_argument(
        "--atoms", type=int, metavar="N", help="molecules of N atoms each (synthetic if too few exist)"
    )
    command.add_argument("--steps", type=int, default=10, help="timed steps (default 10)")
    timing_arguments(command)
    command.add_argument("--json", action="store_true", help="print one JSON object instead of the table")

    command = add(
        "scaling",
        scaling,
        "growth of time and memory with atoms and batch size, each cell as by `time`",
    )
    command.add_argument("--method", nargs="+", help="default: all")
    command.add_argument("--backbone", nargs="+", help="default: all")
    command.add_argument(
        "--atoms", type=int, nargs="+", default=[9, 18, 29, 44, 90, 181], help="from QM9's sizes to GEOM's by default"
    )
    command.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64])
    command.add_argument("--steps", type=int, default=3, help="timed steps per cell (default 3)")
    timing_arguments(command)
    command.add_argument("-o", "--out", type=Path, default=RUNS / "scaling.json", help="record (default %(default)s)")


def timing_arguments(command: argparse.ArgumentParser) -> None:
    """Arguments that `time` and `scaling` share."""
    command.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. method.kernel_width=48")
    command.add_argument("--size", help="named size of the backbone, and of the method where it has one of that name")
    command.add_argument("--dtype", choices=["float32", "bf16"], default="float32")
    command.add_argument("--data", metavar="DIR", help="folder with QM9 (else QM9_DIR, else the embedded set)")
    command.add_argument("--device", default="cpu")
    command.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default: all cores)")
    command.add_argument("--compile", action="store_true", help="as train.compile=true")
    command.add_argument("--kernels", choices=["auto", "off"], default="auto", help="off: plain torch (default: auto)")
    command.add_argument(
        "--sampling-steps", type=int, default=0, metavar="K", help="time K steps of sampling too (default: none)"
    )
    add_plugin(command)


def time(args: argparse.Namespace) -> int:
    """`equibench time`."""
    from bench.run.timing import run_config, table, time_steps

    if args.steps < 1 or (args.atoms is not None and args.atoms < 1) or args.sampling_steps < 0:
        raise ValueError(
            f"--steps {args.steps} --atoms {args.atoms} --sampling-steps {args.sampling_steps}: expected at least 1, "
            "or 0 sampling steps"
        )
    train = {
        "batch_size": args.batch,
        "bf16": args.dtype == "bf16",
        "compile": args.compile,
        "n_threads": args.threads,
        "device": args.device,
        "kernels": args.kernels,
    }
    cfg = run_config(args.method, args.backbone, args.size, args.data, args.overrides, **train)
    result = time_steps(cfg, args.steps, args.atoms, n_sampling_steps=args.sampling_steps)
    print(json.dumps(result) if args.json else table(result))  # noqa: T201
    return 0


def scaling(args: argparse.Namespace) -> int:
    """`equibench scaling`."""
    from bench.records.store import write_json
    from bench.run.scaling import sweep, table

    shared = [*args.overrides, "--dtype", args.dtype, "--device", args.device, "--threads", str(args.threads)]
    shared += ["--kernels", args.kernels, "--steps", str(args.steps)]
    shared += ["--sampling-steps", str(args.sampling_steps), *(["--compile"] if args.compile else [])]
    shared += [part for file in args.plugin for part in ("--plugin", str(file))]
    shared += [part for flag in ("size", "data") if (value := getattr(args, flag)) for part in (f"--{flag}", value)]
    record = sweep(args.method, args.backbone, args.atoms, args.batch, shared)
    write_json(args.out, record)
    print(f"{table(record)}\n\nrecord: {args.out}")  # noqa: T201
    return 0
