"""Learning curves: training and validation loss against optimiser steps and against seconds of training."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, ScalarFormatter

from analysis.figures.style import STYLE, WIDTH, colours, dashes, markers, name, save
from analysis.labels import TRAIN_LOSS, VALID_LOSS
from analysis.load import Study

X_AXES = (("step", "Optimiser steps"), ("seconds", "Seconds in training steps"))


def build(study: Study, out: Path) -> list[Path]:
    """Write curves.png and curves.pdf; nothing when no run has a curve. Runs that train nothing have none."""
    curves = study.curves.dropna(subset=["method"])
    losses = [column for column in (TRAIN_LOSS, VALID_LOSS) if curves[column.key].notna().any()]
    if not losses:
        return []
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.6 + 2.1 * len(losses)))
        panels = figure.subplots(len(losses), 2, sharey="row", sharex="col", squeeze=False)
        shown = set()
        for row, column in enumerate(losses):
            for axes, (x, label) in zip(panels[row], X_AXES, strict=True):
                shown |= _panel(axes, study, curves, x, column.key)
                axes.set_xlabel(label if row == len(losses) - 1 else "")
                axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5))
            _log_scale(panels[row, 0], curves, column.key)
            panels[row, 0].set_ylabel(column.title)
        palette, styles, shapes = colours(study), dashes(study), markers(study)
        handles = [
            Line2D([], [], color=palette[g[0]], ls=styles[g[0]], marker=shapes[g[1]], ms=3.5, label=name(g))
            for g in study.groups
            if g in shown
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(4, len(handles)))
        return save(figure, out, "curves")


def caption(study: Study) -> str:
    """What the figure shows, and whose curve stands for runs that train nothing."""
    text = (
        "Learning curves. Thin: one seed each; thick: their mean where all seeds of the row have a value. Training loss is the mean "
        "between two log lines; validation loss is the same loss with the EMA weights at fixed times and noise. Seconds are those of "
        "optimiser steps alone. Losses of one backbone and data set compare; a lower loss is no promise of better molecules."
    )
    borrowed = study.runs[study.runs["borrowed"]]
    if len(borrowed):
        names = ", ".join(dict.fromkeys(borrowed["method"].dropna()))
        parents = study.runs[study.runs["run"].isin(borrowed["weights_from"])]["method"].dropna()
        text += f" {names}: trains nothing, its curve is that of {', '.join(dict.fromkeys(parents)) or 'a run outside this study'}."
    return text


def _panel(axes: Axes, study: Study, curves: pd.DataFrame, x: str, y: str) -> set[tuple[str, str]]:
    """Draw one panel; returns the groups that had something to draw."""
    shown = set()
    for group in study.groups:
        rows = curves[(curves["method"] == group[0]) & (curves["backbone"] == group[1])].dropna(subset=[x, y])
        if rows.empty:
            continue
        shown.add(group)
        colour, dash = colours(study)[group[0]], dashes(study)[group[0]]
        marker = {"marker": markers(study)[group[1]], "ms": 3, "markevery": (0.05, 0.15)}
        seeds = [seed[[x, y]].sort_values(x) for _, seed in rows.groupby("run", sort=True)]
        for seed in seeds:
            axes.plot(seed[x], seed[y], color=colour, ls=dash, lw=0.6, alpha=0.45)
        grid, mean = mean_curve(seeds, x, y)
        axes.plot(grid, mean, color=colour, ls=dash, lw=1.5, **marker)
    return shown


def mean_curve(seeds: list[pd.DataFrame], x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds on the first seed's x values within the range that all seeds share (linear interpolation)."""
    low, high = max(s[x].iloc[0] for s in seeds), min(s[x].iloc[-1] for s in seeds)
    grid = seeds[0][x].to_numpy(dtype=float)
    grid = grid[(grid >= low) & (grid <= high)]
    return grid, np.mean([np.interp(grid, s[x].astype(float), s[y].astype(float)) for s in seeds], axis=0)


def _log_scale(axes: Axes, curves: pd.DataFrame, key: str) -> None:
    """Logarithmic y from just below the smallest value; the first lines of a run may leave the top."""
    values = curves[curves[key] > 0][key]
    if values.empty or (curves[key] <= 0).any():
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    axes.set_ylim(values.min() * 0.93, min(values.max() * 1.05, values.quantile(0.98) * 1.6))
