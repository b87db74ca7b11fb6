"""What a run leaves behind, and the only way to write and read it (standard library alone, so tables need no torch).

A run's folder holds

    config.yaml        the resolved configuration, one page
    manifest.json      who, what, where, when: `MANIFEST`
    steps.jsonl        one line per logging interval: `STEP`
    eval.json          values of the samples, of measures and of costs: `EVALUATION`
    samples.npz        the sampled molecules, EDM's layout (num_atoms, charges, positions); samples.json  their cost
    measures.json      what was measured besides the samples: `MEASURED`
    drawn.sdf          the first few samples with their inferred bonds, for the figures
    state.safetensors  checkpoint; previous.safetensors  the one before; stable.safetensors  where the cool-down began
    diverged.json      of a run that stopped because its loss was no longer finite: the offending step
    log.txt            the log

and beside the runs of a study, runs.json: the runs that its newest plan asks for, `PLAN`.

Every file is written to a temporary name, synced and renamed, so that a reader sees the old one or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.records.inputs import cut, said, size_of

SCHEMA_VERSION = 2
MAX_BYTES = 1 << 26  # of a record; steps.jsonl may be longer
MAX_LINE_BYTES = 1 << 20  # of steps.jsonl
CHECKSUM = "checksum"  # a key of every record on disk, CRC-32 of its values; readers give records without it


CONTINUES = "the same command continues it"  # end of the line on a run that was stopped and has not failed
# that there is no space, no quota, or that a file system is read-only, passes, and is no fault of a run
OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class RecordError(ValueError):
    """A record that is not what its schema says; the message names file, key, what came and what was expected."""


# A schema maps a key to the types its value may have; a nested mapping is a nested object. Keys ending in '?' may be
# absent. `dict` stands for a free object, for what differs between plug-ins.
Number = (int, float)
CODE: dict[str, Any] = {"version": str, "commit": (str, type(None)), "dirty": (bool, type(None))}
MANIFEST: dict[str, Any] = {
    "schema": int,
    "run": str,  # the folder's name
    "study": str,
    "status": str,  # running | sampled | done | failed | skipped | imported
    "reason": (str, type(None)),  # of a failure, a skip or a full disk, one line
    "method": dict,  # name and options
    "backbone": dict,  # name, size and options
    "seed": int,
    "guarantee": str,  # exact | in_law | at_optimum | none
    "n_steps": int,  # planned optimiser steps; 0 where nothing is trained
    "weights_from": (str, type(None)),  # run whose weights are used, for methods that train nothing
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
    "code": CODE,
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
        "unused": list,  # arrays that the file holds and nothing needs
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
MEASURED: dict[str, Any] = {"step": int, "values": list}  # of these weights
EVALUATION: dict[str, Any] = {
    "schema": int,
    "run": str,
    "step": int,  # optimiser steps of the weights evaluated
    "weights": str,  # 'ema'
    "n_sampling_steps": int,
    "sampling_seed": int,
    "n_samples": int,
    "values": list,  # `bench.records.values.VALUE`: of the samples, of measures, of costs
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
            f"{where}: written{_writer(record)} with record schema {cut(repr(version))}, this equibench reads schema "
            f"{SCHEMA_VERSION}; use the version that wrote it, or a newer one"
        )
    known = {key.rstrip("?") for key in schema}
    for key in sorted(set(record) - known):
        raise RecordError(f"{where}: unknown key {cut(key)!r}; expected {', '.join(sorted(known))}")
    for key, expected in schema.items():
        name = key.rstrip("?")
        if name not in record:
            if key.endswith("?"):
                continue
            raise RecordError(f"{where}: key {name!r} is missing")
        value = record[name]
        if isinstance(expected, Mapping):
            check(value, expected, f"{where}: {name}")
        elif not isinstance(value, expected) or (isinstance(value, bool) and expected in (int, Number)):
            raise RecordError(f"{where}: {name!r} is {cut(repr(value))}, expected {_names(expected)}")


def _writer(record: Mapping[str, Any]) -> str:
    """' by equibench 0.3.0', where a record of any schema says so."""
    code = record.get("code")
    version = code.get("version") if isinstance(code, dict) else record.get("written_by")
    return f" by equibench {cut(version, 30)}" if isinstance(version, str) else ""


def _names(types: Any) -> str:
    return " or ".join(t.__name__ for t in (types if isinstance(types, tuple) else (types,)))


def write_atomically(path: Path, content: bytes, keep: Path | None = None) -> None:
    """Write a file so that a crash at any moment leaves the old content or the new one.

    Args:
        keep: name that the old content takes; between the two renames there is no `path`, and `keep` is the old one.
    Raises:
        OSError: no space, no quota, read-only folder; one line that names the file. The old content is untouched.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        if keep is not None and path.exists():
            path.replace(keep)
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise not_written(path, error) from error
        raise


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record and sync. A crash, or a full disk, can cut it short: `read_steps` leaves such a last line out."""
    with writing(path), path.open("a") as file:
        file.write(as_line(record))
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Have an OSError in the block name the file."""
    try:
        yield
    except OSError as error:
        raise not_written(path, error) from error


def not_written(path: Path, error: OSError) -> OSError:
    """The error of a write, in one line that names the file."""
    text = f"{error.strerror or error}: could not write {path}; nothing already written was lost"
    return OSError(error.errno, f"{text}, {CONTINUES}" if error.errno in OF_DISKS else text)


