"""Whatever a record measured is shown: values that nothing here has heard of, their positions, and studies of toys."""

import csv
import io
import json
import shutil

import pandas as pd
import pytest
from fabricated_study import edit, edit_value, run_name, write_study
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver

from analysis import report
from analysis.figures import fields, positions, values
from analysis.load import load
from analysis.tables.main import print_table
from analysis.tables.published import published_table
from analysis.trace import trace

CELLS = [("bare", "dit", 0), ("bare", "dit", 1), ("turned", "dit", 0), ("turned", "dit", 1)]
INVENTED = {"label": "Wobble", "unit": "furlong", "better": "lower", "definition": "how much it wobbles"}


@pytest.fixture
def folder(tmp_path):
    return write_study(tmp_path / "made_up")


@pytest.fixture
def panels(monkeypatch):
    """Figures that were saved, by name, to look into."""
    found = {}

    def keep(figure: Figure, out, stem):
        found[stem] = figure
        return []

    for module in (values, positions, fields):
        monkeypatch.setattr(module, "save", keep)
    return found


def invent(folder, **changes):
    """Give four runs a value 'wobble', lower for 'turned'."""
    for method, backbone, seed in CELLS:
        value = 3.0 + 0.01 * seed - (method == "turned")
        path = folder / run_name(method, backbone, seed) / "eval.json"
        edit_value(path, "wobble", **{**INVENTED, "value": value, "low": value - 0.1, "high": value + 0.1, **changes})


