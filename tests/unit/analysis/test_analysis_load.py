"""Reading of study folders: layouts, labels, broken records, sweeps, several data sets."""

import json
import shutil

import pandas as pd
import pytest
import yaml
from fabricated_study import edit, edit_value, run_name, write_study

from analysis.load import load
from bench.records.store import read_json


@pytest.fixture
def folder(tmp_path):
    return write_study(tmp_path / "made_up")


def row(study, method, backbone, seed):
    return study.runs.set_index("run").loc[run_name(method, backbone, seed)]


def test_groups_stand_in_order_of_creation_not_of_name(folder):
    methods = ["bare", "turned", "turned_later", "strict"]
    assert load(folder).methods == methods != sorted(methods)
    edit(folder / run_name("strict", "egnn", 0) / "manifest.json", created="2020-01-01T00:00:00+00:00")
    assert load(folder).methods[0] == "strict"


def test_only_done_and_evaluated_runs_count(folder):
    study = load(folder)
    assert study.progress == (6, 8)
    statuses = study.runs[~study.runs["counted"]].set_index("run")["status"].to_dict()
    assert statuses == {
        run_name("turned_later", "dit", 1): "not evaluated",
        run_name("strict", "egnn", 1): "failed",
        run_name("strict", "dit", 0): "skipped",
    }


def test_evaluation_of_a_run_that_is_being_extended_does_not_count(folder):
    edit(folder / run_name("bare", "dit", 0) / "manifest.json", status="running")
    assert load(folder).progress == (5, 8)


def test_run_that_trains_nothing_takes_its_parents_training_cost(folder):
    study = load(folder)
    later, parent = row(study, "turned_later", "dit", 0), row(study, "turned", "dit", 0)
    assert later["borrowed"]
    assert not parent["borrowed"]
    assert later["value.train_seconds"] == parent["value.train_seconds"] == 120.0
    path = folder / run_name("turned_later", "dit", 0) / "eval.json"
    edit_value(path, "step_seconds", value=0.5, unit="s", kind="cost", label="Training step")
    assert row(load(folder), "turned_later", "dit", 0)["value.step_seconds"] == 0.5  # what it measured stays
    shutil.rmtree(folder / run_name("turned", "dit", 0))
    assert pd.isna(row(load(folder), "turned_later", "dit", 0)["value.train_seconds"])


def test_missing_seed_is_found_and_skipped_cells_are_not_missed(folder):
    assert load(folder).missing() == []
    shutil.rmtree(folder / run_name("bare", "dit", 1))
    study = load(folder)
    assert study.missing() == [("bare", "dit small", 1)]
    assert study.progress == (5, 8)


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 2}', '{"schema": 99}', "\xff\xfe"])
def test_broken_manifest_is_one_line_and_leaves_the_others(folder, content):
    name = run_name("bare", "dit", 0)
    (folder / name / "manifest.json").write_text(content, encoding="latin-1")
    study = load(folder)
    assert len(study.problems) == 1
    assert name in study.problems[0]
    assert "\n" not in study.problems[0]
    assert study.runs.set_index("run").loc[name, "status"] == "unreadable"
    assert study.progress == (5, 8)


def test_broken_evaluation_does_not_count(folder):
    (folder / run_name("bare", "dit", 0) / "eval.json").write_text("{}")
    study = load(folder)
    assert row(study, "bare", "dit", 0)["status"] == "unreadable"
    assert len(study.problems) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"better": "up"}, "'up' is not a valid Better"),
        ({"kind": "luxury"}, "'luxury' is not a valid Kind"),
        ({"value": "high"}, "'value' is 'high'"),
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"value": True}, "expected numbers"),
        ({"at": {"t": [1]}}, "or words in 'at'"),
        ({"at": {"t": True}}, "or words in 'at'"),
        ({"name": "validity", "at": {}}, "comes twice"),
    ],
)
def test_a_broken_value_is_one_line_that_names_it(folder, change, words):
    path = folder / run_name("bare", "dit", 0) / "eval.json"
    record = read_json(path)
    record["values"][0] |= change
    path.write_text(json.dumps(record))
    study = load(folder)
    (problem,) = study.problems
    assert words in problem
    assert "eval.json: values[" in problem
    assert "\n" not in problem
    assert row(study, "bare", "dit", 0)["status"] == "unreadable"
    assert study.progress == (5, 8)


def test_values_of_one_name_at_several_positions_are_no_fault(folder):
    path = folder / run_name("bare", "dit", 0) / "eval.json"
    for at in ({"t": 0.1}, {"t": 0.2}, {"t": 0.1, "weights": "best"}, {"weights": "best"}):
        edit_value(path, "validity", at=at, label="Validity", unit="fraction", value=0.5)
    study = load(folder)
    assert study.problems == ()
    own = study.values[(study.values["run"] == path.parent.name) & (study.values["name"] == "validity")]
    assert own["scalar"].tolist() == [True, False, False, False, True, True]  # the last is of the data
    assert {column.name for column in study.columns} >= {"validity", "validity[weights=best]"}
    assert own["at.t"].dropna().tolist() == [0.1, 0.2, 0.1]


def test_a_value_in_another_unit_is_left_out_and_told(folder):
    edit_value(folder / run_name("bare", "dit", 0) / "eval.json", "step_seconds", unit="ms", value=20.0)
    study = load(folder)
    (problem,) = study.problems
    assert "step_seconds is in 'ms', but in 's' in newer runs; left out" in problem
    assert study.runs.set_index("run").loc[run_name("bare", "dit", 1), "value.step_seconds"] == 0.02
    assert pd.isna(row(study, "bare", "dit", 0)["value.step_seconds"])


