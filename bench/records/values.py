"""Value: one measured number with everything that a table or a figure needs to show it.

Tasks and measures make values, records hold them and `analysis` draws whatever values it finds, so a new metric needs
no change of records, tables or figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from bench.records.schema import Number, RecordError, check

if TYPE_CHECKING:
    import numpy as np


class Better(StrEnum):
    """Which direction is an improvement."""

    HIGHER = "higher"
    LOWER = "lower"
    NEITHER = "neither"


class Kind(StrEnum):
    """The part of a report that shows a value."""

    SYMMETRY = "symmetry"  # measured of the model; beside the symmetry that is promised
    QUALITY = "quality"  # of samples
    LIKELIHOOD = (
        "likelihood"  # of held-out structures, and losses on them: primary outcomes where they have a direction
    )
    COST = "cost"
    DIAGNOSTIC = "diagnostic"  # explains other values; in figures and CSV, not in the main table


@dataclass(frozen=True)
class Value:
    """One measured number.

    Attributes:
        name: column of CSV files, unique among the values of one position: 'atom_stability'.
        label: human-readable, with the denominator where one is needed: 'Uniqueness of valid'.
        value: in `unit`; None where it is not defined for these samples (no valid molecule, unknown elements).
        unit: 'fraction', 's', 'MB', 'nats/molecule', 'angstrom', 'count', or '' for a pure number.
        better: the direction of improvement.
        kind: the part of a report.
        low, high: 95 % interval over what was sampled, the trained model held fixed.
        sem: standard error over what was sampled.
        at: position on a curve, such as {'t': 0.5}, {'n_atoms': 9} or {'sampler': 'heun'}; empty for a scalar.
        upper_bound: whether `value` only bounds the quantity from above, and so does not compare with rows without this
            mark.
        definition: one line for the notes below a table, where the label does not say it all.
        items: what `value` is the mean or the ratio of sums of, molecule by molecule (`bench.records.items`): one per
            structure of the test split for a measure, one per sample for a metric. Kept in a file of its own, for
            scalars.
    """

    name: str
    label: str
    value: float | None
    unit: str = ""
    better: Better = Better.NEITHER
    kind: Kind = Kind.QUALITY
    low: float | None = None
    high: float | None = None
    sem: float | None = None
    at: Mapping[str, float | str] = field(default_factory=dict)
    upper_bound: bool = False
    definition: str = ""
    items: np.ndarray | None = field(default=None, compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a record; fields at their default are left out, and `items`."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "items"}
        plain = {key: str(value) if isinstance(value, StrEnum) else value for key, value in changed.items()}
        plain["at"] = dict(self.at)
        return {key: value for key, value in plain.items() if key in ALWAYS or value != DEFAULTS[key]}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], where: str = "value") -> Value:
        """Inverse of `to_dict`; numbers become floats. Raises RecordError for anything else."""
        check(record, VALUE, where)
        at = record.get("at", {})
        if isinstance(record["value"], bool) or any(
            isinstance(place, bool) or not isinstance(place, (*Number, str)) for place in at.values()
        ):
            raise RecordError(
                f"{where}: 'value' is {record['value']!r} at {at!r:.80}, expected numbers, or words in 'at'"
            )
        plain: dict[str, Any] = {
            key: float(value) if key in NUMBERS and value is not None else value for key, value in record.items()
        }
        plain["at"] = {axis: place if isinstance(place, str) else float(place) for axis, place in at.items()}
        try:
            kinds: dict[str, Any] = {
                "better": Better(record.get("better", "neither")),
                "kind": Kind(record.get("kind", "quality")),
            }
        except ValueError as error:
            raise RecordError(f"{where}: {error}") from error
        return cls(**plain | kinds)


NUMBERS = ("value", "low", "high", "sem")
ALWAYS = ("name", "label", "value")
DEFAULTS: dict[str, Any] = {f.name: {} if f.default is MISSING else f.default for f in fields(Value)}
VALUE: dict[str, Any] = {
    "name": str,
    "label": str,
    "value": (*Number, type(None)),
    "unit?": str,
    "better?": str,
    "kind?": str,
    "low?": Number,
    "high?": Number,
    "sem?": Number,
    "at?": dict,
    "upper_bound?": bool,
    "definition?": str,
}
