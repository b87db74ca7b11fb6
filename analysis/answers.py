"""docs/answers.md: what the published results say to the questions of the field, so that no number is typed by hand.

`python -m analysis.answers` writes the page from `results/`; with `--check` it changes nothing and exits with 1 if the
page is out of date. Where the results lack a measurement, the page says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import fill

import pandas as pd

from analysis.labels import GUARANTEES, MISSING, columns, words_of
from analysis.load import load
from analysis.study import Frame
from analysis.tables.render import Cell, Table, markdown
from bench.records.intervals import Z_95
from bench.records.store import StudyFolder, write_atomically

RESULTS, PAGE = Path("results"), Path("docs/answers.md")
TIME = "at.t"
ROW = ["study", "method", "backbone", "step", "n_train"]
NOT_YET = "Not measured yet: no published run has {}."
ERROR, SHARE, GAIN = "equivariance_error_mean", "equivariance_loss_share", "orientation_gain"
LAPTOP, TURNED = "qm9_laptop", "qm9_turned"  # the same data as stored, and each molecule turned at random
REMOVED = GRADIENT, TARGET = "gradient_variance_removed", "target_variance_removed"
LIMIT, ESTIMATORS = "target_variance_removed_limit", ("exact", "local", "uniform")
LAW = (P := "rotation_law_p", "rotation_law_first_mean", "rotation_law_second_mean", "rotation_law_swap_excess_mean")
QM9, OTHERS = ("qm9",), ("mini_conformers", "mini_crystals", "crystals", "mini_proteins", "proteins")  # data sets
OUTCOMES = ("nll", "validation_loss", "molecule_stability", "validity")
LEAD = """# Answers

Made by `python -m analysis.answers` from the published runs in `results/`; no number is typed by hand. Means over the
runs of a row, in square brackets their smallest and largest; of a single run, in round brackets, the 95 % interval over
what was drawn, this trained model held fixed. *Trained on*: training molecules. How each quantity is measured, and what
can be misread in it: [metrics.md](metrics.md). What is missing is measured by `equibench measure results/STUDY`. Values
of runs and their intervals are in `report/values.csv` of each study."""


@dataclass(frozen=True)
class Question:
    """A question of the page.

    Attributes:
        title: the question; reading: how to read the answer.
        short: the answer in a few sentences, from all published values; none where they lack what it takes.
        tables: the answer in full; none where nothing was measured of `lacks`.
    """

    title: str
    reading: str
    lacks: str
    short: Callable[[Frame], list[str]]
    tables: Callable[[Frame], list[Table]]

    def answer(self, values: Frame) -> str:
        """The section of the page."""
        tables = self.tables(values) if len(values) else []
        told = [markdown(table).strip() for table in tables] or [NOT_YET.format(self.lacks)]
        if sentences := self.short(values) if len(values) else []:
            told.insert(0, "\n".join(fill(f"- {line}", 120, subsequent_indent="  ") for line in sentences))
        return "\n\n".join([f"## {self.title}", fill(self.reading, 120), *told])


def published(results: Path) -> Frame:
    """Values of all counted runs in `results/`, with `study`, `step`, `guarantee`, `data` and `n_train` of their
    run."""
    frames = []
    for folder in sorted(path for path in results.glob("*") if StudyFolder(path).runs()):
        study = load(folder)
        about = study.counted.set_index("run")[["eval.step", "guarantee", "data.name", "data.n_train"]]
        values = study.values[study.values["counted"] & (study.values["of"] == "samples")]
        about.columns = ["step", "guarantee", "data", "n_train"]
        frames.append(values.merge(about, left_on="run", right_index=True).assign(study=folder.name))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def chosen(values: Frame, *names: str, curves: bool = False, data: Sequence[str] = QM9) -> Frame:
    """Values of these names on some data sets: scalars, or points of curves over t."""
    rows = values[values["name"].isin(names) & values["data"].isin(data) & values["value"].notna()]
    over_time = rows[TIME].notna() if TIME in rows else rows["scalar"] & False
    return rows[over_time if curves else rows["scalar"]]


def interval(row: Frame, show: Callable[[float], str]) -> str:
    """The ends of a value's 95 % interval in brackets, or ''."""
    low, high = row["low"], row["high"]
    if low != low and row["sem"] == row["sem"]:
        low, high = row["value"] - Z_95 * row["sem"], row["value"] + Z_95 * row["sem"]
    return "" if low != low else f"({show(low)} to {show(high)})"


def spread(values: Frame, show: Callable[[float], str]) -> str:
    """The smallest and the largest of several runs in brackets, or the interval of a single one."""
    if len(values) == 1:
        return interval(values.iloc[0], show)
    return f"[{show(values['value'].min())} to {show(values['value'].max())}]"


