"""The measured part of docs/performance.md: `make performance`, or `python -m performance.performance`.

Measures each cell in a process of its own and writes results/performance/cpu.json (cuda.json with --device cuda), then
the page's tables from all records that lie there. On a machine that is lent, write elsewhere with -o, bring the file
home and make the page with --render.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from support import for_molecules

from analysis.readme import filled
from bench.records.store import read_json, write_atomically, write_json
from bench.run.roofline import Machine, Work
from bench.run.timing import quartiles
from performance import growth
from performance.cell import ROOT, measured

PAGE = ROOT / "docs" / "performance.md"
RECORDS = ROOT / "results" / "performance"
MARKS = "<!-- measured:begin -->", "<!-- measured:end -->"
DEVICES = ("cpu", "cuda")
PUBLISHED, LAPTOP = "published", "small"
# (method, backbone) with a padded reference, then our other backbones; every method's hooks are timed on `HOOKS_ON`
WITH_REFERENCE = [("edm", "egnn"), ("plain", "dit"), ("symdiff", "dit")]
HOOKS_ON = "dit"
# timed steps at the two sizes, the reference's and ours: enough for a median
STEPS = {PUBLISHED: (2, 8), LAPTOP: (10, 40)}
# rounds in which reference and ours take turns, fewer where the reference takes a dozen seconds, and our steps in each
ROUNDS = {("egnn", PUBLISHED): (5, 3), ("dit", PUBLISHED): (12, 3), ("egnn", LAPTOP): (15, 3), ("dit", LAPTOP): (15, 3)}
# the method with a network of its own in `predict`, and the one that it is without; rounds of a step of each
KERNEL = ("symdiff", "plain", "dit")
KERNEL_ROUNDS = {PUBLISHED: 40, LAPTOP: 80}
# whose steps the hooks of other methods are held against
WITHOUT_HOOKS = [pair for pair in WITH_REFERENCE if pair[0] != "symdiff"]
# most of a published step, in float32, that hooks of the orbit-averaged targets may take on a CPU
MOST_OF_A_STEP = 0.05


def measure(
    device: str,
    threads: int,
    data: str | None,
    compile_laptop: bool,
    only: str | None,
    seconds: float = math.inf,
    on_cell: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """The record: peaks of the machine and a list of cells, each with what it was given and its result or error.

    Args:
        compile_laptop: compile our networks at the laptop size.
        only: a single size instead of both (for tests).
        seconds: after these, no further cell is begun.
        on_cell: called with the record as it is after each cell.
    """
    started = time.monotonic()
    from bench.registry import backbones, methods

    cells: list[dict[str, Any]] = []

    def cell(kind: str, **given: Any) -> None:
        if time.monotonic() - started > seconds:
            return
        shown = {key: value for key, value in given.items() if value not in (None, False)}
        try:
            cells.append({"kind": kind, "given": shown, "result": measured(kind, **given)})
        except RuntimeError as error:
            cells.append({"kind": kind, "given": shown, "error": str(error)})
        on_cell(record)
        sys.stderr.write(f"{kind} {shown}\n")

    machine = measured("peaks", device=device, threads=threads)
    record = {"schema": 1, "kind": "performance", "machine": machine, "cells": cells}
    here = {"device": device, "threads": threads, "data": data}
    others = [("plain", b) for b in for_molecules() if b not in {b for _, b in WITH_REFERENCE}]
    for size in [only] if only else STEPS:
        of_reference, of_ours = STEPS.get(size, (1, 1))
        compiled = compile_laptop and size != PUBLISHED
        for method, backbone in [*WITH_REFERENCE, *others]:
            if size not in getattr(backbones[backbone].build, "sizes", {}):
                continue
            given = {"method": method, "backbone": backbone, "size": size, **here}
            if (method, backbone) in WITH_REFERENCE:
                cell("step", n_steps=of_reference, reference=True, **given)
                n_rounds, n_steps = ROUNDS.get((backbone, size), (1, 1))
                cell("paired", n_rounds=n_rounds, n_steps=n_steps, **given)
            for bf16 in (False, True):
                cell("step", n_steps=of_ours, bf16=bf16, compile=compiled, **given)
        method, other, backbone = KERNEL
        if size in backbones[backbone].build.sizes:
            for bf16 in (False, True):
                given = {"method": method, "other": other, "backbone": backbone, "size": size, "bf16": bf16, **here}
                cell("against", n_rounds=KERNEL_ROUNDS.get(size, 1), **given)
        cell("sampling", method="edm", backbone="egnn", size=size, n_molecules=128, n_steps=2, **here)
    for method in methods:
        cell("hooks", method=method, backbone=HOOKS_ON, size=only or PUBLISHED, **here)
    if device == "cpu":
        cell("scoring", data=data)
        for argument in ("--help", "list"):
            cell("startup", arguments=[argument])
    return record


# ---------------------------------------------------------------------- the page


def page(records: dict[str, dict[str, Any]]) -> str:
    """Tables of every device; 'not measured' where there is no record."""
    names = {"cpu": "CPU", "cuda": "GPU"}
    parts = [f"## {names[device]}\n\n{section(records[device])}" for device in DEVICES if device in records]
    parts += [f"## {names[device]}\n\nnot measured" for device in DEVICES if device not in records]
    return "\n\n".join(parts)


def section(record: dict[str, Any]) -> str:
    """One device: the machine, steps, sampling, hooks, scoring and starting up."""
    machine = record["machine"]
    head = (
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, commit "
        f"{(machine['code']['commit'] or 'unknown')[:10]}, {machine['created']}, load {machine['load']:.1f} at the "
        f"start. Peaks measured here: {machine['float32_flops_per_second'] / 1e9:.0f} GFLOP/s in float32, "
        f"{machine['bf16_flops_per_second'] / 1e9:.0f} in bf16, {machine['bytes_per_second'] / 1e9:.1f} GB/s."
    )
    tables = [steps(record), kernels(record), sampling(record), hooks(record), rest(record)]
    return "\n\n".join([head, *filter(None, tables)])


def floor_seconds(result: dict[str, Any], machine: dict[str, Any]) -> float:
    """Shortest time of the step on this machine (`bench.run.roofline`)."""
    peaks = Machine(machine[f"{result['dtype']}_flops_per_second"], machine["bytes_per_second"])
    return Work(result["flops"], result["bytes"]).seconds(peaks)


def steps(record: dict[str, Any]) -> str:
    """A line for each network, size and precision; ratios are to the reference in float32."""
    lines = markdown(
        "network", "size", "precision", "GFLOP", "GB of state", "floor, s", "step, s (quartiles)", "forward, s",
        "of the floor's speed", "reference, s", "faster (least, most)", "without kernels", "peak, MiB",
        "reference, MiB", "less",
    )  # fmt: skip
    references: dict[tuple[str, ...], dict[str, Any]] = {}
    pairs = {network_of(cell): cell["result"]["ratios"] for cell in of_kind(record, "paired") if "result" in cell}
    for cell in of_kind(record, "step"):
        given = cell["given"]
        network = network_of(cell)
        if given.get("reference"):
            references[network] = cell.get("result", {})
            continue
        start = [" on ".join(network[:2]), network[2], "bf16" if given.get("bf16") else "float32"]
        if "error" in cell:
            lines.append(row(*start, f"failed: {cell['error'][:80]}"))
            continue
        result, other = cell["result"], references.get(network)
        least, took = floor_seconds(result, record["machine"]), result["step_seconds"]
        cells = [*start, f"{result['flops'] / 1e9:.1f}", f"{result['bytes'] / 1e9:.2f}", f"{least:.3f}"]
        cells += [seconds(result), f"{result['forward_seconds']:.3f}", f"{100 * least / took:.0f} %"]
        if other:
            ratios = pairs.get(network, {})
            cells += [seconds(other), *(times(ratios.get(f"{result['dtype']}{end}", [])) for end in ("", ", plain"))]
            peaks = result["peak_memory_mb"], other["peak_memory_mb"]
            cells += [f"{peaks[0]:.0f}", f"{peaks[1]:.0f}", f"{peaks[1] / peaks[0]:.1f}x"]
        else:
            cells += ["", "", "", f"{result['peak_memory_mb']:.0f}", "", ""]
        lines.append(row(*cells))
    return "Training step, 64 molecules:\n\n" + "\n".join(lines) + installed(record)


def installed(record: dict[str, Any]) -> str:
    """The kernels of `bench.kernels` that ran in place of plain torch, by backbone."""
    found = {
        cell["given"]["backbone"]: ", ".join(cell["result"]["kernels"]) or "none"
        for cell in of_kind(record, "step")
        if "kernels" in cell.get("result", {}) and not cell["given"].get("reference")
    }
    named = "; ".join(f"{backbone}: {names}" for backbone, names in found.items())
    return (
        f"\n\nKernels that ran: {named}. *Without kernels*: the same ratio with `train.kernels: off`." if named else ""
    )


def network_of(cell: dict[str, Any]) -> tuple[str, str, str]:
    """Method, backbone and size of a cell."""
    return cell["given"]["method"], cell["given"]["backbone"], cell["given"]["size"]


def seconds(result: dict[str, Any]) -> str:
    """Median step and its quartiles."""
    low, high = result["step_seconds_quartiles"]
    return f"{result['step_seconds']:.3f} ({low:.3f}, {high:.3f})"


def times(ratios: list[float]) -> str:
    """Median of the rounds' ratios, and the least and the most."""
    return f"{statistics.median(ratios):.1f}x ({min(ratios):.1f}, {max(ratios):.1f})" if ratios else ""


