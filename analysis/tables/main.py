"""The main table: the data row, then quality, likelihood and cost of every method on every backbone.

Its columns are the values that the study's records hold; main.csv has the diagnostics too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.labels import GUARANTEES, MISSING, Column
from analysis.load import VALUE_COLUMNS
from analysis.stats import Group, Summary, best_group, summarise
from analysis.study import Frame, Study, codes
from analysis.tables.render import Cell, Table, csv, latex, markdown, natural_widths, text
from bench.records.store import write_atomically
from bench.records.values import Kind

N_TEXT = 3  # method, backbone, guarantee
NAME_WIDTH = 22  # largest width of a text column on a terminal, when columns are split into blocks
NBSP = "\N{NO-BREAK SPACE}"
MANY = 4  # different numbers of steps, above which the first and the last are told
BORROWED, OLDER, DIRTY, FEWER, BOUND = "§", "†", "‡", "¶", "≤"
# columns of values.csv
UNTIDY = ("definition", "words", "scalar", "source", "file", "entry", "measure")
TIDY = [column for column in VALUE_COLUMNS if column not in UNTIDY]


def build(study: Study, out: Path) -> list[Path]:
    """Write main.md, main.csv, main.tex and values.csv for a study of one data set.

    Raises:
        OSError: `out` cannot be written.
    """
    table = main_table(study)
    contents = {
        "main.md": markdown(table),
        "main.csv": csv(main_frame(study)),
        "main.tex": latex(panels(study, table), label(study, "main")),
        "values.csv": csv(values_frame(study)),
    }
    for name, content in contents.items():
        write_atomically(out / name, content.encode())
    return [out / name for name in contents]


def shown_columns(study: Study) -> list[Column]:
    """Columns of the table: all but diagnostics."""
    return [*symmetry_columns(study), *study.compared, *study.costs]


def symmetry_columns(study: Study) -> list[Column]:
    """What stands beside the guarantee: how well it is kept."""
    return study.of_kind(Kind.SYMMETRY)


def main_table(study: Study) -> Table:
    """The table as cells: data row on top, one row per (method, backbone) in order of first appearance."""
    shown = shown_columns(study)
    summaries = {column: {group: summarise(study, group, column) for group in study.groups} for column in shown}
    best = {column: best_group(summaries[column], column.better) for column in study.compared}
    rows = [_data_row(study, shown)] if has_data_row(study) else []
    n_data, n_beside = len(rows), len(symmetry_columns(study))
    titles = [column.title for column in shown]
    for group in study.groups:
        n = len(_counted(study, group))
        found = [_cell(column, by[group], n, group in best.get(column, ())) for column, by in summaries.items()]
        cells = [Cell(guarantee(study, group)), *found[:n_beside], Cell(str(n))]
        cells += found[n_beside:]
        rows.append([Cell(group[0] + _marks(study, group)), Cell(group[1]), *cells, Cell(status(study, group))])
    return Table(
        ["Method", "Backbone", "Guarantee", *titles[:n_beside], "Seeds", *titles[n_beside:], "Status"],
        rows,
        caption(study),
        N_TEXT,
        last_is_text=True,
        rule_after=n_data,
        notes=(provenance(study), *notes(study)),
        title=f"Equivariance strategies on {data_label(study)}; marks and conditions are told below.",
        files=("main.csv", "main.tex"),
    )


def main_frame(study: Study) -> Frame:
    """The table as numbers in the records' units.

    Of each column the mean, `_sd` over seeds, the 95 % interval `_low95`, `_high95` over trainings and molecules, and
    `_within_low95`, `_within_high95`, that over molecules alone.
    """
    rows: list[dict[str, Any]] = []
    if has_data_row(study):
        values = {column.name: found[-1] for column in study.columns if (found := study.data_values(column))}
        rows.append({"method": "data", "backbone": "", "guarantee": "", "seeds": "", "status": "reference"} | values)
    for group in study.groups:
        runs = study.of(*group)
        row: dict[str, Any] = {"method": group[0], "backbone": group[1], "guarantee": runs["guarantee"].iloc[0]}
        seeds = " ".join(str(int(s)) for s in sorted(_counted(study, group)["seed"]))
        row |= {"seeds": seeds, "status": status(study, group)}
        for column in study.columns:
            summary = summarise(study, group, column)
            row |= {column.name: summary.mean, f"{column.name}_sd": summary.sd}
            if column.kind is not Kind.COST:
                row |= dict(zip((f"{column.name}_low95", f"{column.name}_high95"), summary.interval, strict=True))
                ends = f"{column.name}_within_low95", f"{column.name}_within_high95"
                row |= dict(zip(ends, summary.within, strict=True))
            if _has_bounds(study, column):
                row[f"{column.name}_upper_bound"] = summary.upper_bound
        row["training_cost_of"] = " ".join(runs["weights_from"].dropna())
        rows.append(row)
    return pd.DataFrame(rows)


def values_frame(study: Study) -> Frame:
    """Every value of every run that is done and evaluated, with its position, in the records' units."""
    values = study.values[study.values["counted"]]
    return values[[*TIDY, *(column for column in values if column not in VALUE_COLUMNS)]].drop(columns="counted")


