"""`equibench scaling`: growth of time and memory of a training step with molecule size and batch size.

Each cell is one `equibench time` in its own interpreter, so that cells do not share memory. Exponents are slopes of log
cost over log size within the range swept: at small sizes constant overheads dominate, so an exponent lies below that of
the arithmetic.
"""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.config.run import RunConfig, build, reason_to_skip
from bench.registry import backbones, methods
from bench.run.interpreter import environment, python
from bench.run.provenance import now

log = logging.getLogger("equibench")

SCHEMA = 1
BATCH_OF_ATOMS_AXIS = 4  # molecules, while atoms are swept
ATOMS_OF_BATCH_AXIS = 18  # QM9's mean, while the batch is swept
LEAST = {
    "step_seconds": 0.0,
    "step_memory_mb": 1.0,
    "sampling_seconds": 0.0,
}  # cost -> bound below which a cell is left out of the fit


def sweep(
    chosen_methods: Sequence[str] | None,
    chosen_backbones: Sequence[str] | None,
    atoms: Sequence[int],
    batches: Sequence[int],
    shared: Sequence[str],
    batch_of_atoms_axis: int = BATCH_OF_ATOMS_AXIS,
) -> dict[str, Any]:
    """Time every cell and fit.

    Args:
        chosen_methods, chosen_backbones: names; None for all compatible ones that train.
        atoms, batches: values of the two axes.
        shared: further arguments of `equibench time`.
        batch_of_atoms_axis: molecules, while atoms are swept.
    Returns:
        the record: 'rows', the result or the error of each cell, with its axis; 'fits', one for each method, backbone,
        axis and cost.
    Raises:
        ValueError: no chosen method fits a chosen backbone.
    """
    axes = {
        "atoms": [(n, batch_of_atoms_axis) for n in atoms],
        "batch": [(ATOMS_OF_BATCH_AXIS, b) for b in batches],
    }
    rows: list[dict[str, Any]] = []
    for method, backbone in _pairs(chosen_methods, chosen_backbones):
        for axis, cells in axes.items():
            for n, b in cells:
                given = {"method": method, "backbone": backbone, "axis": axis, "value": n if axis == "atoms" else b}
                row = given | time_cell([*shared, "--method", method, "--backbone", backbone], n, b)
                log.info("%s on %s, %d atoms, batch %d: %s", method, backbone, n, b, _outcome(row))
                rows.append(row)
    return {"schema": SCHEMA, "kind": "scaling", "created": now(), "rows": rows, "fits": fits(rows)}


def _pairs(chosen_methods: Sequence[str] | None, chosen_backbones: Sequence[str] | None) -> list[tuple[str, str]]:
    training = [name for name in methods if methods[name].build.weights_of is None]
    pairs = [(m, b) for b in chosen_backbones or backbones for m in chosen_methods or training]
    whys = {
        (m, b): reason_to_skip(build(RunConfig, {"study": "scaling", "method": m, "backbone": b, "data": "mini"}))
        for m, b in pairs
    }
    fitting = [pair for pair in pairs if whys[pair] is None]
    if not fitting:
        raise ValueError(f"nothing to time: {next(iter(whys.values()))}")
    return fitting


def time_cell(arguments: Sequence[str], n_atoms: int, batch: int) -> dict[str, Any]:
    """Result of one `equibench time`, with `step_memory_mb` (added by a step); or {'error': line}."""
    command = python("bench.cli.main", "--quiet", "time", "--json", "--atoms", str(n_atoms))
    command += ["--batch", str(batch), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        killed = f"ended by signal {-done.returncode}, as where memory runs out"
        return {"error": killed if done.returncode < 0 else lines[-1] if lines else f"code {done.returncode}"}
    result = json.loads(done.stdout)
    return result | {"step_memory_mb": result["peak_memory_mb"] - result["start_memory_mb"]}


def fits(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Exponents of every cost along every axis with at least three cells."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if "error" not in row:
            groups.setdefault((row["method"], row["backbone"], row["axis"]), []).append(row)
    made = []
    for (method, backbone, axis), cells in groups.items():
        for cost, least in LEAST.items():
            points = [(cell["value"], cell[cost]) for cell in cells if cell.get(cost, 0.0) > least]
            if len({x for x, _ in points}) >= 3:
                slope, low, high = exponent(*np.array(points, dtype=float).T)
                made.append({"method": method, "backbone": backbone, "axis": axis, "cost": cost, "exponent": slope})
                made[-1] |= {"low": low, "high": high, "n": len(points)}
    return made


def exponent(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Exponent p of y ~ x^p by least squares on logarithms, and its 95 % interval (Student's t on the residuals).

    Args:
        x, y: positive, at least three values each.
    """
    from scipy.stats import t

    log_x, log_y = np.log(x), np.log(y)
    slope, intercept = np.polyfit(log_x, log_y, 1)
    variance = np.square(log_y - slope * log_x - intercept).sum() / (len(x) - 2)
    half = t.ppf(0.975, len(x) - 2) * np.sqrt(variance / np.square(log_x - log_x.mean()).sum())
    return float(slope), float(slope - half), float(slope + half)


def table(record: dict[str, Any]) -> str:
    """Text table of cells, then of exponents."""
    lines = [f"{'method':24}{'backbone':12}{'axis':8}{'value':>6}   a step takes, and adds"]
    lines += [
        f"{row['method']:24}{row['backbone']:12}{row['axis']:8}{row['value']:>6}   {_outcome(row)}"
        for row in record["rows"]
    ]
    lines += ["", f"{'method':24}{'backbone':12}{'axis':8}{'cost':18}{'exponent':>9}   95 % interval"]
    for fit in record["fits"]:
        head = f"{fit['method']:24}{fit['backbone']:12}{fit['axis']:8}{fit['cost']:18}"
        lines.append(f"{head}{fit['exponent']:>9.2f}   {fit['low']:.2f} to {fit['high']:.2f}")
    if any("synthetic" in row.get("molecules", "") for row in record["rows"]):
        lines += ["", "sizes that the data set lacks are synthetic clouds; `molecules` of each row says which"]
    return "\n".join(lines)


def _outcome(row: dict[str, Any]) -> str:
    return row.get("error") or f"{row['step_seconds']:.4f} s, {row['step_memory_mb']:.1f} MiB"