def kernels(record: dict[str, Any]) -> str:
    """What a learned kernel adds to a step, and to its arithmetic."""
    lines = markdown("method", "over", "size", "precision", "more arithmetic", "longer step (quartiles)")
    flops = {
        network_of(cell): cell["result"]["flops"]
        for cell in of_kind(record, "step")
        if "result" in cell and not cell["given"].get("reference")
    }
    for cell in of_kind(record, "against"):
        given, precision = cell["given"], "bf16" if cell["given"].get("bf16") else "float32"
        start = [f"{given['method']} on {given['backbone']}", given["other"], given["size"], precision]
        if "error" in cell:
            lines.append(row(*start, f"failed: {cell['error'][:80]}"))
            continue
        two = flops.get(network_of(cell)), flops.get((given["other"], given["backbone"], given["size"]))
        arithmetic = f"{100 * (two[0] / two[1] - 1):.1f} %" if two[0] and two[1] else ""
        longer = [100 * (ratio - 1) for ratio in cell["result"]["ratios"]]
        low, high = quartiles(longer)
        lines.append(row(*start, arithmetic, f"{statistics.median(longer):.1f} % ({low:.1f}, {high:.1f})"))
    return "Steps of two methods in turn:\n\n" + "\n".join(lines) if len(lines) > 2 else ""


