"""How steadily each row trained: gradient norms, spikes, losses that were not finite, and what seeds end with.

All of it comes from the stored curves. A line of a curve is a logging interval, and its gradient norm the mean over the
interval, before clipping, so that a spike of one step shows as far as it moves that mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.labels import MISSING, significant
from analysis.stats import Group
from analysis.study import Frame, Study
from analysis.tables.render import Cell, Table, csv, markdown
from bench.records.store import write_atomically

SPIKE = 3.0  # times the running median above which a gradient norm is a spike
WINDOW = 21  # intervals of the running median, the one in question in their middle
QUANTILES = {"grad_norm_median": 0.5, "grad_norm_q95": 0.95, "grad_norm_max": 1.0}
NOT_FINITE = "not finite"  # in the reason of a run that a loss or gradient stopped


def build(study: Study, out: Path) -> list[Path]:
    """Write stability.md and stability.csv; nothing where no run has a curve of gradient norms."""
    table = stability_table(study)
    if table is None:
        return []
    for name, content in {"stability.md": markdown(table), "stability.csv": csv(stability_frame(study))}.items():
        write_atomically(out / name, content.encode())
    return [out / "stability.md", out / "stability.csv"]


def spikes(norms: np.ndarray) -> np.ndarray:
    """Which intervals have a gradient norm above SPIKE times the running median [n]."""
    finite = pd.Series(norms)
    median = finite.rolling(WINDOW, center=True, min_periods=1).median().to_numpy()
    with np.errstate(invalid="ignore"):
        return np.asarray(norms > SPIKE * median)


def stability_frame(study: Study) -> Frame:
    """A row for each method on its backbone that trained, in the records' units."""
    rows = [row for group in study.groups if (row := _row(study, group)) is not None]
    return pd.DataFrame(rows)


def _row(study: Study, group: Group) -> dict[str, Any] | None:
    runs = study.of(*group)
    curves = study.curves[study.curves["run"].isin(runs.loc[runs["status"] != "duplicate", "run"])]
    curves = curves.sort_values(["run", "step"], kind="stable")
    logged = curves.dropna(subset=["loss"], how="all")
    norms = [own["grad_norm"].to_numpy(dtype=float) for _, own in logged.groupby("run")]
    norms = [each for each in norms if np.isfinite(each).any()]
    if not norms:
        return None
    every = np.concatenate(norms)
    finite = every[np.isfinite(every)]
    stopped = runs["reason"].fillna("").astype(str).str.contains(NOT_FINITE)
    last = {key: curves.dropna(subset=[key]).groupby("run")[key].last() for key in ("loss", "valid_loss")}
    return {
        "method": group[0],
        "backbone": group[1],
        "runs": len(norms),
        "intervals": len(every),
        **{name: float(np.quantile(finite, q)) for name, q in QUANTILES.items()},
        "clipped": float(logged["clipped"].mean()),
        "spikes": int(sum(spikes(each).sum() for each in norms)),
        "not_finite": int((~np.isfinite(every)).sum()),
        "stopped": int(stopped.sum()),
        **{f"{key}_relative_sd": _relative_sd(values) for key, values in last.items()},
    }


def _relative_sd(values: Frame) -> float:
    """Standard deviation over runs by their mean; NaN for one run."""
    return float(values.std(ddof=1) / values.mean()) if len(values) > 1 and values.mean() else float("nan")


def stability_table(study: Study) -> Table | None:
    """The table as cells; None where no run has a curve of gradient norms."""
    frame = stability_frame(study)
    if frame.empty:
        return None

    def number(value: float) -> str:
        return MISSING if value != value else f"{value:.{significant(value)}f}"

    def percent(value: float) -> str:
        return MISSING if value != value else f"{100 * value:.1f}"

    rows = [
        [
            Cell(row["method"]),
            Cell(row["backbone"]),
            Cell(str(row["runs"])),
            *(Cell(number(row[name])) for name in QUANTILES),
            Cell(percent(row["clipped"])),
            Cell(f"{row['spikes']} of {row['intervals']}"),
            Cell(str(row["not_finite"] + row["stopped"])),
            *(Cell(percent(row[f"{key}_relative_sd"])) for key in ("loss", "valid_loss")),
        ]
        for row in frame.to_dict("records")
    ]
    header = ["Method", "Backbone", "Runs", "Gradient norm, median", "95 %", "largest", "Steps clipped (%)", "Spikes"]
    header += ["Not finite", "Last training loss, spread (%)", "Last validation loss, spread (%)"]
    return Table(
        header,
        rows,
        "Quantiles over logging intervals of all runs; the norm of an interval is the mean of its steps, before "
        f"clipping. Spikes: intervals with more than {SPIKE:g} times the median of the {WINDOW} around them. Not "
        "finite: intervals, and runs that stopped for it. Spread: standard deviation over runs of the last value, by "
        "its mean.",
        n_text=2,
        files=("stability.csv",),
        title="How steadily each row trained.",
    )
