"""What a model costs: time, memory, arithmetic and energy of its steps, measured apart from the run.

The costs in a run's manifest are those of its own steps, beside whatever else the machine did. Here a few steps are
repeated with the code and the batches of a run, the first ones left out, so that rows can be compared: on a machine
that does nothing else meanwhile, which the load says.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.measure.contract import Subject
from bench.records.values import Better, Kind, Value
from bench.references import EQUIBENCH
from bench.registry import measures

ALONE = {"timed": "apart"}  # in the position of what a manifest has too, as the run spent it


@dataclass
class CostConfig:
    """Options: steps to repeat."""

    n_steps: int = 20  # training steps to time, besides the first ones
    n_sampling_steps: int = 4  # sampling steps to time, for each of three batches

    def __post_init__(self) -> None:
        for key in ("n_steps", "n_sampling_steps"):
            if getattr(self, key) < 1:
                raise ValueError(f"'{key}' of cost is {getattr(self, key)}, expected at least 1")


@measures.register("cost", CostConfig, references=(EQUIBENCH,))
def measure(subject: Subject, cfg: CostConfig) -> list[Value]:
    """Seconds, a GPU's memory, arithmetic and energy of training steps, seconds of sampling, parameters of each part.

    FLOPs are those of the network's matrix products, counted on a forward pass and tripled for the backward pass.
    Energy is the GPU's, where it reports it; compilation is timed apart.

    Raises:
        ValueError: the subject has no configuration to time.
    """
    if subject.timed is None:
        raise ValueError("measure 'cost' takes a model with the configuration of its run")
    found = subject.timed(cfg.n_steps, cfg.n_sampling_steps)
    about = f"median of {cfg.n_steps} steps on {found['device']}, {found['threads']} threads; load {found['load']:.1f}"
    gflop = found["flops"] / 1e9

    def cost(name: str, label: str, value: float | None, unit: str, definition: str = "") -> Value:
        return Value(name, label, value, unit, Better.LOWER, Kind.COST, at=ALONE, definition=definition)

    def detail(name: str, label: str, value: float, unit: str, definition: str = "", **at: str) -> Value:
        return Value(name, label, value, unit, kind=Kind.DIAGNOSTIC, at=at, definition=definition)

    made = [
        cost("step_seconds", "Training step", found["step_seconds"], "s", about),
        cost("sample_seconds_per_molecule", "Sampling per molecule", found["sample_seconds_per_molecule"], "s"),
    ]
    if subject.device.type != "cpu":  # there it is that of the interpreter, which has measured other runs before
        made.append(cost("peak_memory", "Peak memory", found["peak_memory_mb"], "MB", "of training steps"))
    for quantile, seconds in zip(("25 %", "75 %"), found["step_seconds_quartiles"], strict=True):
        made.append(detail("step_seconds_quartile", "Training step, quartile", seconds, "s", quantile=quantile))
    made += [
        detail("forward_seconds", "Forward pass", found["forward_seconds"], "s"),
        detail("call_seconds", "Network call in sampling", found["call_seconds"], "s", "of one batch of samples"),
        detail("flop", "Arithmetic of a training step", gflop, "GFLOP", "counted in matrix products"),
        detail("flop_rate", "Arithmetic achieved", gflop / found["step_seconds"], "GFLOP/s"),
        detail("load", "Load of the machine", found["load"], "", "above the number of cores, no time holds"),
    ]
    made += [detail("parameters_of", "Parameters", float(n), "count", part=part) for part, n in parts(subject).items()]
    rare = {"compile_seconds": ("Compilation", "s"), "step_joules": ("Energy of a training step", "J")}
    for key, (label, unit) in rare.items():
        if key in found:
            made.append(detail(key, label, found[key], unit))
    return made


def parts(subject: Subject) -> dict[str, int]:
    """Trained parameters of each module of the backbone and of the method: 'backbone blocks' -> how many."""
    found: dict[str, int] = {}
    for name, weight in subject.weights.items():
        of, _, inner = name.removeprefix("denoiser.").partition(".")
        part = f"{of} {inner.partition('.')[0]}"
        found[part] = found.get(part, 0) + weight.numel()
    return found