def sampling(record: dict[str, Any]) -> str:
    """Molecules per second at equal steps."""
    lines = markdown("network", "size", "steps", "molecules/s", "reference", "faster (least, most)")
    for cell in of_kind(record, "sampling"):
        start = [" on ".join(network_of(cell)[:2]), cell["given"]["size"]]
        if result := cell.get("result"):
            speeds = [result["molecules"] / result[name] for name in ("seconds", "reference_seconds")]
            cells = [str(result["steps"]), *(f"{speed:.2f}" for speed in speeds), times(result["ratios"])]
            lines.append(row(*start, *cells))
        else:
            lines.append(row(*start, f"failed: {cell['error'][:80]}"))
    return "Sampling 128 molecules in batches of 64, in float32:\n\n" + "\n".join(lines)


def shares(record: dict[str, Any], cell: dict[str, Any]) -> list[float | None]:
    """A hooks cell's time over the float32 step of each pair of `WITHOUT_HOOKS` at its size; None: not measured."""
    found = {
        (cell["given"]["method"], cell["given"]["backbone"], cell["given"]["size"]): cell["result"]["step_seconds"]
        for cell in of_kind(record, "step")
        if "result" in cell and not (cell["given"].get("bf16") or cell["given"].get("reference"))
    }
    steps = [found.get((*pair, cell["given"]["size"])) for pair in WITHOUT_HOOKS]
    return [sum(cell["result"].values()) / step if step else None for step in steps]


