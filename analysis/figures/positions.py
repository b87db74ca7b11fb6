"""Values along an axis (time, number of atoms, draws): each quantity against each axis, a curve per method.

A quantity with words in its position (`part: rotation`) has a panel for each, in rows of its own
with one vertical axis.
What each measure found is a figure of its own; a quantity of samples, or of an early record, is in the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from analysis.labels import ARROWS, Column, columns, words_of
from analysis.stats import Group
from analysis.study import AT, Frame, Study

N_ACROSS = 3
BESIDE = 28  # letters of a title that fit the width of a panel
N_NAMED = 6  # rows whose names stand at the ends of their curves; names of more would take the width of the panels
# ratios of the largest to the smallest value between which the vertical axis is logarithmic; beyond, the smallest is 0
VERY_WIDE, ROUNDING = 1e3, 1e12
Row = list[tuple[Column, str]]  # panels (column, axis) that stand in one row


def absent(study: Study) -> str:
    """Why there is nothing to draw, or ''."""
    if len(_curves(study, "")) or any(len(_curves(study, measure)) for measure in study.measures):
        return ""
    return "no run has a value along an axis, such as time or number of atoms"


def build(study: Study, out: Path, measure: str = "") -> list[Path]:
    """Write positions.png and positions.pdf, or measured-NAME; nothing where there is no value with a numeric position.

    Args:
        measure: what it found; '': values that no measure found.
    """
    curves = _curves(study, measure)
    if curves.empty:
        return []
    rows = _rows(curves)
    n_across = max(map(len, rows))
    n_shown = max(len(own.groupby(["method", "backbone"])) for _, own in curves.groupby("column"))
    with mpl.rc_context(STYLE):
        at_ends = n_shown <= N_NAMED
        height = max(1.9, 0.5 + 1.2 * n_shown * SMALL / 72) if at_ends else 1.9
        figure = Figure(figsize=(WIDTH, 0.3 + height * len(rows)))
        grid = figure.subplots(len(rows), n_across, squeeze=False)
        shown: set[Group] = set()
        has_data, named = False, []
        for line, panels in zip(grid, rows, strict=True):
            for axes, (column, axis) in zip(line, panels, strict=False):
                ends, with_data = _panel(axes, study, curves, column, axis)
                texts = short_names(list(ends))
                named.append((axes, [Mark(*end, texts[g], line_look(study, g)["color"]) for g, end in ends.items()]))
                shown, has_data = shown | ends.keys(), has_data or with_data
            for axes in line[len(panels) :]:
                axes.set_axis_off()
            _share(line[: len(panels)], panels)
        of_data = [Line2D([], [], **DATA, label="data")] if has_data else []
        if at_ends:
            legend(figure, study, list(shown), of_data)
            name_ends(figure, named)
        else:
            names = short_names([group for group in study.groups if group in shown])
            lines = [Line2D([], [], **line_look(study, g), lw=1.4, label=text) for g, text in names.items()]
            legend(figure, study, [], [*lines, *of_data])
        return save(figure, out, f"measured-{measure}" if measure else "positions")


def caption(_: Study) -> str:
    """What the figure shows."""
    return (
        "Values that have a position, against it. Thin: one seed each; thick: mean over the seeds; the symbol tells "
        "the backbone. A value with several positions is averaged over the others. Panels of one quantity, told "
        "apart by the words above them, share their vertical axis. Arrows: the better direction. values.csv holds all."
    )


def _curves(study: Study, measure: str) -> Frame:
    values = study.values[study.values["counted"] & ~study.values["scalar"] & (study.values["measure"] == measure)]
    return values.drop(of_fields(study).index, errors="ignore").dropna(subset=["value"])


def _rows(curves: Frame) -> list[Row]:
    """Panels by quantity and axis. Those of a quantity that words tell apart begin a row; others fill rows together."""
    found: dict[tuple[str, str], Row] = {}
    for column in columns(curves):
        own = curves[curves["column"] == column.name]
        for axis in (str(key) for key in curves if str(key).startswith(AT)):
            if own[axis].notna().any():
                found.setdefault((own["name"].iloc[0], axis), []).append((column, axis))
    rows: list[Row] = []
    single: Row = []
    for panels in found.values():
        if len(panels) == 1:
            single += panels
        else:
            rows += _cut(panels)
    return [*_cut(single), *rows]


def _cut(panels: Row) -> list[Row]:
    """Rows of about equal length."""
    n_rows = math.ceil(len(panels) / N_ACROSS)
    each = math.ceil(len(panels) / n_rows) if n_rows else 1
    return [panels[i : i + each] for i in range(0, len(panels), each)]


def _share(line: Sequence[Axes], panels: Row) -> None:
    """One vertical axis for panels of one quantity."""
    if len({(column.name.partition("[")[0], axis) for column, axis in panels}) > 1 or len(panels) < 2:
        return
    if len({axes.get_yscale() for axes in line}) > 1:
        for axes in line:
            axes.set_yscale("linear")
    lowest, highest = zip(*(axes.get_ylim() for axes in line), strict=True)
    for axes in line:
        axes.set_ylim(min(lowest), max(highest))
    for axes in line[1:]:
        axes.set_ylabel("")


def _panel(
    axes: Axes, study: Study, curves: Frame, column: Column, axis: str
) -> tuple[dict[Group, tuple[float, float]], bool]:
    """Draw one panel; returns where the curve of each row ends, and whether the data set itself has one."""
    values = curves[(curves["column"] == column.name) & curves[axis].notna()]
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
    unit = f" ({column.unit})" if column.unit else ""
    axes.set_ylabel(fill(f"{values['label'].iloc[-1]}{unit}{ARROWS[column.better]}", TALL))
    axes.set_title(fill(words_of(values["words"].iloc[-1]), BESIDE), fontsize=SMALL)
    return shown, bool(len(data))


def _curve(rows: Frame, axis: str, column: Column) -> tuple[np.ndarray, np.ndarray]:
    """Mean value at each position of an axis, positions ascending."""
    mean = rows.groupby(axis, sort=True)["value"].mean()
    return mean.index.to_numpy(dtype=float), mean.to_numpy(dtype=float) * column.scale
