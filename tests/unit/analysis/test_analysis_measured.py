"""What measures found: a table and a figure for each; times measured apart; symmetry; how steadily rows trained."""

import json

import numpy as np
import pytest
from fabricated_study import edit, run_name, write_study
from matplotlib.figure import Figure

from analysis import report
from analysis.figures import positions, values
from analysis.load import load
from analysis.tables.main import main_table, print_table
from analysis.tables.measured import measured_table
from analysis.tables.stability import SPIKE, WINDOW, spikes, stability_frame
from bench.records.measured import write_measurement
from bench.records.store import RunFolder
from bench.records.values import Better, Kind, Value

CELLS = [("bare", "dit", 0), ("bare", "dit", 1), ("turned", "dit", 0), ("turned", "dit", 1)]


@pytest.fixture
def folder(tmp_path):
    return write_study(tmp_path / "made_up")


def found_by(folder, measure, made, cells=CELLS, weights="trained"):
    """A measurement of some runs: `made(method, seed)` -> values."""
    for method, backbone, seed in cells:
        run = RunFolder(folder / run_name(method, backbone, seed))
        sha256 = json.loads(run.manifest.read_text()).get("weights_sha256", "0" * 64)
        environment = {"device": "CPU", "n_threads": 1, "platform": "Linux", "versions": {}}
        code = {"version": "0", "commit": None, "dirty": None}
        record = {"measure": measure, "options": {}, "weights": weights, "weights_sha256": sha256, "step": 1}
        record |= {"seconds": 1.0, "code": code, "environment": environment, "created": "2026-01-01T00:00:00+00:00"}
        write_measurement(run, record, made(method, seed))


def wobble(method, seed):
    """Curves of one quantity in three parts, another without, and a scalar with a floor."""
    shift = 0.1 * seed + (method == "turned")
    return [
        *(
            Value("wobble", "Wobble", (1 + k) * t + shift, kind=Kind.DIAGNOSTIC, at={"t": t, "part": part})
            for k, part in enumerate(("data", "rotation", "noise"))
            for t in (0.1, 0.5, 0.9)
        ),
        *(Value("tilt", "Tilt", t, kind=Kind.DIAGNOSTIC, at={"t": t}) for t in (0.1, 0.9)),
        Value("wobble_mean", "Wobble, mean", 0.5 + shift, kind=Kind.DIAGNOSTIC, sem=0.1, definition="over times"),
        Value("wobble_mean", "Wobble, mean", 0.01, kind=Kind.DIAGNOSTIC, at={"of": "floor"}, definition="over times"),
    ]


@pytest.mark.usefixtures("no_figures")
def test_a_measure_has_a_section_of_its_own(folder, monkeypatch):
    """Its scalars as a table, its curves as a figure, a panel for each word; not among the values of samples.

    Control: without measurements there is no section, and no panel.
    """
    figures = {}
    monkeypatch.setattr(positions, "save", lambda figure, out, stem: figures.setdefault(stem, figure) and [])
    assert "## Measured" not in (report.build(folder) / "report.md").read_text()
    assert positions.build(load(folder), folder, "shake") == []
    found_by(folder, "shake", wobble)
    study = load(folder)
    assert not study.problems
    positions.build(study, folder, "shake")
    assert positions.build(study, folder) == []
    figure: Figure = figures["measured-shake"]
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in panels] == ["", "part data", "part rotation", "part noise"]
    assert [axes.get_ylabel() for axes in panels] == ["Tilt", "Wobble", "", ""]
    assert len({axes.get_ylim() for axes in panels[1:]}) == 1
    thick = [line for line in panels[1].lines if line.get_linewidth() == 1.4]
    bare = np.array([0.15, 0.55, 0.95])
    np.testing.assert_allclose([line.get_ydata() for line in thick], [bare, bare + 1])

    table = measured_table(study, "shake")
    assert table is not None
    assert [title.partition(" /")[0] for title in table.header] == ["Value", "bare", "turned"]
    assert [row[0].text for row in table.rows] == ["Wobble, mean", "Wobble, mean, of floor"]
    assert [cell.plain for cell in table.rows[0][1:]] == ["0.550 ± 0.071 (0.196)", "1.55 ± 0.07 (0.20)"]
    assert "Wobble, mean" not in {column.label for column in values._shown(study)}