def disk_error(error: BaseException) -> OSError | None:
    """The error, or what caused it, if it is that of a disk on which nothing can be written."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in OF_DISKS:
            return cause
        cause = cause.__cause__
    return None


def _sync_folder(folder: Path) -> None:
    """A rename is on disk once its folder is; file systems that cannot sync a folder say EINVAL."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)


def write_json(path: Path, record: Mapping[str, Any], schema: Mapping[str, Any] | None = None) -> None:
    """Check against the schema, if one is given, and write; NaN is refused because it is not JSON."""
    if schema is not None:
        check(record, schema, str(path))
    write_atomically(path, (json.dumps(sealed(record), indent=1, allow_nan=False) + "\n").encode())


def as_line(record: Mapping[str, Any]) -> str:
    """A record as one line of a file of many."""
    return json.dumps(sealed(record)) + "\n"


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the checksum of its values, because a flipped bit in a digit breaks no schema."""
    return {**record, CHECKSUM: _checksum(record)}


def unsealed(record: dict[str, Any], where: str) -> dict[str, Any]:
    """A record without its checksum; one that never had any (an older one, or written by hand) is taken as it is.

    Raises:
        RecordError: its values are not those that were written.
    """
    given = record.pop(CHECKSUM, None)
    if given is not None and given != _checksum(record):
        raise RecordError(
            f"{where}: its values do not agree with its {CHECKSUM}, so it was damaged, or edited by hand; "
            f"have it made again, or take {CHECKSUM!r} out of it to use it as it is"
        )
    return record


def _checksum(record: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(record, sort_keys=True, allow_nan=False).encode()):08x}"


def parse(text: str) -> Any:
    """JSON as it is written here.

    Raises:
        ValueError: no JSON; NaN, infinity or a number beyond 64 bits; a key twice; text that is no Unicode.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite, parse_int=_int64
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if "\\ud" in text.lower():
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair can be read, and never written
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key in found if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"key {cut(twice)!r} comes twice")
    return found


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no JSON")


def _finite(word: str) -> float:
    value = float(word)
    return value if abs(value) < float("inf") else _no_number(cut(word, 20))


def _int64(word: str) -> int:
    if len(word) > 20 or not -(2**63) <= int(word) < 2**63:
        raise ValueError(f"{cut(word, 20)} has more than 64 bits")
    return int(word)


def read_json(path: Path, schema: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read one record.

    Raises:
        RecordError: no JSON object as `parse` takes it, or one that breaks its schema.
        OSError: missing, no regular file, or more than MAX_BYTES long.
    """
    size_of(path, MAX_BYTES)
    try:
        record = parse(path.read_bytes().decode())
    except ValueError as error:
        raise RecordError(f"{path}: not readable as JSON ({said(error)}); delete it to have it made again") from error
    if not isinstance(record, dict):
        raise RecordError(f"{path}: expected an object, got {type(record).__name__}")
    record = unsealed(record, str(path))
    if schema is not None:
        check(record, schema, str(path))
    return record


def read_config(folder: Path) -> dict[str, Any]:
    """A run's config.yaml, as plain data; empty where there is none.

    Raises:
        RecordError: not readable, or no mapping.
        OSError: no regular file, or longer than a page.
    """
    from bench.records.pages import PageError, read_page  # here, so that records need the standard library alone

    path = folder / "config.yaml"
    try:
        page = read_page(path)
    except FileNotFoundError:
        return {}
    except PageError as error:
        raise RecordError(str(error)) from error
    if not isinstance(page, dict):
        raise RecordError(f"{path}: expected a mapping, got {type(page).__name__}")
    return page


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one level, keys joined by dots; lists stay as they are."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def read_steps(path: Path, until: int | None = None) -> list[dict[str, Any]]:
    """Lines of steps.jsonl; none where there is no file. A last line cut short by a crash is left out.

    Args:
        until: step to which the lines of a run that has ended must go.
    Raises:
        RecordError: any other fault of a line; or they end before.
        OSError: no regular file.
    """
    steps, fault = [], None
    for number, line in enumerate(_lines(path), start=1):
        if fault is not None:
            raise fault
        try:
            step = parse(line.decode())
        except ValueError as error:  # is it the last line?
            fault = RecordError(f"{path}:{number}: not readable as JSON ({said(error)})")
            fault.__cause__ = error
            continue
        if isinstance(step, dict):
            step = unsealed(step, f"{path}:{number}")
        check(step, STEP, f"{path}:{number}")
        steps.append(step)
    last = steps[-1]["step"] if steps else 0
    if until is not None and last < until:
        raise RecordError(f"{path}: ends at step {last}, expected {until}; lines at its end are missing or damaged")
    return steps


def _lines(path: Path) -> Iterator[bytes]:
    if path.exists():
        size_of(path)
        with path.open("rb") as file:
            yield from iter(lambda: file.readline(MAX_LINE_BYTES), b"")


def last_steps(path: Path, n: int = 2) -> list[dict[str, Any]]:
    """The last whole lines of steps.jsonl, unchecked, for displays that look often."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = file.seek(max(0, size - 16_384))
        lines = file.read().split(b"\n")[:-1]  # what follows the last line break is being written
    found = []
    for line in lines[1:] if start else lines:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found[-n:]


def run_folders(study: Path) -> Iterator[Path]:
    """Folders of a study that hold a manifest, in name order."""
    if study.is_dir():
        yield from (path.parent for path in sorted(study.glob("*/manifest.json")))
