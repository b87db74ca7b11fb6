"""One measurement in a process of its own, so that peak memory is its own: `python -m performance.cell KIND 'JSON'`.

Kinds: a training step, ours or the padded reference's; steps of both in turn, sampling with both in turn, steps of two
methods in turn; the hooks of a method; scoring; starting up; the peaks of the machine. `measured` calls it from tests
and from `performance.performance`.
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
    command = [sys.executable, "-m", "performance.cell", kind, json.dumps(given)]
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
    kernels: str = "auto",
) -> Any:
    """The configuration of a cell."""
    from bench.run.timing import run_config

    train = {"batch_size": batch, "bf16": bf16, "compile": compile, "n_threads": threads, "device": device}
    train["kernels"] = kernels
    return run_config(method, backbone, size, data, [], **train)


def step(n_steps: int, reference: bool = False, **given: Any) -> dict[str, Any]:
    """`equibench time`, on our networks or on the reference's."""
    from bench.run.timing import time_steps
    from performance.padded import use_reference

    return time_steps(config(**given), n_steps, **({"change": use_reference} if reference else {}))


Clocked = Callable[[int], float]  # round -> seconds


def in_turn(n_rounds: int, one: Clocked, others: dict[str, Clocked], n_each: int) -> dict[str, list[float]]:
    """How many times as long as each of the others the one takes, in each round.

    A round is the one once and each of the others `n_each` times, whose median counts, on the same work, so that all
    see the same state of a machine that others use too.
    """
    ratios: dict[str, list[float]] = {name: [] for name in others}
    for i in range(n_rounds):
        took = one(i)
        for name, seconds in others.items():
            ratios[name].append(took / statistics.median(seconds(i) for _ in range(n_each)))
    return ratios


def stepper(reference: bool = False, **given: Any) -> Clocked:
    """The seconds of a training step on the batch of a round, by a model of its own that has made a few before."""
    import torch

    from bench.run.batches import Batches
    from bench.run.clock import clock
    from bench.run.timing import WARM_UP, stepping
    from bench.streams import Streams
    from performance.padded import use_reference

    cfg, model, data = built(**given)
    if reference:
        use_reference(cfg, model)
    settings, device = cfg.train, torch.device(cfg.train.device)
    batches = Batches(data.train, model.task, settings.batch_size, cfg.seed, settings.device)
    step = stepping(cfg, model, Streams(cfg.seed, device))

    def seconds(i: int) -> float:
        x0 = batches(i)
        started = clock(device)
        step(i, x0)
        return clock(device) - started

    for _ in range(WARM_UP):
        seconds(0)
    return seconds


def paired(n_rounds: int, n_steps: int, **given: Any) -> dict[str, Any]:
    """How many times as long as ours the padded reference's step in float32 takes, by precision, in each round; on a
    CPU also without kernels."""
    ours = {"float32": stepper(**given), "bf16": stepper(bf16=True, **given)}
    if given.get("device", "cpu") == "cpu":
        ours["float32, plain"] = stepper(kernels="off", **given)
        ours["bf16, plain"] = stepper(bf16=True, kernels="off", **given)
    return {"ratios": in_turn(n_rounds, stepper(reference=True, **given), ours, n_steps)}


def against(method: str, other: str, n_rounds: int, **given: Any) -> dict[str, Any]:
    """How many times as long as another method's a step of this one takes, in each round."""
    this, others = stepper(method=method, **given), {other: stepper(method=other, **given)}
    return {"ratios": in_turn(n_rounds, this, others, n_each=1)[other]}


