"""Learning curves: training and validation loss against optimiser steps and against seconds of training."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from analysis.figures.style import STYLE, WIDTH, legend, line_look, name, save
from analysis.load import Frame, Study
from analysis.stats import Group

LOSSES = (("loss", "Training loss"), ("valid_loss", "Validation loss"))
X_AXES = (("step", "Optimiser steps"), ("seconds", "Seconds in training steps"))


def build(study: Study, out: Path) -> list[Path]:
    """Write curves.png and curves.pdf; nothing when no run has a curve. Runs that train nothing have none."""
    curves = study.curves.dropna(subset=["method"])
    losses = [(key, label) for key, label in LOSSES if curves[key].notna().any()]
    if not losses:
        return []
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.6 + 2.1 * len(losses)))
        panels = figure.subplots(len(losses), 2, sharey="row", sharex="col", squeeze=False)
        shown: set[Group] = set()
        for row, (key, title) in enumerate(losses):
            for axes, (x, label) in zip(panels[row], X_AXES, strict=True):
                shown |= _panel(axes, study, curves, x, key)
                axes.set_xlabel(label if row == len(losses) - 1 else "")
                axes.set_xlim(left=0)
                axes.xaxis.set_major_locator(MaxNLocator(5))
            _log_scale(panels[row, 0], curves[key].dropna().to_numpy(dtype=float))
            panels[row, 0].set_ylabel(title)
        drawn = [group for group in study.groups if group in shown]
        handles = [Line2D([], [], **line_look(study, group), lw=1.5, label=name(group)) for group in drawn]
        legend(figure, handles)
        return save(figure, out, "curves")


def caption(study: Study) -> str:
    """What the figure shows, and whose curve stands for runs that train nothing."""
    text = (
        "Learning curves. Thin: one seed each; thick: their mean over the range that all seeds of the row cover; the "
        "symbol at the end tells the backbone. Training loss is the mean between two log lines; validation loss is the "
        "same loss with the EMA weights at fixed times and noise. Seconds are those of optimiser steps alone. Vertical "
        "axes are logarithmic and may leave out the first lines. Losses of one backbone and data set compare; a lower "
        "loss promises no better samples."
    )
    borrowed = study.runs[study.runs["borrowed"]]
    if len(borrowed):
        names = ", ".join(dict.fromkeys(borrowed["method"].dropna()))
        parents = dict.fromkeys(study.runs[study.runs["run"].isin(borrowed["weights_from"])]["method"].dropna())
        text += f" {names} trains nothing: its curve is that of {', '.join(parents) or 'a run outside this study'}."
    return text


def _panel(axes: Axes, study: Study, curves: Frame, x: str, y: str) -> set[Group]:
    """Draw one panel; returns the groups that had something to draw."""
    shown = set()
    for group in study.groups:
        rows = curves[(curves["method"] == group[0]) & (curves["backbone"] == group[1])].dropna(subset=[x, y])
        if rows.empty:
            continue
        shown.add(group)
        look = line_look(study, group)
        seeds = [seed[[x, y]].sort_values(x).to_numpy(dtype=float) for _, seed in rows.groupby("run", sort=True)]
        for seed in seeds:
            axes.plot(seed[:, 0], seed[:, 1], color=look["color"], ls=look["ls"], lw=0.6, alpha=0.5)
        grid, mean = mean_curve(seeds)
        axes.plot(grid, mean, **look, lw=1.4, markevery=[-1] if len(grid) else [])
    return shown


def mean_curve(seeds: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean of curves [n, 2] over seeds, on the first one's x within the range that all cover (linear interpolation)."""
    low, high = max(seed[0, 0] for seed in seeds), min(seed[-1, 0] for seed in seeds)
    grid = np.unique(np.clip(seeds[0][:, 0], low, high)) if low <= high else np.zeros(0)
    return grid, np.mean([np.interp(grid, seed[:, 0], seed[:, 1]) for seed in seeds], axis=0)


def _log_scale(axes: Axes, values: np.ndarray) -> None:
    """Logarithmic y from just below the smallest value; the first lines of a run may leave the top."""
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
