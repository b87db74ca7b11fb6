"""Differences to a reference method, paired over seeds and molecules, each with its interval."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.labels import MISSING, Column
from analysis.stats import FEW, Difference, Group, evaluated, paired, references, summarise
from analysis.study import Frame, Study
from analysis.tables.main import BOUND, label
from analysis.tables.render import Cell, Table, csv, latex, markdown
from bench.records.store import write_atomically

TWO = "*"  # an interval that rests on two seeds


def build(study: Study, out: Path, reference: str | None = None) -> list[Path]:
    """Write paired.md, paired.csv and paired.tex; nothing where no row has a reference.

    Raises:
        ValueError: `reference` is no row of the study. OSError: `out` cannot be written.
    """
    table = paired_table(study, reference)
    if table is None:
        return []
    paths = {
        "md": markdown(table),
        "csv": csv(paired_frame(study, reference)),
        "tex": latex([table], label(study, "paired")),
    }
    for suffix, content in paths.items():
        write_atomically(out / f"paired.{suffix}", content.encode())
    return [out / f"paired.{suffix}" for suffix in paths]


def shown_columns(study: Study) -> list[Column]:
    """Quantities compared, the primary outcomes first."""
    return [*study.primary, *(column for column in study.compared if column not in study.primary)]


def comparisons(study: Study, reference: str | None = None) -> list[tuple[Group, Group, dict[str, Difference]]]:
    """(row, its reference, column name -> difference) for every row that has a reference (`stats.references`)."""
    columns = study.compared
    summaries = {group: {c.name: summarise(study, group, c) for c in columns} for group in evaluated(study)}
    return [
        (group, other, {c.name: paired(summaries[group][c.name], summaries[other][c.name]) for c in columns})
        for group, other in references(study, reference).items()
    ]


def paired_table(study: Study, reference: str | None = None) -> Table | None:
    """The differences as cells; None if there is nothing to compare."""
    found, columns = comparisons(study, reference), shown_columns(study)
    if not found or not columns:
        return None
    rows = []
    for group, other, differences in found:
        n = max(d.n for d in differences.values())
        names = [Cell(group[0]), Cell(group[1]), Cell(" / ".join(other)), Cell(str(n) if n else MISSING)]
        rows.append([*names, *(_cell(column, differences[column.name]) for column in columns)])
    header = ["Method", "Backbone", "Minus", "Pairs", *(_title(column) for column in columns)]
    names = ", ".join(column.label for column in study.primary)
    primary = f" Primary outcomes: {names}; the others are secondary." if names else ""
    caption = (
        "Differences to the row under 'Minus', paired over seeds and, where records hold values of single molecules, "
        f"over molecules: mean [95 % interval].{primary} Bold: the interval leaves out zero (one comparison at a time, "
        "not corrected for their number)."
    )
    return Table(header, rows, caption, n_text=3, notes=_notes(study, found), files=("paired.csv", "paired.tex"))


def _cell(column: Column, d: Difference) -> Cell:
    if d.bound:
        return Cell(BOUND)
    known = d.low == d.low
    interval = f"[{column.show(d.low, signed=True)}, {column.show(d.high, signed=True)}]" if known else ""
    few = TWO if known and d.n == FEW else ""
    return Cell(column.show(d.mean, signed=True), interval + few, bold=d.separated)


def _title(column: Column) -> str:
    """Label and unit; a difference of percentages is in points."""
    return f"{column.label} (points)" if column.unit == "%" else column.title


def _notes(study: Study, found: list[tuple[Group, Group, dict[str, Difference]]]) -> list[str]:
    every = [d for _, _, differences in found for d in differences.values()]
    n, notes = max(d.n for d in every), []
    if any(d.bound for d in every):
        notes.append(f"{BOUND} one of the two is only an upper bound, so they are not compared (values: paired.csv).")
    if any(d.n == FEW for d in every):
        notes.append(
            f"{TWO} rests on two seeds: Student's t factor is 12.71 (1.96 for many), since two trainings say little "
            "about the next one; never bold."
        )
    elif n == 1:
        notes.append(
            "With one common seed there is no interval: a difference between trainings cannot be told from chance."
        )
    alone = [
        column.label
        for column in shown_columns(study)
        if any(d[column.name].n > 1 and not d[column.name].over_molecules for _, _, d in found)
    ]
    if alone:
        notes.append(
            f"Over trainings alone, hence for these molecules: {', '.join(alone)}; the records hold no "
            "values of single molecules."
        )
    if n > 1:
        notes.append("An interval that holds zero does not show that two methods are equal; see power.md.")
    return notes


def paired_frame(study: Study, reference: str | None = None) -> Frame:
    """The differences as numbers in the records' units, one line per row and quantity, also seed by seed."""
    rows = []
    for group, other, differences in comparisons(study, reference):
        for column in shown_columns(study):
            d = differences[column.name]
            a, b = (summarise(study, g, column).values for g in (group, other))
            by_seed = " ".join(f"{seed}:{a[seed] - b[seed]:.6g}" for seed in sorted(a.keys() & b.keys()))
            row = {"method": group[0], "backbone": group[1], "reference": " / ".join(other), "quantity": column.name}
            row |= {"primary": column in study.primary, "n_pairs": d.n, "difference": d.mean, "low95": d.low}
            row |= {"high95": d.high, "p": d.p, "over_molecules": d.over_molecules, "bound": d.bound}
            rows.append(row | {"differences_by_seed": by_seed})
    return pd.DataFrame(rows)
