"""Quality against cost: atom and molecule stability over training-step time, training time and sampling time."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from analysis.figures.style import GREY, STYLE, WIDTH, colours, markers, name, save
from analysis.labels import ATOM_STABILITY, MOLECULE_STABILITY, SAMPLE_TIME, STEP_TIME, TRAIN_TIME, Column
from analysis.load import Study
from analysis.stats import summarise

QUALITIES = (ATOM_STABILITY, MOLECULE_STABILITY)
COSTS = (STEP_TIME, TRAIN_TIME, SAMPLE_TIME)


def build(study: Study, out: Path) -> list[Path]:
    """Write pareto.png and pareto.pdf; nothing when no evaluated run has a cost."""
    costs = [cost for cost in COSTS if cost.key in study.counted and study.counted[cost.key].notna().any()]
    if not costs:
        return []
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.6))
        panels = figure.subplots(len(QUALITIES), len(costs), sharex="col", sharey="row", squeeze=False)
        for row, quality in enumerate(QUALITIES):
            for axes, cost in zip(panels[row], costs, strict=True):
                _panel(axes, study, cost, quality)
                axes.set_xlabel(cost.title if row == len(QUALITIES) - 1 else "")
            panels[row, 0].set_ylabel(quality.title)
        palette, shapes = colours(study), markers(study)
        handles = [
            Line2D([], [], ls="", color=palette[g[0]], marker=shapes[g[1]], ms=5, label=name(g))
            for g in study.groups
            if summarise(study, g, ATOM_STABILITY).n
        ]
        handles.append(Line2D([], [], color=GREY, ls=(0, (4, 3)), lw=0.8, label="data"))
        figure.legend(handles=handles, loc="outside upper center", ncols=min(4, len(handles)))
        return save(figure, out, "pareto")


def caption(study: Study) -> str:
    """What the figure shows."""
    text = (
        "Quality against cost; up and to the left is better. Large: mean over seeds; small: one seed each; bar: 95 % interval of the "
        "mean from the finite number of sampled molecules. Dashed: the data set's own score on the same split. Cost axes are "
        "logarithmic. Times depend on the machine and on what else it ran."
    )
    return text + (
        " Open symbols train nothing: their training cost is that of the run whose weights they use."
        if study.counted["borrowed"].any()
        else ""
    )


def _panel(axes: Axes, study: Study, cost: Column, quality: Column) -> None:
    palette, shapes = colours(study), markers(study)
    for method, backbone in study.groups:
        x, y = (summarise(study, (method, backbone), column) for column in (cost, quality))
        seeds = sorted(x.values.keys() & y.values.keys())
        if not seeds:
            continue
        colour, open_symbol = (
            palette[method],
            bool(study.of(method, backbone)["borrowed"].any()) and cost is not SAMPLE_TIME,
        )
        look = {"color": colour, "marker": shapes[backbone], "mfc": "white" if open_symbol else colour, "ls": ""}
        xs, ys = ([s.values[seed] * c.scale for seed in seeds] for s, c in ((x, cost), (y, quality)))
        if len(seeds) > 1:
            axes.plot(xs, ys, **look, ms=2.5, alpha=0.5)
        mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
        half = y.sampling * quality.scale
        axes.errorbar(mean_x, mean_y, yerr=half if half == half else None, **look, ms=6, elinewidth=0.8, zorder=3)
    key = quality.key.replace("eval.metrics.", "eval.data_row.")
    if key in study.counted:
        for value in study.counted[key].dropna().unique():
            axes.axhline(value * quality.scale, color=GREY, lw=0.8, ls=(0, (4, 3)), zorder=1)
    _axes(axes)


def _axes(axes: Axes) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low / 1.15, high * 1.15)
    few = high / low < 30
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(5))