def test_broken_curve_costs_the_curve_alone(tmp_path):
    folder = write_study(tmp_path / "study", published=True)
    (folder / run_name("bare", "dit", 0) / "curves.csv").write_text("step,seconds,bogus\n1,2,3\n")
    (folder / run_name("bare", "dit", 1) / "curves.csv").write_text("step,seconds,loss\n1,2,high\n")
    study = load(folder)
    assert study.progress == (6, 8)
    assert "bogus" in study.problems[0]
    assert "'loss' holds text" in study.problems[1]
    assert "bare" not in set(study.curves["method"])
    assert "turned" in set(study.curves["method"])


def test_study_of_broken_manifests_alone_is_still_read(tmp_path):
    path = tmp_path / "study" / "x"
    path.mkdir(parents=True)
    (path / "manifest.json").write_text("nonsense")
    study = load(tmp_path / "study")
    assert (study.groups, study.progress, len(study.problems)) == ([], (0, 1), 1)


def test_folder_without_runs_says_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        load(tmp_path)


def test_options_enter_the_label_only_where_they_differ(folder):
    assert ("bare", "dit small") in load(folder).groups
    edit(folder / run_name("bare", "dit", 0) / "manifest.json", method={"name": "bare", "n_draws": 4})
    edit(folder / run_name("bare", "dit", 1) / "manifest.json", method={"name": "bare", "n_draws": 64})
    assert {m for m in load(folder).methods if m.startswith("bare")} == {"bare (n_draws=4)", "bare (n_draws=64)"}


def test_a_backbone_without_a_named_size_is_told_by_width_and_depth(folder):
    for seed in (0, 1):
        page = {"name": "dit", "width": 64, "depth": 7}
        edit(folder / run_name("bare", "dit", seed) / "manifest.json", backbone=page)
    assert ("bare", "dit 64x7") in load(folder).groups
    edit(folder / run_name("bare", "dit", 1) / "manifest.json", backbone=page | {"depth": 4})
    assert {("bare", "dit 64x7"), ("bare", "dit 64x4")} <= set(load(folder).groups)


def sweep(folder, rates):
    first = folder / run_name("bare", "dit", 0)
    second = folder / "bare-dit-s0-1111111111"
    shutil.copytree(first, second)
    edit(second / "manifest.json", run=second.name, created="2026-01-02T00:00:00+00:00")
    for path, rate in zip((first, second), rates, strict=True):
        (path / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "train": {"lr": rate, "n_steps": 400}}))


def test_runs_of_a_sweep_are_told_apart_by_the_swept_setting(folder):
    sweep(folder, (0.001, 0.002))
    methods = load(folder).methods
    assert "bare (lr=0.001)" in methods
    assert "bare (lr=0.002)" in methods


def test_a_run_without_settings_tells_none_of_the_others_apart(folder):
    """Such as one that has not begun. Control: the sweep above."""
    sweep(folder, (0.001, 0.001))
    (folder / "bare-dit-s0-1111111111" / "config.yaml").unlink()
    assert not [method for method in load(folder).methods if "=" in method]


def test_equal_settings_are_a_duplicate_and_counted_once(folder):
    sweep(folder, (0.001, 0.001))
    study = load(folder)
    assert study.progress == (6, 8)
    assert row(study, "bare", "dit", 0)["status"] == "duplicate"


def test_two_data_sets_never_share_a_table(folder):
    assert len(load(folder).parts()) == 1
    for seed in (0, 1):
        edit(folder / run_name("turned", "dit", seed) / "manifest.json", data__fingerprint="f" * 16)
    first, second = load(folder).parts()
    assert set(second.methods) == {"turned"}
    assert "turned" not in first.methods
    assert len(first.counted) + len(second.counted) == 6


def test_what_a_method_reports_of_itself_stays_in_the_curves(folder):
    """The same column from steps.jsonl and from a published curves.csv; runs without it have gaps."""
    live, published = (folder / run_name("bare", "dit", seed) for seed in (0, 1))
    line = {"step": json.loads((live / "eval.json").read_text())["step"], "seconds": 0.5, "loss": 1.0}
    for path in (live, published):
        (path / "steps.jsonl").unlink(missing_ok=True)
        (path / "curves.csv").unlink(missing_ok=True)
    (live / "steps.jsonl").write_text(json.dumps({**line, "diagnostics": {"own": 3.5}}) + "\n")
    (published / "curves.csv").write_text("step,seconds,loss,diagnostics.own\n1,0.5,1.0,3.5\n")
    study = load(folder)
    assert not any("curve left out" in problem for problem in study.problems)
    found = study.curves.set_index("run")["diagnostics.own"]
    assert found[live.name] == found[published.name] == 3.5
    assert found.drop([live.name, published.name]).isna().all()


def test_a_curve_that_ends_before_its_run_is_told_and_left_out(folder):
    path = folder / run_name("bare", "dit", 0)
    lines = (path / "steps.jsonl").read_text().splitlines(keepends=True)
    assert not any("curve left out" in problem for problem in load(folder).problems)
    (path / "steps.jsonl").write_text("".join(lines[:-1]))
    study = load(folder)
    assert [problem for problem in study.problems if "curve left out" in problem and "ends at step" in problem]
    assert path.name not in set(study.curves["run"])
