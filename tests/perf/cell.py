"""One measurement in a process of its own, so that peak memory is its own: `python -m perf.cell KIND 'JSON'`.

Kinds: a training step and sampling, ours or the padded reference's; steps of both in turn; the hooks of a method;
scoring; starting up; the peaks of the machine. `measured` calls it from tests and from `perf.performance`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SAMPLING_BATCH = 64
N_SCORED = 10_000


def measured(kind: str, **given: Any) -> dict[str, Any]:
    """The result of one cell, from a fresh process.

    Raises:
        RuntimeError: the cell failed; the message is its last line.
    """
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "perf.cell", kind, json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"code {done.returncode}"]
        raise RuntimeError(f"{kind} {given}: {lines[-1]}")
    return json.loads(done.stdout)


def config(
    method: str,
    backbone: str,
    size: str,
    batch: int = 64,
    data: str | None = None,
    device: str = "cpu",
    threads: int = os.cpu_count() or 1,
    bf16: bool = False,
    compile: bool = False,
) -> Any:
    """The configuration of a cell."""
    from bench.timing import run_config

    train = {"batch_size": batch, "bf16": bf16, "compile": compile, "n_threads": threads, "device": device}
    return run_config(method, backbone, size, data, [], **train)


def step(n_steps: int, reference: bool = False, **given: Any) -> dict[str, Any]:
    """`equibench time`, on our networks or on the reference's."""
    from reference.padded import use_reference

    from bench.timing import time_steps

    return time_steps(config(**given), n_steps, **({"change": use_reference} if reference else {}))


def paired(n_rounds: int, n_steps: int, **given: Any) -> dict[str, Any]:
    """How many times as long as ours the padded reference's step in float32 takes, by precision, in each round.

    A round is one step of the reference's and `n_steps` of each of ours, whose median counts, on the same batch, so
    that all see the same state of a machine that others use too.
    """
    import torch
    from reference.padded import use_reference

    from bench.batches import Batches
    from bench.clock import clock
    from bench.streams import Streams
    from bench.timing import stepping

    def prepared(bf16: bool, reference: bool = False) -> Callable[[int], float]:
        cfg, model, data = built(bf16=bf16, **given)
        if reference:
            use_reference(cfg, model)
        settings, device = cfg.train, torch.device(cfg.train.device)
        batches = Batches(data.train, model.diffusion, settings.batch_size, cfg.seed, settings.device)
        step = stepping(cfg, model, Streams(cfg.seed, device))

        def seconds(i: int) -> float:
            x0 = batches(i)
            started = clock(device)
            step(i, x0)
            return clock(device) - started

        seconds(0)
        return seconds

    reference = prepared(False, reference=True)
    ours = {"float32": prepared(False), "bf16": prepared(True)}
    ratios: dict[str, list[float]] = {dtype: [] for dtype in ours}
    for i in range(1, n_rounds + 1):
        took = reference(i)
        for dtype, seconds in ours.items():
            ratios[dtype].append(took / statistics.median(seconds(i) for _ in range(n_steps)))
    return {"ratios": ratios}


def sampling(n_molecules: int, n_steps: int, reference: bool = False, **given: Any) -> dict[str, Any]:
    """Seconds for so many molecules at so many reverse steps: ours sorted by size, the reference as they come."""
    import numpy as np
    import torch
    from reference.padded import use_reference

    from bench.clock import clock
    from bench.data.sizes import SizeDistribution
    from bench.provenance import peak_memory_mb
    from bench.sample import Chunk, plan_chunks, sample_chunk

    cfg, model, data = built(**given)
    sizes = SizeDistribution(data.size_histogram)
    if reference:
        use_reference(cfg, model)
        drawn = sizes.draw(n_molecules, np.random.default_rng(0))
        places = np.arange(n_molecules)
        chunks = [
            Chunk(i, places[j : j + SAMPLING_BATCH], drawn[j : j + SAMPLING_BATCH], int(drawn.max()))
            for i, j in enumerate(range(0, n_molecules, SAMPLING_BATCH))
        ]
    else:
        chunks = plan_chunks(sizes, n_molecules, SAMPLING_BATCH, cfg.seed)
    device = torch.device(cfg.train.device)
    first = chunks[0]
    sample_chunk(model, Chunk(0, first.places[:4], first.sizes[:4], first.n_padded), 1, 0, cfg.train.device)
    started = clock(device)
    for chunk in chunks:
        sample_chunk(model, chunk, n_steps, 0, cfg.train.device)
    seconds = clock(device) - started
    return {
        "seconds": seconds,
        "molecules_per_second": n_molecules / seconds,
        "molecules": n_molecules,
        "steps": n_steps,
        "peak_memory_mb": peak_memory_mb(cfg.train.device),
    }


