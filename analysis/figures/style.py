"""One look for all figures: colour is the method, the same in every report; marker and dashes are the backbone.

Names stand at points and at the ends of lines; a legend has backbones alone.
"""

from __future__ import annotations

import io
import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox
from rdkit import Chem

from analysis.labels import Column
from analysis.stats import Group
from analysis.study import Study
from bench.records.store import write_atomically

# Of Okabe & Ito (jfly.uni-koeln.de/color), of Paul Tol (personal.sron.nl/~pault) and others: any two of them differ by
# 0.06 or more in OKLab, for normal sight and without red or green cones (tests/unit/analysis/test_analysis_style.py).
COLOURS = {
    "plain": "#000000",
    "haar": "#0072B2",
    "symdiff": "#D55E00",
    "symdiff_haar": "#E69F00",
    "symdiff_as_released": "#661100",
    "edm": "#009E73",
    "target_symmetrisation": "#7A4B00",
    "orbit_rb": "#56B4E9",
    "orbit_rb_exact": "#332288",
    "orbit_average": "#C0003C",
    "orbit_rb_as_released": "#22DDAA",
    "frames": "#882255",
    "frames_averaged": "#CC79A7",
}
OTHERS = ("#44AA99", "#7B5BD6", "#999933", "#CC6677", "#AA4499", "#777777")  # methods not shipped, by their name
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: Any = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
GREY = "#666666"
WIDTH = 7.0  # inches: the text width of a two-column page
LETTERS = 120  # that fit this width
TALL = 22  # letters of a label that fit the height of a panel
SMALL = 6.5  # points: size of names in a panel
LEADER: Any = {"arrowstyle": "-", "lw": 0.4, "alpha": 0.7, "shrinkA": 0, "shrinkB": 2}  # line from a name to its point
FAR = 1.3  # heights of a name beyond which a line leads from it to its point
HALO = [withStroke(linewidth=1.5, foreground="white")]
WIDE = 20  # ratio of the largest to the smallest value from which an axis is logarithmic
DATA: Any = {"color": GREY, "lw": 0.8, "ls": (0, (4, 3)), "zorder": 1}  # style of the data set's own values

STYLE: Any = {
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same picture everywhere
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}


def colours(study: Study) -> dict[str, str]:
    """Method (label) -> colour of its registered name."""
    rows, found = study.runs.dropna(subset=["method"]), palette(study)
    return {label: found[name] for label, name in zip(rows["method"], rows["method.name"], strict=True)}


def palette(study: Study) -> dict[str, str]:
    """Registered name of each of the study's methods -> colour."""
    names = set(study.runs["method.name"].dropna())
    found = {name: COLOURS[name] for name in names & COLOURS.keys()}
    for name in sorted(names - COLOURS.keys()):
        wanted, free = colour_of(name), [colour for colour in OTHERS if colour not in found.values()]
        found[name] = wanted if wanted in free or not free else free[0]  # two plug-ins of one colour
    return found


def colour_of(name: str) -> str:
    """Colour of a registered name, the same everywhere; that of a method which is not shipped follows from its name."""
    return COLOURS.get(name) or OTHERS[zlib.crc32(name.encode()) % len(OTHERS)]


def backbones(study: Study) -> list[str]:
    """Backbones (labels) in order of first appearance."""
    return list(dict.fromkeys(backbone for _, backbone in study.groups))


def markers(study: Study) -> dict[str, str]:
    """Backbone -> marker."""
    return dict(zip(backbones(study), itertools.cycle(MARKERS)))


def dashes(study: Study) -> dict[str, Any]:
    """Backbone -> line style."""
    return dict(zip(backbones(study), itertools.cycle(DASHES)))


def by_backbone(study: Study, groups: Sequence[Group]) -> list[Group]:
    """Rows of one backbone together: only those differ in the strategy alone."""
    return sorted(groups, key=lambda group: backbones(study).index(group[1]))


