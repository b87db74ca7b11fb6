"""Quality against cost: atom and molecule stability over the time of a training step and over sampling time."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.figures.style import GREY, STYLE, WIDTH, colours, legend, markers, name, save
from analysis.labels import ATOM_STABILITY, MOLECULE_STABILITY, SAMPLE_TIME, STEP_TIME, Column
from analysis.load import Study
from analysis.stats import Group, summarise

QUALITIES = (ATOM_STABILITY, MOLECULE_STABILITY)
COSTS = (STEP_TIME, SAMPLE_TIME)
WIDE = 20  # ratio of the largest to the smallest cost from which the axis is logarithmic


def build(study: Study, out: Path) -> list[Path]:
    """Write pareto.png and pareto.pdf; nothing when no evaluated run has a cost."""
    costs = [cost for cost in COSTS if any(summarise(study, group, cost).n for group in study.groups)]
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
        for axes, cost in zip(panels[-1], costs, strict=True):
            _cost_axis(axes, [v * cost.scale for g in study.groups for v in summarise(study, g, cost).values.values()])
        evaluated = [group for group in study.groups if summarise(study, group, ATOM_STABILITY).n]
        handles = [Line2D([], [], **_look(study, group), label=name(group)) for group in evaluated]
        handles.append(Line2D([], [], color=GREY, ls=(0, (4, 3)), lw=0.8, label="data"))
        legend(figure, handles)
        return save(figure, out, "pareto")


def caption(study: Study) -> str:
    """What the figure shows."""
    text = (
        "Quality against cost; up and to the left is better. Large symbols: mean over seeds; small: one seed each; "
        "bars: 95 % "
        "interval of the mean from the finite number of sampled molecules. Dashed: the data set's own score on the "
        "same "
        "split. Times depend on the machine and on what else it ran."
    )
    borrowed = " Open symbols train nothing: their training cost is that of the run whose weights they use."
    return text + (borrowed if study.counted["borrowed"].any() else "")


def _look(study: Study, group: Group) -> dict:
    """Filled symbols train; open, larger ones do not, and stay visible around the row whose weights they use."""
    colour, marker = colours(study)[group[0]], markers(study)[group[1]]
    borrowed = bool(study.of(*group)["borrowed"].any())
    return {
        "color": colour,
        "marker": marker,
        "mfc": "none" if borrowed else colour,
        "ms": 8 if borrowed else 5.5,
        "ls": "",
    }


def _panel(axes: Axes, study: Study, cost: Column, quality: Column) -> None:
    for group in study.groups:
        x, y = (summarise(study, group, column) for column in (cost, quality))
        seeds = sorted(x.values.keys() & y.values.keys())
        if not seeds:
            continue
        look = _look(study, group)
        xs, ys = ([s.values[seed] * c.scale for seed in seeds] for s, c in ((x, cost), (y, quality)))
        if len(seeds) > 1:
            axes.plot(xs, ys, **{**look, "ms": 2.5}, alpha=0.6)
        half = y.sampling * quality.scale
        bar = half if half == half else None
        axes.errorbar(sum(xs) / len(xs), sum(ys) / len(ys), yerr=bar, **look, elinewidth=0.8, zorder=3)
    key = quality.key.replace("eval.metrics.", "eval.data_row.")
    for value in study.counted[key].dropna().unique() if key in study.counted else ():
        axes.axhline(value * quality.scale, color=GREY, lw=0.8, ls=(0, (4, 3)), zorder=1)
    axes.yaxis.set_major_locator(MaxNLocator(6))


def _cost_axis(axes: Axes, values: list[float]) -> None:
    """From zero, or logarithmic where costs lie far apart."""
    if min(values) > 0 and max(values) / min(values) > WIDE:
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 1.5, max(values) * 1.5)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_xlim(0, max(values) * 1.12)
        axes.xaxis.set_major_locator(MaxNLocator(6))