def print_table(study: Study, width: int = 120) -> str:
    """The main table for a terminal of `width` columns: quality and likelihood in one block or more, then cost."""
    done, wanted = study.progress
    table, shown, seeds = main_table(study), shown_columns(study), _seeds(study)
    beside, names = range(N_TEXT, seeds), [column.short for column in shown]
    short = ["method", "backbone", "guarantee", *names[: len(beside)], "seeds", *names[len(beside) :], "status"]
    # The sampling interval is only in the written table: here it would take the room of a column.
    spreads = [[cell.small.partition("(")[0].strip().replace("± ", "±") for cell in row] for row in table.rows]
    rows = [
        [Cell(cell.text, spread) for cell, spread in zip(row, line, strict=True)]
        for row, line in zip(table.rows, spreads, strict=True)
    ]
    plain = Table(short, rows, "", table.n_text, table.last_is_text, table.rule_after)
    first, n_compared = seeds + 1, len(study.compared)
    compared, cost = range(first, first + n_compared), range(first + n_compared, len(short) - 1)
    lines = [f"{study.name}: {done} of {wanted} runs done. {data_label(study)}. Mean ± standard deviation over seeds."]
    for block in _blocks(plain, [0, 1, seeds], compared, [], width) + _blocks(
        plain, [0, 1, 2], [*beside, *cost], [len(short) - 1], width
    ):
        lines += ["", text(block, width)]
    return "\n".join([*lines, *notes(study, short=True)])


def _seeds(study: Study) -> int:
    """Place of the column of seeds."""
    return N_TEXT + len(symmetry_columns(study))


def _blocks(table: Table, before: list[int], middle: Iterable[int], after: list[int], width: int) -> list[Table]:
    """Tables of at most `width` characters that split the columns `middle`, each with those before and after."""
    widths = [
        min(natural, NAME_WIDTH) if table.is_text(i) else natural for i, natural in enumerate(natural_widths(table))
    ]
    shares: list[list[int]] = [[]]
    for i in middle:
        if shares[-1] and sum(widths[j] + 2 for j in [*before, *shares[-1], i, *after]) - 2 > width:
            shares.append([])
        shares[-1].append(i)
    return [table.columns([*before, *share, *after]) for share in shares if share or after]


def status(study: Study, group: Group) -> str:
    """'complete', or what the row lacks: '1 failed, 1 missing'."""
    runs = study.of(*group)
    others = runs[~runs["counted"] & (runs["status"] != "duplicate")]["status"]
    counts = dict(others.value_counts(sort=False))
    missing = sum(entry[:2] == group for entry in study.missing())
    if missing:
        counts["missing"] = missing
    return ", ".join(f"{n} {word}" for word, n in counts.items()) or "complete"


def data_label(study: Study) -> str:
    return _listing(study, "data.label") or "no data set recorded"


def has_data_row(study: Study) -> bool:
    """Whether some counted run recorded values of the data set's own structures."""
    return any(study.data_values(column) for column in study.columns)


def _data_row(study: Study, shown: list[Column]) -> list[Cell]:
    found = [study.data_values(column) for column in shown]
    cells = [Cell(column.show(values[-1] if values else None)) for column, values in zip(shown, found, strict=True)]
    n_beside = len(symmetry_columns(study))
    cells = [Cell(MISSING), *cells[:n_beside], Cell(MISSING), *cells[n_beside:]]
    return [Cell("Data"), Cell(MISSING), *cells, Cell("reference")]


def _cell(column: Column, summary: Summary, n_runs: int, bold: bool) -> Cell:
    if not summary.n:
        return Cell(MISSING)
    # a cost that is equal to the last digit was counted, not measured
    repeated = summary.n > 1 and (summary.sd > 0 or column.kind is not Kind.COST)
    spread = f"± {column.show(summary.sd, like=summary.mean)}" if repeated else ""
    sampling = "" if column.kind is Kind.COST else _arms(column, summary)
    prefix = f"{BOUND} " if summary.upper_bound else ""
    mark = (BORROWED if summary.borrowed else "") + (FEWER if summary.n < n_runs else "")
    return Cell(f"{prefix}{column.show(summary.mean)}{mark}", f"{spread} {sampling}".strip(), bold)