def hooks(record: dict[str, Any]) -> str:
    """Milliseconds of each hook, and their share of float32 steps of methods without any, on two networks."""
    of_steps = [f"of a step of {' on '.join(pair)}" for pair in WITHOUT_HOOKS]
    lines = markdown("method", "augment, ms", "target, ms", "loss, ms", *of_steps)
    for cell in of_kind(record, "hooks"):
        if "error" in cell:
            lines.append(row(cell["given"]["method"], f"failed: {cell['error'][:80]}"))
            continue
        times = cell["result"]
        of_step = ["" if share is None else f"{100 * share:.1f} %" for share in shares(record, cell)]
        lines.append(row(cell["given"]["method"], *(f"{1e3 * t:.2f}" for t in times.values()), *of_step))
    return f"Hooks beside the network, 64 molecules, timed with {HOOKS_ON}:\n\n" + "\n".join(lines)


def rest(record: dict[str, Any]) -> str:
    """Scoring and starting up."""
    lines = markdown("stage", "seconds", "peak, MiB")
    for cell in of_kind(record, "scoring"):
        if result := cell.get("result"):
            name = f"scoring {result['molecules']} molecules of {result['atoms']:.1f} atoms"
            lines.append(row(name, f"{result['seconds']:.2f}", f"{result['peak_memory_mb']:.0f}"))
    for cell in of_kind(record, "startup"):
        if result := cell.get("result"):
            lines.append(row(f"`equibench {' '.join(cell['given']['arguments'])}`", f"{result['seconds']:.2f}", ""))
    return "\n".join(lines) if len(lines) > 2 else ""


def of_kind(record: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [cell for cell in record["cells"] if cell["kind"] == kind]


def markdown(*columns: str) -> list[str]:
    return [row(*columns), "|---" * len(columns) + "|"]


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def rendered() -> str:
    """The page with the tables of all records."""
    records = {d: read_json(RECORDS / f"{d}.json") for d in DEVICES if (RECORDS / f"{d}.json").exists()}
    parts = [page(records), growth.section(read_json(growth.RECORD))] if growth.RECORD.exists() else [page(records)]
    return filled(PAGE.read_text(), "\n\n".join(parts), *MARKS)


def main(argv: list[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m performance.performance", description=__doc__)
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--data", metavar="DIR", help="folder with QM9 (else QM9_DIR, else the embedded set)")
    parser.add_argument("--compile", action="store_true", help="compile our networks at the laptop size")
    parser.add_argument("--size", help="this size alone instead of published and laptop")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no further cell after so many")
    parser.add_argument("-o", "--out", type=Path, help="write the record here and leave the page alone")
    parser.add_argument("--render", action="store_true", help="make the page from the records that lie there")
    args = parser.parse_args(argv)
    if not args.render:
        path = args.out or RECORDS / f"{args.device}.json"
        write = partial(write_json, path) if args.out else lambda _: None  # the page shows whole records alone
        given = (args.device, args.threads, args.data, args.compile, args.size, args.seconds)
        write_json(path, measure(*given, on_cell=write))
    if not args.out:
        write_atomically(PAGE, rendered().encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
