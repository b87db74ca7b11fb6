"""The main table: the data row, then quality, likelihood and cost of every method on every backbone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.labels import COST, GAP, GUARANTEES, METRICS, MISSING, NLL, QUALITY, TRAIN_TIME, Column
from analysis.load import TRAINING_COST, Frame, Study
from analysis.stats import Group, Summary, best_group, summarise
from analysis.tables.render import Cell, Table, latex, markdown, text
from bench.records.store import write_atomically

N_TEXT = 3  # method, backbone, guarantee
NBSP = "\N{NO-BREAK SPACE}"
BORROWED, OLDER, DIRTY, BOUND = "§", "†", "‡", "≤"
STOCHASTIC = "eval.nll.stochastic"


def build(study: Study, out: Path) -> list[Path]:
    """Write main.md, main.csv and main.tex for a study of one data set; raises OSError when `out` cannot be written."""
    table = main_table(study)
    paths = {
        "md": markdown(table),
        "csv": main_frame(study).to_csv(index=False, lineterminator="\n"),
        "tex": latex(list(_panels(table)), "tab:main"),
    }
    for suffix, content in paths.items():
        write_atomically(out / f"main.{suffix}", content.encode())
    return [out / f"main.{suffix}" for suffix in paths]


def main_table(study: Study) -> Table:
    """The table as cells: data row on top, one row per (method, backbone) in order of first appearance."""
    summaries = {
        column: {group: summarise(study, group, column) for group in study.groups} for column in (*QUALITY, *COST)
    }
    bounds = {is_bound(study, group) for group in study.groups if summaries[NLL][group].n}
    tested = QUALITY if len(bounds) < 2 else METRICS
    best = {column: best_group(summaries[column], bool(column.higher_is_better)) for column in tested}
    rows = [_data_row(study, split) for split in data_splits(study)]
    n_data = len(rows)
    for group in study.groups:
        marks = _marks(study, group)
        cells = [Cell(guarantee(study, group)), Cell(_seeds(study, group))]
        for column, by_group in summaries.items():
            borrowed = column.key in TRAINING_COST and study.of(*group)["borrowed"].any()
            prefix = f"{BOUND} " if column is NLL and is_bound(study, group) else ""
            cells.append(
                _cell(column, by_group[group], group in best.get(column, ()), prefix, BORROWED if borrowed else "")
            )
        rows.append([Cell(group[0] + marks), Cell(group[1]), *cells, Cell(status(study, group))])
    header = ["Method", "Backbone", "Guarantee", "Seeds", *(column.title for column in (*QUALITY, *COST)), "Status"]
    return Table(
        header,
        rows,
        caption(study),
        N_TEXT,
        last_is_text=True,
        rule_after=n_data,
        notes=(provenance(study), *notes(study)),
    )


def main_frame(study: Study) -> Frame:
    """The same as numbers in the records' units: mean, standard deviation over seeds, sampling half-width, seeds."""
    rows: list[dict[str, Any]] = []
    for split in data_splits(study):
        values = _data_values(study, split)
        rows.append({"method": "data", "backbone": "", "guarantee": "", "seeds": "", "status": split} | values)
    for group in study.groups:
        runs = study.of(*group)
        row: dict[str, Any] = {"method": group[0], "backbone": group[1], "guarantee": runs["guarantee"].iloc[0]}
        row |= {
            "seeds": " ".join(str(int(s)) for s in sorted(runs[runs["counted"]]["seed"])),
            "status": status(study, group),
        }
        for column in (*QUALITY, *COST):
            summary = summarise(study, group, column)
            row |= {column.name: summary.mean, f"{column.name}_sd": summary.sd}
            if column in QUALITY:
                row[f"{column.name}_sampling95"] = summary.sampling
        row["nll_is_bound_of_bound"] = is_bound(study, group)
        row["training_cost_of"] = " ".join(runs["weights_from"].dropna())
        rows.append(row)
    return pd.DataFrame(rows)


def print_table(study: Study, width: int = 120) -> str:
    """The main table for a terminal, quality above cost, at most `width` columns."""
    done, wanted = study.progress
    table = main_table(study)
    short = ["method", "backbone", "guarantee", "seeds", *(column.short for column in (*QUALITY, *COST)), "status"]
    # The interval from sampling stands in the written table alone: two blocks must fit a terminal.
    rows = [[Cell(cell.text, cell.small.split(" (")[0].replace("± ", "±")) for cell in row] for row in table.rows]
    if table.rule_after:
        rows[0][0] = Cell("data")  # the full name would take the room of a column
    plain = Table(short, rows, "", table.n_text, table.last_is_text, table.rule_after)
    n_quality = N_TEXT + 1 + len(QUALITY)
    product = short.index(METRICS[-1].short)
    quality = plain.columns([i for i in range(n_quality) if i != product])
    cost = plain.columns([0, 1, *range(n_quality, len(short))])
    heading = f"{study.name}: {done} of {wanted} runs done. {data_label(study)}. Mean ± standard deviation over seeds."
    return "\n".join(
        [heading, "", text(quality, width), "", text(cost, width), *(f"{note}" for note in notes(study, short=True))]
    )