def _arms(column: Column, summary: Summary) -> str:
    """From the mean to the ends of its interval over molecules: '(0.6)', or '(−0.3 +0.5)' where they differ."""
    if summary.arms[0] != summary.arms[0]:
        return ""
    below, above = (column.show(arm, like=summary.mean) for arm in summary.arms)
    return f"({below})" if below == above else f"(−{below} +{above})"


def _counted(study: Study, group: Group) -> Frame:
    runs = study.of(*group)
    return runs[runs["counted"]]


def guarantee(study: Study, group: Group) -> str:
    value = study.of(*group)["guarantee"].iloc[0]
    return GUARANTEES.get(value, str(value))


def is_bound(study: Study, group: Group, column: Column) -> bool:
    """Whether the row's value is only an upper bound on the quantity."""
    return summarise(study, group, column).upper_bound


def without_items(study: Study) -> list[str]:
    """Labels of the compared columns of which some counted run kept no values of single molecules."""
    rows = study.scalars
    return [
        column.label
        for column in study.compared
        if any(column.name not in study.items.get(run, {}) for run in rows[rows["column"] == column.name]["source"])
    ]


def _has_bounds(study: Study, column: Column) -> bool:
    rows = study.scalars
    return bool(rows[rows["column"] == column.name]["upper_bound"].any())


def latest_commit(study: Study) -> str | None:
    """Commit of the counted run that was updated last; runs of other commits count as older code."""
    counted = study.counted
    return None if counted.empty else codes(counted.sort_values("updated", kind="stable").iloc[-1])[-1]["commit"]


def _marks(study: Study, group: Group) -> str:
    runs = _counted(study, group)
    if runs.empty:
        return ""
    trained = [code for _, run in runs.iterrows() for code in codes(run)]
    older = any(code["commit"] != latest_commit(study) for code in trained)
    return (OLDER if older else "") + (DIRTY if any(code["dirty"] for code in trained) else "")


def _listing(study: Study, column: str, runs: Frame | None = None) -> str:
    """Values of a column over the counted runs (over all runs while none is counted), in order, each once."""
    rows: Any = (study.counted if len(study.counted) else study.runs) if runs is None else runs
    values = rows[column].dropna() if column in rows else ()
    counts = (isinstance(v, (int, float, np.number)) and float(v).is_integer() for v in values)
    return _join(f"{int(v):,}".replace(",", NBSP) if count else str(v) for v, count in zip(values, counts, strict=True))


def _join(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(word for word in words if word))


def caption(study: Study) -> str:
    """Data, samples, steps and the meaning of spreads and bold; all facts from the records."""
    done, wanted = study.progress
    partial = "" if done == wanted else f"PARTIAL: {done} of {wanted} runs done. "
    seeds = ", ".join(str(seed) for seed in sorted({int(s) for s in study.counted["seed"]})) or "none yet"
    parts = [
        f"{partial}{data_label(study)} (fingerprint {_listing(study, 'data.fingerprint')[:12]}; "
        f"{_listing(study, 'data.n_train')} training, {_listing(study, 'data.n_test')} test structures).",
        f"{_listing(study, 'eval.n_samples') or MISSING} samples per run in "
        f"{_listing(study, 'eval.n_sampling_steps') or MISSING} sampling steps; seeds {seeds}; "
        f"{_steps(study)} optimiser steps, {_listing(study, 'eval.weights').replace('ema', 'EMA') or MISSING} weights.",
        "Mean over seeds ± sample standard deviation over seeds (in brackets: from that mean to the ends of its 95 % "
        "interval over molecules, these trained models held fixed; what seeds share is not averaged away). The "
        "interval over trainings and molecules together is in main.csv.",
        "Bold: best mean, and means not significantly worse than it (studentised range with seeds as blocks and pooled "
        "scatter, over trainings and molecules, 5 % among rows that are equal; rows of one seed are left out); a "
        "column in which nothing separates has no bold, nor has one that holds upper bounds "
        f"({BOUND}) beside other values.",
    ]
    return " ".join(parts)


