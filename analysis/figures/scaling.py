"""Values against a numeric setting in which runs of one method and backbone differ: data efficiency (`data.n_train`),
length of training (`train.n_steps`), or any other sweep. Runs on subsets of one data set are drawn together, although
tables keep them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from analysis.figures.style import (
    SMALL,
    STYLE,
    TALL,
    WIDTH,
    Mark,
    dashes,
    legend,
    markers,
    name_ends,
    palette,
    save,
    short_names,
)
from analysis.labels import ARROWS, Column, directed
from analysis.stats import Group
from analysis.study import Frame, Study
from bench.records.values import Better, Kind

CONFIG = "config."
DATA = CONFIG + "data."  # other data is never a step along a line
N_TRAIN = "data.n_train"  # of the manifest: the molecules that there are; a configuration may say null, for all of them
DATA_SET = ["data.name", "data.n_valid", "data.n_test"]  # equal for subsets of one training split
FINGERPRINT = "data.fingerprint"
NAMES = {N_TRAIN: ("Data efficiency", "Training structures"), "train.n_steps": ("Training length", "Optimiser steps")}
N_ACROSS, N_QUALITIES = 2, 2
MANY = 7  # values of a setting beyond which not all are written at the axis
LOSS = Column("final_valid_loss", "Final validation loss", better=Better.LOWER, kind=Kind.LIKELIHOOD)


@dataclass(frozen=True)
class Sweep:
    """A setting along which lines are drawn.

    Attributes:
        setting: its key in a study, such as 'train.n_steps'.
        runs: rows of `Study.runs` on its lines, with `x`, the value of the setting, and `line`, (strategy with other
            settings in which lines differ, backbone).
        along: other settings that change together with it.
    """

    setting: str
    runs: Frame
    along: tuple[str, ...]

    @property
    def title(self) -> str:
        return NAMES.get(self.setting, (f"Sweep of {self.setting}", ""))[0]

    @property
    def stem(self) -> str:
        return f"scaling-{self.setting}"


def sweeps(study: Study) -> list[Sweep]:
    """Every numeric setting that has two values or more on some line of otherwise equal settings."""
    runs = study.counted.dropna(subset=["strategy", "backbone"])
    runs = runs.drop(columns=[CONFIG + N_TRAIN], errors="ignore")
    settings = [N_TRAIN, *(c for c in runs if str(c).startswith(CONFIG))]
    settings = sorted(settings, key=lambda column: _key(column) not in NAMES)  # of settings that change together, these
    words = runs[[*settings, FINGERPRINT, *DATA_SET]].map(repr)  # comparable, lists and missing ones too
    cells = [runs["strategy"], runs["backbone"]]
    varying = [c for c in settings if (words.groupby(cells)[c].nunique() > 1).any()]
    numeric = {c: _is_numeric(runs[c]) for c in varying}
    found: list[Sweep] = []
    drawn: list[str] = []
    for column in varying:
        if not numeric[column]:
            continue
        x: Frame = pd.to_numeric(runs[column], errors="coerce")
        if any(_follows(words, cells, column, other) and _follows(words, cells, other, column) for other in drawn):
            continue  # told as `along` of the other
        others = [c for c in varying if c != column]
        along = [c for c in others if numeric[c] and not c.startswith(DATA) and _follows(words, cells, c, column)]
        apart = [c for c in others if c not in along]
        same = [*DATA_SET, *apart, *([] if column == N_TRAIN else [FINGERPRINT])]
        lines = pd.Series(list(zip(*cells, *(words[c] for c in same), strict=True)), index=runs.index)
        long = x.groupby(lines).transform("nunique") > 1
        if long.any():
            names = [c for c in apart if (words[long].groupby([c[long] for c in cells])[c].nunique() > 1).any()]
            labels = [_label(row, names) for _, row in runs[long].iterrows()]
            rows = runs[long].assign(x=x[long], line=list(zip(labels, runs[long]["backbone"], strict=True)))
            found.append(Sweep(_key(column), rows, tuple(_key(c) for c in along if c != N_TRAIN)))
            drawn.append(column)
    return found


def absent(study: Study) -> str:
    """Why there is nothing to draw, or ''."""
    return "" if sweeps(study) else "no two runs of one method and backbone differ in one numeric setting alone"


def build(study: Study, sweep: Sweep, out: Path) -> list[Path]:
    """Write scaling-SETTING.png and .pdf; nothing when none of its quantities has a value."""
    columns = {column: values for column in _columns(study) if len(values := _values(study, sweep, column))}
    if not columns:
        return []
    lines: list[Group] = list(dict.fromkeys(sweep.runs["line"]))
    n_rows = -(-len(columns) // N_ACROSS)
    height = max(2.3, 0.6 + 1.2 * len(lines) * SMALL / 72)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.3 + height * n_rows))
        grid = figure.subplots(n_rows, N_ACROSS, squeeze=False)
        named = []
        for axes, (column, values) in zip(grid.flat, columns.items(), strict=False):
            named.append((axes, _panel(axes, study, sweep, column, values, lines)))
        for axes in grid.flat[len(columns) :]:
            axes.set_axis_off()
        legend(figure, study, lines)
        name_ends(figure, named)
        return save(figure, out, sweep.stem)


def caption(sweep: Sweep) -> str:
    """What the figure shows."""
    along = f" With it change {', '.join(sweep.along)}." if sweep.along else ""
    return (
        f"Values against {sweep.setting}, on a logarithmic axis; all other settings of a line are equal.{along} Lines: "
        "mean over seeds; bands: from the lowest to the highest seed; small symbols: one seed each. Arrows: the better "
        "direction. ≤: an upper bound. The final validation loss is that of the last validation, with the EMA weights."
    )


def _columns(study: Study) -> list[Column]:
    """The final validation loss, unless records hold one as a value, likelihoods, and the leading quality values."""
    found = directed(study.of_kind(Kind.LIKELIHOOD)) + directed(study.of_kind(Kind.QUALITY))[:N_QUALITIES]
    return found if any("valid" in c.name and "loss" in c.name for c in found) else [LOSS, *found]


def _values(study: Study, sweep: Sweep, column: Column) -> Frame:
    """Rows of `sweep.runs` that have a value of this quantity, with `value` and `upper_bound`."""
    if column is LOSS:
        curves = study.curves.dropna(subset=["valid_loss"]).sort_values("step", kind="stable")
        values = curves.groupby("run")["valid_loss"].last().rename("value").to_frame().assign(upper_bound=False)
    else:
        values = study.scalars[study.scalars["column"] == column.name].dropna(subset=["value"])
        values = values.set_index("run")[["value", "upper_bound"]]
    return sweep.runs[["run", "seed", "x", "line"]].merge(values, left_on="run", right_index=True)


def _panel(axes: Axes, study: Study, sweep: Sweep, column: Column, values: Frame, lines: Sequence[Group]) -> list[Mark]:
    """Draw one panel; returns the names at the ends of its lines."""
    marks, texts = [], short_names(lines)
    names = dict(zip(sweep.runs["line"], sweep.runs["method.name"], strict=True))
    for line in lines:
        rows = values[values["line"] == line]
        if rows.empty:
            continue
        colour = palette(study)[names[line]]
        by_x = rows.groupby("x", sort=True)["value"].agg(["mean", "min", "max"]) * column.scale
        look: Any = {"color": colour, "marker": markers(study)[line[1]]}
        axes.fill_between(by_x.index, by_x["min"], by_x["max"], color=colour, alpha=0.15, lw=0)
        axes.plot(rows["x"], rows["value"] * column.scale, **look, ls="", ms=1.8, alpha=0.6)
        axes.plot(by_x.index, by_x["mean"], **look, ls=dashes(study)[line[1]], lw=1.3, ms=3.5)
        bound = "≤ " if rows["upper_bound"].any() else ""
        marks.append(Mark(float(by_x.index[-1]), float(by_x["mean"].iloc[-1]), bound + texts[line], colour))
    ticks = sorted(set(values["x"]))
    if ticks[0] > 0:
        axes.set_xscale("log")
    if len(ticks) <= MANY:
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(NAMES.get(sweep.setting, ("", sweep.setting))[1])
    axes.set_ylabel(fill(f"{column.title}{ARROWS[column.better]}", TALL))
    return marks


def _is_numeric(values: Frame) -> bool:
    """Whether a setting has two numbers or more; null beside numbers ('all', 'no limit') is left out of a line."""
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return len({value for value in numbers if value == value}) > 1


def _follows(words: Frame, cells: list[Frame], a: str, b: str) -> bool:
    """Whether, for every method and backbone, a value of b leaves one value of a."""
    return bool((words.groupby([*cells, words[b].rename("b")])[a].nunique() <= 1).all())


def _label(row: Frame, names: Sequence[str]) -> str:
    told = [f"{name.rpartition('.')[2]}={_number(row[name])}" for name in names]
    return f"{row['strategy']} ({', '.join(told)})" if told else str(row["strategy"])


def _key(column: str) -> str:
    return column.removeprefix(CONFIG)


def _number(value: object) -> str:
    """A number with thin groups of thousands; other values as they are."""
    if not isinstance(value, (int, float, np.number)) or isinstance(value, bool):
        return str(value)
    return f"{value:,.0f}".replace(",", "\N{NO-BREAK SPACE}") if float(value).is_integer() else f"{value:g}"
