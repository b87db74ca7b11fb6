"""Files of runs and studies: their paths, and how they are written and read (no torch).

Only `RunFolder` and `StudyFolder` know file names. Every file is written under a temporary name, synced and renamed, so
that a reader sees the old content or the new one. A JSON record, and each line of steps.jsonl, carries a checksum,
because a flipped bit in a digit breaks no schema; missing lines are counted.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.records.inputs import YamlError, as_yaml, one_line, read_yaml, size_of, truncate
from bench.records.schema import STEP, TRAINED, RecordError, check

MAX_BYTES = 1 << 26  # of a record; steps.jsonl may be longer
MAX_LINE_BYTES = 1 << 20  # of steps.jsonl
MEASURED = "measured"  # folder of measurements, in a run's folder
CHECKSUM = "checksum"  # key of a JSON record on disk: CRC-32 of its values; readers give records without it

CONTINUES = "the same command continues it"  # end of the line on a run that was stopped and has not failed
# full disk, exhausted quota, read-only file system: transient, and no fault of the run
OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, under `runs/<study>/` or, published, under `results/<study>/`: paths of its files."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration, defaults written out."""
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        """Who, what, where, when: `schema.MANIFEST`."""
        return self.path / "manifest.json"

    @property
    def steps(self) -> Path:
        """One line per logging interval: `schema.STEP`."""
        return self.path / "steps.jsonl"

    @property
    def curves(self) -> Path:
        """`steps` thinned, of a published run."""
        return self.path / "curves.csv"

    @property
    def eval(self) -> Path:
        """Values of the samples, of measures and of costs: `schema.EVALUATION`."""
        return self.path / "eval.json"

    def measurement(self, measure: str, weights: str = TRAINED) -> Path:
        """What a measure found: `schema.MEASUREMENT`; its items are in the file of the same name with suffix .npz."""
        return self.path / MEASURED / f"{measure}{'' if weights == TRAINED else f'.{weights}'}.json"

    def measurements(self) -> list[Path]:
        """What all measures found, in name order, of trained weights before that of initial ones."""
        return sorted((self.path / MEASURED).glob("*.json"), key=lambda path: path.stem)

    @property
    def test_items(self) -> Path:
        """`items` of all measures, of an early run."""
        return self.path / "test_items.npz"

    @property
    def valid_items(self) -> Path:
        """`items` of the validation loss, of an early run."""
        return self.path / "valid_items.npz"

    @property
    def sample_items(self) -> Path:
        """`items` of the samples: one per sample, in their order."""
        return self.path / "sample_items.npz"

    @property
    def samples(self) -> Path:
        """All samples."""
        return self.path / "samples.npz"

    @property
    def sample_costs(self) -> Path:
        """Cost of the samples; written after them."""
        return self.path / "samples.json"

    @property
    def chunks(self) -> Path:
        """Folder of the samples drawn so far, until all are there."""
        return self.path / "chunks"

    def chunk(self, number: int) -> Path:
        """Samples of one prompt; their cost is in the file of the same name with the suffix .json."""
        return self.chunks / f"{number:05d}.npz"

    def of_other_weights(self, sha256: str) -> Path:
        """Folder of results that were made with weights which are no longer those of the run."""
        return self.path / f"of-weights-{sha256[:12]}"

    @property
    def drawn(self) -> Path:
        """The first few samples with their inferred bonds, for the figures."""
        return self.path / "drawn.sdf"

    @property
    def data(self) -> Path:
        """What loading the model needs to know of the data set: `schema.DATA`."""
        return self.path / "data.json"

    @property
    def state(self) -> Path:
        """The newest checkpoint."""
        return self.path / "state.safetensors"

    @property
    def previous(self) -> Path:
        """The checkpoint before it."""
        return self.path / "previous.safetensors"

    @property
    def weights(self) -> Path:
        """Averaged weights alone, of a published or imported run."""
        return self.path / "weights.safetensors"

    @property
    def best(self) -> Path:
        """Averaged weights alone, of the lowest validation loss so far."""
        return self.path / "best.safetensors"

    @property
    def diverged(self) -> Path:
        """The offending step, of a run whose loss was no longer finite."""
        return self.path / "diverged.json"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def job(self) -> Path:
        """The job last submitted for the run."""
        return self.path / "job.json"

    @property
    def lock(self) -> Path:
        """Held by whoever works on the run."""
        return self.path / "lock"

    def published(self) -> list[Path]:
        """Files that are published as they are."""
        items = [self.test_items, self.valid_items, self.sample_items]
        measured = [file for path in self.measurements() for file in (path, path.with_suffix(".npz"))]
        return [self.config, self.manifest, self.data, self.eval, *items, *measured, self.drawn]

    def leftovers(self) -> Iterator[Path]:
        """Temporary files of interrupted writes, without those of `job`: launchers write it without the run's lock."""
        found = [*self.path.glob(".*"), *self.path.glob(f"{MEASURED}/.*")]
        return (path for path in found if not path.name.startswith(f".{self.job.name}."))