def _steps(study: Study) -> str:
    runs = study.counted if len(study.counted) else study.runs
    if "n_steps" not in runs:
        return MISSING
    trained = runs[runs["n_steps"] > 0]
    made = trained["eval.step"].dropna() if "eval.step" in trained else trained["n_steps"]
    if made.nunique() > MANY:
        return " to ".join(f"{int(n):,}".replace(",", NBSP) for n in (made.min(), made.max()))
    return _listing(study, "eval.step", trained) or _listing(study, "n_steps", trained)  # the clock may have ended it


def provenance(study: Study) -> str:
    """Commit, device, dtype, compile mode, kernels and versions of the counted runs, in one line."""
    runs = study.counted if len(study.counted) else study.runs
    commits = _join((code["commit"] or "")[:10] for _, run in runs.iterrows() for code in codes(run))
    settings = (("device", "device"), ("dtype", ""), ("n_threads", "threads"), ("compile", ""))
    environment = [f"{word} {_listing(study, f'environment.{key}')}".strip() for key, word in settings]
    installed = runs["environment.kernels"].dropna() if "environment.kernels" in runs else ()
    if kernels := _join(" and ".join(names) or "none" for names in installed):
        environment.append(f"kernels {kernels}")
    versions = sorted(column for column in runs if column.startswith("environment.versions."))
    packages = [
        f"{c.removeprefix('environment.versions.')} {_listing(study, c)}" for c in versions if _listing(study, c)
    ]
    parallel = _listing(study, "cost.n_parallel")
    shared = [f"{parallel} run(s) at a time on the machine"] if parallel else []
    rdkit = _listing(study, "evaluated.versions.rdkit")
    elsewhere = [f"some samples evaluated on another machine, with rdkit {rdkit}"] if rdkit else []
    words = [f"commit {commits or 'unknown'}", *environment, *shared, *packages, *elsewhere]
    return f"Measured with equibench {_listing(study, 'code.version')}, {', '.join(words)}."


def notes(study: Study, short: bool = False) -> list[str]:
    """The meaning of the table's columns, and of the marks that occur."""
    out, shown = [], shown_columns(study)
    defined = [f"{column.label}: {column.definition.rstrip('.')}." for column in shown if column.definition]
    if defined and not short:
        out.append(" ".join(defined))
    if any(_has_bounds(study, column) for column in study.columns):
        long = ": the quantity itself is lower; not to be compared with rows without this mark"
        out.append(f"{BOUND} upper bound{'' if short else long}.")
    if failed := _failed_samples(study):
        out.append(f"Samples with positions that are not finite, which count as failures in every rate: {failed}.")
    if not short and (lacking := without_items(study)):
        out.append(
            f"Without values of single molecules in the records: {', '.join(lacking)}. There the molecules' part of a "
            "mean counts as shared by all seeds, which makes its intervals too wide rather than too narrow, and bold "
            "and differences hold for these molecules alone."
        )
    if (study.scalars["source"] != study.scalars["run"]).any():
        out.append(f"{BORROWED} trains nothing; training cost is that of the run whose weights it uses.")
    if any(
        0 < summarise(study, group, column).n < len(_counted(study, group))
        for group in study.groups
        for column in shown
    ):
        out.append(f"{FEWER} of fewer seeds than its row: not all runs have it.")
    if any(OLDER in _marks(study, group) for group in study.groups):
        out.append(
            f"{OLDER} holds a run made with another commit than the newest one ({str(latest_commit(study))[:10]})."
        )
    if any(DIRTY in _marks(study, group) for group in study.groups):
        out.append(f"{DIRTY} holds a run made with uncommitted changes in the code.")
    if differing := [column.label for column in study.columns if len(set(study.data_values(column))) > 1]:
        out.append(f"Runs disagree on the data row's {', '.join(differing)}; that of the newest run is shown.")
    return out


def _failed_samples(study: Study) -> str:
    """The share of diverged samples of each row that has some."""
    shares = study.scalars[study.scalars["name"] == "failed_samples"].groupby(["method", "backbone"])["value"].mean()
    return _join(f"{' on '.join(group)} {100 * share:.2g} %" for group, share in shares.items() if share > 0)


def label(study: Study, table: str) -> str:
    """LaTeX label of a table, another one in each study."""
    return f"tab:{table}-{study.name}"


def panels(study: Study, table: Table) -> list[Table]:
    """Quality and likelihood, then cost with what is told of both."""
    n = _seeds(study) + 1 + len(study.compared)
    quality, cost = table.columns(range(n)), table.columns([0, 1, *range(n, len(table.header))])
    return [replace(quality, caption="", notes=(), files=()), replace(cost, title="What the same rows cost.")]
