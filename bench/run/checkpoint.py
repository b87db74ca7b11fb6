"""Checkpoints: one safetensors file with everything that bitwise resumption needs.

Random streams and batches follow from the seed and the step, so a state consists of weights, their moving average,
optimiser moments, the clip queue, the step and the seconds trained.

Metadata is JSON in the file's header, with a SHA-256 of itself and of all tensors, so no second file can fall out of
step. The newest state and the one before it are kept; if one is damaged, training resumes from the other.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bench.records.inputs import one_line, size_of
from bench.records.schema import CODE, MANIFEST, TRAINED_BY, Number, RecordError, check
from bench.records.store import RunFolder, parse, read_json, write_atomically
from bench.run.code import trained_with
from bench.run.distributed import Ranks
from bench.run.optimiser import TrainingState

log = logging.getLogger("equibench.train")

# metadata of a state or of averaged weights; early files have no checksum, and say no code that trained them
ABOUT = {
    "step": int,
    "seconds": Number,
    "code?": [TRAINED_BY],
    "weights?": str,
    "sha256?": str,
    "stored?": str,
}
STATE, PREVIOUS = RunFolder(Path()).state.name, RunFolder(Path()).previous.name  # the newest, and the one before


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or does not fit the configuration."""


class DamagedError(CheckpointError):
    """A checkpoint that is truncated, changed, or no checkpoint at all."""


def save_state(path: Path, state: TrainingState, keep: Path | None = None) -> None:
    """Write a state atomically; the previous file at `path` is renamed to `keep`, if given."""
    tensors: dict[str, Tensor] = {}
    for name, p in state.weights.items():
        tensors[f"weights/{name}"] = p
        tensors[f"average/{name}"] = state.average.shadow[name]
        for key, value in state.optimiser.state(p).items():
            tensors[f"optimiser/{key}/{name}"] = value
    tensors["queue/norms"], tensors["queue/pushed"] = state.queue.norms, state.queue.pushed
    write_tensors(path, tensors, about_state(state), keep)


def about_state(state: TrainingState) -> dict[str, Any]:
    """Metadata of a state, or of its averaged weights."""
    return {"step": state.step, "seconds": state.seconds, "code": state.code}


def load_state(path: Path, state: TrainingState) -> None:
    """Restore a state in place, after the whole file has been verified.

    Raises:
        DamagedError: unreadable, or its checksum differs.
        CheckpointError: from another model.
    """
    tensors, about = read_tensors(path)
    moments = []
    for key, value in tensors.items():
        if key.startswith("optimiser/"):
            _, moment, name = (key + "//").split("/", 2)
            p = state.weights.get(name.removesuffix("//"))
            found = value.shape, value.dtype
            if p is None or found != (((), torch.float32) if moment == "step" else (p.shape, p.dtype)):
                raise _unfit(path, f"array {key!r} has no place")
            moments.append((p, moment, value))
    places: dict[str, Tensor] = {"queue/norms": state.queue.norms, "queue/pushed": state.queue.pushed}
    for name, p in state.weights.items():
        places |= {f"weights/{name}": p, f"average/{name}": state.average.shadow[name]}
    _copy(path, tensors, places)
    for p, moment, value in moments:
        state.optimiser.state(p)[moment] = value.to(p.device)
    state.step, state.seconds = about["step"], float(about["seconds"])


def load_average(path: Path, weights: dict[str, nn.Parameter]) -> int:
    """Copy the averaged weights of a state, or of a published weights file, into a model; returns their step.

    Published weights may be in half precision (`save_average`): they are computed with in float32 all the same.

    Raises:
        CheckpointError: unreadable, or from another model.
    """
    tensors, about = read_tensors(path)
    if about.get("stored") in HALVES:
        tensors = {name: value.float() if value.dtype in HALVES.values() else value for name, value in tensors.items()}
    _copy(path, tensors, {f"average/{name}": p for name, p in weights.items()})
    return about["step"]