@dataclass(frozen=True)
class StudyFolder:
    """The folder of a study: paths of its files and the folders of its runs."""

    path: Path

    @property
    def study(self) -> Path:
        """The study file, as it was given."""
        return self.path / "study.yaml"

    @property
    def plan(self) -> Path:
        """The runs that the newest plan asks for: `schema.PLAN`."""
        return self.path / "runs.json"

    @property
    def table(self) -> Path:
        """One line per run, of a published study."""
        return self.path / "runs.csv"

    @property
    def cache(self) -> Path:
        """What evaluations share, such as the data set's own values."""
        return self.path / ".cache"

    @property
    def jobs(self) -> Path:
        """Files of submitit."""
        return self.path / ".submitit"

    @property
    def old(self) -> Path:
        """Runs set aside by `run --force`, which no other command looks at."""
        return self.path / ".old"

    def runs(self) -> list[Path]:
        """Folders of runs that have a manifest, in name order."""
        return sorted(path.parent for path in self.path.glob(f"*/{RunFolder(self.path).manifest.name}"))


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
    """Context in which an OSError is raised anew with the name of the file."""
    try:
        yield
    except OSError as error:
        raise not_written(path, error) from error


def not_written(path: Path, error: OSError) -> OSError:
    """The error of a write, in one line that names the file."""
    text = f"{error.strerror or error}: could not write {path}; nothing already written was lost"
    return OSError(error.errno, f"{text}, {CONTINUES}" if error.errno in OF_DISKS else text)


def disk_error(error: BaseException) -> OSError | None:
    """The first of the error and its causes to say that the disk cannot be written; None if there is none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in OF_DISKS:
            return cause
        cause = cause.__cause__
    return None


def _sync_folder(folder: Path) -> None:
    """A rename is on disk once its folder is; file systems that cannot sync a folder raise EINVAL."""
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
    write_atomically(
        path, (json.dumps({**record, CHECKSUM: _checksum(record)}, indent=1, allow_nan=False) + "\n").encode()
    )


def write_yaml(path: Path, data: Any) -> None:
    """Write plain data as YAML."""
    write_atomically(path, as_yaml(data).encode())


def as_line(record: Mapping[str, Any]) -> str:
    """A record with its checksum as one line of JSON; NaN is refused because it is not JSON."""
    return json.dumps({**record, CHECKSUM: _checksum(record)}, allow_nan=False) + "\n"


def _checksum(record: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(record, sort_keys=True, allow_nan=False).encode()):08x}"


def parse(text: str) -> Any:
    """Strict JSON.

    Raises:
        ValueError: not JSON; NaN, infinity or an integer beyond 64 bits; a duplicate key; a lone surrogate.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite, parse_int=_int64
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if "\\ud" in text.lower():
        json.dumps(value, ensure_ascii=False).encode()  # raises for a lone surrogate, which cannot be written
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key in found if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"key {truncate(twice)!r} comes twice")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if abs(value) < float("inf") else _no_number(truncate(text, 20))


def _int64(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"{truncate(text, 20)} has more than 64 bits")
    return int(text)


def read_json(path: Path, schema: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read one record.

    Raises:
        RecordError: not a JSON object, damaged, or in breach of its schema.
        OSError: missing, not a regular file, or more than MAX_BYTES long.
    """
    size_of(path, MAX_BYTES)
    try:
        record = parse(path.read_bytes().decode())
    except ValueError as error:
        raise RecordError(
            f"{path}: not readable as JSON ({one_line(error)}); delete it to have it made again"
        ) from error
    if not isinstance(record, dict):
        raise RecordError(f"{path}: expected an object, got {type(record).__name__}")
    given = record.pop(CHECKSUM, None)  # a record without one was written by hand, and is taken as it is
    if given is not None and given != _checksum(record):
        raise RecordError(
            f"{path}: its values do not agree with its {CHECKSUM}, so it was damaged, or edited by hand; "
            f"have it made again, or take {CHECKSUM!r} out of it to use it as it is"
        )
    if schema is not None:
        check(record, schema, str(path))
    return record


def read_config(run: RunFolder) -> dict[str, Any]:
    """A run's configuration as plain data; empty where there is none.

    Raises:
        RecordError: not readable, or not a mapping.
        OSError: not a regular file, or too large.
    """
    try:
        config = read_yaml(run.config)
    except FileNotFoundError:
        return {}
    except YamlError as error:
        raise RecordError(str(error)) from error
    if not isinstance(config, dict):
        raise RecordError(f"{run.config}: expected a mapping, got {type(config).__name__}")
    return config


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one level, keys joined by dots; lists stay as they are."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def read_steps(path: Path, until: int | None = None) -> list[dict[str, Any]]:
    """Lines of steps.jsonl; none where there is no file. A last line cut short by a crash is left out.

    Args:
        until: step that the lines of a finished run must reach.
    Raises:
        RecordError: any other malformed line, or lines that end before `until`.
        OSError: not a regular file.
    """
    steps, fault = [], None
    for number, line in enumerate(_lines(path), start=1):
        if fault is not None:
            raise fault
        try:
            step = parse(line.decode())
        except ValueError as error:  # is it the last line?
            fault = RecordError(f"{path}:{number}: not readable as JSON ({one_line(error)})")
            fault.__cause__ = error
            continue
        given = step.pop(CHECKSUM, None) if isinstance(step, dict) else None
        check(step, STEP, f"{path}:{number}")
        if given is not None and given != _checksum(step):
            raise RecordError(f"{path}:{number}: its values do not agree with its {CHECKSUM}, so it was damaged")
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
