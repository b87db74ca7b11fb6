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
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from analysis.labels import column_name
from analysis.study import AT, VALUE, Frame, Study, attached, labelled
from bench.records.inputs import printable
from bench.records.items import read_items
from bench.records.measured import read_measurement
from bench.records.schema import EVALUATION, MANIFEST, PLAN, STEP, TRAINED, RecordError
from bench.records.store import MEASURED, RunFolder, StudyFolder, flatten, read_config, read_json, read_steps
from bench.records.values import Kind, Value

STEP_KEYS = [key.rstrip("?") for key, kind in STEP.items() if kind is not dict]
OWN = "diagnostics."  # columns of what a method reports of itself
LISTS = {"values": "samples", "data_values": "data"}  # key of eval.json -> what its values are of
VALUE_FIELDS = (
    *("name", "label", "value", "unit", "better", "kind"),
    *("low", "high", "sem", "upper_bound", "definition"),
)
VALUE_COLUMNS = [
    *("run", "method", "backbone", "seed", "counted", "of", "column", *VALUE_FIELDS),
    *("words", "scalar", "source", "file", "entry", "measure"),
]
ALWAYS = (
    *("study", "method.name", "backbone.name", "seed", "guarantee", "n_steps", "weights_from", "reason"),
    *("data.name", "data.label", "data.fingerprint", "code.commit", "code.dirty", "created", "updated", "baseline"),
)


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
    runs = labelled(runs.sort_values(["created", "run"], kind="stable", na_position="last").reset_index(drop=True))
    found, faults = _in_one_unit(_with_borrowed_cost(_value_frame(values), runs), runs)
    runs, problems = _with_values(runs, found), problems + faults
    frame = pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(columns=["run", *STEP_KEYS])
    own = [column for column in frame if str(column).startswith(OWN)]
    frame = frame.reindex(columns=["run", *STEP_KEYS, *own]).merge(
        runs[["run", "method", "backbone", "seed"]], on="run", how="left"
    )
    told = tuple(map(printable, problems))
    return Study(folder.resolve().name, folder, runs, attached(found, runs), frame, told, items)


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
