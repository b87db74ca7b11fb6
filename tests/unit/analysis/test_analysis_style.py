"""Figures: colours that stay with the method, names that can be read, fronts, and sweeps of a setting."""

import io
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import yaml
from fabricated_study import edit, edit_value, run_name, write_study
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis import report
from analysis.figures import curves, pareto, scaling, style
from analysis.load import load
from bench.records.values import Better

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path):
    return write_study(tmp_path / "made_up")


def test_every_method_of_the_package_has_a_colour_of_its_own():
    shipped = {path.stem for path in (ROOT / "methods").glob("*.py")} - {"__init__"}
    assert shipped <= style.COLOURS.keys()
    colours = [*style.COLOURS.values(), *style.OTHERS]
    assert len(set(colours)) == len(colours)


# Linear RGB as seen with all cones, without red and without green ones (Machado et al. 2009, severity 1).
SIGHTS = {
    "all": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}
# Linear RGB -> cones -> OKLab (Ottosson 2020).
CONES = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
LAB = [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]


def oklab(colour: str, sight: str) -> np.ndarray:
    c = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(SIGHTS[sight]) @ linear, 0, 1)
    return np.asarray(LAB) @ np.cbrt(np.asarray(CONES) @ seen)


def nearest(colours, sight: str) -> float:
    places = [oklab(colour, sight) for colour in colours]
    return min(float(np.linalg.norm(a - b)) for a, b in combinations(places, 2))


@pytest.mark.parametrize("sight", SIGHTS)
def test_colours_differ_for_colour_blind_readers_too(sight):
    """Control: red and green of equal lightness, which only some readers tell apart."""
    assert nearest(style.COLOURS.values(), sight) > 0.06
    assert (nearest(["#B06030", "#707030"], sight) > 0.06) == (sight == "all")


def test_a_method_has_its_colour_in_every_study(folder):
    """Also where it is swept, and a method that is not shipped; control: two of those differ within a study."""
    for path in folder.glob("bare-*/manifest.json"):
        edit(path, method__name="haar")
    study = load(folder)
    colours = style.colours(study)
    assert colours["haar"] == style.COLOURS["haar"] == style.colour_of("haar")
    assert colours["turned"] == style.colour_of("turned")
    assert len(set(colours.values())) == len(study.methods)
    assert {style.colour_of(f"plug_in_{i}") for i in range(50)} == set(style.OTHERS)


def test_plug_ins_of_one_colour_are_told_apart_within_a_study(folder):
    alike = [name for name in map("plug_in_{}".format, range(50)) if style.colour_of(name) == style.OTHERS[0]]
    first, second, *_ = sorted(alike)
    for method, name in (("bare", first), ("turned", second)):
        for path in folder.glob(f"{method}-*/manifest.json"):
            edit(path, method__name=name)
    found = style.palette(load(folder))
    assert found[first] == style.OTHERS[0]
    assert found[second] != found[first]


@pytest.mark.parametrize(
    ("places", "gap", "wanted"),
    [
        ([0.2, 0.8], 0.1, [0.2, 0.8]),
        ([0.5, 0.5], 0.1, [0.45, 0.55]),
        ([0.5, 0.52, 0.48], 0.1, [0.5, 0.6, 0.4]),
        ([1.0, 0.99], 0.1, [1.0, 0.9]),
        ([0.1, -3.0], 0.1, [0.1, 0.0]),
        ([0.5] * 3, 0.9, [0.0, 0.5, 1.0]),
        ([0.4], 0.1, [0.4]),
        ([], 0.1, []),
    ],
)
def test_names_at_the_ends_of_lines_keep_apart_and_in_order(places, gap, wanted):
    assert style.spread(places, gap) == pytest.approx(wanted)


def texts(figure, axes):
    figure.draw_without_rendering()
    return [Text.get_window_extent(text) for text in axes.texts if text.get_text()]  # without the leading line