def line_look(study: Study, group: Group) -> dict[str, Any]:
    """Style of a curve: colour by method, dashes and marker by backbone."""
    method, backbone = group
    look = {"ls": dashes(study)[backbone], "marker": markers(study)[backbone]}
    return {"color": colours(study)[method], **look, "ms": 3.5}


def symbol_look(study: Study, group: Group) -> dict[str, Any]:
    """Style of a point: filled if the method trains; otherwise open and larger, to stay visible around the point of the
    row whose weights it uses."""
    colour, marker = colours(study)[group[0]], markers(study)[group[1]]
    borrowed = bool(study.of(*group)["borrowed"].any())
    size = 8 if borrowed else 5.5
    return {"color": colour, "marker": marker, "mfc": "none" if borrowed else colour, "ms": size, "ls": ""}


def x_axis(axes: Axes, values: Sequence[float]) -> None:
    """Logarithmic if positive values span a wide range; otherwise linear."""
    if min(values) > 0 and max(values) / min(values) > WIDE:
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 1.5, max(values) * 1.5)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))


def name(group: Group) -> str:
    return " / ".join(group)


def short_names(groups: Sequence[Group]) -> dict[Group, str]:
    """Names for the rows of one panel: the method, with the backbone only if the method is there on several."""
    methods = [method for method, _ in groups]
    return {group: group[0] if methods.count(group[0]) == 1 else name(group) for group in groups}


def legend(
    figure: Figure, study: Study, groups: Sequence[Group], others: Sequence[Line2D] = (), lines: bool = True
) -> None:
    """Above all panels: what tells the backbones of `groups` apart, if there are several, and `others`."""
    shown = [backbone for backbone in backbones(study) if backbone in {group[1] for group in groups}]
    look = {"color": GREY, "ms": 4, "lw": 1.2}
    handles = [
        Line2D([], [], **look, marker=markers(study)[b], ls=dashes(study)[b] if lines else "", label=b) for b in shown
    ]
    handles = [*(handles if len(shown) > 1 else []), *others]
    if handles:
        n_fitting = LETTERS // (max(len(str(handle.get_label())) for handle in handles) + 6)
        ncols = max(1, min(len(handles), 5, n_fitting))
        figure.legend(handles=handles, loc="outside upper center", ncols=ncols, handlelength=3)


@dataclass(frozen=True)
class Mark:
    """A name to write at the point (x, y) of a panel, in data units."""

    x: float
    y: float
    text: str
    colour: str


