"""What a measure found: one table for each, a row for each scalar, a column for each method on its backbone."""

from __future__ import annotations

from pathlib import Path

from analysis.labels import MISSING, Column
from analysis.stats import evaluated, summarise
from analysis.study import Study
from analysis.tables.render import Cell, Table, markdown
from bench.records.store import write_atomically
from bench.records.values import Kind


def build(study: Study, out: Path) -> list[Path]:
    """Write measured-NAME.md for each measure that found scalars which the main table lacks; returns the files."""
    paths = []
    for measure in study.measures:
        if (table := measured_table(study, measure)) is not None:
            paths.append(out / f"measured-{measure}.md")
            write_atomically(paths[-1], markdown(table).encode())
    return paths


def measured_columns(study: Study, measure: str) -> list[Column]:
    """Scalars that a measure found and the main table lacks, those of one quantity together."""
    rows = study.scalars
    rows = rows[(rows["measure"] == measure) & rows["value"].notna()]
    order = {column: i for i, column in enumerate(dict.fromkeys(rows["name"]))}
    names = dict(zip(rows["column"], rows["name"], strict=True))
    found = [column for column in study.of_kind(Kind.DIAGNOSTIC) if column.name in names]
    return sorted(found, key=lambda column: order[names[column.name]])


def measured_table(study: Study, measure: str) -> Table | None:
    """The table as cells; None where there is nothing to show."""
    columns = measured_columns(study, measure)
    if not columns:
        return None
    summaries = {c: {group: summarise(study, group, c) for group in evaluated(study)} for c in columns}
    groups = [group for group in evaluated(study) if any(by[group].n for by in summaries.values())]
    rows = []
    for column, by in summaries.items():
        cells = []
        for summary in (by[group] for group in groups):
            arms = summary.arms
            within = column.show(max(arms), like=summary.mean) if arms[0] == arms[0] else ""
            spread = f"± {column.show(summary.sd, like=summary.mean)}" if summary.n > 1 else ""
            small = f"{spread} {f'({within})' if within else ''}".strip()
            cells.append(Cell(column.show(summary.mean), small) if summary.n else Cell(MISSING))
        rows.append([Cell(column.title), *cells])
    defined = {column.label.partition(",")[0]: column.definition.rstrip(".") for column in columns if column.definition}
    return Table(
        ["Value", *(" / ".join(group) for group in groups)],
        rows,
        "Mean over seeds ± standard deviation over seeds (in brackets: half the 95 % interval over what was drawn, "
        "these models held fixed).",
        notes=[" ".join(f"{label}: {about}." for label, about in defined.items())] if defined else [],
        title=f"What the measure `{measure}` found.",
    )
