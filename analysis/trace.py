"""`equibench trace`: from a cell of the main table to the runs behind it, their records, and how to make them again."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path

from analysis.labels import COST, QUALITY, Column
from analysis.load import TRAINING_COST, Frame, Study
from analysis.stats import Group, summarise
from analysis.tables.main import data_splits

DATA_ROW = "data"
COLUMNS = (*QUALITY, *COST)


def trace(study: Study, row: str, column: str) -> str:
    """What stands behind a cell, for reading.

    Args:
        row: a method, or method and backbone where it runs on several; 'data' for the row on top.
        column: a name as in main.csv, or as the tables or the terminal head it.
    Raises:
        ValueError: no such row or column, or several rows are meant; the message lists what there is.
    """
    asked = find_column(column)
    blocks = []
    for part in study.parts():  # a table for each data set
        if row.strip().lower() == DATA_ROW:
            blocks += _data_row(part, asked)
        elif (group := find_group(study, row)) in part.groups:
            blocks.append(_cell(part, group, asked))
    if not blocks:
        raise ValueError(f"{asked.label} of the data set itself is not in the table; only metrics of samples are")
    return "\n\n".join(blocks)


def find_column(name: str) -> Column:
    """A column by any of its names."""
    known = {word.lower(): column for column in COLUMNS for word in (column.name, column.label, column.short)}
    if (found := known.get(name.strip().lower())) is not None:
        return found
    raise ValueError(f"no column {name!r}; {_nearest(name, [column.name for column in COLUMNS])}")


def find_group(study: Study, row: str) -> Group:
    """The (method, backbone) meant by 'method', 'method backbone' or 'method/backbone'; the start of it is enough."""
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
    for _, run in runs[runs["counted"]].sort_values("seed").iterrows():
        lines += [*_run(study, run, column), ""]
    others = [
        f"not counted: {run['run']} ({run['status']}{f': {run.reason}' if isinstance(run['reason'], str) else ''})"
        for _, run in runs[~runs["counted"]].iterrows()
    ]
    return "\n".join([*lines, *others]).rstrip()


def _data_row(study: Study, column: Column) -> list[str]:
    """The data row shows what the last counted run of a split has recorded of the test molecules."""
    key = column.key.replace("eval.metrics.", "eval.data_row.")
    blocks = []
    for split in data_splits(study) if key != column.key else ():
        run = study.counted[study.counted["eval.data_row.split"] == split].iloc[-1]
        head = f"{study.name}, data ({split} split), {column.title}: {column.show(run[key])}"
        blocks.append("\n".join([head, "", *_run(study, run, Column(key, column.label, column.unit, "", None))]))
    return blocks


def _run(study: Study, run: Frame, column: Column) -> list[str]:
    value = run.get(column.key)
    home = run
    if run["borrowed"] and column.key in TRAINING_COST:
        parents = study.runs[study.runs["run"] == run["weights_from"]]
        home = parents.iloc[0] if len(parents) else run
    commit, folder = run["code.commit"], Path(run["path"])
    known = isinstance(commit, str)
    changed = ", with uncommitted changes: not exactly reproducible" if run["code.dirty"] is True else ""
    lines = {
        "run": f"{run['run']}, seed {int(run['seed'])}",
        "value": f"{value!r}" if value is None else f"{float(value)!r}",
        "record": _record(Path(home["path"]), column),
        "commit": f"{commit if known else 'unknown'}{changed}",
        "config": str(folder / "config.yaml"),
        "data": f"{run['data.label']}, fingerprint {run['data.fingerprint']}",
    }
    if isinstance(run["weights_from"], str):
        lines["weights"] = f"of {run['weights_from']}"
    lines["again"] = f"equibench run {shlex.quote(str(folder / 'config.yaml'))}"
    return [f"{key:8}{line}" for key, line in lines.items()]


def _record(folder: Path, column: Column) -> str:
    """File and key that hold the value."""
    if column.key.endswith("valid_and_unique"):
        return f"{folder / 'eval.json'}: metrics.validity * metrics.uniqueness"
    file, key = ("eval.json", column.key[5:]) if column.key.startswith("eval.") else ("manifest.json", column.key)
    return f"{folder / file}: {key}"