@pytest.mark.usefixtures("no_figures")
def test_initial_weights_stand_beside_the_trained_ones(folder):
    found_by(folder, "shake", wobble)
    found_by(folder, "shake", wobble, weights="initial")
    study = load(folder)
    table = measured_table(study, "shake")
    assert table is not None
    words = ["", ", of floor", ", weights initial", ", of floor, weights initial"]
    assert [row[0].text for row in table.rows] == [f"Wobble, mean{word}" for word in words]
    assert {"wobble_mean", "wobble_mean[weights=initial]"} <= {column.name for column in study.columns}
    report.build(folder)


@pytest.mark.usefixtures("no_figures")
def test_measured_symmetry_stands_beside_the_promised_one(folder):
    """Before the seeds, in tables and on the terminal. Control: without it the table has no such column."""
    before = list(main_table(load(folder)).header)
    kind = Kind.SYMMETRY
    found_by(folder, "tilt", lambda method, _: [Value("tilt", "Tilt", 0.25 + (method == "turned"), kind=kind)])
    study = load(folder)
    table = main_table(study)
    assert table.header == [*before[:3], "Tilt", *before[3:]]
    assert {row[0].text: row[3].text for row in table.rows}["bare"] == "0.250"
    assert all(len(row) == len(table.header) for row in table.rows)
    shown = print_table(study, 400)
    assert "tilt" in shown.lower()
    assert [row[4].text for row in table.rows if row[0].text == "bare"] == ["2"]
    report.build(folder)


def test_times_measured_apart_replace_those_of_the_run_where_all_have_them(folder):
    """The column says which. Control: while one run lacks them, both are shown."""

    def apart(*_):
        return [Value("step_seconds", "Training step", 0.5, "s", Better.LOWER, Kind.COST, at={"timed": "apart"})]

    def shown():
        return {column.name for column in load(folder).costs} & {"step_seconds", "step_seconds[timed=apart]"}

    rows = load(folder).scalars
    timed = set(rows[rows["column"] == "step_seconds"]["run"])
    cells = [(*run.rsplit("-", 3)[:2], int(run.rsplit("-", 3)[2][1:])) for run in timed]
    assert shown() == {"step_seconds"}
    found_by(folder, "cost", apart, cells[:1])
    assert shown() == {"step_seconds", "step_seconds[timed=apart]"}
    found_by(folder, "cost", apart, cells)
    assert shown() == {"step_seconds[timed=apart]"}
    study = load(folder)
    assert "Training step, timed apart" in " ".join(main_table(study).header)


def test_spikes_are_counted_against_the_running_median():
    """Control: a slow rise to many times the first norm has none."""
    norms = 1 + 0.1 * np.random.default_rng(0).random(100)
    assert not spikes(norms).any()
    norms[[20, 70]] *= 2 * SPIKE
    assert np.flatnonzero(spikes(norms)).tolist() == [20, 70]
    assert not spikes(np.geomspace(1, 100, 20 * WINDOW)).any()


@pytest.mark.usefixtures("no_figures")
def test_stability_comes_from_the_curves(folder):
    """Quantiles of gradient norms, spikes, intervals that are not finite, runs that stopped, spread over seeds."""
    for seed in (0, 1):
        path = RunFolder(folder / run_name("bare", "dit", seed)).steps
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for i, line in enumerate(lines):
            line.pop("checksum", None)
            line["grad_norm"] = 50.0 if i == len(lines) // 2 else 1.0
            line["loss"] = 1.0 + seed
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = stability_frame(load(folder)).set_index("method").loc["bare"]
    assert (row["runs"], row["spikes"], row["not_finite"], row["stopped"]) == (2, 2, 0, 0)
    assert (row["grad_norm_median"], row["grad_norm_max"]) == (1.0, 50.0)
    assert row["loss_relative_sd"] == pytest.approx(np.std([1, 2], ddof=1) / 1.5)
    reason = "TrainingError: loss or gradient not finite at step 3"
    edit(folder / run_name("bare", "dit", 1) / "manifest.json", status="failed", reason=reason)
    assert stability_frame(load(folder)).set_index("method").loc["bare", "stopped"] == 1
    assert "Training stability" in (report.build(folder) / "report.md").read_text()