def overlaps(boxes) -> int:
    def shared(a, b) -> bool:  # by more than rounding
        return min(a.x1 - b.x0, b.x1 - a.x0, a.y1 - b.y0, b.y1 - a.y0) > 0.1

    return sum(shared(a, b) for a, b in combinations(boxes, 2))


@pytest.mark.parametrize("write", [style.name_points, style.name_ends])
def test_names_of_points_that_coincide_do_not_hide_one_another(write):
    """Control: written at their points they do."""
    with mpl.rc_context(style.STYLE):
        figure = Figure(figsize=(style.WIDTH, 3))
        axes = figure.subplots()
        places = [(1 + 0.01 * i, 1.0) for i in range(8)] + [(2.0, 2.0)]
        axes.plot(*zip(*places, strict=True), "o")
        marks = [style.Mark(x, y, f"method_number_{i}", "#000000") for i, (x, y) in enumerate(places)]
        write(figure, [(axes, marks)])
        boxes = texts(figure, axes)
        assert len(boxes) == 9
        assert overlaps(boxes) == 0
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
        figure.savefig(io.BytesIO())
        plain = Figure(figsize=(style.WIDTH, 3))
        axes = plain.subplots()
        axes.set(xlim=(0, 3), ylim=(0, 3))
        for mark in marks:
            axes.text(mark.x, mark.y, mark.text)
        assert overlaps(texts(plain, axes)) > 0


def test_the_front_holds_the_rows_that_nothing_beats():
    points = [(1.0, 5.0), (2.0, 4.0), (3.0, 7.0), (3.0, 6.0), (4.0, 7.0), (1.0, 4.0)]
    assert pareto.front(points, Better.HIGHER) == [(1.0, 5.0), (3.0, 7.0)]
    assert pareto.front(points, Better.LOWER) == [(1.0, 4.0)]


@pytest.fixture
def saved(monkeypatch):
    """Figures that were saved, by name, to look into."""
    found = {}

    def keep(figure, out, stem):
        found[stem] = figure
        return []

    for module in (pareto, curves, scaling):
        monkeypatch.setattr(module, "save", keep)
    return found


def test_points_and_lines_carry_names_and_the_legend_has_backbones_alone(folder, saved, tmp_path):
    study = load(folder)
    pareto.build(study, tmp_path)
    curves.build(study, tmp_path)
    names = {text.get_text() for text in saved["pareto"].axes[0].texts}
    assert names >= set(study.methods)
    (legend,) = saved["pareto"].legends
    assert [text.get_text() for text in legend.texts] == ["dit small", "egnn small", "Pareto front", "data"]
    assert saved["curves"].axes[0].get_title() == "dit small"
    assert {text.get_text() for text in saved["curves"].axes[0].texts} == {"bare", "turned"}
    assert {text.get_text() for text in saved["curves"].axes[1].texts} == {"strict"}


def sweep_over(folder, setting: str, values, **with_it):
    """Repeat the evaluated runs of `bare` and `strict` with other values of a setting, e.g. 'data.n_train'."""
    group, key = setting.split(".")
    for method, backbone, seed in (("bare", "dit", 0), ("bare", "dit", 1), ("strict", "egnn", 0)):
        first = folder / run_name(method, backbone, seed)
        for i, value in enumerate(values):
            path = folder / f"{first.name[:-2]}{setting[-1]}{i}"
            path.mkdir()
            for file in ("manifest.json", "eval.json", "steps.jsonl"):
                (path / file).write_bytes((first / file).read_bytes())
            edit(path / "manifest.json", run=path.name)
            if setting == "data.n_train":
                edit(path / "manifest.json", data__n_train=value, data__fingerprint=f"{value:016d}")
            edit_value(path / "eval.json", "atom_stability", value=0.5 + 0.05 * i + 0.01 * seed)
            page = {"data": {"name": "invented", "n_train": None}, "train": {"n_steps": 400, "log_every": 20}}
            page[group] |= {key: value} | {name: choices[i] for name, choices in with_it.items()}
            (path / "config.yaml").write_text(yaml.safe_dump(page))
        page = {"data": {"name": "invented", "n_train": None}, "train": {"n_steps": 400, "log_every": 20}}
        (first / "config.yaml").write_text(yaml.safe_dump(page))


