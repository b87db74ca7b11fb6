"""The `equibench` command: parses and dispatches. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable

from bench.cli import data, machine, measure, molecules, plugins, results, study, weights
from bench.cli.output import best_effort
from bench.records.inputs import printable
from bench.records.schema import package_version
from bench.records.store import CONTINUES
from bench.registry import load_file


class Printable(logging.Formatter):
    """Messages may quote records and files: what a terminal would obey is shown escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")


def main(argv: list[str] | None = None) -> int:
    """Parse and run; errors that a user can fix are one line, others a traceback.

    Returns:
        the exit code, which tells what became of the work, whatever became of its output; but a result that could not
        be written to the standard output, unless nobody reads it (`| head`), is a failure too.
    """
    with best_effort() as out:
        code = _main(argv)
        out.flush()
        if out.error is not None and not isinstance(out.error, BrokenPipeError):
            logging.getLogger("equibench").error("equibench: standard output: %s", out.error.strerror)
            code = code or 2
        return code


def _main(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Printable("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in ("equibench", "bench", "analysis"):  # libraries keep to warnings
        logging.getLogger(name).setLevel(logging.WARNING if args.quiet else logging.INFO)
    try:
        for file in getattr(args, "plugin", ()):
            load_file(file)
        return args.run(args)
    except KeyboardInterrupt as interrupt:
        logging.getLogger("equibench").error("%s", str(interrupt) or f"interrupted; {CONTINUES}")
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        # our own errors derive from these and say what to do in one line; EQUIBENCH_TRACEBACK=1 shows where
        if os.environ.get("EQUIBENCH_TRACEBACK"):
            raise
        logging.getLogger("equibench").error("equibench: %s", error)
        return 2


def parser() -> argparse.ArgumentParser:
    """All verbs."""
    top = argparse.ArgumentParser(
        prog="equibench", description="Benchmark of equivariance strategies for 3D generative models."
    )
    top.add_argument("--version", action="version", version=f"equibench {package_version()}")
    top.add_argument("--quiet", action="store_true", help="warnings and errors only")
    sub = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = sub.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(run=run)
        return command

    for family in (plugins, data, study, measure, results, molecules, weights, machine):
        family.add_verbs(add)
    return top


if __name__ == "__main__":
    sys.exit(main())
