"""Learning curves: training and validation loss against optimiser steps, and validation loss against seconds.

A column of panels for each backbone: only methods on one backbone compare, and they often differ by little.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from analysis.figures.style import SMALL, STYLE, WIDTH, Mark, backbones, line_look, name_ends, save
from analysis.stats import Group
from analysis.study import Frame, Study

ROWS = (
    ("step", "Optimiser steps", "loss", "Training loss"),
    ("step", "Optimiser steps", "valid_loss", "Validation loss"),
    ("seconds", "Seconds in training steps", "valid_loss", "Validation loss"),
)
N_ACROSS = 3  # backbones side by side
EARLY = 0.25  # share of a curve's lines, at its start, that may leave the top of a panel


def absent(study: Study) -> str:
    """Why there is nothing to draw, or ''."""
    return "" if _drawn(study) else "no run has logged a loss yet"


def build(study: Study, out: Path) -> list[Path]:
    """Write curves.png and curves.pdf; nothing when no run has a curve. Runs that train nothing have none."""
    drawn = _drawn(study)
    if not drawn:
        return []
    curves = study.curves.dropna(subset=["method"])
    columns = [backbone for backbone in backbones(study) if backbone in {group[1] for group in drawn}]
    rows = [row for row in ROWS if curves[row[2]].notna().any()]
    blocks = [columns[i : i + N_ACROSS] for i in range(0, len(columns), N_ACROSS)]
    most = max(sum(group[1] == backbone for group in drawn) for backbone in columns)
    height = max(2.1, 0.4 + 1.2 * most * SMALL / 72)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.3 + height * len(rows) * len(blocks)))
        grid = figure.subplots(len(rows) * len(blocks), len(blocks[0]), squeeze=False)
        named = []
        for axes in grid.flat:
            axes.set_axis_off()
        for i, block in enumerate(blocks):
            for j, (x, x_title, y, y_title) in enumerate(rows):
                for axes, backbone in zip(grid[i * len(rows) + j], block, strict=False):
                    axes.set_axis_on()
                    named.append((axes, _panel(axes, study, curves, [g for g in drawn if g[1] == backbone], x, y)))
                    axes.set(xlabel=x_title, title=backbone if j == 0 else "")
                    axes.set_xlim(left=0)
                    axes.xaxis.set_major_locator(MaxNLocator(4))
                grid[i * len(rows) + j, 0].set_ylabel(y_title)
        name_ends(figure, named)
        return save(figure, out, "curves")


def caption(study: Study) -> str:
    """What the figure shows, and whose curve stands for runs that train nothing."""
    text = (
        "Learning curves, a column for each backbone, each panel with a scale of its own. Thin: one seed each; thick: "
        "their mean over the range that all seeds of the row cover. Training loss is the mean between two log lines; "
        "validation loss is the same loss with the EMA weights at fixed times and noise. Seconds are those of "
        "optimiser steps alone. Vertical axes are logarithmic and leave out the first lines. Losses of one backbone "
        "and data set compare; a lower loss promises no better samples."
    )
    borrowed = study.runs[study.runs["borrowed"]]
    if len(borrowed):
        names = ", ".join(dict.fromkeys(borrowed["method"].dropna()))
        parents = dict.fromkeys(study.runs[study.runs["run"].isin(borrowed["weights_from"])]["method"].dropna())
        text += f" {names} trains nothing: its curve is that of {', '.join(parents) or 'a run outside this study'}."
    return text


def _drawn(study: Study) -> list[Group]:
    """Rows with a curve."""
    curves = study.curves
    found = curves[curves["step"].notna() & (curves["loss"].notna() | curves["valid_loss"].notna())]
    known = set(zip(found["method"], found["backbone"], strict=True))
    return [group for group in study.groups if group in known]


def _panel(axes: Axes, study: Study, curves: Frame, groups: list[Group], x: str, y: str) -> list[Mark]:
    """Draw one panel; returns the names at the ends of its lines."""
    marks, late = [], []
    for group in groups:
        rows = curves[(curves["method"] == group[0]) & (curves["backbone"] == group[1])].dropna(subset=[x, y])
        if rows.empty:
            continue
        colour = line_look(study, group)["color"]
        seeds = [seed[[x, y]].sort_values(x).to_numpy(dtype=float) for _, seed in rows.groupby("run", sort=True)]
        for seed in seeds:
            axes.plot(seed[:, 0], seed[:, 1], color=colour, lw=0.6, alpha=0.4)
            late.append(seed[int(EARLY * len(seed)) :, 1])
        grid, mean = mean_curve(seeds)
        axes.plot(grid, mean, color=colour, lw=1.3)
        end = (grid[-1], mean[-1]) if len(grid) else seeds[0][-1]
        marks.append(Mark(float(end[0]), float(end[1]), group[0], colour))
    if late:
        _log_scale(axes, np.concatenate(late))
    return marks


def mean_curve(seeds: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean of curves [n, 2] over seeds, on the first one's x within the range that all cover (linear interpolation)."""
    low, high = max(seed[0, 0] for seed in seeds), min(seed[-1, 0] for seed in seeds)
    grid = np.unique(np.clip(seeds[0][:, 0], low, high)) if low <= high else np.zeros(0)
    return grid, np.mean([np.interp(grid, seed[:, 0], seed[:, 1]) for seed in seeds], axis=0)


def _log_scale(axes: Axes, values: np.ndarray) -> None:
    """Logarithmic y around the values; single ones far above the others may leave the top."""
    values = values[np.isfinite(values)]
    if not len(values) or values.min() <= 0:
        return
    low, high = values.min() * 0.94, min(values.max() * 1.06, np.quantile(values, 0.97) * 1.5)
    decades = np.log10(high / low)
    subs = (
        (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
        if decades < 0.6
        else (1, 1.5, 2, 3, 5, 7)
        if decades < 1.2
        else (1, 2, 5)
        if decades < 2
        else (1,)
    )
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    ticks = np.outer(powers, subs).ravel()
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