def rows(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def titles(figure):
    return [axes.get_title().replace("\n", " ") for axes in figure.axes if axes.axison]


@pytest.mark.slow
def test_a_metric_that_nobody_knew_of_is_shown_everywhere(folder, panels):
    """Control: without it in the records, nothing of it is anywhere."""

    def shown(out):
        study = load(folder)
        values.build(study, out)
        texts = [path for path in out.iterdir() if path.suffix in (".md", ".csv", ".tex", ".html")]
        places = {path.name: "wobble" in path.read_text().lower() for path in texts}
        places |= {"terminal": "Wobble" in print_table(study), "figure": "Wobble ↓" in titles(panels["values"])}
        return places

    before = shown(report.build(folder))
    assert len(before) == 12
    assert set(before.values()) == {False}
    invent(folder)
    out = report.build(folder)
    assert set(shown(out).values()) == {True}
    assert "Wobble (furlong)" in (out / "main.md").read_text()
    assert "Wobble: how much it wobbles." in (out / "main.md").read_text()
    bare = next(row for row in rows(out / "main.csv") if row["method"] == "bare")
    assert float(bare["wobble"]) == pytest.approx(3.005)
    within = [float(bare[f"wobble_within_{end}95"]) for end in ("low", "high")]
    assert within == pytest.approx([2.905, 3.105])  # no items: what the seeds share is not made smaller by their number
    pair = next(row for row in rows(out / "paired.csv") if (row["method"], row["quantity"]) == ("turned", "wobble"))
    assert float(pair["difference"]) == pytest.approx(-1.0)
    assert values_of(trace(load(folder), "bare", "wobble")) == [3.0, 3.01]


def values_of(text):
    return [float(line.split()[1]) for line in text.splitlines() if line.startswith("value")]


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_the_better_direction_decides_what_is_bold(folder):
    """Two seeds of two rows alone are not enough to say so (control)."""

    def bold(seeds, better):
        for method in ("bare", "turned"):
            for seed in range(seeds):
                path = folder / run_name(method, "dit", seed)
                if not path.exists():
                    shutil.copytree(folder / run_name(method, "dit", 1), path)
                    edit(path / "manifest.json", seed=seed, run=path.name)
                value = 3.0 + 0.01 * seed * (1 + (method == "turned")) - (method == "turned")
                edit_value(path / "eval.json", "wobble", **{**INVENTED, "value": value, "better": better})
        out = report.build(folder)
        header, *body = [line.split(" | ") for line in (out / "main.md").read_text().splitlines() if line[:1] == "|"]
        column = header.index("Wobble (furlong)")
        return {row[0].strip("| ") for row in body if row[column].startswith("**")}

    assert bold(2, "lower") == set()
    assert bold(3, "lower") == {"turned"}
    assert bold(3, "higher") == {"bare"}
    assert bold(3, "neither") == set()


def test_diagnostics_stand_in_csv_and_figures_and_not_in_the_table(folder, panels):
    invent(folder, kind="diagnostic")
    out = report.build(folder)
    assert "Wobble" not in (out / "main.md").read_text()
    assert "Wobble" not in (out / "paired.md").read_text()
    assert "wobble" in rows(out / "main.csv")[0]
    values.build(load(folder), out)
    assert "Wobble ↓" in titles(panels["values"])
    for method, backbone, seed in CELLS:  # the same in all runs: nothing to look at
        edit_value(folder / run_name(method, backbone, seed) / "eval.json", "wobble", value=1.0)
    values.build(load(folder), out)
    assert "Wobble ↓" not in titles(panels["values"])


@pytest.mark.usefixtures("no_figures")
def test_costs_that_nobody_knew_of_stand_among_the_costs(folder):
    invent(folder, kind="cost")
    header = next(line for line in (report.build(folder) / "main.md").read_text().splitlines() if line[:1] == "|")
    assert header.index("Parameters") < header.index("Wobble")
    assert "Wobble" not in (folder / "report" / "paired.md").read_text()


@pytest.mark.usefixtures("no_figures")
def test_other_words_of_a_position_stand_in_the_label(folder):
    invent(folder)
    invent(folder, at={"sampler": "heun"})
    header = next(line for line in (report.build(folder) / "main.md").read_text().splitlines() if line[:1] == "|")
    assert "| Wobble (furlong) | Wobble, sampler heun (furlong) |" in header
    assert values_of(trace(load(folder), "bare", "Wobble, sampler heun")) == [3.0, 3.01]


def test_values_with_a_position_are_curves(folder, panels):
    assert positions.build(load(folder), folder) == []
    assert "positions" not in panels
    for t in (0.9, 0.1, 0.5):  # in any order
        invent(folder, at={"t": t, "draws": 4}, value=t)
    for draws in (1, 64):
        invent(folder, at={"t": 0.5, "draws": draws}, value=0.8)
    path = folder / run_name("bare", "dit", 0) / "eval.json"
    for t in (0.1, 0.9):
        edit_value(path, "wobble", "data_values", **INVENTED, value=0.3, at={"t": t})
    study = load(folder)
    positions.build(study, folder)
    by_axis = {axes.get_xlabel(): axes for axes in panels["positions"].axes if axes.axison}
    assert set(by_axis) == {"t", "draws"}
    t, draws = by_axis["t"], by_axis["draws"]
    assert t.get_ylabel() == "Wobble (furlong) ↓"
    assert draws.get_xscale() == "log"
    assert t.get_xscale() == "linear"
    thick = [line for line in t.lines if line.get_linewidth() == 1.4]
    assert [line.get_xdata().tolist() for line in thick] == [[0.1, 0.5, 0.9]] * 2  # a curve per method
    assert thick[0].get_ydata().tolist() == pytest.approx([0.1, 0.7, 0.9])  # at 0.5 the mean over draws
    assert any(line.get_ydata().tolist() == [0.3, 0.3] for line in t.lines)
    assert "wobble" not in {column.name for column in study.columns}
    out = report.build(folder)
    found = [row for row in rows(out / "values.csv") if row["name"] == "wobble" and row["of"] == "samples"]
    assert len(found) == 5 * len(CELLS)
    assert {row["at.t"] for row in found} == {"0.1", "0.5", "0.9"}


@pytest.mark.parametrize(("n_named", "legends", "at_ends"), [(2, 0, 2), (1, 1, 0)])
def test_rows_too_many_for_names_at_their_curves_stand_in_a_legend(
    folder, panels, monkeypatch, n_named, legends, at_ends
):
    monkeypatch.setattr(positions, "N_NAMED", n_named)
    for t in (0.1, 0.9):
        invent(folder, at={"t": t}, value=t)
    positions.build(load(folder), folder)
    figure = panels["positions"]
    (axes,) = [axes for axes in figure.axes if axes.axison]
    assert len(figure.legends) == legends
    assert len(axes.texts) == at_ends
    if legends:
        colours = {line.get_label(): line.get_color() for line in figure.legends[0].legend_handles}
        drawn = {line.get_color() for line in axes.lines if line.get_linewidth() == 1.4}
        assert len(colours) == len({cell[:2] for cell in CELLS})
        assert set(colours.values()) == drawn


@pytest.fixture
def toys(folder):
    """The same runs as a toy: no molecules, no data row, quality in angstrom, targets by level."""
    for path in folder.glob("*/eval.json"):
        (path.parent / "drawn.sdf").unlink()
        shift = 0.1 * path.parent.name.startswith("turned")
        rmsd = {"name": "rmsd", "label": "RMSD", "unit": "angstrom", "better": "lower", "sem": 0.01}
        made = [rmsd | {"value": 0.4 - shift}, rmsd | {"value": 0.3 - shift, "at": {"sampler": "heun"}}]
        for t in (0.1, 0.5, 0.9):
            made.append({"name": "target_error", "label": "Target error", "value": t - shift, "at": {"t": t}})
        made.append({"name": "step_seconds", "label": "Training step", "value": 3e-4, "unit": "s", "kind": "cost"})
        edit(path, values=made, data_values=[])
    for path in folder.glob("*/steps.jsonl"):
        path.unlink()
    return folder


def test_a_study_of_toys_has_a_report_of_its_own_values(toys):
    out = report.build(toys)
    names = {path.name for path in out.iterdir()}
    assert {"main.md", "paired.csv", "pareto.png", "values.png", "positions.png", "index.html"} <= names
    assert not names & {"molecules.png", "curves.png"}
    page = (out / "report.md").read_text()
    assert "RMSD (angstrom)" in page
    assert "RMSD, sampler heun (angstrom)" in page
    assert "Training step (µs)" in page
    for words in ("tability", "NLL", "likelihood", "The data row"):
        assert words not in page
    assert "RMSD" in print_table(load(toys))


def test_a_study_whose_runs_measured_nothing_still_has_a_report(folder):
    for path in folder.glob("*/eval.json"):
        edit(path, values=[], data_values=[])
    out = report.build(folder)
    assert "6 of 8 runs done" in (out / "report.md").read_text()
    assert not (out / "values.png").exists()
    assert not (out / "paired.md").exists()
    assert "strict" in print_table(load(folder))


@pytest.mark.usefixtures("no_figures")
def test_values_that_are_undefined_are_dashes(folder):
    for path in folder.glob("*/eval.json"):
        edit_value(path, "novelty", value=None)
    out = report.build(folder)
    bare = next(line for line in (out / "main.md").read_text().splitlines() if line.startswith("| bare |"))
    column = next(line for line in (out / "main.md").read_text().splitlines() if line[:1] == "|").split(" | ")
    assert bare.split(" | ")[column.index("Novelty of unique (%)")] == "–"


def test_every_data_set_keeps_its_own_values(folder):
    invent(folder)
    for seed in (0, 1):
        edit(folder / run_name("turned", "dit", seed) / "manifest.json", data__fingerprint="f" * 16)
    parts = load(folder).parts()
    assert len(parts) == 2
    assert all(set(part.values["run"]) <= set(part.runs["run"]) for part in parts)
    assert sum(len(part.values) for part in parts) == len(load(folder).values)
    one = next(part for part in parts if part.methods == ["turned"])
    assert "validity" in {column.name for column in one.columns}


@pytest.mark.usefixtures("no_figures")
def test_a_value_of_a_run_that_does_not_count_is_not_shown(folder):
    older = folder / "bare-dit-s0-1111111111"
    shutil.copytree(folder / run_name("bare", "dit", 0), older)
    edit(older / "manifest.json", run=older.name, created="2020-01-02T00:00:00+00:00")
    edit_value(older / "eval.json", "wobble", **INVENTED, value=1.0)
    study = load(folder)
    assert "wobble" in set(study.values["name"])
    assert "wobble" not in {column.name for column in study.columns}
    assert "wobble" not in (report.build(folder) / "values.csv").read_text()


@pytest.mark.usefixtures("no_figures")
def test_numbers_of_the_records_reach_the_csv_to_the_last_digit(folder):
    record = json.loads((folder / run_name("bare", "dit", 0) / "eval.json").read_text())
    frame = pd.read_csv(report.build(folder) / "values.csv", float_precision="round_trip")
    mine = frame[(frame["run"] == run_name("bare", "dit", 0)) & (frame["of"] == "samples")].set_index("name")["value"]
    assert mine.to_dict() == {value["name"]: value["value"] for value in record["values"]}


@pytest.mark.parametrize(("smallest", "scale"), [(1e-4, "log"), (0.5, "linear"), (1e-30, "linear"), (0.0, "linear")])
def test_curves_over_many_orders_of_magnitude_are_drawn_on_a_logarithmic_axis(folder, panels, smallest, scale):
    for t, value in ((0.1, smallest), (0.9, 1.0)):
        invent(folder, at={"t": t}, value=value)
    positions.build(load(folder), folder)
    (axes,) = [axes for axes in panels["positions"].axes if axes.axison]
    assert axes.get_yscale() == scale


def field_of(folder, plane: bool):
    """Give four runs a field, and the exact one twice as long."""
    points = [{"x": x, "y": y} for x in (-1.0, 1.0) for y in (0.0, 1.0)] if plane else [{"x": x} for x in (-1.0, 1.0)]
    for at in points:
        for along in ("x", "y") if plane else ("x",):
            for name, factor in (("flow", 1.0), ("flow_exact", 2.0)):
                told = {"label": name, "kind": "diagnostic", "value": factor * at["x"]}
                for method, backbone, seed in CELLS:
                    path = folder / run_name(method, backbone, seed) / "eval.json"
                    edit_value(path, name, **told, at={"t": 0.5, **at, "along": along})


@pytest.mark.parametrize("plane", [False, True])
def test_fields_are_drawn_beside_the_exact_one_and_not_as_curves(folder, panels, plane):
    assert fields.build(load(folder), folder) == []
    assert "fields" not in panels
    field_of(folder, plane)
    fields.build(load(folder), folder)
    shown = [axes for axes in panels["fields"].axes if axes.axison]
    assert len(shown) == (2 if plane else 1)  # a panel per method, or per time
    if plane:
        exact, learned = (quiver for quiver in shown[0].collections if isinstance(quiver, Quiver))
        assert exact.U.tolist() == [2 * u for u in learned.U.tolist()]
        assert learned.U.tolist() == [-1.0, -1.0, 1.0, 1.0]
    else:
        assert shown[0].lines[-1].get_ydata().tolist() == [-2.0, 2.0]
        assert all(line.get_ydata().tolist() == [-1.0, 1.0] for line in shown[0].lines[:-1])
    assert "t = 0.5" in fields.caption(load(folder)) or not plane
    assert positions.build(load(folder), folder) == []
    assert fields in [figure for _, figure in report.FIGURES]


def test_published_numbers_stand_beside_ours(folder, tmp_path):
    """Control: not beside a study of another task or other data."""
    for method, backbone, seed in CELLS:
        run = folder / run_name(method, backbone, seed)
        (run / "config.yaml").write_text("task: {name: denovo}\n")
    header = "task,data,quantity,method,backbone,row,mean,sd,n_seeds,source,differs\n"
    line = "{task},{data},validity,bare,dit,Their bare,0.5,0.25,3,a paper,otherwise trained\n"
    file = tmp_path / "published.csv"
    file.write_text(header + line.format(task="denovo", data="invented"))
    table = published_table(load(folder), file)
    assert [[cell.plain for cell in row] for row in table.rows] == [
        ["Validity", "Their bare", "bare", "0.5 ±0.25 (3)", "0.42 ±0.0283 (2)", "0.42"]
    ]
    assert "a paper" in table.caption
    assert table.notes == ["Published: otherwise trained."]
    for other in ({"task": "conformers", "data": "invented"}, {"task": "denovo", "data": "qm9"}):
        file.write_text(header + line.format(**other))
        assert published_table(load(folder), file) is None
