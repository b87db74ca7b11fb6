"""Verbs on published weights and numbers: import, parity."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.cli.verbs import AddVerb


def add_verbs(add: AddVerb) -> None:
    command = add("import", import_checkpoint, "turn a published EDM or SymDiff checkpoint into a run to sample")
    command.add_argument("file", type=Path, metavar="FILE", help="state dict: torch.save, safetensors or npz")
    command.add_argument("-o", "--out", type=Path, required=True, help="run folder to make, e.g. runs/published/edm")
    command.add_argument("--page", type=Path, help="YAML file with what the checkpoint lacks (docs/published.md)")

    command = add("parity", parity, "compare this code with numbers of the published code")
    command.add_argument("files", nargs="+", type=Path, metavar="FILE", help="npz, see tests/parity/README.md")
    command.add_argument("--json", action="store_true", help="print a JSON list instead of the table")


def import_checkpoint(args: argparse.Namespace) -> int:
    """`equibench import`."""
    from bench.published.importing import import_weights, read_page

    print(import_weights(args.file, args.out, read_page(args.page)))  # noqa: T201
    print(f"now: equibench sample {args.out} -n 100 -o molecules.sdf")  # noqa: T201
    return 0


def parity(args: argparse.Namespace) -> int:
    """`equibench parity`; 1 when a number differs, 2 when a file cannot be compared."""
    from bench.published.parity import run

    return run(args.files, args.json)
