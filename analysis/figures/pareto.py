"""Quality against cost: the leading quality values over training and sampling times, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.figures.style import (
    DATA,
    GREY,
    STYLE,
    WIDTH,
    Mark,
    legend,
    name_points,
    save,
    symbol_look,
    undefined,
    x_axis,
)
from analysis.labels import ARROWS, Column, directed
from analysis.stats import Group, evaluated, summarise
from analysis.study import Study
from bench.records.values import Better, Kind

N_QUALITIES, N_COSTS = 2, 3
SAME = 0.2  # two costs whose ratio differs by less between rows say the same; the first of them is drawn
FRONT = {"color": GREY, "lw": 1.0, "alpha": 0.6, "zorder": 1.5}


def absent(study: Study) -> str:
    """Why there is nothing to draw, or ''."""
    qualities, costs = _axes(study)
    if not qualities:
        found = directed(study.of_kind(Kind.QUALITY)) or directed(study.of_kind(Kind.LIKELIHOOD))
        return undefined(study, found)
    return "" if costs else "no run recorded a cost in seconds"


def build(study: Study, out: Path) -> list[Path]:
    """Write pareto.png and pareto.pdf; nothing without values of quality and of cost."""
    qualities, costs = _axes(study)
    if not qualities or not costs:
        return []
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.4 + 2.7 * len(qualities)))
        panels = figure.subplots(len(qualities), len(costs), sharex="col", sharey="row", squeeze=False)
        named = []
        for row, quality in enumerate(qualities):
            for axes, cost in zip(panels[row], costs, strict=True):
                named.append((axes, _panel(axes, study, cost, quality)))
                axes.set_xlabel(cost.title if row == len(qualities) - 1 else "")
            panels[row, 0].set_ylabel(f"{quality.title}{ARROWS[quality.better]}")
        for axes, cost in zip(panels[-1], costs, strict=True):
            x_axis(axes, [v * cost.scale for g in study.groups for v in summarise(study, g, cost).values.values()])
            axes.margins(x=0.12)
        others = [Line2D([], [], **FRONT, label="Pareto front")]
        if any(study.data_values(quality) for quality in qualities):
            others.append(Line2D([], [], **DATA, label="data"))
        legend(figure, study, evaluated(study), others, lines=False)
        name_points(figure, named)
        return save(figure, out, "pareto")


def _axes(study: Study) -> tuple[list[Column], list[Column]]:
    """The first quality values (likelihoods if there are none), and the first costs in units of time."""
    qualities = directed(study.of_kind(Kind.QUALITY)) or directed(study.of_kind(Kind.LIKELIHOOD))
    measured = study.scalars[study.scalars["value"].notna()]
    units = dict(zip(measured["column"], measured["unit"], strict=True))
    costs: list[Column] = []
    for column in study.costs:
        in_time = units.get(column.name, "").partition("/")[0] == "s"
        if in_time and not any(_proportional(study, column, other) for other in costs):
            costs.append(column)
    return [column for column in qualities if column.name in units][:N_QUALITIES], costs[:N_COSTS]


def _proportional(study: Study, a: Column, b: Column) -> bool:
    pairs = [(summarise(study, group, a).mean, summarise(study, group, b).mean) for group in evaluated(study)]
    ratios = np.array([x / y for x, y in pairs if x == x and y > 0])
    return len(ratios) > 1 and bool(np.ptp(ratios) <= SAME * ratios.mean())


def caption(study: Study) -> str:
    """What the figure shows."""
    qualities, _ = _axes(study)
    directions = (("up", Better.HIGHER), ("down", Better.LOWER))
    labels = {word: [c.label for c in qualities if c.better is better] for word, better in directions}
    better = "; ".join(f"{word} for {', '.join(found)}" for word, found in labels.items() if found)
    text = (
        f"Quality against cost. Better is {better}; left for cost. The grey steps are the "
        "Pareto front: no other row is both cheaper and better than the rows on it. Large symbols: mean over seeds; "
        "small: one seed each; bars: 95 % interval of the mean from the finite number of samples. Dashed: what the "
        "data set itself gets. Times depend on the machine and on what else it ran."
    )
    borrowed = " Open symbols train nothing: their training cost is that of the run whose weights they use."
    return text + (borrowed if study.counted["borrowed"].any() else "")


def front(points: Sequence[tuple[float, float]], better: Better) -> list[tuple[float, float]]:
    """The points (cost, quality) that no other one beats in both (or equals in one and beats in the other), by cost."""
    sign = -1 if better is Better.HIGHER else 1
    found: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda point: (point[0], sign * point[1])):
        if not found or sign * quality < sign * found[-1][1]:
            found.append((cost, quality))
    return found


def _panel(axes: Axes, study: Study, cost: Column, quality: Column) -> list[Mark]:
    """Draw one panel; returns the names of its points."""
    means: dict[Group, tuple[float, float]] = {}
    for group in study.groups:
        x, y = (summarise(study, group, column) for column in (cost, quality))
        seeds = sorted(x.values.keys() & y.values.keys())
        if not seeds:
            continue
        look = symbol_look(study, group)
        xs, ys = ([s.values[seed] * c.scale for seed in seeds] for s, c in ((x, cost), (y, quality)))
        if len(seeds) > 1:
            axes.plot(xs, ys, **{**look, "ms": 2}, alpha=0.5)
        means[group] = sum(xs) / len(xs), sum(ys) / len(ys)
        arms = [[arm * quality.scale] for arm in y.arms]
        axes.errorbar(*means[group], yerr=arms if y.arms[0] == y.arms[0] else None, **look, elinewidth=0.8, zorder=3)
    for value in set(study.data_values(quality)):
        axes.axhline(value * quality.scale, **DATA)
    if quality.better is not Better.NEITHER and len(means) > 1:
        steps = front(list(means.values()), quality.better)
        # The front goes on to the right: more cost buys nothing better.
        last = max(x for x, _ in means.values())
        axes.plot(*zip(*steps, (last, steps[-1][1]), strict=True), drawstyle="steps-post", **FRONT)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    return [Mark(*means[group], group[0], symbol_look(study, group)["color"]) for group in means]
