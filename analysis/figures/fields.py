"""Vector fields on a slice of the state space: what each method learned, beside the exact field.

Drawn are values at points x, or x and y, whose position names the component as `along` (measure `field`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures.style import (
    DATA,
    GREY,
    STYLE,
    WIDTH,
    Mark,
    colours,
    legend,
    line_look,
    name,
    name_ends,
    save,
    short_names,
)
from analysis.stats import Group
from analysis.study import AT, Frame, Study

POINT = (f"{AT}x", f"{AT}y")
EXACT = "_exact"  # end of the name of the field that a learned one is compared with
N_ACROSS = 3


def absent(study: Study) -> str:
    """Why there is nothing to draw, or ''."""
    return "no run measured a vector field (measure `field`)" if of_fields(study).empty else ""


def build(study: Study, out: Path) -> list[Path]:
    """Write fields.png and fields.pdf; nothing when no counted run measured a field."""
    values = of_fields(study)
    if values.empty:
        return []
    groups = [group for group in study.groups if len(_of(values, group))]
    planar, times = _is_planar(values), _times(values)
    panels: list[Any] = list(groups) if planar else times
    n_across = min(N_ACROSS, len(panels))
    n_rows = -(-len(panels) // n_across)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, n_rows * WIDTH / n_across + 0.4 if planar else 0.6 + 2.2 * n_rows))
        grid = figure.subplots(n_rows, n_across, squeeze=False, sharex=True, sharey=True)
        named = []
        for axes, panel in zip(grid.flat, panels, strict=False):
            if planar:
                _arrows(axes, study, _of(values, panel), panel, times[len(times) // 2])
            else:
                marks = _lines(axes, study, values[values[f"{AT}t"] == panel], groups)
                named += [(axes, marks)] if panel == panels[-1] else []  # the colours are those of all panels
                axes.set_title(f"t = {panel:g}")
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        exact = {"color": GREY, "lw": 2.5, "alpha": 0.5} if planar else DATA
        legend(figure, study, [] if planar else groups, [Line2D([], [], **exact, label="exact")])
        name_ends(figure, named)
        return save(figure, out, "fields")


def caption(study: Study) -> str:
    """What the figure shows."""
    values = of_fields(study)
    times = _times(values)
    shown = f"first seed, t = {times[len(times) // 2]:g}" if _is_planar(values) else "a line for each seed"
    return (
        "Vector fields where the first point of a noised shape is moved and the others stay: -E[eps | z_t] at that "
        f"point, which is sigma times the score; {shown}. Grey: the exact field of the symmetrised data."
    )


def of_fields(study: Study) -> Frame:
    """Values of counted runs that are components of a field."""
    values = study.values
    if POINT[0] not in values:
        return values.iloc[:0]
    return values[values["counted"] & values[POINT[0]].notna() & values["value"].notna()]


def _is_planar(values: Frame) -> bool:
    return POINT[1] in values and bool(values[POINT[1]].notna().any())


def _times(values: Frame) -> list[float]:
    return sorted(values[f"{AT}t"].unique())


def _of(values: Frame, group: Group) -> Frame:
    return values[(values["method"] == group[0]) & (values["backbone"] == group[1])]


def _lines(axes: Axes, study: Study, values: Frame, groups: list[Group]) -> list[Mark]:
    """Draw one panel; returns the names at the ends of its lines."""
    texts, marks = short_names(groups), []
    exact = values["name"].str.endswith(EXACT)
    for group in groups:
        look = line_look(study, group)
        for _, run in _of(values[~exact], group).groupby("run", sort=True):
            line = run.sort_values(POINT[0])
            axes.plot(line[POINT[0]], line["value"], color=look["color"], ls=look["ls"], lw=0.7, alpha=0.7)
        for _, end in _of(values[~exact], group).sort_values(POINT[0]).tail(1).iterrows():
            marks.append(Mark(float(end[POINT[0]]), float(end["value"]), texts[group], look["color"]))
    first = values[exact & (values["run"] == values["run"].iloc[0])].sort_values(POINT[0])
    axes.plot(first[POINT[0]], first["value"], **{**DATA, "lw": 1.4, "zorder": 5})
    axes.set_xlabel("x")
    return marks


def _arrows(axes: Axes, study: Study, values: Frame, group: Group, time: float) -> None:
    values = values[(values[f"{AT}t"] == time) & (values["run"] == values.sort_values("seed")["run"].iloc[0])]
    exact = values["name"].str.endswith(EXACT)
    learned = {"color": colours(study)[group[0]], "width": 0.005, "zorder": 3}
    for rows, look in ((values[exact], {"color": GREY, "width": 0.014, "alpha": 0.4}), (values[~exact], learned)):
        wide = rows.assign(along=[dict(words)["along"] for words in rows["words"]])
        wide = wide.pivot_table(index=list(POINT), columns="along", values="value").reset_index()
        x, y = (wide[axis].to_numpy() for axis in POINT)
        scale = 2.0 * max(len(set(x)), 1) / (max(x) - min(x))
        axes.quiver(x, y, wide["x"], wide["y"], angles="xy", scale_units="xy", scale=scale, **look)
    axes.set_aspect("equal")
    axes.set_title(name(group))
