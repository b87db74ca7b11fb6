"""Growth of training and sampling with the number of atoms, for every method that trains: `make growth`.

Each method on the network of the laptop studies that it fits, `symdiff` with its kernel, on synthetic clouds of 23 to
181 atoms, the size of GEOM-Drugs' largest molecule, with the elements of the embedded set (sixteen widen the
first and the last layer alone). Each cell has a process of its own. Writes results/performance/growth.json; the page is
made by `make performance ARGS=--render`. On other cores than idle ones times do not hold; memory does.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from bench.records.store import write_json
from bench.registry import methods
from bench.run.scaling import LEAST, fits, sweep
from performance.cell import ROOT

RECORD = ROOT / "results" / "performance" / "growth.json"
ATOMS = (23, 46, 92, 181)
LIMIT_GIB = 24
SAMPLING_STEPS = 50
PAIRFORMER = ("backbone.depth=4", "backbone.n_heads=4", "backbone.n_gaussians=32")
KERNEL = ("method.kernel_width=48", "method.kernel_depth=2", "method.kernel_heads=4", "method.decoder_width=32")
EQUIVARIANT = ("edm", "target_symmetrisation")
DENOVO = ("data.name=mini", "task.name=denovo", "task.include_charges=false")


def cells_of(method: str) -> tuple[str, list[str]]:
    """Backbone of a method, and the options of both."""
    if method in EQUIVARIANT:
        return "egnn", ["backbone.width=96", "backbone.depth=7", "backbone.coordinate_range=2.14"]
    if method.startswith("symdiff"):
        return "pairformer", [*PAIRFORMER, *KERNEL, "backbone.width=72"]
    return "pairformer", [*PAIRFORMER, "backbone.width=80"]


def measure(chosen: list[str], batch: int, steps: int, threads: int, device: str) -> dict[str, Any]:
    """The record: rows of `equibench scaling`, and exponents."""
    rows: list[dict[str, Any]] = []
    for method in chosen:
        backbone, options = cells_of(method)
        shared = [*options, *DENOVO, "--steps", str(steps), "--sampling-steps", str(SAMPLING_STEPS)]
        shared += ["--threads", str(threads), "--device", device]
        rows += sweep([method], [backbone], ATOMS, [], shared, batch)["rows"]
    if all("error" in row for row in rows):
        raise SystemExit(f"no cell could be measured: {rows[0]['error']}; nothing is written")
    return {"schema": 1, "kind": "growth", "rows": rows, "fits": fits(rows)}


def section(record: dict[str, Any]) -> str:
    """What the largest size costs, and exponents over all."""
    rows = [row for row in record["rows"] if row["value"] == max(row["value"] for row in record["rows"])]
    good = [row for row in rows if "error" not in row]
    fitted = {(fit["method"], fit["cost"]): fit for fit in record["fits"]}
    largest = rows[0]["value"]

    def exponent(method: str, cost: str) -> str:
        fit = fitted.get((method, cost))
        return f"{fit['exponent']:.2f} ({fit['low']:.2f}, {fit['high']:.2f})" if fit else ""

    columns = ("method", "parameters", "step, s", "step, MiB", "sampling, s", "process at most, MiB")
    columns += tuple(f"N^p, {name}" for name in ("step", "step's memory", "sampling"))
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        head = f"{row['method']} on {row['backbone']}"
        if "error" in row:
            lines.append(f"| {head} | {row['error']} |" + " |" * (len(columns) - 2))
            continue
        values = [
            f"{row['parameters']:,}".replace(",", " "),
            f"{row['step_seconds']:.2f}",
            f"{row['step_memory_mb']:.0f}",
        ]
        values += [f"{row['sampling_seconds']:.1f}", f"{peak(row):.0f}"]
        lines.append(f"| {' | '.join([head, *values, *(exponent(row['method'], cost) for cost in LEAST)])} |")
    first = good[0]
    sizes = ", ".join(str(n) for n in sorted({row["value"] for row in record["rows"]}))
    within = sum(peak(row) < LIMIT_GIB * 1024 for row in good)
    return "\n".join(
        [
            "## Growth with the number of atoms",
            "",
            f"{first['device']}, threads: {first['threads']}, torch {first['versions']['torch']}, commit "
            f"{(first['code']['commit'] or 'unknown')[:10]}, load up to {max(row['load'] for row in good):.1f}: "
            f"{first['batch']} molecules of {largest} atoms, a training step and {first['sampling_steps']} sampling "
            f"steps. {within} of {len(rows)} methods stay within {LIMIT_GIB} GiB. Exponents p, with 95 % intervals, "
            f"over {sizes} atoms; at small sizes constant overheads dominate, so they lie below the arithmetic's.",
            "",
            *lines,
        ]
    )


def peak(row: dict[str, Any]) -> float:
    """Peak memory of the process in training and sampling, MiB."""
    return max(row["peak_memory_mb"], row["sampling_peak_memory_mb"])


def main(argv: list[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m performance.growth", description=__doc__)
    training = [name for name in methods if methods[name].build.weights_of is None]
    parser.add_argument("--method", nargs="+", choices=training, default=training)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    write_json(RECORD, measure(args.method, args.batch, args.steps, args.threads, args.device))
    sys.stderr.write(f"{RECORD}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
