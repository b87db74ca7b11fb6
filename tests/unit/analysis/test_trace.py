"""`equibench trace`: every cell of the main table is the mean of the values it names; and runs that have not begun."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from fabricated_study import edit, manifest, run_name, write_study

from analysis import report
from analysis.load import load
from analysis.tables.main import main_frame
from analysis.trace import find_column, trace
from bench.records import schema
from bench.records import store as records
from bench.records.store import write_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("runs") / "made_up")


def values(text: str) -> list[float]:
    return [float(value) for value in re.findall(r"^value +(\S+)$", text, flags=re.MULTILINE) if value != "–"]


def lookup(line: str) -> float:
    """The number at 'FILE: values[3].value'."""
    path, key = line.split(": ")
    found = re.fullmatch(r"(\w+)\[(\d+)\]\.value", key)
    assert found is not None
    return json.loads(Path(path).read_text())[found[1]][int(found[2])]["value"]


def test_every_cell_is_the_mean_of_what_is_traced(folder: Path):
    study, n = load(folder), 0
    for _, row in main_frame(study).iterrows():
        if row["method"] == "data":
            continue
        for column in study.columns:
            text = trace(study, f"{row['method']} {row['backbone']}", column.name)
            found = values(text)
            if not found:
                assert math.isnan(row[column.name])
                continue
            assert sum(found) / len(found) == pytest.approx(row[column.name]), column.name
            for value, where in zip(values(text), re.findall(r"^record +(.+)$", text, flags=re.MULTILINE), strict=True):
                assert lookup(where) == value
                n += 1
    assert n > 20


def test_a_cell_names_commit_config_data_and_command(folder: Path):
    text = trace(load(folder), "bare", "atom stability")
    for words in (
        "71.0 ± 1.4",
        "seed 1",
        "a" * 40,
        "fingerprint 0123456789abcdef",
        f"{folder}/{run_name('bare', 'dit', 0)}",
    ):
        assert words in text
    assert f"equibench run {folder}/{run_name('bare', 'dit', 1)}/config.yaml" in text


def test_every_commit_that_trained_a_run_is_named_with_its_share(folder: Path, tmp_path: Path):
    copy = Path(shutil.copytree(folder, tmp_path / "made_up"))
    path = copy / run_name("bare", "dit", 1) / "manifest.json"
    code = json.loads(path.read_text())["code"]
    edit(path, code__training=[code | {"steps": 90}, code | {"commit": "b" * 40, "dirty": True, "steps": 30}])
    lines = [line for line in trace(load(copy), "bare", "validity").splitlines() if line.startswith("commit")]
    assert lines[0].split() == ["commit", "a" * 40]
    assert lines[1] == (
        f"commit  75.0% of the steps by {'a' * 40}; then 25.0% of the steps by {'b' * 40}, with uncommitted changes: "
        "not exactly reproducible"
    )
    edit(path, code__training=[code])
    assert "key 'steps' is missing" in " ".join(load(copy).problems)


def test_runs_that_are_not_in_the_mean_are_named(folder: Path):
    text = trace(load(folder), "strict egnn", "validity")
    assert len(values(text)) == 1
    assert f"not counted: {run_name('strict', 'egnn', 1)} (failed: loss is not finite at step 120)" in text


def test_borrowed_costs_lead_to_the_run_that_was_trained(folder: Path):
    text = trace(load(folder), "turned_later", "train_seconds")
    (where,) = re.findall(r"^record +(.+)$", text, flags=re.MULTILINE)
    assert Path(where.split(": ")[0]) == folder / run_name("turned", "dit", 0) / "eval.json"
    assert lookup(where) == 120.0
    assert f"weights of {run_name('turned', 'dit', 0)}" in text


def test_the_data_row_has_its_run_too(folder: Path):
    assert values(trace(load(folder), "data", "validity")) == [0.978]
    with pytest.raises(ValueError, match="only metrics of samples"):
        trace(load(folder), "data", "step_seconds")


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [
        ("turned_latr", "validity", "did you mean 'turned_later dit small'"),
        ("bare", "atom_stabilty", "did you mean 'atom_stability'"),
        ("strict", "validity", "may be any of 'strict egnn small', 'strict dit small'"),
        ("nobody", "validity", "choose from bare dit small"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(folder: Path, row: str, column: str, words: str):
    with pytest.raises(ValueError, match=re.escape(words)):
        trace(load(folder), row, column)


def test_a_column_has_its_names_of_all_tables(folder: Path):
    columns = load(folder).columns
    assert {find_column(columns, name).name for name in ("NLL", "nll", "NLL nats/molecule")} == {"nll"}


def queue(folder: Path, seed: int) -> dict:
    """A plan with one more run of 'bare'; returns that run's entry."""
    whole = manifest("bare", "dit", seed, 0)
    keys = ("run", "study", "method", "backbone", "seed", "guarantee", "n_steps", "data")
    run = {key: whole[key] for key in keys} | {"config": {"train": {"lr": 1e-3}}}
    plan = {
        "schema": schema.SCHEMA_VERSION,
        "written_by": "0.1.0",
        "study": "made_up",
        "argument": "made_up",
        "created": "",
        "runs": [run],
    }
    write_json(folder / "runs.json", plan, schema.PLAN)
    return run


@pytest.mark.usefixtures("no_figures")
def test_a_report_counts_runs_that_have_not_begun(tmp_path: Path):
    folder = write_study(tmp_path / "made_up")
    for path in folder.glob("strict-egnn-s1-*/manifest.json"):
        edit(path, status="skipped")
    assert load(folder).progress == (6, 7)  # one is not evaluated
    run = queue(folder, 0)
    assert load(folder).progress == (6, 7)  # it has begun: its record counts, not the plan
    run = queue(folder, 1)
    assert load(folder).progress == (6, 7)
    for path in folder.glob("bare-dit-s1-*"):
        path.rename(tmp_path / "away")
    study = load(folder)
    assert study.progress == (5, 7)
    assert dict(zip(study.runs["run"], study.runs["status"], strict=True))[run["run"]] == "queued"
    told = (report.build(folder) / "report.md").read_text()
    assert "PARTIAL: 5 of 7 runs done" in told
    assert "not begun when this was made" in told


def test_a_plan_alone_is_a_study_of_which_nothing_is_done(tmp_path: Path):
    queue(tmp_path, 0)
    assert load(tmp_path).progress == (0, 1)
    (tmp_path / "runs.json").write_text("{}")
    with pytest.raises(FileNotFoundError):
        load(tmp_path)


def test_a_newer_schema_is_refused_with_the_version_that_wrote_it(tmp_path: Path):
    folder = write_study(tmp_path / "made_up")
    one, other = folder / run_name("bare", "dit", 0), folder / run_name("bare", "dit", 1)
    edit(one / "manifest.json", schema=7, code__version="3.1.0")
    edit(other / "eval.json", schema=7, written_by="3.2.0", surprise=1)
    for path, expected, version in (
        (one / "manifest.json", schema.MANIFEST, "3.1.0"),
        (other / "eval.json", schema.EVALUATION, "3.2.0"),
    ):
        with pytest.raises(
            schema.RecordError,
            match=f"by equibench {version} with record schema 7, this equibench reads schema 2; use",
        ):
            records.read_json(path, expected)
    study = load(folder)
    assert len(study.problems) == 2  # the others are read
    assert study.progress[0] == 4
