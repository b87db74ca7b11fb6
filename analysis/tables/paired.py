"""Differences to a reference method on common seeds, each with its interval."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.labels import MISSING, Column
from analysis.load import Frame, Study
from analysis.stats import Difference, Group, Summary, evaluated, paired, reference_for, reference_group, summarise
from analysis.tables.main import AT_LEAST, BOUND, is_bound
from analysis.tables.render import Cell, Table, csv, latex, markdown
from bench.records.store import write_atomically


def build(study: Study, out: Path, reference: str | None = None) -> list[Path]:
    """Write paired.md, paired.csv and paired.tex; nothing when fewer than two rows are evaluated.

    Raises:
        ValueError: `reference` is no method of the study. OSError: `out` cannot be written.
    """
    table = paired_table(study, reference)
    if table is None:
        return []
    paths = {
        "md": markdown(table),
        "csv": csv(paired_frame(study, reference)),
        "tex": latex([table], "tab:paired"),
    }
    for suffix, content in paths.items():
        write_atomically(out / f"paired.{suffix}", content.encode())
    return [out / f"paired.{suffix}" for suffix in paths]


def comparisons(study: Study, reference: str | None = None) -> list[tuple[Group, Group, dict[str, Difference]]]:
    """(row, its reference, column name -> difference) for every evaluated row that is not its own reference."""
    first = reference_group(study, reference)
    if first is None:
        return []
    columns, groups = study.compared, evaluated(study)
    summaries = {group: {c.name: summarise(study, group, c) for c in columns} for group in groups}
    found = []
    for group in groups:
        other = reference_for(group, first, groups)
        if other != group:
            pairs = {c.name: paired(summaries[group][c.name], summaries[other][c.name]) for c in columns}
            found.append((group, other, pairs))
    return found


def paired_table(study: Study, reference: str | None = None) -> Table | None:
    """The differences as cells; None if there is nothing to compare."""
    found = comparisons(study, reference)
    if not found or not study.compared:
        return None
    rows = []
    for group, other, differences in found:
        cells = []
        for column in study.compared:
            d = differences[column.name]
            # An upper bound minus an exact value bounds the difference from above, so it cannot prove an increase; an
            # exact value minus an upper bound cannot prove a decrease.
            mine, theirs = is_bound(study, group, column), is_bound(study, other, column)
            above, below = mine and not theirs, theirs and not mine
            interval = f"[{column.show(d.low, signed=True)}, {column.show(d.high, signed=True)}]" if d.n > 1 else ""
            found_one = d.n > 1 and ((d.high < 0 and not below) or (d.low > 0 and not above))
            prefix = f"{BOUND} " if above else f"{AT_LEAST} " if below else ""
            cells.append(Cell(prefix + column.show(d.mean, signed=True), interval, bold=found_one))
        n = max(d.n for d in differences.values())
        rows.append([Cell(group[0]), Cell(group[1]), Cell(" / ".join(other)), Cell(str(n) if n else MISSING), *cells])
    header = ["Method", "Backbone", "Minus", "Pairs", *(_title(column) for column in study.compared)]
    caption = (
        "Paired differences on common seeds: mean [95 % interval, Student's t over seeds]. Bold: the interval leaves "
        "out zero (one comparison at a time, not corrected for their number)."
    )
    return Table(header, rows, caption, n_text=3, notes=[_warning(found)])


def _title(column: Column) -> str:
    """Label and unit; a difference of percentages is in points."""
    return f"{column.label} (points)" if column.unit == "%" else column.title


def _warning(found: list[tuple[Group, Group, dict[str, Difference]]]) -> str:
    n = max(d.n for _, _, differences in found for d in differences.values())
    if n < 2:
        return "With one common seed there is no interval: a difference between trainings cannot be told from chance."
    factors = {2: 12.71, 3: 4.30, 4: 3.18}
    if n in factors:
        return (
            f"With {n} common seeds Student's t factor is {factors[n]} (1.96 for many): the intervals are wide "
            "because so few trainings say little about the next one. An interval that holds zero does not show that "
            "methods are equal."
        )
    return "An interval that holds zero does not show that two methods are equal."


def paired_frame(study: Study, reference: str | None = None) -> Frame:
    """The differences as numbers in the records' units, one line per row and quantity, also seed by seed."""
    rows = []
    for group, other, differences in comparisons(study, reference):
        for column in study.compared:
            d = differences[column.name]
            a, b = (summarise(study, g, column) for g in (group, other))
            row = {"method": group[0], "backbone": group[1], "reference": " / ".join(other), "quantity": column.name}
            row |= {"n_pairs": d.n, "difference": d.mean, "low95": d.low, "high95": d.high, "p": d.p}
            rows.append(row | {"differences_by_seed": _by_seed(a, b)})
    return pd.DataFrame(rows)


def _by_seed(a: Summary, b: Summary) -> str:
    return " ".join(
        f"{seed}:{a.values[seed] - b.values[seed]:.6g}" for seed in sorted(a.values.keys() & b.values.keys())
    )
