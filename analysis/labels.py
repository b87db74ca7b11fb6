"""Columns of tables and axes of figures, derived from the values that a study's records hold.

A value brings its label, unit, direction and kind (`bench.records.values`). Here these become a `Column`, with a
readable scale and number of decimals. No metric is named here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.records.values import Better, Kind

MISSING = "–"
TINY = 1e-5  # in the unit of the column: values below have an exponent, not zeros
GUARANTEES = {"exact": "exact", "in_law": "in law", "at_optimum": "at optimum", "none": "none"}
ARROWS = {Better.HIGHER: " ↑", Better.LOWER: " ↓", Better.NEITHER: ""}
# units of time: the largest value of a column below the bound, shown in, factor from seconds
TIMES = ((1e-3, "µs", 1e6), (1.0, "ms", 1e3), (100.0, "s", 1.0), (6000.0, "min", 1 / 60), (float("inf"), "h", 1 / 3600))
COUNTS = ((1e4, "", 1.0), (1e7, "10³", 1e-3), (float("inf"), "10⁶", 1e-6))


@dataclass(frozen=True)
class Column:
    """One measured quantity.

    Attributes:
        name: column of the CSV files, `column_name` of its values; numbers there are in the record's unit.
        label: for people, without unit.
        unit: unit after scaling, '' for a pure number.
        better: the direction of improvement; kind: the part of a report that shows it.
        scale: factor from the record's unit to `unit`.
        digits: decimals shown; None means three significant figures.
        definition: one line for the notes, or ''.
    """

    name: str
    label: str
    unit: str = ""
    better: Better = Better.NEITHER
    kind: Kind = Kind.QUALITY
    scale: float = 1.0
    digits: int | None = None
    definition: str = ""

    @property
    def title(self) -> str:
        """Label with unit in brackets, for headers and axes."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def short(self) -> str:
        """Label with unit, for the terminal."""
        return f"{self.label} {self.unit}".rstrip()

    def show(self, value: float | None, signed: bool = False, like: float | None = None) -> str:
        """A recorded value in the column's unit, with the decimals of `like`; a dash if there is no value."""
        if value is None or value != value:
            return MISSING
        scaled, alike = value * self.scale, (value if like is None else like) * self.scale
        if self.digits is None and 0 < abs(alike) < TINY:
            form = ".1e"
        else:
            form = f".{significant(alike) if self.digits is None else self.digits}f"
        return f"{scaled:{'+' if signed else ''}{form}}".replace("-", "−")


def column_name(name: str, at: Mapping[str, Any]) -> str:
    """Column name of a value: its name, and its non-numeric position in brackets, as in 'rmsd[sampler=heun]'."""
    words = [f"{axis}={word}" for axis, word in sorted(at.items()) if isinstance(word, str)]
    return f"{name}[{','.join(words)}]" if words else name


def columns(values: Any) -> list[Column]:
    """Columns of a frame of values (`Study.values`), by kind and then in order of first appearance.

    If runs describe one quantity differently, the newest description is used. Columns that words alone tell apart have
    one scale.
    """
    found = []
    largest = values["value"].abs().groupby(values["name"]).max() if len(values) else {}
    for name, rows in values.groupby("column", sort=False) if len(values) else ():
        newest = rows.iloc[-1]
        unit, scale, digits = display(newest["unit"], float(largest[newest["name"]]))
        label = ", ".join([newest["label"], *([words_of(newest["words"])] if newest["words"] else [])])
        better, kind = Better(newest["better"]), Kind(newest["kind"])
        found.append(Column(str(name), label, unit, better, kind, scale, digits, newest["definition"]))
    return sorted(found, key=lambda column: list(Kind).index(column.kind))


def words_of(words: Iterable[tuple[str, str]]) -> str:
    """The words of a position (`Study.values`), as in 'part rotation, weights initial'."""
    return ", ".join(f"{axis} {word}" for axis, word in words)


def display(unit: str, largest: float) -> tuple[str, float, int | None]:
    """Displayed unit, scale and decimals (None for three significant figures) for values up to `largest`.

    The part after a slash stays: 's/molecule' becomes 'ms/molecule'.
    """
    base, slash, per = unit.partition("/")
    largest = largest if largest == largest else 0.0
    if base == "fraction":
        return f"%{slash}{per}", 100.0, 1
    if base == "s":
        shown, scale = next((shown, scale) for bound, shown, scale in TIMES if largest < bound)
        return f"{shown}{slash}{per}", scale, None
    if base == "MB":
        return unit, 1.0, 0
    if base == "count":
        shown, scale = next((shown, scale) for bound, shown, scale in COUNTS if largest < bound)
        return f"{shown}{slash}{per}", scale, 0 if largest * scale >= 10 else None
    if base == "nats":
        return unit, 1.0, max(1, significant(largest))
    return unit, 1.0, None


def significant(value: float, figures: int = 3) -> int:
    """Number of decimals that shows `figures` significant figures; all integer digits are kept."""
    value, digits = abs(value), figures - 1
    while value >= 10 and digits > 0:
        value, digits = value / 10, digits - 1
    while 0 < value < 1 and digits < 6:
        value, digits = value * 10, digits + 1
    return digits


def directed(found: Iterable[Column]) -> list[Column]:
    """Columns with a direction of improvement."""
    return [column for column in found if column.better is not Better.NEITHER]
