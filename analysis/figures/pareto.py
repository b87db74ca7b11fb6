"""Quality against cost: the leading quality values over training and sampling times."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.figures.style import DATA, STYLE, WIDTH, legend, name, save, symbol_look, x_axis
from analysis.labels import Column, directed
from analysis.load import Study
from analysis.stats import evaluated, summarise
from bench.records.values import Better, Kind

N_QUALITIES, N_COSTS = 2, 3


def build(study: Study, out: Path) -> list[Path]:
    """Write pareto.png and pareto.pdf; nothing without values of quality and of cost."""
    qualities, costs = _axes(study)
    if not qualities or not costs:
        return []
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.6 + 2.0 * len(qualities)))
        panels = figure.subplots(len(qualities), len(costs), sharex="col", sharey="row", squeeze=False)
        for row, quality in enumerate(qualities):
            for axes, cost in zip(panels[row], costs, strict=True):
                _panel(axes, study, cost, quality)
                axes.set_xlabel(cost.title if row == len(qualities) - 1 else "")
            panels[row, 0].set_ylabel(quality.title)
        for axes, cost in zip(panels[-1], costs, strict=True):
            found = [v * cost.scale for g in study.groups for v in summarise(study, g, cost).values.values()]
            x_axis(axes, found, from_zero=True)
        handles = [Line2D([], [], **symbol_look(study, group), label=name(group)) for group in evaluated(study)]
        handles.append(Line2D([], [], **DATA, label="data"))
        legend(figure, handles)
        return save(figure, out, "pareto")


def _axes(study: Study) -> tuple[list[Column], list[Column]]:
    """The first quality values (likelihoods if there are none), and the first costs in units of time."""
    qualities = directed(study.of_kind(Kind.QUALITY)) or directed(study.of_kind(Kind.LIKELIHOOD))
    measured = study.scalars[study.scalars["value"].notna()]
    units = dict(zip(measured["column"], measured["unit"], strict=True))
    return (
        [column for column in qualities if column.name in units][:N_QUALITIES],
        [column for column in study.of_kind(Kind.COST) if units.get(column.name, "").partition("/")[0] == "s"][
            :N_COSTS
        ],
    )


def caption(study: Study) -> str:
    """What the figure shows."""
    qualities, _ = _axes(study)
    directions = (("up", Better.HIGHER), ("down", Better.LOWER))
    labels = {word: [c.label for c in qualities if c.better is better] for word, better in directions}
    better = "; ".join(f"{word} for {', '.join(found)}" for word, found in labels.items() if found)
    text = (
        f"Quality against cost. Better is {better}; left for cost. Large symbols: mean over seeds; small: one seed "
        "each; bars: 95 % interval of the mean from the finite number of samples. Dashed: what the data set itself "
        "gets. Times depend on the machine and on what else it ran."
    )
    borrowed = " Open symbols train nothing: their training cost is that of the run whose weights they use."
    return text + (borrowed if study.counted["borrowed"].any() else "")


def _panel(axes: Axes, study: Study, cost: Column, quality: Column) -> None:
    for group in study.groups:
        x, y = (summarise(study, group, column) for column in (cost, quality))
        seeds = sorted(x.values.keys() & y.values.keys())
        if not seeds:
            continue
        look = symbol_look(study, group)
        xs, ys = ([s.values[seed] * c.scale for seed in seeds] for s, c in ((x, cost), (y, quality)))
        if len(seeds) > 1:
            axes.plot(xs, ys, **{**look, "ms": 2.5}, alpha=0.6)
        half = y.sampling * quality.scale
        bar = half if half == half else None
        axes.errorbar(sum(xs) / len(xs), sum(ys) / len(ys), yerr=bar, **look, elinewidth=0.8, zorder=3)
    for value in set(study.data_values(quality)):
        axes.axhline(value * quality.scale, **DATA)
    axes.yaxis.set_major_locator(MaxNLocator(6))