def status(study: Study, group: Group) -> str:
    """'complete', or what keeps the row from being so: '1 failed, 1 missing'."""
    runs = study.of(*group)
    others = runs[~runs["counted"] & (runs["status"] != "duplicate")]["status"]
    counts = dict(others.value_counts(sort=False))
    missing = sum(entry[:2] == group for entry in study.missing())
    if missing:
        counts["missing"] = missing
    return ", ".join(f"{n} {word}" for word, n in counts.items()) or "complete"


def data_label(study: Study) -> str:
    return _listing(study, "data.label") or "no data set recorded"


def data_splits(study: Study) -> list[str]:
    """Splits whose own score stands on top; one, unless runs differ."""
    counted = study.counted
    return [] if "eval.data_row.split" not in counted else list(dict.fromkeys(counted["eval.data_row.split"].dropna()))


def _data_values(study: Study, split: str) -> dict[str, float]:
    runs = study.counted
    runs = runs[runs["eval.data_row.split"] == split]
    keys = {column.name: column.key.replace("eval.metrics.", "eval.data_row.") for column in METRICS}
    return {
        name: float(runs[key].iloc[-1]) for name, key in keys.items() if key in runs and pd.notna(runs[key].iloc[-1])
    }


def _data_row(study: Study, split: str) -> list[Cell]:
    values = _data_values(study, split)
    cells = [Cell(column.show(values.get(column.name))) for column in METRICS]
    others = [Cell(MISSING)] * (len(QUALITY) - len(METRICS) + len(COST))
    return [
        Cell(f"Data ({split} split)"),
        Cell(MISSING),
        Cell(MISSING),
        Cell(MISSING),
        *cells,
        *others,
        Cell("reference"),
    ]


def _cell(column: Column, summary: Summary, bold: bool, prefix: str, mark: str) -> Cell:
    if not summary.n:
        return Cell(MISSING)
    spread = (
        f"± {column.show(summary.sd, like=summary.mean)}" if summary.n > 1 and column.key != "parameters.total" else ""
    )
    sampling = f"({column.show(summary.sampling)})" if summary.sampling == summary.sampling else ""
    return Cell(f"{prefix}{column.show(summary.mean)}{mark}", f"{spread} {sampling}".strip(), bold)


def _seeds(study: Study, group: Group) -> str:
    return str(int(study.of(*group)["counted"].sum()))


def guarantee(study: Study, group: Group) -> str:
    value = study.of(*group)["guarantee"].iloc[0]
    return GUARANTEES.get(value, str(value))


def is_bound(study: Study, group: Group) -> bool:
    """Whether the row's NLL bounds the variational bound from above: its prediction draws a rotation."""
    runs = study.of(*group)
    recorded = runs[STOCHASTIC].dropna() if STOCHASTIC in runs else ()
    # records of before this was written down: of the methods of then, those in law drew
    return bool(any(recorded) if len(recorded) else (runs["guarantee"] == "in_law").any())


def latest_commit(study: Study) -> str | None:
    """Commit of the counted run that was updated last: what 'older code' is measured against."""
    counted = study.counted
    return None if counted.empty else counted.sort_values("updated", kind="stable")["code.commit"].iloc[-1]


def _marks(study: Study, group: Group) -> str:
    runs = study.of(*group)
    runs = runs[runs["counted"]]
    if runs.empty:
        return ""
    older = runs["code.commit"].fillna("").ne(latest_commit(study) or "").any()
    return (OLDER if older else "") + (DIRTY if runs["code.dirty"].eq(True).any() else "")


def _listing(study: Study, column: str, runs: Frame | None = None) -> str:
    """Values of a column over the counted runs (over all runs while none is counted), in order, each once."""
    rows: Any = (study.counted if len(study.counted) else study.runs) if runs is None else runs
    values = rows[column].dropna() if column in rows else ()
    counts = (isinstance(v, (int, float, np.number)) and float(v).is_integer() for v in values)
    return _join(f"{int(v):,}".replace(",", NBSP) if count else str(v) for v, count in zip(values, counts, strict=True))


def _join(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(word for word in words if word))