def scalars(rows: Frame, title: str) -> list[Table]:
    """A row for each method on its backbone, steps and size of the training set: means over its runs, and in brackets
    their range or, of a single one, its interval; a column for each quantity, with the words of its position."""
    if rows.empty:
        return []
    shown, body = columns(rows), []
    for (study, method, backbone, step, n_train), own in rows.groupby(ROW, sort=False):
        by = dict(tuple(own.groupby("column")))
        cells = [Cell(method), Cell(backbone), Cell(GUARANTEES.get(own["guarantee"].iloc[0], MISSING))]
        cells += [Cell(f"{step:.0f}"), Cell(f"{n_train:.0f}")]
        for column in shown:
            values = by.get(column.name)
            text = MISSING if values is None else column.show(values["value"].mean())
            cells.append(Cell(text, "" if values is None else spread(values, column.show)))
        body.append([*cells, Cell(str(own["run"].nunique())), Cell(study)])
    header = ["Method", "Backbone", "Guarantee", "Steps", "Trained on", *(column.title for column in shown)]
    return [Table([*header, "Runs", "Study"], body, title, n_text=3, last_is_text=True)]


def over_time(rows: Frame, title: str) -> list[Table]:
    """A table for each quantity: a row for each of `scalars` and words, its mean over runs; a column for each time."""
    tables = []
    for _, own in rows.groupby("name", sort=False):
        column = columns(own)[0]
        times, body = sorted(own[TIME].unique()), []
        for (study, method, backbone, step, n_train, words), curve in own.groupby([*ROW, "words"], sort=False):
            by = curve.groupby(TIME)["value"].mean()
            cells = [Cell(f"{method} / {backbone}"), Cell(words_of(words) or MISSING)]
            cells += [Cell(f"{step:.0f}"), Cell(f"{n_train:.0f}")]
            cells += [Cell(column.show(by[t]) if t in by.index else MISSING) for t in times]
            body.append([*cells, Cell(str(curve["run"].nunique())), Cell(study)])
        label = f"{title}: {str(own['label'].iloc[-1]).lower()}{f' ({column.unit})' if column.unit else ''}, by t."
        header = ["Row", "", "Steps", "Trained on", *(f"{t:.3g}" for t in times), "Runs", "Study"]
        tables.append(Table(header, body, label, n_text=2, last_is_text=True))
    return tables


def means(rows: Frame, name: str, **words: str) -> dict[str, str]:
    """Means over runs of a scalar at a position in words, as text by row ('`haar` on egnn 96x7'), smallest first."""
    own = rows[(rows["name"] == name) & (rows["words"] == tuple(sorted(words.items())))]
    if own.empty:
        return {}
    show, found = columns(own)[0].show, own.groupby(["method", "backbone"])["value"].mean().sort_values()
    return {f"`{method}` on {backbone}": show(value) for (method, backbone), value in found.items()}


def listed(found: Mapping[str, str]) -> str:
    return ", ".join(f"{row} {value}" for row, value in found.items())


def ends(found: Mapping[str, str]) -> str:
    """The smallest and the largest of `means`."""
    values = list(dict.fromkeys(found.values()))
    return values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"


def symmetry_in_short(values: Frame) -> list[str]:
    rows = chosen(values, ERROR)
    rows = rows[(rows["n_train"] == rows["n_train"].max()) & (rows["study"] != TURNED)]
    by_steps = [(step, means(own, ERROR)) for step, own in rows.groupby("step")]
    return [f"Error after {step:.0f} steps: {listed(found)}." for step, found in by_steps if found]


def variance_in_short(values: Frame, data: Sequence[str] = QM9) -> list[str]:
    rows, found = chosen(values, *REMOVED, LIMIT, data=data), []
    for study, own in rows.groupby("study"):
        target, gradient = (
            {kind: ends(of) for kind in ESTIMATORS if (of := means(own, name, estimator=kind))}
            for name in (TARGET, GRADIENT)
        )
        if target and (limit := means(own, LIMIT)):
            found.append(f"{study}: of the target's variance, {listed(target)} units (at small noise {ends(limit)}).")
        if gradient:
            unit = columns(own[own["name"] == GRADIENT])[0].unit
            found.append(f"{study}: of the gradient's, {listed(gradient)} {unit}, from row to row.")
    return found


def frames_in_short(values: Frame) -> list[str]:
    rows, second = chosen(values, *LAW), "rotation_law_second_mean"
    own, haar = means(rows, second, rotation="own"), means(rows, second, rotation="Haar")
    p = means(rows, P, rotation="own")
    return [
        f"{row}: second moment {own[row]}, of as many draws from Haar {haar[row]}; p-value of Haar {p[row]}."
        for row in own
        if row in haar and row in p
    ]


def orientation_in_short(values: Frame) -> list[str]:
    gains = chosen(values, f"{GAIN}_mean")
    gains, found = means(gains[gains["study"] == LAPTOP], f"{GAIN}_mean"), []
    if gains:
        told = {row: gains.pop(row) for row in [*gains] if row.startswith("`plain`")}
        if gains:
            told["all other rows"] = ends(gains)
        found.append(f"By how many % the loss is lower on stored than on turned data: {listed(told)}.")
    for method, own in _of_both(values).groupby("method"):
        told = []
        for column in columns(own):
            mean = own[own["name"] == column.name].groupby("study")["value"].mean()
            told.append(f"{column.title} {column.show(mean[TURNED])} (stored: {column.show(mean[LAPTOP])})")
        found.append(f"`{method}` trained on turned data: {', '.join(told)}.")
    return found


