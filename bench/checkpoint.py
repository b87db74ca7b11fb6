"""Checkpoints: one safetensors file per state, with everything that a bitwise continuation needs.

Random streams follow from the step, and batches from the step and the seed, so a state is: weights, their average,
optimiser moments, the clip queue, the step, and the seconds trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bench.optimise import MovingAverage, Optimiser, QueueClip
from bench.records import write_atomically


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or does not fit the configuration."""


def save_state(
    path: Path,
    step: int,
    seconds: float,
    weights: dict[str, nn.Parameter],
    average: MovingAverage,
    optimiser: Optimiser,
    queue: QueueClip,
) -> None:
    """Write a state atomically."""
    tensors: dict[str, Tensor] = {}
    for name, p in weights.items():
        tensors[f"weights/{name}"] = p.detach()
        tensors[f"average/{name}"] = average.shadow[name]
        for key, value in optimiser.state(p).items():
            tensors[f"optimiser/{key}/{name}"] = value
    tensors["queue/norms"], tensors["queue/pushed"] = queue.norms, queue.pushed
    metadata = {"equibench": json.dumps({"step": step, "seconds": seconds})}
    write_atomically(path, save({k: v.contiguous() for k, v in tensors.items()}, metadata))


def load_state(
    path: Path,
    weights: dict[str, nn.Parameter],
    average: MovingAverage,
    optimiser: Optimiser,
    queue: QueueClip,
) -> tuple[int, float]:
    """Restore a state in place.

    Returns:
        step and seconds trained.
    Raises:
        CheckpointError: unreadable, or of another model.
    """
    tensors, about = _read(path)
    try:
        for name, p in weights.items():
            with torch.no_grad():
                p.copy_(tensors[f"weights/{name}"])
            average.shadow[name].copy_(tensors[f"average/{name}"])
        for key, value in tensors.items():
            if key.startswith("optimiser/"):
                _, moment, name = key.split("/", 2)
                optimiser.state(weights[name])[moment] = value.to(weights[name].device)
        queue.norms.copy_(tensors["queue/norms"])
        queue.pushed.copy_(tensors["queue/pushed"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: does not fit this run's model ({error}); move it away to start again"
        ) from error
    return int(about["step"]), float(about["seconds"])


def load_average(path: Path, weights: dict[str, nn.Parameter]) -> int:
    """Copy the averaged weights of a state, or of a published weights file, into a model; returns their step.

    Raises:
        CheckpointError: unreadable, or of another model.
    """
    tensors, about = _read(path)
    try:
        with torch.no_grad():
            for name, p in weights.items():
                p.copy_(tensors[f"average/{name}"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path}: does not fit this run's model ({error})") from error
    return int(about["step"])


def state_step(path: Path) -> int:
    """Step of a state, from its header alone."""
    return int(_about(path)["step"])


def save_average(path: Path, state: Path) -> None:
    """Only the averaged weights of a state, for publication."""
    tensors, about = _read(state)
    write_average(path, {k.removeprefix("average/"): v for k, v in tensors.items() if k.startswith("average/")}, about)


def write_average(path: Path, average: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """A file of averaged weights alone; `about` has the step and the seconds trained."""
    tensors = {f"average/{name}": value.detach().contiguous() for name, value in average.items()}
    write_atomically(path, save(tensors, {"equibench": json.dumps(about)}))


def _about(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            return json.loads((file.metadata() or {})["equibench"])
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}; train the run first") from None
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise CheckpointError(f"{path}: not readable as a checkpoint ({error}); move it away to start again") from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    about = _about(path)
    try:
        return load_file(path), about
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not readable as a checkpoint ({error}); move it away to start again") from error
