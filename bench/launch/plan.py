"""`equibench plan`: the cost of a study, estimated from a few steps of each distinct configuration on this machine.

Runs that differ in the seed alone are measured once. Each measurement is a child interpreter that calls the code of
runs: training steps (`bench.run.timing`), validation, chunks of samples for a few steps, the measures. The evaluation
of samples is left out: it takes seconds. Nothing is written. On a CPU the child's memory is limited to what is
available, so that a configuration that does not fit fails without harming the machine.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.config.run import RunConfig, reason_to_skip, trusted_run, weights_run
from bench.config.study import StudyConfig
from bench.launch.items import Item
from bench.launch.items import plan as plan_items
from bench.launch.status import duration
from bench.registry import measures
from bench.run.acceleration import accelerate
from bench.run.batches import load_data
from bench.run.evaluate import subject_of
from bench.run.execute import reason_of
from bench.run.interpreter import environment, python
from bench.run.measure import active_measures
from bench.run.model import Model
from bench.run.provenance import device_name, forget_peak_memory, memory_mb, peak_memory_mb
from bench.run.timing import time_sampling, time_steps

log = logging.getLogger("equibench")

TRAINING_STEPS = 5
SAMPLING_STEPS = 2
MEASURED_MOLECULES = 128  # one batch of the likelihood


class MemoryShortError(RuntimeError):
    """A study that does not fit the machine's memory."""


