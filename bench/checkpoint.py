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
from bench.reading import said, size_of
from bench.records import Number, RecordError, check, parse, write_atomically

ABOUT = {"step": int, "seconds": Number}  # of a state or of averaged weights


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
    moments = []
    for key, value in tensors.items():
        if key.startswith("optimiser/"):
            _, moment, name = (key + "//").split("/", 2)
            p = weights.get(name.removesuffix("//"))
            if p is None or value.shape not in ((), p.shape) or not value.is_floating_point():
                raise _unfit(path, f"array {key!r} has no place")
            moments.append((p, moment, value))
    places: dict[str, Tensor] = {"queue/norms": queue.norms, "queue/pushed": queue.pushed}
    for name, p in weights.items():
        places |= {f"weights/{name}": p, f"average/{name}": average.shadow[name]}
    _copy(path, tensors, places)
    for p, moment, value in moments:
        optimiser.state(p)[moment] = value.to(p.device)
    return about["step"], float(about["seconds"])


def load_average(path: Path, weights: dict[str, nn.Parameter]) -> int:
    """Copy the averaged weights of a state, or of a published weights file, into a model; returns their step.

    Raises:
        CheckpointError: unreadable, or of another model.
    """
    tensors, about = _read(path)
    _copy(path, tensors, {f"average/{name}": p for name, p in weights.items()})
    return about["step"]


def _copy(path: Path, tensors: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> None:
    """Copy arrays to their places, once all are known to fit: `copy_` would broadcast and convert."""
    for name, place in places.items():
        if name not in tensors:
            raise _unfit(path, f"array {name!r} is missing")
        value = tensors[name]
        if (value.shape, value.dtype) != (place.shape, place.dtype):
            raise _unfit(
                path,
                f"array {name!r} is {value.dtype} {tuple(value.shape)}, expected {place.dtype} {tuple(place.shape)}",
            )
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(tensors[name])


def _unfit(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: does not fit this run's model ({why}); move it away to start again")


def state_step(path: Path) -> int:
    """Step of a state, from its header alone."""
    return _about(path)["step"]


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
        size_of(path)
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            about = parse((file.metadata() or {})["equibench"])
        check(about, ABOUT, "about")
        if about["step"] < 0 or about["seconds"] < 0:
            raise RecordError(f"step {about['step']} after {about['seconds']} s")
        return about
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}; train the run first") from None
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise _unreadable(path, error) from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    about = _about(path)
    try:
        return load_file(path), about
    except Exception as error:  # safetensors' own, and torch's and Python's for shapes and types that it lets through
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: not readable as a checkpoint ({said(error)}); move it away to start again")