def test_runs_on_subsets_of_the_data_become_lines_of_data_efficiency(folder, saved, tmp_path):
    """Control: without subsets there is no such figure."""
    assert scaling.sweeps(load(folder)) == []
    sweep_over(folder, "data.n_train", [10, 30])
    study = load(folder)
    assert len(study.parts()) == 3
    (sweep,) = scaling.sweeps(study)
    assert sweep.title == "Data efficiency"
    scaling.build(study, sweep, tmp_path)
    figure = saved["scaling-data.n_train"]
    panels = {axes.get_ylabel().replace("\n", " "): axes for axes in figure.axes if axes.axison}
    assert {"Final validation loss ↓", "Atom stability (%) ↑", "NLL (nats/molecule) ↓"} <= set(panels)
    axes = panels["Atom stability (%) ↑"]
    assert axes.get_xscale() == "log"
    means = [line for line in axes.lines if line.get_linewidth() == 1.3]
    n_train = int(study.runs["data.n_train"].max())
    assert [line.get_xdata().tolist() for line in means] == [[10, 30, n_train]] * 2
    assert means[0].get_ydata().tolist() == pytest.approx([50.5, 55.5, 71.0])
    low, high = axes.collections[0].get_paths()[0].get_extents().intervaly
    assert (low, high) == pytest.approx((50.0, 72.0))
    assert [text.get_text() for text in axes.texts] == ["bare", "strict"]
    assert means[0].get_linestyle() != means[1].get_linestyle()  # another backbone


@pytest.mark.slow
def test_the_report_of_the_whole_data_set_shows_data_efficiency(folder):
    """Control: without subsets it says why there is no such figure."""
    assert "other sweeps: no two runs" in (report.build(folder) / "report.md").read_text()
    sweep_over(folder, "data.n_train", [10, 30])
    out = report.build(folder)
    assert "![Data efficiency](scaling-data.n_train.png)" in (out / "report.md").read_text()
    assert (out / "scaling-data.n_train.pdf").is_file()


def test_lengths_of_training_are_one_line_and_what_goes_with_them_is_told(folder, saved, tmp_path):
    sweep_over(folder, "train.n_steps", [100, 200], log_every=[5, 10])
    study = load(folder)
    assert any("n_steps=100" in method for method in study.methods)
    (sweep,) = scaling.sweeps(study)
    assert (sweep.title, sweep.along) == ("Training length", ("train.log_every",))
    assert "With it change train.log_every" in scaling.caption(sweep)
    assert set(sweep.runs["line"]) == {("bare", "dit small"), ("strict", "egnn small")}
    scaling.build(study, sweep, tmp_path)
    axes = saved["scaling-train.n_steps"].axes[1]
    assert axes.get_xlabel() == "Optimiser steps"


def test_two_settings_give_two_figures_and_no_line_mixes_them(folder):
    sweep_over(folder, "train.n_steps", [100, 200])
    sweep_over(folder, "data.n_train", [10, 30])
    found = {sweep.setting: sweep for sweep in scaling.sweeps(load(folder))}
    assert set(found) == {"data.n_train", "train.n_steps"}
    assert set(found["data.n_train"].runs["config.train.n_steps"]) == {400}
    assert found["train.n_steps"].runs["data.fingerprint"].nunique() == 1


def test_other_data_are_no_points_of_a_line(folder):
    """Two sets of another test split differ in the number of training molecules too."""
    sweep_over(folder, "data.n_train", [10, 30])
    assert scaling.sweeps(load(folder))
    for path in folder.glob("*n0/manifest.json"):
        edit(path, data__n_test=7)
    for path in folder.glob("*n1/manifest.json"):
        edit(path, data__n_test=8)
    assert scaling.sweeps(load(folder)) == []
