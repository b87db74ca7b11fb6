"""Values along an axis (time, number of atoms, draws): each quantity against each axis, a curve per method."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.figures.fields import of_fields
from analysis.figures.style import (
    DATA,
    SMALL,
    STYLE,
    TALL,
    WIDTH,
    Mark,
    legend,
    line_look,
    name_ends,
    save,
    short_names,
    x_axis,
)
from analysis.labels import ARROWS, Column, columns
from analysis.load import AT, Frame, Study
from analysis.stats import Group

N_ACROSS = 2
# ratios of the largest to the smallest value between which the vertical axis is logarithmic; beyond, the smallest is 0
VERY_WIDE, ROUNDING = 1e3, 1e12


def absent(study: Study) -> str:
    """Why there is nothing to draw, or ''."""
    return "" if _panels(study) else "no run has a value along an axis, such as time or number of atoms"


def build(study: Study, out: Path) -> list[Path]:
    """Write positions.png and positions.pdf; nothing when no counted run has a value with a numeric position."""
    panels = _panels(study)
    if not panels:
        return []
    n_rows = -(-len(panels) // N_ACROSS)
    with mpl.rc_context(STYLE):
        height = max(2.2, 0.5 + 1.2 * len(study.groups) * SMALL / 72)
        figure = Figure(figsize=(WIDTH, 0.3 + height * n_rows))
        grid = figure.subplots(n_rows, N_ACROSS, squeeze=False)
        shown: set[Group] = set()
        has_data, named = False, []
        for axes, (column, axis) in zip(grid.flat, panels, strict=False):
            ends, with_data = _panel(axes, study, column, axis)
            texts = short_names(list(ends))
            named.append((axes, [Mark(*end, texts[g], line_look(study, g)["color"]) for g, end in ends.items()]))
            shown, has_data = shown | ends.keys(), has_data or with_data
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        legend(figure, study, list(shown), [Line2D([], [], **DATA, label="data")] if has_data else [])
        name_ends(figure, named)
        return save(figure, out, "positions")


def caption(_: Study) -> str:
    """What the figure shows."""
    return (
        "Values that have a position, against it. Thin: one seed each; thick: mean over the seeds; the symbol tells "
        "the backbone. A value with several positions is averaged over the others. Arrows: the better direction. "
        "values.csv holds all of them."
    )


def _panels(study: Study) -> list[tuple[Column, str]]:
    """(quantity, axis) for each axis along which a quantity was measured."""
    curves = _curves(study)
    return [
        (column, axis)
        for column in columns(curves)
        for axis in (str(key) for key in curves if str(key).startswith(AT))
        if curves.loc[curves["column"] == column.name, axis].notna().any()
    ]


def _curves(study: Study) -> Frame:
    values = study.values[study.values["counted"] & ~study.values["scalar"]]
    return values.drop(of_fields(study).index).dropna(subset=["value"])


def _panel(axes: Axes, study: Study, column: Column, axis: str) -> tuple[dict[Group, tuple[float, float]], bool]:
    """Draw one panel; returns where the curve of each row ends, and whether the data set itself has one."""
    values = _curves(study)
    values = values[(values["column"] == column.name) & values[axis].notna()]
    samples, data, shown = values[values["of"] == "samples"], values[values["of"] == "data"], {}
    for group in study.groups:
        rows = samples[(samples["method"] == group[0]) & (samples["backbone"] == group[1])]
        if rows.empty:
            continue
        look = line_look(study, group)
        for _, seed in rows.groupby("run", sort=True):
            x, y = _curve(seed, axis, column)
            axes.plot(x, y, color=look["color"], ls=look["ls"], lw=0.6, alpha=0.5)
        x, y = _curve(rows, axis, column)
        axes.plot(x, y, **look, lw=1.4, markevery=[-1])
        shown[group] = float(x[-1]), float(y[-1])
    if len(data):
        axes.plot(*_curve(data, axis, column), **DATA)
    x_axis(axes, values[axis].tolist())
    low, high = values["value"].min(), values["value"].max()
    if low > 0 and VERY_WIDE < high / low < ROUNDING:
        axes.set_yscale("log")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(axis.removeprefix(AT))
    axes.set_ylabel(fill(f"{column.title}{ARROWS[column.better]}", TALL))
    return shown, bool(len(data))


def _curve(rows: Frame, axis: str, column: Column) -> tuple[np.ndarray, np.ndarray]:
    """Mean value at each position of an axis, positions ascending."""
    mean = rows.groupby(axis, sort=True)["value"].mean()
    return mean.index.to_numpy(dtype=float), mean.to_numpy(dtype=float) * column.scale
