"""One look for all figures: a colour per method and a marker per backbone, both by order of first appearance."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.load import Study
from analysis.stats import Group
from bench.records.store import write_atomically

# Okabe & Ito's colours, safe for colour-blind readers (jfly.uni-koeln.de/color), without yellow: it is lost on white;
# then three of Paul Tol's muted ones (personal.sron.nl/~pault)
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    *("#882255", "#999933", "#332288"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")
GREY = "#666666"
WIDTH = 7.0  # inches: the text width of a two-column page
LETTERS = 105  # characters of a legend that fit that width
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
    """Method -> colour; beyond the last colour they start again, with other dashes."""
    return dict(zip(study.methods, itertools.cycle(COLOURS)))


def markers(study: Study) -> dict[str, str]:
    """Backbone -> marker."""
    return dict(zip(dict.fromkeys(b for _, b in study.groups), itertools.cycle(MARKERS)))


def dashes(study: Study) -> dict[str, str]:
    """Method -> line style, which changes when colours repeat."""
    return {method: DASHES[i // len(COLOURS) % len(DASHES)] for i, method in enumerate(study.methods)}


def line_look(study: Study, group: Group) -> dict[str, Any]:
    """Style of a curve: colour and dashes by method, marker by backbone."""
    method, backbone = group
    return {"color": colours(study)[method], "ls": dashes(study)[method], "marker": markers(study)[backbone], "ms": 3.5}


def symbol_look(study: Study, group: Group) -> dict[str, Any]:
    """Style of a point: filled if the method trains; otherwise open and larger, to stay visible around the point of the
    row whose weights it uses."""
    colour, marker = colours(study)[group[0]], markers(study)[group[1]]
    borrowed = bool(study.of(*group)["borrowed"].any())
    size = 8 if borrowed else 5.5
    return {"color": colour, "marker": marker, "mfc": "none" if borrowed else colour, "ms": size, "ls": ""}


def x_axis(axes: Axes, values: Sequence[float], from_zero: bool = False) -> None:
    """Logarithmic if positive values span a wide range; otherwise linear, from zero if `from_zero`."""
    if min(values) > 0 and max(values) / min(values) > WIDE:
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 1.5, max(values) * 1.5)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        if from_zero and max(values) > 0:
            axes.set_xlim(0, max(values) * 1.12)
        axes.xaxis.set_major_locator(MaxNLocator(6))


def name(group: Group) -> str:
    return " / ".join(group)


def legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """One legend above all panels, in as few lines as fit."""
    lengths = [len(str(handle.get_label())) + 6 for handle in handles]  # with the symbol

    def width(n_columns: int) -> int:  # matplotlib fills columns one after the other, the first ones longer
        return sum(max(column) for column in np.array_split(lengths, n_columns))

    n_columns = next((n for n in range(len(lengths), 1, -1) if width(n) <= LETTERS), 1)
    figure.legend(handles=handles, loc="outside upper center", ncols=n_columns)


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