def hooks(repeats: int = 7, **given: Any) -> dict[str, Any]:
    """Median seconds of each hook of a method but `predict`, which is a step's own matter."""
    import torch

    from bench.batches import Batches
    from bench.clock import clock
    from bench.streams import Streams

    cfg, model, data = built(**given)
    device, method, diffusion = torch.device(cfg.train.device), model.method, model.diffusion
    rng = Streams(cfg.seed, device)
    x0 = Batches(data.train, diffusion, cfg.train.batch_size, cfg.seed, cfg.train.device)(0)
    level = diffusion.schedule.draw(len(x0), rng.at(0).time)
    eps = diffusion.noise(x0.layout, rng.at(0).noise)
    z_t = diffusion.noising(x0, eps, level)

    def median(action: Callable[[], object]) -> float:
        times = []
        for _ in range(repeats + 1):
            started = clock(device)
            action()
            times.append(clock(device) - started)
        return statistics.median(times[1:])

    return {
        "augment": median(lambda: method.augment(x0, rng.at(0).method)),
        "target": median(lambda: method.target(x0, z_t, level, rng.at(0).method)),
        "loss": median(lambda: method.loss(eps, z_t, level)),
    }


def built(**given: Any) -> tuple[Any, Any, Any]:
    """Configuration, model and data of a cell."""
    import torch

    from bench.config import options_of
    from bench.model import Model
    from bench.registry import datasets

    cfg = config(**given)
    torch.set_num_threads(cfg.train.n_threads)
    data = datasets[cfg.data["name"]].build(options_of(datasets, cfg.data))
    return cfg, Model.build(cfg, data.elements, data.mean_atoms).to(cfg.train.device), data


def scoring(n_molecules: int = N_SCORED, data: str | None = None) -> dict[str, Any]:
    """Seconds to score molecules of the data set, drawn with repetition where it has fewer."""
    import numpy as np

    from bench.metrics.scores import score
    from bench.provenance import peak_memory_mb

    _, _, loaded = built(method="plain", backbone="dit", size="tiny", data=data)
    drawn = np.random.default_rng(0).choice(len(loaded.train), n_molecules, replace=len(loaded.train) < n_molecules)
    molecules = loaded.train.select(drawn)
    started = time.perf_counter()
    score(molecules)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "molecules": n_molecules,
        "atoms": float(molecules.n_atoms.mean()),
        "peak_memory_mb": peak_memory_mb("cpu"),
    }


def startup(arguments: list[str], repeats: int = 5) -> dict[str, Any]:
    """Median seconds of a whole command from outside, after one call that fills the file cache."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "bench.cli", *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return {"seconds": statistics.median(times[1:])}


def peaks(device: str, threads: int) -> dict[str, Any]:
    """What the machine reaches (`bench.floor.machine`)."""
    import torch

    from bench.floor import machine
    from bench.provenance import code_version, device_name, now

    torch.set_num_threads(threads)
    found = {dtype: machine(device, getattr(torch, dtype)) for dtype in ("float32", "bfloat16")}
    return {
        "device": device_name(device),
        "threads": threads,
        "float32_flops_per_second": found["float32"].flops_per_second,
        "bf16_flops_per_second": found["bfloat16"].flops_per_second,
        "bytes_per_second": found["float32"].bytes_per_second,
        "load": os.getloadavg()[0],
        "code": code_version(),
        "torch": torch.__version__,
        "created": now(),
    }


KINDS = {kind.__name__: kind for kind in (step, paired, sampling, hooks, scoring, startup, peaks)}

if __name__ == "__main__":
    print(json.dumps(KINDS[sys.argv[1]](**json.loads(sys.argv[2]))))
