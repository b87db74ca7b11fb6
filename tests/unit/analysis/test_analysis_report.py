"""The whole report, its figures, and what it must not need."""

import csv
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fabricated_study import N_STEPS, edit, edit_value, run_name, write_drawn, write_study
from matplotlib.image import imread
from rdkit import Chem

from analysis import report
from analysis.figures import curves, molecules, pareto, positions, values
from analysis.load import load
from bench.launch import status

FIGURES = ["curves", "pareto", "values", "molecules"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = write_study(tmp_path_factory.mktemp("runs") / "made_up")
    return report.build(folder)


def test_report_holds_every_file(built):
    tables = [f"{stem}.{suffix}" for stem in ("main", "paired") for suffix in ("md", "csv", "tex")]
    figures = [f"{stem}.{suffix}" for stem in FIGURES for suffix in ("png", "pdf")]
    assert sorted(path.name for path in built.iterdir()) == sorted(
        [*tables, *figures, "values.csv", "power.md", "report.md", "index.html"]
    )


@pytest.mark.parametrize("page", ["report.md", "index.html"])
def test_pages_show_failures_with_their_reasons(built, page):
    told = (built / page).read_text().replace("<wbr>", "")  # where a name may be broken
    for word in (
        "6 of 8 runs done",
        "loss is not finite at step 120",
        "needs an equivariant backbone",
        "not evaluated",
    ):
        assert word in told
    for run in built.parent.glob("*/manifest.json"):
        assert run.parent.name in told


@pytest.mark.usefixtures("no_figures")
def test_free_text_of_records_is_shown_and_not_obeyed(tmp_path):
    """By terminal, browser or spreadsheet. Control: the same reason without what they obey."""
    folder = write_study(tmp_path / "made_up")
    name = run_name("strict", "egnn", 1)
    edit(folder / name / "manifest.json", reason="\x1b]0;owned\x07\x1b[31m<script>alert(1)</script>\u202e ends")
    done = folder / run_name("bare", "dit", 0)
    edit_value(done / "eval.json", "validity", label="=1+1 \x1b[2J")
    edit(done / "manifest.json", method__name="=cmd|'/C calc'!A0")
    out = report.build(folder)
    for path in out.iterdir():
        if path.suffix in (".md", ".html", ".csv", ".tex"):
            text = path.read_text()
            assert not set(text) & set("\x1b\x07\x9b\u202e"), path.name
            assert "<script>alert" not in text, path.name
        if path.suffix == ".csv":
            cells = [cell for row in csv.reader(io.StringIO(path.read_text())) for cell in row]
            assert not [cell for cell in cells if cell.startswith(("=", "+", "@", "\t", "\r"))], path.name
    assert r"\x1b]0;owned\x07\x1b[31m" in (out / "report.md").read_text()
    assert "alert(1)" in (out / "index.html").read_text()
    assert "'=cmd|'/C calc'!A0" in (out / "values.csv").read_text()
    (folder / name / "log.txt").write_text("a\tb \x1b[2J\nend\n")
    shown = status.tail(folder / name / "log.txt", 5)
    assert shown == "a\tb \\x1b[2J\nend"
    assert "\x1b" not in status.status(folder)


def test_html_is_self_contained(built):
    page = (built / "index.html").read_text()
    assert page.count("src='data:image/png;base64,") == 4
    links = re.findall(r"(?:src|href)=['\"](?!data:)(.*?)['\"]", page)
    assert sorted(set(links)) == ["main.csv", "main.tex", "paired.csv", "paired.tex"]
    assert all((built / link).is_file() for link in links)
    assert not re.findall(r"https?:|fetch\(|import", page[page.index("<script") :])


def test_columns_of_the_html_tables_can_be_sorted(built):
    """Every heading is a button; that the script sorts was seen in Chromium, which CI lacks."""
    page = (built / "index.html").read_text()
    heads = re.findall(r"<thead>(.*?)</thead>", page)
    assert len(heads) == 6
    assert all(head.count("<th ") == head.count("<button") for head in heads)
    assert "aria-sort" in page[page.index("<script") :]


def test_links_of_the_markdown_report_exist(built):
    links = re.findall(r"!\[.*?\]\((.*?)\)", (built / "report.md").read_text())
    assert len(links) == 4
    assert all((built / link).exists() for link in links)


def ink(path: Path) -> float:
    """Share of pixels that are not white."""
    return float((imread(path)[..., :3].min(axis=-1) < 0.9).mean())


@pytest.mark.parametrize("stem", FIGURES)
def test_figures_are_not_empty(built, stem):
    assert ink(built / f"{stem}.png") > 0.005
    assert (built / f"{stem}.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("build", [curves.build, pareto.build, values.build, molecules.build])
def test_figures_are_the_same_bytes_for_the_same_records(tmp_path, build):
    study = load(write_study(tmp_path / "study"))
    first, second = build(study, tmp_path / "a"), build(study, tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert not any(b"CreationDate" in path.read_bytes() for path in first)


def test_figures_change_with_the_records(tmp_path):
    folder = write_study(tmp_path / "study")
    first = pareto.build(load(folder), tmp_path / "a")
    edit_value(folder / run_name("bare", "dit", 0) / "eval.json", "atom_stability", value=0.6)
    second = pareto.build(load(folder), tmp_path / "b")
    assert first[0].read_bytes() != second[0].read_bytes()


def test_nothing_is_drawn_without_curves_samples_or_evaluations(tmp_path):
    folder = write_study(tmp_path / "study")
    for pattern in ("*/steps.jsonl", "*/eval.json", "*/drawn.sdf"):
        for path in folder.glob(pattern):
            path.unlink()
    study = load(folder)
    for figure in (curves, pareto, values, positions, molecules):
        assert figure.build(study, tmp_path / "out") == []
        assert figure.absent(study)
    page = (report.build(folder) / "report.md").read_text()
    assert "PARTIAL: 0 of 8 runs done" in page
    for line in ("Learning curves: no run has logged a loss yet.", "All values: no run is done and evaluated yet."):
        assert f"- {line}" in page


@pytest.mark.slow
def test_figures_without_values_name_the_quantities_and_the_elements(tmp_path):
    """Control: with values, and with figures, nothing is said of them."""
    folder = write_study(tmp_path / "study")
    assert "Quality against cost:" not in (report.build(folder) / "report.md").read_text()
    for path in folder.glob("*/eval.json"):
        for name in ("atom_stability", "molecule_stability", "validity", "uniqueness", "novelty", "valid_and_unique"):
            edit_value(path, name, value=None)
        edit(path.parent / "manifest.json", data__elements=[1, 6, 16])
    told = (report.build(folder, tmp_path / "out") / "report.md").read_text()
    (line,) = [line for line in told.splitlines() if line.startswith("- Quality against cost:")]
    assert "no run has a value of Atom stability, Molecule stability" in line
    assert "(elements: H, C, S)" in line


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_steps_are_those_that_were_made(tmp_path):
    """A run that its clock has ended planned more; control: rows of equal steps."""
    folder = write_study(tmp_path / "study")
    assert "All trained rows took the same number" in (report.build(folder) / "report.md").read_text()
    edit(folder / run_name("bare", "dit", 0) / "eval.json", step=41)
    page = (report.build(folder) / "report.md").read_text()
    assert "Trained rows differ in optimiser steps" in page
    assert f"{N_STEPS}, 41 optimiser steps" in page or f"41, {N_STEPS} optimiser steps" in page


@pytest.mark.usefixtures("no_figures")
def test_broken_record_is_reported_on_the_page(tmp_path):
    folder = write_study(tmp_path / "study")
    (folder / run_name("bare", "dit", 0) / "manifest.json").write_text("{ torn")
    page = (report.build(folder) / "report.md").read_text()
    assert "Unreadable: " in page
    assert "5 of 8 runs done" in page


@pytest.mark.usefixtures("no_figures")
def test_each_data_set_has_its_own_report(tmp_path):
    folder = write_study(tmp_path / "study")
    for seed in (0, 1):
        edit(
            folder / run_name("bare", "dit", seed) / "manifest.json",
            data__fingerprint="f" * 16,
            data__label="Other data",
        )
    out = report.build(folder)
    assert "Other data (folder invented-ffffffff/)" in (out / "report.md").read_text()
    assert "| bare |" not in (out / "main.md").read_text()
    assert "| bare |" in (out / "invented-ffffffff" / "main.md").read_text()
    assert "Other data" in report.print_table(load(folder))


def test_mean_curve_covers_the_common_range():
    a = np.array([[0.0, 2.0], [1.0, 2.0], [2.0, 2.0]])
    b = np.array([[0.5, 4.0], [1.5, 4.0]])
    grid, mean = curves.mean_curve([a, b])
    assert grid.tolist() == [0.5, 1.0, 1.5]
    assert mean.tolist() == [3.0, 3.0, 3.0]


@pytest.fixture
def drawn(tmp_path):
    write_drawn(tmp_path / "drawn.sdf")
    return molecules.read_drawn(tmp_path / "drawn.sdf", 10)


def test_impossible_valences_are_read_and_marked(drawn):
    assert len(drawn) == 7
    assert all(molecule is not None for molecule in drawn)
    assert [bool(molecules.prepare(molecule)[1]) for molecule in drawn] == [
        False,
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def test_no_atom_of_a_refused_molecule_is_hidden(drawn):
    for molecule in drawn[1:3]:
        flat, _ = molecules.prepare(molecule)
        assert flat.GetNumAtoms() == molecule.GetNumAtoms()
        assert all(atom.HasProp("_displayLabel") for atom in flat.GetAtoms())


def test_hydrogens_are_folded_into_sound_molecules(drawn):
    flat, refused = molecules.prepare(drawn[0])  # ethanol
    assert refused == []
    assert [atom.GetSymbol() for atom in flat.GetAtoms()] == ["C", "C", "O"]
    assert [atom.GetTotalNumHs() for atom in flat.GetAtoms()] == [3, 2, 1]


def test_missing_hydrogens_are_not_invented():
    carbon = Chem.MolFromMolBlock(Chem.MolToMolBlock(Chem.MolFromSmiles("C")), sanitize=False)
    flat, _ = molecules.prepare(carbon)
    assert flat.GetAtomWithIdx(0).GetTotalNumHs() == 0
    Chem.SanitizeMol(carbon)  # control: RDKit left alone adds four
    assert carbon.GetAtomWithIdx(0).GetTotalNumHs() == 4


def test_every_molecule_gives_a_picture(drawn):
    for molecule in drawn:
        pixels = molecules.picture(molecule)
        assert pixels.shape[:2] == molecules.PIXELS[::-1]
        assert (pixels[..., :3].min(axis=-1) < 0.9).any()


def test_torn_sdf_is_drawn_as_unreadable(tmp_path):
    folder = write_study(tmp_path / "study")
    for file in folder.glob("*/drawn.sdf"):
        file.write_text("no molecule\n$$$$\n" + file.read_text()[:300])
    assert len(molecules.build(load(folder), tmp_path / "out")) == 2


def test_reports_are_built_without_torch(tmp_path):
    folder = write_study(tmp_path / "study")
    code = (
        "import sys; from pathlib import Path; from analysis import report\n"
        f"report.build(Path({str(folder)!r})); report.print_table(report.load(Path({str(folder)!r})))\n"
        "ours = sorted(m for m in sys.modules if m.split('.')[0] in ('bench', 'methods'))\n"
        "print('torch' in sys.modules, *ours)"
    )
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    torch, *ours = printed.split()
    assert torch == "False"
    assert {"bench", "bench.records.store", "bench.records.values"} <= set(ours)
    assert all(name == "bench" or name.startswith("bench.records") for name in ours)