def name_ends(figure: Figure, panels: Sequence[tuple[Axes, Sequence[Mark]]]) -> None:
    """Write names right of panels, each at the height of its point, or as near to it as leaves all readable."""
    figure.draw_without_rendering()  # lays the panels out, so that their heights are known
    for axes, marks in panels:
        marks = [mark for mark in marks if np.isfinite([mark.x, mark.y]).all()]
        heights = [axes.transAxes.inverted().transform(axes.transData.transform((m.x, m.y)))[1] for m in marks]
        gap = 1.15 * SMALL / 72 / (axes.get_window_extent().height / figure.dpi)
        for mark, height in zip(marks, spread(heights, gap), strict=True):
            axes.annotate(
                mark.text,
                (mark.x, mark.y),
                (1.03, height),
                textcoords=axes.transAxes,
                color=mark.colour,
                fontsize=SMALL,
                va="center",
                annotation_clip=False,
                arrowprops={**LEADER, "color": mark.colour},
            )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The places within [0, 1] nearest to the given ones (least squares) that keep their order and are `gap` apart."""
    n = len(places)
    gap = min(gap, 1 / max(n - 1, 1))
    order = np.argsort(places, kind="stable")
    blocks: list[list[float]] = []  # neighbours that touch share the mean of where they would stand
    for rank, index in enumerate(order):
        blocks.append([places[index] - rank * gap])
        while len(blocks) > 1 and np.mean(blocks[-2]) >= np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    starts = np.clip([np.mean(block) for block in blocks for _ in block], 0, 1 - (n - 1) * gap)
    found = np.empty(n)
    found[order] = starts + gap * np.arange(n)
    return found.tolist()


def name_points(figure: Figure, panels: Sequence[tuple[Axes, Sequence[Mark]]]) -> None:
    """Write names beside points, where they hide the fewest other names and points, with a line where they are far."""
    figure.draw_without_rendering()
    for axes, marks in panels:
        points = axes.transData.transform([(mark.x, mark.y) for mark in marks]) if marks else ()
        taken = [np.array([x - 4, y - 4, x + 4, y + 4]) for x, y in points]
        for mark, point in zip(marks, points, strict=True):
            look = {"color": mark.colour, "fontsize": SMALL, "va": "center", "ha": "center", "path_effects": HALO}
            text = axes.annotate(mark.text, (mark.x, mark.y), (0, 0), textcoords="offset points", **look)
            box = text.get_window_extent()
            offset = _best_offset(point, np.array([box.width, box.height]), np.array(taken), axes.get_window_extent())
            text.set_position((float(offset[0] * 72 / figure.dpi), float(offset[1] * 72 / figure.dpi)))
            taken.append(_box(point + offset, np.array([box.width, box.height])))
            if np.hypot(max(abs(offset[0]) - box.width / 2, 0), offset[1]) > FAR * box.height:
                leader = {**LEADER, "color": mark.colour}
                axes.annotate("", (mark.x, mark.y), text.get_position(), textcoords="offset points", arrowprops=leader)


def _best_offset(point: np.ndarray, size: np.ndarray, taken: np.ndarray, frame: Bbox) -> np.ndarray:
    """Offset [2] in pixels of the middle of a name of this size [2] from its point: of places around it, nearest first,
    that with the least area over the boxes `taken` [n, 4] and beyond the panel."""
    width, height = size
    offsets = np.array(
        [
            (side * (width / 2 + (0.7 + 0.5 * away) * height), row * height)
            for away in range(6)
            for row in sorted(range(-2 * away, 2 * away + 1), key=abs)
            for side in ((1, -1, 0) if row else (1, -1))
        ]
    )
    places = _box(point + offsets, size)  # [k, 4]
    hidden = _shared(places[:, None], taken).sum(axis=1)
    outside = width * height - _shared(places, np.array(frame.extents))
    far = np.abs(offsets).sum(axis=1) - width / 2
    return offsets[np.argmin(hidden + 4 * outside + 0.01 * height * far)]


def _box(middle: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Left, bottom, right, top [..., 4] of boxes around their middles [..., 2]."""
    return np.concatenate([middle - size / 2, middle + size / 2], axis=-1)


def _shared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Area shared by boxes [..., 4]."""
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    return np.prod(np.clip(sides, 0, None), axis=-1)


def undefined(study: Study, found: Sequence[Column]) -> str:
    """Why none of these quantities can be drawn."""
    if not len(study.counted):
        return "no run is done and evaluated yet"
    if not found:
        return "no run measured such a quantity"
    numbers = {int(z) for elements in study.counted["data.elements"].dropna() for z in elements}
    symbols = ", ".join(Chem.GetPeriodicTable().GetElementSymbol(z) for z in sorted(numbers) if z > 0)
    names = ", ".join(column.label for column in found)
    of = f" (elements: {symbols})" if symbols else ""
    return f"no run has a value of {names}: not defined for its samples{of}"


def save(figure: Figure, out: Path, stem: str) -> list[Path]:
    """Write PNG and PDF, byte for byte the same for the same records (no date, no version in the metadata)."""
    paths = []
    for suffix, metadata in (
        ("png", {"Software": None}),
        ("pdf", {"CreationDate": None, "Producer": None, "Creator": None}),
    ):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, metadata=metadata)
        write_atomically(out / f"{stem}.{suffix}", buffer.getvalue())
        paths.append(out / f"{stem}.{suffix}")
    return paths
