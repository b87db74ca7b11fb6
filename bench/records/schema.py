"""Schemas of records, and `check`, which validates a record against one."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

from bench.records.inputs import truncate

SCHEMA_VERSION = 2


def package_version() -> str:
    """Version of equibench, which records name as what wrote them."""
    try:
        return metadata.version("equibench")
    except metadata.PackageNotFoundError:
        return "not installed"


class RecordError(ValueError):
    """A record violates its schema; the message names file, key, what was found and what was expected."""


# A schema maps a key to the types its value may have; a nested mapping is a nested object. Keys ending in '?' may be
# absent. `dict` stands for an object of any content, which differs between plug-ins; `[schema]` for a list of objects.
Number = (int, float)
CODE: dict[str, Any] = {"version": str, "commit": (str, type(None)), "dirty": (bool, type(None))}
TRAINED_BY: dict[str, Any] = {**CODE, "steps": int}  # a code, and how many optimiser steps it has done
MANIFEST: dict[str, Any] = {
    "schema": int,
    "run": str,  # the folder's name
    "study": str,
    "status": str,  # running | sampled | done | failed | skipped | imported
    "reason": (str, type(None)),  # of a failure, a skip or a full disk, one line
    "method": dict,  # name and options
    "backbone": dict,  # name, size and options
    "seed": int,
    "guarantee": str,  # of the method on its backbone: exact | in_law | at_optimum | none
    "baseline?": bool,  # whether the method is plain diffusion, without a strategy
    "n_steps": int,  # planned optimiser steps; 0 where nothing is trained
    "weights_from": (str, type(None)),  # run whose weights are used, for methods that train nothing
    "weights_sha256?": str,  # of the averaged weights that were sampled (`checkpoint.hash_of_weights`)
    "weights_step?": int,  # their optimiser steps
    "task?": dict,  # name and options
    "data": {
        "name": str,
        "label": str,  # as tables state it: 'QM9, at most 14 atoms, without fluorine'
        "source": str,
        "fingerprint": str,
        "n_train": int,
        "n_valid": int,
        "n_test": int,
        "mean_atoms": Number,
        "elements": list,
        "notes": list,
    },
    "code": {**CODE, "training?": [TRAINED_BY]},  # that began the run; all that trained it, in order
    "sources?": dict,  # 'method haar' -> SHA-256 of the file that registers it, for each plug-in of the run
    "environment": {
        "device": str,
        "dtype": str,
        "n_threads": int,
        "n_processes?": int,  # that trained this run together, where there was more than one
        "compile": str,  # 'eager', 'inductor', or 'eager (reason why it fell back)'
        "kernels?": list,  # of `bench.kernels`, by name, that ran in place of plain torch
        "tf32?": bool,  # whether float32 products on a GPU may be made in it
        "versions": dict,  # package -> version
        "platform": str,
        "n_cores?": int,  # of the machine
        "memory_mb?": Number,  # of the machine, or what its control group allows; of the device, on a GPU
        "driver?": (str, type(None)),  # of the GPU
    },
    "parameters": {"backbone": int, "method": int, "total": int},
    "cost": {  # filled as the run goes
        "step_seconds?": Number,  # median over steps, without warm-up, input and evaluation
        "train_seconds?": Number,  # sum over steps
        "sample_seconds_per_molecule?": Number,
        "sample_network_calls?": int,  # per molecule
        "train_network_calls?": int,
        "peak_memory_mb?": Number,
        "n_parallel?": int,  # runs that shared the machine
    },
    "imported?": {  # of a run whose weights come from a public code's checkpoint; its status is 'imported'
        "file": str,
        "sha256": str,
        "network": str,  # the public class
        "schedule": str,  # where it is known from
        "unused": list,  # arrays of the file that are not used
        "notes": list,  # what differs from the public code, and what is assumed
    },
    "evaluated?": {  # by `equibench evaluate`, where `code` and `environment` are of the machine that sampled
        "code": CODE,
        "platform": str,
        "versions": dict,
        "at": str,
    },
    "created": str,
    "updated": str,
}
STEP: dict[str, Any] = {
    "step": int,  # optimiser steps done
    "seconds": Number,  # spent in training steps so far
    "loss?": Number,  # mean training loss since the last line
    "grad_norm?": Number,  # mean over the same steps, before clipping
    "clipped?": Number,  # fraction of those steps
    "lr?": Number,
    "network_calls?": Number,  # per training step
    "diagnostics?": dict,  # what the method reports: name -> mean since the last line
    "valid_loss?": Number,  # same loss, EMA weights, fixed times and noise, validation split
}
DATA: dict[str, Any] = {  # data.json: what sampling needs to know of the data set
    "elements": list,  # nuclear charges, ascending
    "mean_atoms": Number,
    "sizes": dict,  # number of atoms -> training molecules
}
TRAINED, INITIAL = "trained", "initial"  # weights that are measured: those sampled, and those training began with
MEASUREMENT: dict[str, Any] = {  # what one measure found
    "schema": int,
    "measure": str,
    "options": dict,
    "weights": str,  # TRAINED | INITIAL
    "weights_sha256": str,  # as in a manifest
    "step": int,  # optimiser steps of the weights
    "seconds": Number,
    "values": list,  # `bench.records.values.VALUE`
    "code": CODE,
    "environment": {"device": str, "n_threads": int, "platform": str, "versions": dict},
    "created": str,
}
EVALUATION: dict[str, Any] = {
    "schema": int,
    "run": str,
    "step": int,  # optimiser steps of the weights evaluated
    "weights": str,  # 'ema', or 'ema (best)' where `sample.weights` is best
    "n_sampling_steps": int,
    "sampling_seed": int,
    "n_samples": int,
    "values": list,  # `bench.records.values.VALUE`: of the samples, of costs; of measures in early records
    "data_values": list,  # the same of the data's own test split
    "versions": dict,
    "written_by?": str,  # version of equibench; a manifest has it under code
}
PLAN: dict[str, Any] = {
    "schema": int,
    "written_by": str,
    "study": str,
    "argument": str,  # the study as the user named it, for messages
    "created": str,
    "runs": list,  # of each run the keys of its manifest that `provenance.planned` gives, and its config
}


def check(record: Any, schema: Mapping[str, Any], where: str) -> None:
    """Raise RecordError unless `record` has the keys and types of `schema`, and no others."""
    if not isinstance(record, dict):
        raise RecordError(f"{where}: expected an object, got {type(record).__name__}")
    version = record.get("schema", SCHEMA_VERSION)
    if "schema" in schema and version != SCHEMA_VERSION:
        raise RecordError(
            f"{where}: written{_writer(record)} with record schema {truncate(repr(version))}, this equibench reads "
            f"schema {SCHEMA_VERSION}; use the version that wrote it, or a newer one"
        )
    known = {key.rstrip("?") for key in schema}
    for key in sorted(set(record) - known):
        raise RecordError(f"{where}: unknown key {truncate(key)!r}; expected {', '.join(sorted(known))}")
    for key, expected in schema.items():
        name = key.rstrip("?")
        if name not in record:
            if key.endswith("?"):
                continue
            raise RecordError(f"{where}: key {name!r} is missing")
        value = record[name]
        if isinstance(expected, Mapping):
            check(value, expected, f"{where}: {name}")
        elif isinstance(expected, list):
            if not isinstance(value, list):
                raise RecordError(f"{where}: {name!r} is {truncate(repr(value))}, expected list")
            for i, entry in enumerate(value):
                check(entry, expected[0], f"{where}: {name}[{i}]")
        elif not isinstance(value, expected) or (isinstance(value, bool) and expected in (int, Number)):
            raise RecordError(f"{where}: {name!r} is {truncate(repr(value))}, expected {_names(expected)}")


def _writer(record: Mapping[str, Any]) -> str:
    """' by equibench 0.3.0', where a record of any schema says so."""
    code = record.get("code")
    version = code.get("version") if isinstance(code, dict) else record.get("written_by")
    return f" by equibench {truncate(version, 30)}" if isinstance(version, str) else ""


def _names(types: Any) -> str:
    return " or ".join(t.__name__ for t in (types if isinstance(types, tuple) else (types,)))
