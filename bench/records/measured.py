"""Measurements: what each measure found of a run's model, one file for each, with items beside it.

Measures may run within a run or any time after it (`equibench measure`), on the trained weights or on the initial ones;
either way this is where their values are. A measurement belongs to the weights that its record names by SHA-256.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.records.items import items_of, write_items
from bench.records.schema import EVALUATION, INITIAL, MEASUREMENT, SCHEMA_VERSION, TRAINED, RecordError
from bench.records.store import RunFolder, read_json, write_json
from bench.records.values import Value


@dataclass(frozen=True)
class Measurement:
    """What one measure found.

    Attributes:
        path: its file; record: `schema.MEASUREMENT`.
    """

    path: Path
    record: dict[str, Any]

    @property
    def words(self) -> dict[str, str]:
        """What the positions of its values lack: {'weights': 'initial'} where it was found of initial weights."""
        return {} if self.record["weights"] == TRAINED else {"weights": self.record["weights"]}

    @property
    def values(self) -> list[Value]:
        """Its values, with `words` in their positions.

        Raises:
            RecordError: an entry is no value.
        """
        found = [Value.from_dict(entry, f"{self.path}: values[{i}]") for i, entry in enumerate(self.record["values"])]
        return [replace(value, at={**value.at, **self.words}) for value in found]


def read_measurement(path: Path) -> Measurement:
    """Read one.

    Raises:
        RecordError: damaged, or in breach of its schema. OSError: missing, or not a regular file.
    """
    record = read_json(path, MEASUREMENT)
    if record["weights"] not in (TRAINED, INITIAL):
        raise RecordError(f"{path}: 'weights' is {record['weights']!r:.40}, expected {TRAINED} or {INITIAL}")
    return Measurement(path, record)


def write_measurement(run: RunFolder, record: dict[str, Any], values: list[Value]) -> None:
    """Write the items of scalars that have them, then the record: where that is, so are they.

    Args:
        record: `schema.MEASUREMENT` without 'schema' and 'values'.
    """
    path = run.measurement(record["measure"], record["weights"])
    if items := items_of(values):
        write_items(path.with_suffix(".npz"), items)
    else:
        path.with_suffix(".npz").unlink(missing_ok=True)
    plain = [value.to_dict() for value in values]
    write_json(path, {"schema": SCHEMA_VERSION, **record, "values": plain}, MEASUREMENT)


def values_of(run: RunFolder) -> list[Value]:
    """All values of a run: of its evaluation, and of its measurements, which replace those of an early evaluation.

    Raises:
        RecordError, OSError: as `read_measurement`.
    """
    measured = [value for path in run.measurements() for value in read_measurement(path).values]
    names = {value.name for value in measured}
    made = read_json(run.eval, EVALUATION)["values"] if run.eval.exists() else []
    return [value for value in map(Value.from_dict, made) if value.name not in names] + measured


def of_other_weights(run: RunFolder, sha256: str) -> Iterator[Path]:
    """Files of measurements of trained weights other than these; damaged ones, which name none, are left out."""
    for path in run.measurements():
        try:
            record = read_measurement(path).record
        except (RecordError, OSError):
            continue
        if record["weights"] == TRAINED and record["weights_sha256"] != sha256:
            yield from (file for file in (path, path.with_suffix(".npz")) if file.exists())