def _copy(path: Path, tensors: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> None:
    """Copy arrays to their places after checking shapes and types: `copy_` would broadcast and convert."""
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


HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def save_average(path: Path, state: Path) -> str:
    """Write the averaged weights of a state alone, in half precision, for publication.

    Returns:
        how the numbers are stored, as the file says too: 'float16', or 'bfloat16' where one is beyond float16.
    """
    tensors, about = read_tensors(state)
    average = {k.removeprefix("average/"): v for k, v in tensors.items() if k.startswith("average/")}
    largest = max((float(v.abs().max()) for v in average.values() if v.is_floating_point() and v.numel()), default=0.0)
    stored = "float16" if largest <= torch.finfo(torch.float16).max else "bfloat16"
    halved = {name: v.to(HALVES[stored]) if v.is_floating_point() else v for name, v in average.items()}
    write_average(path, halved, {**about, "stored": stored})
    return stored


def write_average(path: Path, average: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a file of averaged weights alone; `about` has the step and the seconds trained."""
    write_tensors(path, {f"average/{name}": value for name, value in average.items()}, about)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any], keep: Path | None = None
) -> None:
    """Write tensors, their metadata and the checksum of both."""
    known = {key: value for key, value in about.items() if key != "sha256"}
    held = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    # of the averaged weights alone, which a state and what is published of it have in common
    known.setdefault("weights", _digest_of_average(held))
    known["sha256"] = _digest(held, known)
    write_atomically(path, save(held, {"equibench": json.dumps(known)}), keep)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of a checkpoint and its metadata.

    Raises:
        DamagedError: the file is truncated, or its checksum does not match.
    """
    about = about_of(path)
    try:
        tensors = load_file(path)
    except Exception as error:  # safetensors' own; torch's and Python's for shapes and types that it does not check
        raise _damaged(path, one_line(error)) from error
    if "sha256" in about and about["sha256"] != _digest(tensors, about):
        raise _damaged(path, "its checksum does not fit its content")
    return tensors, about


def about_of(path: Path) -> dict[str, Any]:
    """Step and seconds of a checkpoint, from its header alone; the checksum is not verified."""
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
        raise _damaged(path, one_line(error)) from error


def trained_by(path: Path, began: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The codes that trained a checkpoint, in order, each with its steps (`bench.records.schema.TRAINED_BY`).

    Args:
        began: the code that began the run, and to which the steps of an early file, which names none, are put down.
    """
    about = about_of(path)
    return about.get("code") or trained_with([], {key: began[key] for key in CODE}, about["step"])


def _damaged(path: Path, why: str) -> DamagedError:
    return DamagedError(f"{path}: not readable as a checkpoint ({why}); move it away to start again")


def hash_of_weights(path: Path) -> str:
    """SHA-256 of a checkpoint's averaged weights, as they were trained; from its header, or from all of an early file.

    Raises:
        CheckpointError: unreadable.
    """
    return about_of(path).get("weights") or _digest_of_average(read_tensors(path)[0])


def hash_of_model(weights: Mapping[str, Tensor]) -> str:
    """The same of weights in memory, as if they were the average of a checkpoint."""
    return _digest({f"average/{name}": value.detach().cpu().contiguous() for name, value in weights.items()}, {})


def _digest_of_average(tensors: Mapping[str, Tensor]) -> str:
    return _digest({name: value for name, value in tensors.items() if name.startswith("average/")}, {})


def _digest(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    known = {key: value for key, value in about.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"\n{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ---------------------------------------------------------------------- choosing the checkpoint to resume from


def resume(folder: Path, ranks: Ranks, state: TrainingState) -> None:
    """Restore the newest undamaged state, if there is one; rank 0 chooses it, the others read the same file.

    Raises:
        CheckpointError: there are checkpoints but none is readable, or they are from another model.
    """
    chosen = ranks.from_first(_newest(folder, state) if ranks.writes else None)
    if chosen is not None and not ranks.writes:
        load_state(folder / chosen, state)


def _newest(folder: Path, state: TrainingState) -> str | None:
    """Restore the newest undamaged state; returns the name of its file, or None where there is no checkpoint."""
    damaged: dict[str, DamagedError] = {}
    for name in (STATE, PREVIOUS):
        if not (folder / name).exists():
            continue
        try:
            load_state(folder / name, state)
        except DamagedError as error:
            damaged[name] = error
            continue
        for other, fault in damaged.items():
            log.warning("%s; it is set aside as %s.damaged, training continues from %s", fault, other, name)
            # otherwise the next checkpoint would rename it over the good one
            (folder / other).replace(folder / f"{other}.damaged")
        state.code = trained_by(folder / name, _began(folder))
        log.info("continuing at step %d", state.step)
        return name
    if damaged:
        raise CheckpointError(" and ".join(str(error) for error in damaged.values()))
    return None


def _began(folder: Path) -> dict[str, Any]:
    """The code that began a run."""
    try:
        return read_json(RunFolder(folder).manifest, MANIFEST)["code"]
    except (FileNotFoundError, RecordError):
        return {"version": "unknown", "commit": None, "dirty": None}
