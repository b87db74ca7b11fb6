"""The records of a study as pandas frames: runs, values and learning curves, and what they say of one another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.labels import Column, columns
from bench.records.values import Better, Kind

# A pandas DataFrame. Typed loosely: pandas' own annotations give unions for every selection, too wide to check.
Frame = Any
VALUE = "value."  # columns of `Study.runs` that hold the values of samples
AT = "at."  # columns of `Study.values` that hold a numeric position
# Keys of a method or backbone in a manifest that are part of its label anyway.
NAMES = ("name", "size")
SAME = ["method", "backbone", "seed", "data.fingerprint"]


@dataclass(frozen=True)
class Study:
    """The records of one study.

    Attributes:
        name: the study's name; folder: where it was read.
        runs: one row per run, oldest first. Columns: keys of manifest.json and, under 'eval.' and 'config.', those of
            eval.json and config.yaml, nested keys joined by dots; under 'value.' its scalar values by column;
            `method` and `backbone` (labels); `strategy` (the method's label without the settings of a sweep); `path`;
            `counted` (done, evaluated, and the newest of its method, backbone, seed and data); `borrowed` (trains
            nothing: it uses the weights of the run in `weights_from`). `status` is done, running, queued (asked for
            and not begun), failed, skipped, duplicate, unreadable, or 'not evaluated' for done without eval.json.
        values: one row per value of eval.json and of measured/*.json: run, method, backbone, seed, counted; `of`
            (samples or data); `column` (`labels.column_name`); the fields of a `Value`, its position as `words`
            ((axis, word), ...) and, one column per numeric axis, 'at.AXIS'; `scalar` (no numeric position); `source`,
            `file` and `entry`, the run that holds it and where: a run that trains nothing has the training cost of
            another; `measure` that found it, '' for values of samples, costs, and all of an early record.
        curves: one row per logging interval: run, method, backbone, seed and the keys of a STEP record.
        problems: one line per record that could not be read.
        items: run -> column -> values of single molecules (`bench.records.items`), of the runs that have them.
    """

    name: str
    folder: Path
    runs: Frame
    values: Frame
    curves: Frame
    problems: tuple[str, ...]
    items: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)

    @property
    def groups(self) -> list[tuple[str, str]]:
        """(method, backbone) pairs in order of first appearance, by the runs' times of creation."""
        known = self.runs.dropna(subset=["method"])
        return list(dict.fromkeys(zip(known["method"], known["backbone"], strict=True)))

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(method for method, _ in self.groups))

    @property
    def counted(self) -> Frame:
        return self.runs[self.runs["counted"]]

    @cached_property
    def scalars(self) -> Frame:
        """Values of samples of the counted runs, without a numeric position."""
        values = self.values
        return values[(values["of"] == "samples") & values["scalar"] & values["counted"]]

    @cached_property
    def scalars_of(self) -> dict[tuple[str, str, str], Frame]:
        """Those that are not missing, by column, method and backbone, in the order of seeds."""
        known = self.scalars[self.scalars["value"].notna()].sort_values("seed", kind="stable")
        return dict(tuple(known.groupby(["column", "method", "backbone"], sort=False)))

    @property
    def measures(self) -> list[str]:
        """Measures that found something of the counted runs, in name order."""
        return sorted({*self.values[self.values["counted"]]["measure"].dropna()} - {""})

    @cached_property
    def columns(self) -> list[Column]:
        """All quantities that the counted runs measured: quality, likelihood, cost, diagnostics."""
        return columns(self.scalars)

    def of_kind(self, *kinds: Kind) -> list[Column]:
        """Columns of some kinds."""
        return [column for column in self.columns if column.kind in kinds]

    @property
    def costs(self) -> list[Column]:
        """Costs; where every run that has one has also measured it apart (`at: {timed: apart}`), that alone."""
        rows, found = self.scalars, self.of_kind(Kind.COST)
        runs_of = {column: set(own.loc[own["value"].notna(), "run"]) for column, own in rows.groupby("column")}
        apart = {column.name: f"{column.name}[timed=apart]" for column in found}
        hidden = {name for name, better in apart.items() if better in runs_of and runs_of[name] <= runs_of[better]}
        return [column for column in found if column.name not in hidden]

    @property
    def compared(self) -> list[Column]:
        """Quality and likelihood: the columns by which methods are compared."""
        return self.of_kind(Kind.QUALITY, Kind.LIKELIHOOD)

    @property
    def primary(self) -> list[Column]:
        """Those to judge by: likelihood and losses on held-out structures, where differences show with fewest runs."""
        return [column for column in self.of_kind(Kind.LIKELIHOOD) if column.better is not Better.NEITHER]

    def data_values(self, column: Column) -> list[float]:
        """Values of the data set's own structures, as recorded by each counted run, oldest first."""
        values = self.values
        values = values[(values["of"] == "data") & values["counted"] & values["scalar"]]
        return values[values["column"] == column.name]["value"].dropna().tolist()

    @property
    def seeds(self) -> list[int]:
        return sorted(int(seed) for seed in self.runs["seed"].dropna().unique())

    def of(self, method: str, backbone: str) -> Frame:
        """Rows of one (method, backbone)."""
        return self.runs[(self.runs["method"] == method) & (self.runs["backbone"] == backbone)]

    def missing(self) -> list[tuple[str, str, int]]:
        """(method, backbone, seed) without a run, although another (method, backbone) of the study has that seed."""
        return [
            (method, backbone, seed)
            for method, backbone in self.groups
            for seed in self.seeds
            if not (self.of(method, backbone)["seed"] == seed).any()
            and (self.of(method, backbone)["status"] != "skipped").any()
        ]

    @property
    def progress(self) -> tuple[int, int]:
        """Number of counted runs, and of runs that the study is known to ask for (without skipped and duplicates)."""
        wanted = ~self.runs["status"].isin(["skipped", "duplicate"])
        # A run with an unreadable manifest is one of the missing ones, though unknown which.
        unknown = int(self.runs["method"].isna().sum())
        return int(self.runs["counted"].sum()), int(wanted.sum()) + max(0, len(self.missing()) - unknown)

    def parts(self) -> list[Study]:
        """One study per data set (fingerprint), since tables never mix data sets; most counted runs first."""
        prints = self.runs["data.fingerprint"].replace("", None)
        if prints.nunique() < 2:
            return [self]
        pieces = []
        for fingerprint in prints.dropna().unique():
            runs = self.runs[(prints == fingerprint) | prints.isna()]
            curves = self.curves[self.curves["run"].isin(runs["run"])]
            runs = labelled(runs)
            values = attached(self.values[self.values["run"].isin(runs["run"])], runs)
            pieces.append(replace(self, runs=runs, values=values, curves=curves))
        return sorted(pieces, key=lambda piece: -len(piece.counted))


def codes(run: Any) -> list[dict[str, Any]]:
    """Every code that trained a run, in order: `commit` (None: unknown), `dirty`; `steps` where there were several."""
    training = run.get("code.training")
    if isinstance(training, list) and training:
        return training
    commit = run.get("code.commit")
    return [{"commit": commit if isinstance(commit, str) else None, "dirty": run.get("code.dirty") is True}]


def attached(values: Frame, runs: Frame) -> Frame:
    """Values with method, backbone, seed and `counted` of their run."""
    about = ["method", "backbone", "seed", "counted"]
    found = runs.drop_duplicates("run").set_index("run")[about]
    values = values.drop(columns=about).merge(found, left_on="run", right_index=True, how="left")
    return values.astype({"scalar": bool, "counted": bool})


def labelled(runs: Frame) -> Frame:
    """Add method and backbone labels, which runs count, and which use another's weights."""
    runs = runs.copy()
    runs["method"] = _labels(runs, "method")
    runs["backbone"] = _labels(runs, "backbone")
    runs["strategy"] = runs["method"]
    runs["method"] = _told_apart(runs)
    done = runs[(runs["status"] == "done") & runs.get("eval.step", pd.Series(index=runs.index, dtype=float)).notna()]
    newest = done.sort_values("created", kind="stable").drop_duplicates(SAME, keep="last").index
    runs["counted"] = runs.index.isin(newest)
    older = runs.index.isin(done.index) & ~runs["counted"]
    runs.loc[older, ["status", "reason"]] = [
        "duplicate",
        "a newer run has the same method, backbone, seed and data; only that one is counted",
    ]
    runs["borrowed"] = runs["weights_from"].notna()
    return runs


def _labels(runs: Frame, kind: str) -> Any:
    """'name size', or 'name WIDTHxDEPTH' if there is no named size but these options; others are appended only if
    runs of one name and size differ in them within the study."""
    names = [f"{kind}.{key}" for key in NAMES if f"{kind}.{key}" in runs]
    options = [c for c in runs if isinstance(c, str) and c.startswith(f"{kind}.") and c not in names]

    def label(row: Any, varying: Mapping[tuple, list[str]]) -> str | None:
        words = [str(row[name]) for name in names if pd.notna(row[name])]
        if not words:
            return None
        different, shape = varying[tuple(words)], [f"{kind}.width", f"{kind}.depth"]
        if len(words) == 1 and all(pd.notna(row.get(option)) for option in shape):
            words.append("x".join(_shown(row[option]) for option in shape))
            different = [option for option in different if option not in shape]
        told = [f"{option.removeprefix(f'{kind}.')}={_shown(row[option])}" for option in different]
        return " ".join(words) + (f" ({', '.join(told)})" if told else "")

    varying: dict[tuple, list[str]] = {}
    for words, rows in _by_name(runs, names):
        varying[words] = [option for option in options if rows[option].map(repr).nunique() > 1]
    return pd.Series([label(row, varying) for _, row in runs.iterrows()], index=runs.index, dtype=object)


def _told_apart(runs: Frame) -> Any:
    """Method labels, with any settings appended in which runs of one method, backbone and seed differ (a sweep)."""
    labels = runs["method"].copy()
    settings = [c for c in runs if isinstance(c, str) and c.startswith("config.")]
    readable = runs[runs[settings].notna().any(axis=1)]  # a run may have no settings yet, or none that can be read
    for _, group in readable.dropna(subset=["method"]).groupby(["method", "backbone"], sort=False):
        same_cell = group.groupby(["seed", "data.fingerprint"], dropna=False)
        varying = [c for c in settings if (same_cell[c].agg(lambda values: values.map(repr).nunique()) > 1).any()]
        for index, row in group.iterrows() if varying else ():
            labels[index] = f"{row['method']} ({', '.join(f'{_last(c)}={_shown(row[c])}' for c in varying)})"
    return labels


def _shown(value: Any) -> str:
    """An option's value; whole numbers come back from a column with gaps as floats."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _by_name(runs: Frame, names: list[str]) -> Iterator[tuple[tuple, Frame]]:
    keys = runs[names].apply(lambda row: tuple(str(value) for value in row if pd.notna(value)), axis=1)
    for words in dict.fromkeys(keys):
        yield words, runs[[key == words for key in keys]]
