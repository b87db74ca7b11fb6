"""Every scalar value of a study but its costs: one panel for each, with a line per method and backbone."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.style import DATA, STYLE, WIDTH, by_backbone, name, save, symbol_look, undefined
from analysis.labels import ARROWS, Column
from analysis.stats import Group, evaluated, summarise
from analysis.study import Study
from analysis.tables.measured import measured_columns
from bench.records.values import Kind

N_ACROSS = 3


def absent(study: Study) -> str:
    """Why there is nothing to draw, or ''."""
    return "" if _shown(study) else undefined(study, study.compared)


def build(study: Study, out: Path) -> list[Path]:
    """Write values.png and values.pdf; nothing when no counted run has a scalar value."""
    columns = _shown(study)
    if not columns:
        return []
    groups = by_backbone(study, evaluated(study))
    n_rows = -(-len(columns) // N_ACROSS)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, n_rows * (0.55 + 0.16 * len(groups))))
        panels = figure.subplots(n_rows, N_ACROSS, squeeze=False, sharey=True)
        for axes, column in zip(panels.flat, columns, strict=False):
            _panel(axes, study, groups, column)
        for axes in panels.flat[len(columns) :]:
            axes.set_axis_off()
        panels[0, 0].set_yticks(range(len(groups)), [name(group) for group in groups])
        panels[0, 0].set_ylim(len(groups) - 0.5, -0.5)
        return save(figure, out, "values")


def caption(study: Study) -> str:
    """What the figure shows."""
    bounds = any(summarise(study, group, column).upper_bound for group in study.groups for column in _shown(study))
    return (
        "All values but costs, diagnostics that are the same for all runs, and those of measures, "
        "which have tables. Large symbols: mean over seeds; "
        "small: one seed each; bars: 95 % interval of the mean from the finite number of samples. Dashed: what the "
        "data set itself gets. Arrows: the better direction."
        f"{' ≤: an upper bound.' if bounds else ''}"
    )


def _shown(study: Study) -> list[Column]:
    """Measured quantities; diagnostics only if they differ between runs."""
    n_values = study.scalars.groupby("column")["value"].nunique()
    judged = [column for column in study.compared if n_values[column.name] > 0]
    of_measures = {column.name for measure in study.measures for column in measured_columns(study, measure)}
    others = [column for column in study.of_kind(Kind.DIAGNOSTIC) if column.name not in of_measures]
    return judged + [column for column in others if n_values[column.name] > 1]


def _panel(axes: Axes, study: Study, groups: list[Group], column: Column) -> None:
    for y, group in enumerate(groups):
        if y and group[1] != groups[y - 1][1]:
            axes.axhline(y - 0.5, color="#999999", lw=0.5)
        summary = summarise(study, group, column)
        if not summary.n:
            continue
        look, seeds = symbol_look(study, group), [value * column.scale for value in summary.values.values()]
        look["ms"] *= 0.8
        if len(seeds) > 1:
            axes.plot(seeds, [y] * len(seeds), **{**look, "ms": 2.0}, alpha=0.6)
        mean, arms = summary.mean * column.scale, [[arm * column.scale] for arm in summary.arms]
        known = summary.arms[0] == summary.arms[0]
        axes.errorbar(mean, y, xerr=arms if known else None, **look, elinewidth=0.8, zorder=3)
        if summary.upper_bound:
            axes.annotate("≤", (mean, y), (0, 3.5), textcoords="offset points", fontsize=6, ha="center")
    for value in set(study.data_values(column)):
        axes.axvline(value * column.scale, **DATA)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_title(fill(f"{column.label}{ARROWS[column.better]}", 26), fontsize=7.5)
    axes.set_xlabel(column.unit, fontsize=7)