@dataclass(frozen=True)
class Cost:
    """Cost of one run of a configuration.

    Attributes:
        train_seconds, sample_seconds, measure_seconds: training includes validation.
        peak_memory_mb: of the GPU; on a CPU of the OS process.
    """

    train_seconds: float
    sample_seconds: float
    measure_seconds: float
    peak_memory_mb: float

    @property
    def seconds(self) -> float:
        return self.train_seconds + self.sample_seconds + self.measure_seconds


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of a study.

    Attributes:
        items: its runs, without skipped ones; costs: one for each.
        at_a_time: runs that share the machine; device: where it was measured.
        memory_mb: available.
    """

    items: list[Item]
    costs: list[Cost]
    at_a_time: int
    device: str
    memory_mb: float
    n_skipped: int


def estimate(study: StudyConfig, runs_root: Path, memory_gib: float | None = None) -> Estimate:
    """Measure each distinct configuration of a study.

    Args:
        memory_gib: of the machine that will run it; by default this one's.
    Raises:
        MemoryShortError: a run, or the runs that share the machine, do not fit.
        ConfigError, DataError: as `bench.launch.items.plan`; ValueError: a measurement failed otherwise.
    """
    everything = plan_items(study, runs_root)
    items = [item for item in everything if reason_to_skip(item.cfg) is None]
    if not items:
        raise ValueError(f"all runs of study {study.name} are skipped; `equibench run` says why")
    device = items[0].cfg.train.device
    available = memory_mb(device) if memory_gib is None else 1024 * memory_gib
    measured: dict[str, Cost] = {}
    costs = []
    for item in items:
        key = configuration(item.cfg)
        if key not in measured:
            log.info("measuring %s on %s", item.cfg.method.name, item.cfg.backbone.name)
            measured[key] = total(item.cfg, measure_apart(item.cfg, available))
        # a run that takes the weights of another one does not train
        costs.append(dataclasses.replace(measured[key], train_seconds=0.0) if item.needs else measured[key])
    # Slurm gives each run memory of its own; a debug study runs one at a time
    at_a_time = min(study.launch.n_parallel, len(items)) if study.launch.cluster == "local" else 1
    refuse_what_does_not_fit(items, costs, at_a_time, available)
    return Estimate(items, costs, at_a_time, device_name(device), available, len(everything) - len(items))


def configuration(cfg: RunConfig) -> str:
    return json.dumps(cfg.to_dict() | {"seed": None}, sort_keys=True)


def refuse_what_does_not_fit(items: list[Item], costs: list[Cost], at_a_time: int, available: float) -> None:
    """Raise MemoryShortError if the largest runs that may run together need more memory than is available."""
    largest = sorted(zip(costs, items, strict=True), key=lambda pair: -pair[0].peak_memory_mb)[:at_a_time]
    needed = sum(cost.peak_memory_mb for cost, _ in largest)
    if needed > available:
        names = ", ".join(dict.fromkeys(f"{i.cfg.method.name} on {i.cfg.backbone.name}" for _, i in largest))
        raise MemoryShortError(
            f"{len(largest)} run(s) at a time need {needed / 1024:.1f} GiB ({names}), and there are "
            f"{available / 1024:.1f}; lower train.batch_size, sample.batch_size or launch.n_parallel"
        )


# ---------------------------------------------------------------------- measuring


def measure_apart(cfg: RunConfig, available: float) -> dict[str, float]:
    """`measure` in a child interpreter that may use `available` MiB.

    Raises:
        MemoryShortError: it ran out of memory. ValueError: it failed otherwise.
    """
    command = python("bench.launch.plan", str(available))
    done = subprocess.run(command, input=json.dumps(cfg.to_dict()), capture_output=True, text=True, env=environment())
    name = f"{cfg.method.name} on {cfg.backbone.name}"
    lines = done.stdout.splitlines()
    result = json.loads(lines[-1]) if done.returncode == 0 and lines else {}
    if done.returncode == -signal.SIGKILL or result.get("error", "").startswith("out of memory"):
        why = result.get("error", "killed by signal 9, as where memory runs out")
        raise MemoryShortError(f"{name} does not fit {available / 1024:.1f} GiB: {why}")
    if not result or "error" in result:
        why = result.get("error") or (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ValueError(f"{name} could not be measured: {why}")
    return result


def measure(cfg: RunConfig) -> dict[str, float]:
    """Seconds of a training step, of a forward pass on a training batch, of all sampling, and of the measures; and the
    overall peak memory."""
    found = {"step_seconds": 0.0, "forward_seconds": 0.0, "peak_memory_mb": 0.0}
    if weights_run(cfg) is None:
        # one micro-batch of one rank; ranks run concurrently, each in its own memory
        train = cfg.train
        share = max(1, train.batch_size // (train.accumulate * train.n_processes))
        small = dataclasses.replace(train, batch_size=share, accumulate=1, n_processes=1)
        timed = time_steps(dataclasses.replace(cfg, train=small), TRAINING_STEPS)
        found = {key: timed[key] for key in found}
        found["step_seconds"] *= train.accumulate
        found["forward_seconds"] *= train.batch_size / share
        if torch.device(train.device).type == "cpu":
            found["peak_memory_mb"] *= train.n_processes
    torch.set_num_threads(cfg.train.n_threads)
    device = torch.device(cfg.train.device)
    data = load_data(cfg)
    model = Model.build(cfg, data.facts).to(device)
    accelerate(model, cfg.train)
    forget_peak_memory(cfg.train.device)
    per_molecule = time_sampling(cfg, model, data, SAMPLING_STEPS)["sample_seconds_per_molecule"]
    found["sample_seconds"] = per_molecule * cfg.sample.n_molecules
    few = dataclasses.replace(data, test=data.test.select(np.arange(min(MEASURED_MOLECULES, len(data.test)))))
    subject, found["measure_seconds"] = subject_of(cfg, model, few, few.test), 0.0  # in place of samples
    for name, chosen in active_measures(cfg).items():
        started = time.perf_counter()
        measures[name].build(subject, chosen.options)
        asked = min(getattr(chosen.options, "n_molecules", None) or len(data.test), len(data.test))
        found["measure_seconds"] += (time.perf_counter() - started) * max(1.0, asked / len(few.test))
    found["peak_memory_mb"] = max(found["peak_memory_mb"], peak_memory_mb(cfg.train.device))
    return found


def total(cfg: RunConfig, one: dict[str, float]) -> Cost:
    """Cost of a run, extrapolated from the measurement of a few steps."""
    train, n_steps = cfg.train, 0 if weights_run(cfg) else cfg.train.n_steps
    seconds = n_steps * one["step_seconds"]
    if train.max_seconds is not None and seconds > train.max_seconds:
        n_steps, seconds = round(n_steps * train.max_seconds / seconds), train.max_seconds
    valid = n_steps / train.valid_every * train.n_valid / train.batch_size * one["forward_seconds"]
    return Cost(
        seconds + valid,
        one["sample_seconds"],
        one["measure_seconds"],
        one["peak_memory_mb"],
    )


def main() -> None:
    """python -m bench.launch.plan MIB: configuration on standard input, one JSON object on standard output."""
    cfg = trusted_run(json.load(sys.stdin))
    if torch.device(cfg.train.device).type == "cpu":
        most = int(float(sys.argv[1]) * 2**20)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    try:
        found: dict[str, Any] = measure(cfg)
    except Exception as error:
        found = {"error": reason_of(error)}
    print(json.dumps(found))  # noqa: T201


# ---------------------------------------------------------------------- showing


def table(made: Estimate) -> str:
    """A row for each method on each backbone, then totals."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i, item in enumerate(made.items):
        size = item.cfg.backbone.size or ""
        groups.setdefault((item.cfg.method.name, f"{item.cfg.backbone.name} {size}".strip()), []).append(i)
    on_cpu = made.items[0].cfg.train.device == "cpu"
    devices = [i.cfg.train.n_processes * (i.cfg.train.n_threads if on_cpu else 1) for i in made.items]
    unit = "core-hours" if on_cpu else "GPU-hours"
    head = f"{'method':24}{'backbone':16}{'runs':>5}{'done':>5}{'hours a run':>13}{'training':>10}{'peak GiB':>10}"
    lines = [f"{head}{unit:>12}"]

    def hours(chosen: Iterable[int]) -> float:
        """Device-hours: a run holds its cores, or its GPU, from start to end."""
        return sum(made.costs[i].seconds * devices[i] for i in chosen) / 3600

    for (method, backbone), chosen in groups.items():
        costs = [made.costs[i] for i in chosen]
        seconds = sum(cost.seconds for cost in costs)
        part = sum(cost.train_seconds for cost in costs) / seconds
        done = sum(made.items[i].status == "done" for i in chosen)
        peak = max(cost.peak_memory_mb for cost in costs) / 1024
        lines.append(
            f"{method:24}{backbone:16}{len(chosen):>5}{done:>5}{seconds / len(costs) / 3600:>13.3f}{part:>10.0%}"
            f"{peak:>10.2f}{hours(chosen):>12.3f}"
        )
    everything = range(len(made.items))
    left = [i for i in everything if made.items[i].status != "done"]
    lines.append(f"{'all':40}{len(made.items):>5}{len(made.items) - len(left):>5}{'':33}{hours(everything):>12.3f}")
    wall = duration(sum(made.costs[i].seconds for i in left) / made.at_a_time)
    lines += [
        "",
        f"left to do: {len(left)} runs, {hours(left):.3f} {unit}, about {wall} with {made.at_a_time} at a time",
        f"measured alone on {made.device}, {made.memory_mb / 1024:.1f} GiB; runs that share a machine are slower",
    ]
    if made.n_skipped:
        lines.append(f"{made.n_skipped} cells of the grid are skipped; `equibench run` says why")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
