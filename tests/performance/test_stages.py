"""Sampling against the padded reference, evaluating molecules and starting up, each in its own process: `make perf`."""

import os
from typing import Any

import pytest
import torch

from performance.cell import N_SCORED, measured
from performance.ratios import compared

SIZE = os.environ.get("PERF_SIZE", "small")
ONCE = {"rounds": 1, "iterations": 1}


@pytest.mark.parametrize("pair", [("edm", "egnn"), ("plain", "dit")], ids="-".join)
def test_sampling(benchmark: Any, pair: tuple[str, str]):
    """Molecules per second at equal steps, ours and the reference's; the clock is the cell's, without start-up."""
    given = {"method": pair[0], "backbone": pair[1], "size": SIZE, "n_molecules": 128, "n_steps": 2}
    given["threads"] = torch.get_num_threads()
    benchmark.group = "sampling 128 molecules, 2 steps"
    result = benchmark.pedantic(lambda: measured("sampling", n_rounds=1, **given), **ONCE)
    compared(benchmark, f"{'-'.join(pair)}, {SIZE}", result["seconds"], result["reference_seconds"])


def test_evaluating_molecules(benchmark: Any):
    benchmark.group = f"evaluating {N_SCORED} molecules"
    result = benchmark.pedantic(lambda: measured("scoring"), **ONCE)
    compared(benchmark, f"{result['atoms']:.1f} atoms each", result["seconds"], ours=result["peak_memory_mb"])


@pytest.mark.parametrize("argument", ["--help", "list"])
def test_starting_up(benchmark: Any, argument: str):
    benchmark.group = "starting up"
    result = benchmark.pedantic(lambda: measured("startup", arguments=[argument], repeats=3), **ONCE)
    compared(benchmark, f"equibench {argument}", result["seconds"])
