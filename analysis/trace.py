"""`equibench trace`: from a cell of the main table to the runs behind it, their records, and how to reproduce them."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.labels import MISSING, Column
from analysis.stats import Group, summarise
from analysis.study import Frame, Study, codes
from bench.records.store import RunFolder

DATA_ROW = "data"


def trace(study: Study, row: str, column: str) -> str:
    """The runs behind a cell, as text.

    Args:
        row: a method, or method and backbone where it runs on several; 'data' for the row on top.
        column: its name in main.csv, or its heading in the tables or on the terminal.
    Raises:
        ValueError: no such row or column, or several rows match; the message lists the choices.
    """
    parts = study.parts()  # one table per data set
    asked = find_column([known for part in parts for known in part.columns], column)
    blocks = []
    for part in parts:
        found = next((known for known in part.columns if known.name == asked.name), asked)
        if row.strip().lower() == DATA_ROW:
            blocks += _data_row(part, found)
        elif (group := find_group(study, row)) in part.groups:
            blocks.append(_cell(part, group, found))
    if not blocks:
        raise ValueError(f"no run has recorded {asked.label!r} of the data set itself; only metrics of samples are")
    return "\n\n".join(blocks)


def find_column(columns: Sequence[Column], name: str) -> Column:
    """A column by any of its names."""
    known = {word.lower(): column for column in columns for word in (column.name, column.label, column.short)}
    if (found := known.get(name.strip().lower())) is not None:
        return found
    raise ValueError(f"no column {name!r}; {_nearest(name, list(dict.fromkeys(column.name for column in columns)))}")


def find_group(study: Study, row: str) -> Group:
    """The (method, backbone) given as 'method', 'method backbone' or 'method/backbone', or as a prefix of one."""
    asked = " ".join(row.replace("/", " ").lower().split())
    names = {" ".join(group).lower(): group for group in study.groups}
    exact = [group for name, group in names.items() if asked in (name, group[0].lower())]
    fitting = exact or [group for name, group in names.items() if name.startswith(asked)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ValueError(f"{row!r} may be any of {', '.join(repr(' '.join(group)) for group in fitting)}")
    raise ValueError(f"no row {row!r}; {_nearest(row, [' '.join(group) for group in study.groups])}")


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(known)}, or {DATA_ROW}"


def _cell(study: Study, group: Group, column: Column) -> str:
    summary, runs = summarise(study, group, column), study.of(*group)
    shown = f"{column.show(summary.mean)}" + (
        f" ± {column.show(summary.sd, like=summary.mean)}" if summary.n > 1 else ""
    )
    lines = [f"{study.name}, {' on '.join(group)}, {column.title}: {shown}, mean of {summary.n} runs", ""]
    values = study.scalars[study.scalars["column"] == column.name].set_index("run")
    for _, run in runs[runs["counted"]].sort_values("seed").iterrows():
        value = values.loc[run["run"]] if run["run"] in values.index else None
        lines += [*_run(run, value), ""]
    others = [
        f"not counted: {run['run']} ({run['status']}{f': {run.reason}' if isinstance(run['reason'], str) else ''})"
        for _, run in runs[~runs["counted"]].iterrows()
    ]
    return "\n".join([*lines, *others]).rstrip()


def _data_row(study: Study, column: Column) -> list[str]:
    """The values in the data row: those recorded by the newest counted run."""
    values = study.values
    rows = values[(values["of"] == "data") & values["counted"] & values["scalar"] & (values["column"] == column.name)]
    if rows.empty:
        return []
    newest = rows.iloc[-1]
    run = study.counted[study.counted["run"] == newest["run"]].iloc[0]
    head = f"{study.name}, data, {column.title}: {column.show(newest['value'])}"
    return ["\n".join([head, "", *_run(run, newest)])]


def _run(run: Frame, value: Frame | None) -> list[str]:
    """A run and its value, a row of `Study.values` (None where it has none)."""
    folder = Path(run["path"])
    shown, record = MISSING, MISSING
    if value is not None:
        shown = f"{float(value['value'])!r}"
        record = f"{folder.parent / value['source'] / value['file']}: {value['entry']}.value"
    lines = {
        "run": f"{run['run']}, seed {int(run['seed'])}",
        "value": shown,
        "record": record,
        "commit": _code(run),
        "config": str(RunFolder(folder).config),
        "data": f"{run['data.label']}, fingerprint {run['data.fingerprint']}",
    }
    if isinstance(run["weights_from"], str):
        lines["weights"] = f"of {run['weights_from']}"
    lines["again"] = f"equibench run {shlex.quote(str(RunFolder(folder).config))}"
    return [f"{key:8}{line}" for key, line in lines.items()]


def _code(run: Frame) -> str:
    """The commit that made a run; where several trained it, each with its share of the steps."""
    first, *others = trained = codes(run)
    if not others:
        return _commit(first)
    n_steps = sum(code["steps"] for code in trained)
    return "; then ".join(f"{code['steps'] / n_steps:.1%} of the steps by {_commit(code)}" for code in trained)


def _commit(code: Mapping[str, Any]) -> str:
    commit = code["commit"] or "unknown"
    return f"{commit}, with uncommitted changes: not exactly reproducible" if code["dirty"] is True else commit