def symmetry(values: Frame) -> list[Table]:
    found = scalars(chosen(values, ERROR, "equivariance_error_floor_mean"), "Of trained and of initial weights.")
    return found + over_time(chosen(values, "equivariance_error", SHARE, curves=True), "Within the path")


def variance(values: Frame, data: Sequence[str] = QM9) -> list[Table]:
    """Study by study: the target's, which no network changes, of one run; the gradient's of all rows."""
    scalar, curves = (chosen(values, *REMOVED, LIMIT, curves=over_t, data=data) for over_t in (False, True))
    found = []
    for study in dict.fromkeys([*scalar["study"], *curves["study"]]):
        means_here, curves_here = (rows[rows["study"] == study] for rows in (scalar, curves))
        target, of_t = (rows[rows["name"] != GRADIENT] for rows in (means_here, curves_here))
        target, of_t = (rows[rows["run"] == rows["run"].head(1).squeeze()] for rows in (target, of_t))
        about = f"{study}, over all times of training: of the"
        found += scalars(target, f"{about} target, which no network changes, so that one run is shown.")
        found += over_time(of_t, f"{study}, within the path")
        found += scalars(means_here[means_here["name"] == GRADIENT], f"{about} gradient.")
        found += over_time(curves_here[curves_here["name"] == GRADIENT], f"{study}, within the path")
    return found


def frames(values: Frame) -> list[Table]:
    return scalars(chosen(values, *LAW), "Over all times.") + over_time(
        chosen(values, "rotation_law_first", "rotation_law_second", curves=True), "Within the path"
    )


def orientation(values: Frame) -> list[Table]:
    """Outcomes of the rows that both studies have; the gain alone where only the first was published."""
    gain = scalars(chosen(values, f"{GAIN}_mean"), "Of the loss, the same model on turned data and on stored data.")
    title = f"Trained on the data as stored ({LAPTOP}) and turned ({TURNED}), row by row."
    return gain + scalars(_of_both(values), title)


def _of_both(values: Frame) -> Frame:
    """Outcomes of rows and seeds that both studies have."""
    outcomes = chosen(values, *OUTCOMES)
    outcomes = outcomes[outcomes["study"].isin([LAPTOP, TURNED])]
    both = outcomes.groupby(["method", "backbone", "seed"])["study"].transform("nunique") == 2
    return outcomes[both].sort_values(["method", "study"], kind="stable")


QUESTIONS = (
    Question(
        "How equivariant does augmentation get, and when in training?",
        "The error is relative to the prediction: 0 is equivariant, about √2 is a prediction that ignores how its "
        "input is turned. The floor is rounding, or finite draws of a stochastic prediction. Rows with fewer steps, "
        "and the columns of initial weights, say when.",
        "the measure `equivariance`",
        symmetry_in_short,
        symmetry,
    ),
    Question(
        "How much variance does each estimator remove on QM9, and at which t?",
        "At fixed weights, over all times of training. At small noise, averaging over the group can remove as many "
        "units of the target's variance as the group has dimensions, one unit being that of one coordinate of the "
        "noise; what it removes of the gradient's is what a training step gains.",
        "the measure `variance`",
        variance_in_short,
        variance,
    ),
    Question(
        "And on conformers, crystals and proteins?",
        "The same, of rotations and of shifts of the torus. With flow matching the units are those of the velocity.",
        "the measure `variance` on such data",
        partial(variance_in_short, data=OTHERS),
        partial(variance, data=OTHERS),
    ),
    Question(
        "Does gamma leave the Haar measure?",
        "First and second moment of the rotation that the method draws given z_t: 0 for Haar. The values under Haar, "
        "identity and PCA frames are drawn in the same way and stand beside them. A small p-value says "
        "that the law is not Haar's.",
        "the measure `rotation_law`",
        frames_in_short,
        frames,
    ),
    Question(
        "What does the stored orientation of QM9 give `plain`?",
        f"The study `{TURNED}` trains on molecules each turned once at random, otherwise as `{LAPTOP}`. What `plain` "
        "loses there, and a row that is turned at every step in any case does not, came from the stored orientation.",
        f"the measure `equivariance`, and no row is in both `{LAPTOP}` and `{TURNED}`",
        orientation_in_short,
        orientation,
    ),
)


def page(results: Path, questions: Sequence[Question] = QUESTIONS) -> str:
    """The page as Markdown."""
    values = published(results)
    return "\n\n".join([LEAD, *(question.answer(values) for question in questions)]) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(prog="python -m analysis.answers", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; 1 when the page is out of date")
    args = parser.parse_args(argv)
    wanted = page(RESULTS)
    if PAGE.is_file() and PAGE.read_text() == wanted:
        return 0
    if args.check:
        sys.stderr.write(f"{PAGE} does not show what is in {RESULTS}; run `make answers`\n")
        return 1
    write_atomically(PAGE, wanted.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
