"""How many seeds it takes to tell methods apart, from the scatter of paired differences that a study measured."""

from __future__ import annotations

import math
from pathlib import Path

from analysis.labels import MISSING, Column
from analysis.stats import Difference, least_effect, seeds_needed
from analysis.study import Study
from analysis.tables.paired import comparisons, shown_columns
from analysis.tables.render import Cell, Table, markdown
from bench.records.store import write_atomically
from bench.records.values import Better

SIZES = (3, 5, 10)  # seeds for which the least difference is told
MOST = 1000


def build(study: Study, out: Path, reference: str | None = None) -> list[Path]:
    """Write power.md; nothing where no pair of rows has two common seeds.

    Raises:
        ValueError: `reference` is no row of the study. OSError: `out` cannot be written.
    """
    table = power_table(study, reference)
    if table is None:
        return []
    write_atomically(out / "power.md", markdown(table).encode())
    return [out / "power.md"]


def power_table(study: Study, reference: str | None = None) -> Table | None:
    """One line per pair and quantity; None where no scatter is known."""
    found = comparisons(study, reference)
    rows = []
    for group, other, differences in found:
        for column in shown_columns(study):
            d = differences[column.name]
            if d.n > 1 and not d.bound and column.better is not Better.NEITHER:
                sd = _pooled([all_[column.name] for _, theirs, all_ in found if theirs == other])
                names = [Cell(group[0]), Cell(group[1]), Cell(" / ".join(other)), Cell(_title(study, column))]
                rows.append([*names, *_cells(column, d, sd)])
    if not rows:
        return None
    header = [
        "Method",
        "Backbone",
        "Minus",
        "Quantity",
        "Pairs",
        "Difference",
        "SD over seeds",
        "Floor",
        "Seeds needed",
    ]
    header += [f"Least at {n} seeds" for n in SIZES]
    caption = (
        "Seeds with which a two-sided paired t-test at 5 % finds a difference with 80 % power, if the true difference "
        "and the scatter over seeds are those measured (the scatter is pooled over rows with one reference); and the "
        "least difference that a number of seeds finds. Floor: standard error from the molecules that seeds share, "
        "which more seeds do not lower."
    )
    return Table(header, rows, caption, n_text=4, notes=NOTES)


NOTES = (
    "* primary outcome. Differences in the unit of the quantity, those of percentages in points.",
    "A standard deviation from few pairs is rough (from three pairs alone, its 95 % interval reaches from half to six "
    "times the value), and a difference that was chosen for being large is too large: plan with more seeds.",
    f"{MISSING} under 'Seeds needed': more than {MOST}, since the difference is too small, or the floor too high (then "
    "more molecules help); under 'Floor': not known, as the records hold no values of single molecules.",
    "How many steps would tell methods apart does not follow from one training length, and is not told here.",
)


def _pooled(differences: list[Difference]) -> float:
    """Standard deviation over seeds, pooled over pairs of rows."""
    known = [(d.n - 1, d.sd) for d in differences if d.n > 1]
    return math.sqrt(sum(freedom * sd**2 for freedom, sd in known) / sum(freedom for freedom, _ in known))


def _title(study: Study, column: Column) -> str:
    return f"{column.title}{' *' if column in study.primary else ''}"


def _cells(column: Column, d: Difference, sd: float) -> list[Cell]:
    needed = seeds_needed(d.mean, sd, d.shared, most=MOST) if sd**2 + d.shared > 0 else None
    like = sd or None
    least = [Cell(column.show(least_effect(sd, d.shared, n), like=like)) for n in SIZES]
    floor = column.show(math.sqrt(d.shared), like=like) if d.over_molecules else MISSING
    told = [str(d.n), column.show(d.mean, signed=True, like=like), column.show(sd, like=like), floor]
    return [*map(Cell, told), Cell(MISSING if needed is None else str(needed)), *least]