def caption(study: Study) -> str:
    """What was measured on what; every word of it from the records."""
    done, wanted = study.progress
    partial = "" if done == wanted else f"PARTIAL: {done} of {wanted} runs done. "
    seeds = ", ".join(str(seed) for seed in sorted({int(s) for s in study.counted["seed"]})) or "none yet"
    parts = [
        f"{partial}{data_label(study)} (fingerprint {_listing(study, 'data.fingerprint')[:12]}; "
        f"{_listing(study, 'data.n_train')} training, {_listing(study, 'data.n_test')} test molecules).",
        f"{_listing(study, 'eval.metrics.n_molecules') or MISSING} samples per run in "
        f"{_listing(study, 'eval.n_sampling_steps') or MISSING} sampling steps; seeds {seeds}; "
        f"{_steps(study)} optimiser steps, {_listing(study, 'eval.weights').upper() or MISSING} weights.",
        "Mean over seeds ± sample standard deviation over seeds (half-width of the 95 % interval of that mean from the "
        "finite number of sampled molecules).",
        "Bold: best mean, and means not significantly worse than it (t-tests with seeds as blocks and pooled scatter, "
        "Holm-corrected, 5 %; rows of one seed are left out); a column in which the seeds separate nothing has no "
        "bold, "
        "nor has the NLL where rows bound it differently.",
        f"NLL: variational bound on the {_listing(study, 'eval.nll.split') or 'test'} split, in nats per molecule.",
    ]
    return " ".join(parts)


def _steps(study: Study) -> str:
    runs = study.counted if len(study.counted) else study.runs
    if "n_steps" not in runs:
        return MISSING
    trained = runs[runs["n_steps"] > 0]
    return _listing(study, "eval.step", trained) or _listing(study, "n_steps", trained)  # the clock may have ended it


def provenance(study: Study) -> str:
    """Commit, device, dtype, compile mode and versions of the counted runs, in one line."""
    runs = study.counted if len(study.counted) else study.runs
    commits = _join(str(commit)[:10] for commit in runs["code.commit"].dropna())
    settings = (("device", "device"), ("dtype", ""), ("n_threads", "threads"), ("compile", ""))
    environment = [f"{word} {_listing(study, f'environment.{key}')}".strip() for key, word in settings]
    versions = sorted(column for column in runs if column.startswith("environment.versions."))
    packages = [
        f"{c.removeprefix('environment.versions.')} {_listing(study, c)}" for c in versions if _listing(study, c)
    ]
    parallel = _listing(study, "cost.n_parallel")
    shared = [f"{parallel} run(s) at a time on the machine"] if parallel else []
    rdkit = _listing(study, "scored.versions.rdkit")
    elsewhere = [f"runs of lent machines scored on another, with rdkit {rdkit}"] if rdkit else []
    words = [f"commit {commits or 'unknown'}", *environment, *shared, *packages, *elsewhere]
    return f"Measured with equibench {_listing(study, 'code.version')}, {', '.join(words)}."


def notes(study: Study, short: bool = False) -> list[str]:
    """What the marks of the table mean; only the marks that occur."""
    counted, out = study.counted, []
    present = [group for group in study.groups if study.of(*group)["counted"].any()]
    if any(is_bound(study, group) for group in present):
        long = (
            ": the prediction draws a rotation, and the mean over such draws bounds the NLL from above once more, so "
            "that a "
            "comparison with a value without this mark favours the latter"
        )
        out.append(f"{BOUND} upper bound of the variational bound{'' if short else long}.")
    gaps = [line for group in present if (line := mixture(study, group))]
    if gaps and not short:
        out.append(
            "More draws per step of the bound than one lower the NLL, in nats ± standard error over molecules, by: "
            f"{'; '.join(gaps)}."
        )
    if counted["borrowed"].any():
        out.append(f"{BORROWED} trains nothing; training cost is that of the run whose weights it uses.")
    if any(OLDER in _marks(study, group) for group in study.groups):
        out.append(
            f"{OLDER} holds a run made with another commit than the newest one ({str(latest_commit(study))[:10]})."
        )
    if any(DIRTY in _marks(study, group) for group in study.groups):
        out.append(f"{DIRTY} holds a run made with uncommitted changes in the code.")
    if not short and len(counted):
        out.append(f"{TRAIN_TIME.label} time counts optimiser steps alone, without evaluation.")
    return out


def mixture(study: Study, group: Group) -> str | None:
    """By how much more draws lower the NLL of a row, where its runs measured it."""
    runs = study.of(*group)
    runs = runs[runs["counted"]]
    if GAP.key not in runs or runs[GAP.key].isna().all():
        return None
    draws = _listing(study, "eval.nll.mixture.n_draws", runs)
    gap, sems = runs[GAP.key].mean(), runs[f"{GAP.key}_sem"].dropna()
    sem = (sems**2).sum() ** 0.5 / len(sems)
    return f"{' / '.join(group)} {GAP.show(gap)} ± {GAP.show(sem, like=gap)} ({draws} draws)"


def _panels(table: Table) -> Iterable[Table]:
    n_quality = N_TEXT + 1 + len(QUALITY)
    yield table.columns(range(n_quality))
    yield table.columns([0, 1, *range(n_quality, len(table.header))])