def sampling(n_molecules: int, n_steps: int, n_rounds: int = 3, **given: Any) -> dict[str, Any]:
    """Seconds for so many molecules at so many reverse steps, the reference's and ours in turn, and their ratios.

    The same sizes for both: ours sorted, the reference's as they are drawn and padded to the largest of them.
    """
    import numpy as np
    import torch

    from bench.config.run import SampleConfig
    from bench.run.clock import clock
    from bench.run.sample import sample_prompt
    from bench.tasks.contract import Prompt
    from performance.padded import use_reference

    def sampler(reference: bool, times: list[float]) -> Clocked:
        cfg, model, _ = built(**given)
        prompts = model.task.prompts(n_molecules, SAMPLING_BATCH, cfg.seed)
        if reference:
            use_reference(cfg, model)
            drawn, places = np.empty(n_molecules, dtype=np.int64), np.arange(n_molecules)
            for prompt in prompts:
                drawn[prompt.places] = prompt.sizes
            prompts = [
                Prompt(i, places[j : j + SAMPLING_BATCH], drawn[j : j + SAMPLING_BATCH], int(drawn.max()))
                for i, j in enumerate(range(0, n_molecules, SAMPLING_BATCH))
            ]
        first, device = prompts[0], torch.device(cfg.train.device)
        few = Prompt(0, first.places[:4], first.sizes[:4], first.n_padded)
        sample_prompt(model, few, SampleConfig(n_steps=1), cfg.train.device)

        def seconds(_: int) -> float:
            started = clock(device)
            for prompt in prompts:
                sample_prompt(model, prompt, SampleConfig(n_steps=n_steps), cfg.train.device)
            times.append(clock(device) - started)
            return times[-1]

        return seconds

    ours: list[float] = []
    others: list[float] = []
    ratios = in_turn(n_rounds, sampler(True, others), {"ours": sampler(False, ours)}, n_each=3)["ours"]
    return {
        "ratios": ratios,
        "seconds": statistics.median(ours),
        "reference_seconds": statistics.median(others),
        "molecules": n_molecules,
        "steps": n_steps,
    }


def hooks(repeats: int = 7, **given: Any) -> dict[str, Any]:
    """Median seconds of each hook of a method but `predict`, which is a step's own matter."""
    import torch

    from bench.run.batches import Batches
    from bench.run.clock import clock
    from bench.streams import Streams

    cfg, model, data = built(**given)
    device, method, process = torch.device(cfg.train.device), model.method, model.process
    rng = Streams(cfg.seed, device)
    x0 = Batches(data.train, model.task, cfg.train.batch_size, cfg.seed, cfg.train.device)(0)
    noised = process.noised(x0, process.noise(x0.layout, rng.at(0).noise), process.draw(len(x0), rng.at(0).time))

    def median(action: Callable[[], object]) -> float:
        times = []
        for _ in range(repeats + 1):
            started = clock(device)
            action()
            times.append(clock(device) - started)
        return statistics.median(times[1:])

    return {
        "augment": median(lambda: method.augment(x0, rng.at(0).method)),
        "target": median(lambda: method.target(noised, rng.at(0).method)),
        "loss": median(lambda: method.loss(noised.z_t, noised.noise, noised)),
    }


def built(**given: Any) -> tuple[Any, Any, Any]:
    """Configuration, model and data of a cell."""
    import torch

    from bench.registry import datasets
    from bench.run.acceleration import accelerate
    from bench.run.model import Model

    cfg = config(**given)
    torch.set_num_threads(cfg.train.n_threads)
    data = datasets[cfg.data.name].build(cfg.data.options)
    model = Model.build(cfg, data.facts).to(cfg.train.device)
    accelerate(model, cfg.train)
    return cfg, model, data


def scoring(n_molecules: int = N_SCORED, data: str | None = None) -> dict[str, Any]:
    """Seconds to score molecules of the data set, drawn with repetition where it has fewer."""
    import numpy as np

    from bench.metrics.molecules import evaluate_molecules
    from bench.run.provenance import peak_memory_mb

    _, _, loaded = built(method="plain", backbone="dit", size="tiny", data=data)
    drawn = np.random.default_rng(0).choice(len(loaded.train), n_molecules, replace=len(loaded.train) < n_molecules)
    molecules = loaded.train.select(drawn)
    started = time.perf_counter()
    evaluate_molecules(molecules)
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
        subprocess.run([sys.executable, "-m", "bench.cli.main", *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return {"seconds": statistics.median(times[1:])}


def peaks(device: str, threads: int) -> dict[str, Any]:
    """What the machine reaches (`bench.run.roofline.machine`)."""
    import torch

    from bench.run.code import code_version
    from bench.run.provenance import device_name, now
    from bench.run.roofline import machine

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


KINDS = {kind.__name__: kind for kind in (step, paired, against, sampling, hooks, scoring, startup, peaks)}

if __name__ == "__main__":
    print(json.dumps(KINDS[sys.argv[1]](**json.loads(sys.argv[2]))))
