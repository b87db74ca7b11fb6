"""Read a study folder into three pandas frames: runs, values and learning curves. No metric is computed here.

Two layouts are read: `runs/<study>/` (live: manifest.json, eval.json, steps.jsonl) and `results/<study>/` (published:
manifest.json, eval.json, curves.csv with the same columns); measured/*.json are what measures found of the model;
config.yaml, where present, tells apart runs that differ in a setting other than method, backbone and seed; npz files,
where present, hold values of single molecules. A live study also has runs.json, which names the runs that have not
started. An unreadable record becomes one line in `Study.problems` and a run of status 'unreadable'; the rest of the
study is still shown.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from analysis.labels import Column, column_name, columns
from bench.records.inputs import printable
from bench.records.items import read_items
from bench.records.measured import read_measurement
from bench.records.schema import EVALUATION, MANIFEST, PLAN, STEP, TRAINED, RecordError
from bench.records.store import MEASURED, RunFolder, StudyFolder, flatten, read_config, read_json, read_steps
from bench.records.values import Better, Kind, Value

# A pandas DataFrame. Typed loosely: pandas' own annotations give unions for every selection, too wide to check.
Frame = Any
STEP_KEYS = [key.rstrip("?") for key, kind in STEP.items() if kind is not dict]
OWN = "diagnostics."  # columns of what a method reports of itself
VALUE = "value."  # columns of `Study.runs` that hold the values of samples
AT = "at."  # columns of `Study.values` that hold a numeric position
LISTS = {"values": "samples", "data_values": "data"}  # key of eval.json -> what its values are of
VALUE_FIELDS = (
    *("name", "label", "value", "unit", "better", "kind"),
    *("low", "high", "sem", "upper_bound", "definition"),
)
VALUE_COLUMNS = [
    *("run", "method", "backbone", "seed", "counted", "of", "column", *VALUE_FIELDS),
    *("words", "scalar", "source", "file", "entry", "measure"),
]
# Keys of a method or backbone in a manifest that are part of its label anyway.
NAMES = ("name", "size")
ALWAYS = (
    *("study", "method.name", "backbone.name", "seed", "guarantee", "n_steps", "weights_from", "reason"),
    *("data.name", "data.label", "data.fingerprint", "code.commit", "code.dirty", "created", "updated", "baseline"),
)
SAME = ["method", "backbone", "seed", "data.fingerprint"]


@dataclass(frozen=True)
class Study:
    """The records of one study.

    Attributes:
        name: the study's name; folder: where it was read.
        runs: one row per run, oldest first. Columns: keys of manifest.json and, under 'eval.' and 'config.', those of
            eval.json and config.yaml, nested keys joined by dots; under 'value.' its scalar values by column;
            `method` and `backbone` (labels); `strategy` (the method's label without the settings of a sweep); `path`;
            `counted` (done, evaluated, and the newest of its method, backbone, seed and data); `borrowed` (trains
            nothing: it uses the weights of the run in `weights_from`). `status` is done, running, queued (asked for
            and not begun), failed, skipped, duplicate, unreadable, or 'not evaluated' for done without eval.json.
        values: one row per value of eval.json and of measured/*.json: run, method, backbone, seed, counted; `of`
            (samples or data); `column` (`labels.column_name`); the fields of a `Value`, its position as `words`
            ((axis, word), ...) and, one column per numeric axis, 'at.AXIS'; `scalar` (no numeric position); `source`,
            `file` and `entry`, the run that holds it and where: a run that trains nothing has the training cost of
            another; `measure` that found it, '' for values of samples, costs, and all of an early record.
        curves: one row per logging interval: run, method, backbone, seed and the keys of a STEP record.
        problems: one line per record that could not be read.
        items: run -> column -> values of single molecules (`bench.records.items`), of the runs that have them.
    """

    name: str
    folder: Path
    runs: Frame
    values: Frame
    curves: Frame
    problems: tuple[str, ...]
    items: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)

    @property
    def groups(self) -> list[tuple[str, str]]:
        """(method, backbone) pairs in order of first appearance, by the runs' times of creation."""
        known = self.runs.dropna(subset=["method"])
        return list(dict.fromkeys(zip(known["method"], known["backbone"], strict=True)))

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(method for method, _ in self.groups))

    @property
    def counted(self) -> Frame:
        return self.runs[self.runs["counted"]]

    @cached_property
    def scalars(self) -> Frame:
        """Values of samples of the counted runs, without a numeric position."""
        values = self.values
        return values[(values["of"] == "samples") & values["scalar"] & values["counted"]]

    @property
    def measures(self) -> list[str]:
        """Measures that found something of the counted runs, in name order."""
        return sorted({*self.values[self.values["counted"]]["measure"].dropna()} - {""})

    @cached_property
    def columns(self) -> list[Column]:
        """All quantities that the counted runs measured: quality, likelihood, cost, diagnostics."""
        return columns(self.scalars)

    def of_kind(self, *kinds: Kind) -> list[Column]:
        """Columns of some kinds."""
        return [column for column in self.columns if column.kind in kinds]

    @property
    def costs(self) -> list[Column]:
        """Costs; where every run that has one has also measured it apart (`at: {timed: apart}`), that alone."""
        rows, found = self.scalars, self.of_kind(Kind.COST)
        runs_of = {column: set(own.loc[own["value"].notna(), "run"]) for column, own in rows.groupby("column")}
        apart = {column.name: f"{column.name}[timed=apart]" for column in found}
        hidden = {name for name, better in apart.items() if better in runs_of and runs_of[name] <= runs_of[better]}
        return [column for column in found if column.name not in hidden]

    @property
    def compared(self) -> list[Column]:
        """Quality and likelihood: the columns by which methods are compared."""
        return self.of_kind(Kind.QUALITY, Kind.LIKELIHOOD)

    @property
    def primary(self) -> list[Column]:
        """Those to judge by: likelihood and losses on held-out structures, where differences show with fewest runs."""
        return [column for column in self.of_kind(Kind.LIKELIHOOD) if column.better is not Better.NEITHER]

    def data_values(self, column: Column) -> list[float]:
        """Values of the data set's own structures, as recorded by each counted run, oldest first."""
        values = self.values
        values = values[(values["of"] == "data") & values["counted"] & values["scalar"]]
        return values[values["column"] == column.name]["value"].dropna().tolist()

    @property
    def seeds(self) -> list[int]:
        return sorted(int(seed) for seed in self.runs["seed"].dropna().unique())

    def of(self, method: str, backbone: str) -> Frame:
        """Rows of one (method, backbone)."""
        return self.runs[(self.runs["method"] == method) & (self.runs["backbone"] == backbone)]

    def missing(self) -> list[tuple[str, str, int]]:
        """(method, backbone, seed) without a run, although another (method, backbone) of the study has that seed."""
        return [
            (method, backbone, seed)
            for method, backbone in self.groups
            for seed in self.seeds
            if not (self.of(method, backbone)["seed"] == seed).any()
            and (self.of(method, backbone)["status"] != "skipped").any()
        ]

    @property
    def progress(self) -> tuple[int, int]:
        """Number of counted runs, and of runs that the study is known to ask for (without skipped and duplicates)."""
        wanted = ~self.runs["status"].isin(["skipped", "duplicate"])
        # A run with an unreadable manifest is one of the missing ones, though unknown which.
        unknown = int(self.runs["method"].isna().sum())
        return int(self.runs["counted"].sum()), int(wanted.sum()) + max(0, len(self.missing()) - unknown)

    def parts(self) -> list[Study]:
        """One study per data set (fingerprint), since tables never mix data sets; most counted runs first."""
        prints = self.runs["data.fingerprint"].replace("", None)
        if prints.nunique() < 2:
            return [self]
        pieces = []
        for fingerprint in prints.dropna().unique():
            runs = self.runs[(prints == fingerprint) | prints.isna()]
            curves = self.curves[self.curves["run"].isin(runs["run"])]
            runs = _labelled(runs)
            values = _attached(self.values[self.values["run"].isin(runs["run"])], runs)
            pieces.append(replace(self, runs=runs, values=values, curves=curves))
        return sorted(pieces, key=lambda piece: -len(piece.counted))


def load(folder: Path) -> Study:
    """Read every run of a study folder, live or published.

    Raises:
        FileNotFoundError: the folder holds no run at all.
    """
    folder = Path(folder)
    rows, values, curves, problems, items = [], [], [], [], {}
    for path in StudyFolder(folder).runs():
        row, entries, faults = _read_run(path)
        curve, fault = _read_curve(path, row) if row["status"] != "unreadable" else (pd.DataFrame(), None)
        if entries:
            items[path.name], unread = _read_items(RunFolder(path))
            faults += unread
        problems += [*faults, *([fault] if fault else [])]
        rows.append(row)
        values += entries
        if len(curve):
            curves.append(curve.assign(run=row["run"]))
    queued, faults = _queued(folder, {row["run"] for row in rows})
    rows, problems = rows + queued, problems + faults
    if not rows:
        raise FileNotFoundError(
            f"no runs in {folder}; expected sub-folders with a manifest.json (equibench run writes them)"
        )
    runs = pd.DataFrame(rows).map(printable)
    # Absent only when no manifest can be read at all.
    runs = runs.reindex(columns=[*runs, *(column for column in ALWAYS if column not in runs)])
    runs = _labelled(runs.sort_values(["created", "run"], kind="stable", na_position="last").reset_index(drop=True))
    found, faults = _in_one_unit(_with_borrowed_cost(_value_frame(values), runs), runs)
    runs, problems = _with_values(runs, found), problems + faults
    frame = pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(columns=["run", *STEP_KEYS])
    own = [column for column in frame if str(column).startswith(OWN)]
    frame = frame.reindex(columns=["run", *STEP_KEYS, *own]).merge(
        runs[["run", "method", "backbone", "seed"]], on="run", how="left"
    )
    told = tuple(map(printable, problems))
    return Study(folder.resolve().name, folder, runs, _attached(found, runs), frame, told, items)


def _read_run(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """A run's row, its values, and what could not be read."""
    try:
        row = flatten(read_json(RunFolder(path).manifest, MANIFEST))
    except (RecordError, OSError) as error:
        return {"run": path.name, "path": path, "status": "unreadable", "reason": str(error)}, [], [str(error)]
    row |= {"path": path, "run": path.name}
    settings, faults = _read_config(path)
    row |= settings
    if not RunFolder(path).eval.exists():
        if row["status"] == "done":
            row |= {
                "status": "not evaluated",
                "reason": "done, but eval.json is missing; run the study again to have it made",
            }
        return row, [], faults
    run = RunFolder(path)
    try:
        evaluation = read_json(run.eval, EVALUATION)
        values = [entry for key in LISTS for entry in _read_values(evaluation.pop(key), key, run.eval)]
    except (RecordError, OSError) as error:
        return row | {"status": "unreadable", "reason": str(error)}, [], [*faults, str(error)]
    measured, unread = _read_measured(run, row.get("weights_sha256"))
    newer = {(entry["of"], entry["column"]) for entry in measured}  # an early eval.json holds measures' values too
    values = [entry for entry in values if (entry["of"], entry["column"]) not in newer] + measured
    return row | flatten(evaluation, "eval."), [{"run": path.name, **entry} for entry in values], faults + unread


def _read_measured(run: RunFolder, sha256: str | None) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of `Study.values` of what was measured of a run's weights, and what could not be read."""
    found, faults = [], []
    for path in run.measurements():
        try:
            made = read_measurement(path)
            if made.record["weights"] == TRAINED and sha256 not in (None, made.record["weights_sha256"]):
                raise RecordError(f"{path}: of other weights than the run has now; `equibench measure` renews it")
            rows = list(_read_values(made.record["values"], "values", path, made.words))
        except (RecordError, OSError) as error:
            faults.append(f"{run.path.name}: measured values left out: {error}")
            continue
        found += [{**row, "measure": made.record["measure"]} for row in rows]
    return found, faults


def codes(run: Any) -> list[dict[str, Any]]:
    """Every code that trained a run, in order: `commit` (None: unknown), `dirty`; `steps` where there were several."""
    training = run.get("code.training")
    if isinstance(training, list) and training:
        return training
    commit = run.get("code.commit")
    return [{"commit": commit if isinstance(commit, str) else None, "dirty": run.get("code.dirty") is True}]


def _read_items(run: RunFolder) -> tuple[dict[str, np.ndarray], list[str]]:
    """Values of single molecules by column, and what could not be read."""
    found, faults = {}, []
    files = {path: {} for path in (run.test_items, run.valid_items, run.sample_items)}
    for path in run.measurements():
        with contextlib.suppress(RecordError, OSError):  # told with its values
            files[path.with_suffix(".npz")] = read_measurement(path).words
    for path, words in files.items():
        try:
            found |= {column_name(name, words): array for name, array in read_items(path).items()}
        except (RecordError, OSError) as error:
            faults.append(f"{run.path.name}: values of single molecules left out: {error}")
    return found, faults


def _read_values(
    records: list[Any], key: str, file: Path, words: Mapping[str, str] = MappingProxyType({})
) -> Iterator[dict[str, Any]]:
    """Rows of `Study.values`; raises RecordError for an invalid value, or two of one name and position.

    Args:
        words: part of the position of all.
    """
    seen = set()
    for i, record in enumerate(records):
        where = f"{file}: {key}[{i}]"
        value = Value.from_dict(record, where)
        position = sorted({**value.at, **words}.items())
        in_words = tuple((axis, place) for axis, place in position if isinstance(place, str))
        numbers = {f"{AT}{axis}": place for axis, place in position if not isinstance(place, str)}
        column = column_name(value.name, dict(position))
        if (column, tuple(numbers.items())) in seen:
            raise RecordError(f"{where}: {value.name!r} comes twice at the position {dict(position)}")
        seen.add((column, tuple(numbers.items())))
        row = {field: getattr(value, field) for field in VALUE_FIELDS}
        row |= {"of": LISTS[key], "column": column, "words": in_words, "scalar": not numbers}
        home = file.parent.parent if file.parent.name == MEASURED else file.parent
        place = {"source": home.name, "file": str(file.relative_to(home)), "entry": f"{key}[{i}]", "measure": ""}
        yield row | place | numbers


def _value_frame(rows: list[dict[str, Any]]) -> Frame:
    frame = pd.DataFrame(rows).map(printable)
    axes = sorted(column for column in frame if str(column).startswith(AT))
    frame = frame.reindex(columns=[*VALUE_COLUMNS, *axes])
    return frame.astype(dict.fromkeys(("value", "low", "high", "sem", *axes), float))


def _with_borrowed_cost(values: Frame, runs: Frame) -> Frame:
    """Add to runs that train nothing the costs that they lack, from the run whose weights they use."""
    added = []
    for run, parent in runs.loc[runs["borrowed"], ["run", "weights_from"]].itertuples(index=False):
        own = values[(values["run"] == run) & (values["of"] == "samples")]
        theirs = values[(values["run"] == parent) & (values["of"] == "samples") & (values["kind"] == Kind.COST)]
        if len(own):
            added.append(theirs[~theirs["column"].isin(own["column"])].assign(run=run))
    return pd.concat([values, *(rows for rows in added if len(rows))], ignore_index=True)


def _in_one_unit(values: Frame, runs: Frame) -> tuple[Frame, list[str]]:
    """Values by creation of their runs, without those whose unit differs from the newest value of their column."""
    order = {run: i for i, run in enumerate(runs["run"])}
    values = values.sort_values("run", key=lambda names: names.map(order), kind="stable").reset_index(drop=True)
    newest = values.groupby("column")["unit"].transform("last")
    odd = values[values["unit"] != newest]
    problems = [
        f"{run}: {column} is in {unit!r}, but in {newest[index]!r} in newer runs; left out"
        for index, run, column, unit in odd[["run", "column", "unit"]].itertuples()
    ]
    return values.drop(index=odd.index).reset_index(drop=True), problems


def _with_values(runs: Frame, values: Frame) -> Frame:
    """Runs with a column for each scalar value of their samples."""
    scalars = values[(values["of"] == "samples") & values["scalar"].eq(True)]
    if scalars.empty:
        return runs
    wide = scalars.pivot(index="run", columns="column", values="value").add_prefix(VALUE)
    return runs.merge(wide, left_on="run", right_index=True, how="left")


def _attached(values: Frame, runs: Frame) -> Frame:
    """Values with method, backbone, seed and `counted` of their run."""
    about = ["method", "backbone", "seed", "counted"]
    found = runs.drop_duplicates("run").set_index("run")[about]
    values = values.drop(columns=about).merge(found, left_on="run", right_index=True, how="left")
    return values.astype({"scalar": bool, "counted": bool})


def _queued(folder: Path, begun: set[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of runs that the newest plan lists and that have no record yet."""
    path = StudyFolder(folder).plan
    try:
        runs = read_json(path, PLAN)["runs"] if path.exists() else []
        return [
            flatten({key: value for key, value in run.items() if key != "config"})
            | _settings(run["config"])
            | {"path": folder / run["run"], "status": "queued", "reason": "not begun when this was made"}
            for run in runs
            if run["run"] not in begun
        ], []
    except (RecordError, OSError) as error:
        return [], [str(error)]
    except (TypeError, KeyError, AttributeError):
        return [], [f"{path}: left out, its runs are not what a plan holds; call `equibench run` again"]


def _read_config(path: Path) -> tuple[dict[str, Any], list[str]]:
    try:
        page = read_config(RunFolder(path))
    except (RecordError, OSError) as error:
        return {}, [f"{path.name}: settings left out: {error}"]
    return _settings(page), []


def _settings(page: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings as columns, without those in its manifest."""
    own = {key: value for key, value in page.items() if key not in ("study", "seed", "method", "backbone")}
    return flatten(own, "config.")


def _read_curve(path: Path, run: Mapping[str, Any]) -> tuple[Frame, str | None]:
    try:
        if RunFolder(path).steps.exists():
            until = run.get("eval.step") if run["status"] == "done" else None
            return pd.DataFrame([flatten(step) for step in read_steps(RunFolder(path).steps, until)]), None
        file = RunFolder(path).curves
        if not file.exists() or not file.read_text().strip():
            return pd.DataFrame(), None
        curve = pd.read_csv(file)
        unknown = sorted(key for key in set(curve) - set(STEP_KEYS) if not key.startswith(OWN))
        absent = sorted({"step", "seconds"} - set(curve))
        if unknown or absent:
            raise RecordError(
                f"{file}: unknown columns {unknown}, missing columns {absent}; expected {', '.join(STEP_KEYS)}"
            )
        text = [column for column in curve if not pd.api.types.is_numeric_dtype(curve[column])]
        if text:
            raise RecordError(f"{file}: column {text[0]!r} holds text, expected numbers; publish the study again")
        return curve, None
    except (ValueError, OSError) as error:  # RecordError, and pandas' own of a damaged curves.csv
        return pd.DataFrame(), f"{path.name}: curve left out: {error}"


def _labelled(runs: Frame) -> Frame:
    """Add method and backbone labels, which runs count, and which use another's weights."""
    runs = runs.copy()
    runs["method"] = _labels(runs, "method")
    runs["backbone"] = _labels(runs, "backbone")
    runs["strategy"] = runs["method"]
    runs["method"] = _told_apart(runs)
    done = runs[(runs["status"] == "done") & runs.get("eval.step", pd.Series(index=runs.index, dtype=float)).notna()]
    newest = done.sort_values("created", kind="stable").drop_duplicates(SAME, keep="last").index
    runs["counted"] = runs.index.isin(newest)
    older = runs.index.isin(done.index) & ~runs["counted"]
    runs.loc[older, ["status", "reason"]] = [
        "duplicate",
        "a newer run has the same method, backbone, seed and data; only that one is counted",
    ]
    runs["borrowed"] = runs["weights_from"].notna()
    return runs


def _labels(runs: Frame, kind: str) -> Any:
    """'name size', or 'name WIDTHxDEPTH' if there is no named size but these options; others are appended only if
    runs of one name and size differ in them within the study."""
    names = [f"{kind}.{key}" for key in NAMES if f"{kind}.{key}" in runs]
    options = [c for c in runs if isinstance(c, str) and c.startswith(f"{kind}.") and c not in names]

    def label(row: Any, varying: Mapping[tuple, list[str]]) -> str | None:
        words = [str(row[name]) for name in names if pd.notna(row[name])]
        if not words:
            return None
        different, shape = varying[tuple(words)], [f"{kind}.width", f"{kind}.depth"]
        if len(words) == 1 and all(pd.notna(row.get(option)) for option in shape):
            words.append("x".join(_shown(row[option]) for option in shape))
            different = [option for option in different if option not in shape]
        told = [f"{option.removeprefix(f'{kind}.')}={_shown(row[option])}" for option in different]
        return " ".join(words) + (f" ({', '.join(told)})" if told else "")

    varying: dict[tuple, list[str]] = {}
    for words, rows in _by_name(runs, names):
        varying[words] = [option for option in options if rows[option].map(repr).nunique() > 1]
    return pd.Series([label(row, varying) for _, row in runs.iterrows()], index=runs.index, dtype=object)


def _told_apart(runs: Frame) -> Any:
    """Method labels, with any settings appended in which runs of one method, backbone and seed differ (a sweep)."""
    labels = runs["method"].copy()
    settings = [c for c in runs if isinstance(c, str) and c.startswith("config.")]
    readable = runs[runs[settings].notna().any(axis=1)]  # a run may have no settings yet, or none that can be read
    for _, group in readable.dropna(subset=["method"]).groupby(["method", "backbone"], sort=False):
        same_cell = group.groupby(["seed", "data.fingerprint"], dropna=False)
        varying = [c for c in settings if (same_cell[c].agg(lambda values: values.map(repr).nunique()) > 1).any()]
        for index, row in group.iterrows() if varying else ():
            labels[index] = f"{row['method']} ({', '.join(f'{_last(c)}={_shown(row[c])}' for c in varying)})"
    return labels


def _shown(value: Any) -> str:
    """An option's value; whole numbers come back from a column with gaps as floats."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _by_name(runs: Frame, names: list[str]) -> Iterator[tuple[tuple, Frame]]:
    keys = runs[names].apply(lambda row: tuple(str(value) for value in row if pd.notna(value)), axis=1)
    for words in dict.fromkeys(keys):
        yield words, runs[[key == words for key in keys]]
