"""What the tables show, and that both layouts of a study show the same."""

import csv
import filecmp
import io
import re
import shutil
import subprocess

import numpy as np
import pytest
from fabricated_study import edit, edit_value, run_name, write_study

from analysis.labels import Column, display, significant
from analysis.load import load
from analysis.tables import main, paired, power
from analysis.tables.render import Cell, Table, html, latex, markdown, tex, text
from bench.records.items import write_items
from bench.records.store import read_json


@pytest.fixture
def folder(tmp_path):
    return write_study(tmp_path / "made_up")


def body(table_markdown):
    lines = [line for line in table_markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in [lines[0], *lines[2:]]]


def rows_of(folder, out):
    main.build(load(folder), out)
    header, *rows = body((out / "main.md").read_text())
    return header, {(row[0], row[1]): dict(zip(header, row, strict=True)) for row in rows}


def test_data_row_is_on_top(folder, tmp_path):
    _, rows = rows_of(folder, tmp_path / "out")
    first = next(iter(rows.values()))
    assert first["Method"] == "Data"
    assert first["Atom stability (%)"] == "99.3"
    assert first["Valid and unique (%)"] == "97.8"
    assert first["NLL (nats/molecule)"] == "–"


def test_row_holds_mean_spread_and_sampling_noise(folder, tmp_path):
    _, rows = rows_of(folder, tmp_path / "out")
    bare = rows["bare", "dit small"]
    # mean of 70 and 72; their sample standard deviation; 0.4 from the intervals of the two runs, which share molecules
    assert bare["Atom stability (%)"] == "71.0 ± 1.4 (0.4)"
    assert bare["Molecule stability (%)"] == "12.0 ± 2.8 (−2.7 +3.3)"
    assert bare["Guarantee"] == "none"
    assert bare["Seeds"] == "2"
    assert bare["Training step (ms)"] == "20.0"
    assert bare["Training (min)"] == "2.05 ± 0.07"
    assert bare["Sampling (ms/molecule)"] == "50.0"
    assert bare["Peak memory (MB)"] == "700 ± 1"
    assert bare["Status"] == "complete"


def test_failed_skipped_and_unevaluated_runs_stand_in_the_status(folder, tmp_path):
    _, rows = rows_of(folder, tmp_path / "out")
    assert rows["strict", "egnn small"]["Status"] == "1 failed"
    assert rows["strict", "egnn small"]["Seeds"] == "1"
    assert rows["turned_later", "dit small"]["Status"] == "1 not evaluated"
    assert rows["strict", "dit small"]["Status"] == "1 skipped"
    assert rows["strict", "dit small"]["Atom stability (%)"] == "–"


def test_missing_seed_stands_in_the_status(folder, tmp_path):
    shutil.rmtree(folder / run_name("bare", "dit", 1))
    _, rows = rows_of(folder, tmp_path / "out")
    assert rows["bare", "dit small"]["Status"] == "1 missing"


def test_likelihood_of_a_stochastic_method_is_marked_as_a_bound(folder, tmp_path):
    _, rows = rows_of(folder, tmp_path / "out")
    assert rows["turned_later", "dit small"]["NLL (nats/molecule)"].startswith("≤ ")
    assert not any(row["NLL (nats/molecule)"].startswith("≤") for key, row in rows.items() if key[0] != "turned_later")


def test_the_record_says_whether_a_value_is_a_bound_not_the_guarantee(folder, tmp_path):
    """A method without a guarantee can draw too, and one in law need not."""
    for method, drawn in (("bare", True), ("turned_later", False)):
        for path in folder.glob(f"{method}-*/eval.json"):
            edit_value(path, "nll", upper_bound=drawn)
    _, rows = rows_of(folder, tmp_path / "out")
    assert rows["bare", "dit small"]["NLL (nats/molecule)"].startswith("≤ ")
    assert not rows["turned_later", "dit small"]["NLL (nats/molecule)"].startswith("≤")


def test_definitions_stand_in_the_notes(folder):
    assert any("NLL: variational bound." in note for note in main.notes(load(folder)))
    for path in folder.glob("*/eval.json"):
        edit_value(path, "nll", definition="")
    assert not any("NLL: " in note for note in main.notes(load(folder)))


def test_a_data_row_on_which_runs_disagree_says_so(folder, tmp_path):
    assert not any("disagree" in note for note in main.notes(load(folder)))
    edit_value(folder / run_name("strict", "egnn", 0) / "eval.json", "validity", "data_values", value=0.5)
    assert "Runs disagree on the data row's Validity; that of the newest run is shown." in main.notes(load(folder))
    _, rows = rows_of(folder, tmp_path / "out")
    assert rows["Data", "–"]["Validity (%)"] == "50.0"


def test_no_data_row_without_values_of_the_data(folder, tmp_path):
    for path in folder.glob("*/eval.json"):
        edit(path, data_values=[])
    header, rows = rows_of(folder, tmp_path / "out")
    assert "Atom stability (%)" in header
    assert not any(name.startswith("Data") for name, _ in rows)


def test_likelihoods_that_bound_differently_are_not_ranked(folder):
    def bold(folder):
        table = main.main_table(load(folder))
        column = table.header.index("NLL (nats/molecule)")
        return {row[0].text for row in table.rows if row[column].bold}

    nll = {"bare": (-30.0, -31.0, -32.0), "turned": (-50.0, -51.1, -52.0)}
    third_seed(folder, {(method, seed): values[seed] for method, values in nll.items() for seed in range(3)})
    assert bold(folder) == set()
    for path in folder.glob("turned_later*/eval.json"):
        edit_value(path, "nll", upper_bound=False)
    assert bold(folder) == {"turned"}


def test_a_bound_is_compared_with_bounds_alone(folder):
    def shown(folder):
        return {row[0].text: row[4].text[0] for row in paired.paired_table(load(folder)).rows}

    assert shown(folder) == {"turned": "−", "turned_later": "≤"}
    for seed in (0, 1):  # the reference is the bound
        edit_value(folder / run_name("bare", "dit", seed) / "eval.json", "nll", upper_bound=True)
    assert shown(folder) == {"turned": "≤", "turned_later": "−"}
    assert any(
        note.startswith("≤ one of the two is only an upper bound") for note in paired.paired_table(load(folder)).notes
    )


def third_seed(folder, values):
    """A seed 2 of 'bare' and 'turned', copied from seed 1, and the NLL of (method, seed)."""
    for method in ("bare", "turned"):
        source, target = (folder / run_name(method, "dit", seed) for seed in (1, 2))
        shutil.copytree(source, target)
        edit(target / "manifest.json", run=target.name, seed=2)
        edit(target / "eval.json", run=target.name)
    for (method, seed), nll in values.items():
        edit_value(folder / run_name(method, "dit", seed) / "eval.json", "nll", value=nll)


def test_two_seeds_are_marked_and_never_bold_and_three_may_be(folder):
    def cell(folder):
        return paired.paired_table(load(folder)).rows[0][4]  # 'turned', NLL

    values = {("bare", 0): -30.0, ("bare", 1): -31.0, ("turned", 0): -50.0, ("turned", 1): -51.001}
    for (method, seed), nll in values.items():
        edit_value(folder / run_name(method, "dit", seed) / "eval.json", "nll", value=nll)
    assert cell(folder).small.endswith("]*")
    assert not cell(folder).bold
    third_seed(folder, values | {("bare", 2): -33.0, ("turned", 2): -53.0})
    assert cell(folder).small.endswith("]")
    assert cell(folder).bold
    for seed in (0, 1, 2):
        edit_value(folder / run_name("bare", "dit", seed) / "eval.json", "nll", upper_bound=True)
    assert not cell(folder).bold


def test_primary_outcomes_come_first(folder):
    for path in folder.glob("*/eval.json"):
        edit_value(path, "gap", label="Gap", value=0.1, kind="likelihood", at={})  # no direction: nothing to judge by
    study = load(folder)
    assert [column.name for column in study.primary] == ["nll"]
    table = paired.paired_table(study)
    assert table.header[4:6] == ["NLL (nats/molecule)", "Atom stability (points)"]
    assert "Primary outcomes: NLL;" in table.caption


def test_records_without_values_of_molecules_say_so(folder):
    assert any("Without values of single molecules" in note for note in main.notes(load(folder)))
    names = [column.name for column in load(folder).compared]
    for path in folder.glob("*/eval.json"):
        write_items(path.parent / "sample_items.npz", {name: np.arange(5.0) for name in names})
    assert not any("Without values of single molecules" in note for note in main.notes(load(folder)))
    assert not any("Over trainings alone" in note for note in paired.paired_table(load(folder)).notes)


def test_power_tells_how_many_seeds_separate(folder, tmp_path):
    assert power.build(load(folder), tmp_path)
    third_seed(folder, {("turned", 0): -50.0, ("turned", 1): -52.0, ("turned", 2): -51.0})
    rows = {(row[0].text, row[3].text): row for row in power.power_table(load(folder)).rows}
    nll = rows["turned", "NLL (nats/molecule) *"]
    assert nll[4].text == "3"
    assert int(nll[8].text) <= 3
    assert ("turned_later", "NLL (nats/molecule) *") not in rows  # a bound
    for path in (folder / run_name("turned", "dit", seed) for seed in (1, 2)):
        shutil.rmtree(path)
    assert power.power_table(load(folder), "turned") is None  # control: single pairs know no scatter
    assert power.build(load(folder), tmp_path, "turned") == []


def test_borrowed_training_cost_is_marked(folder, tmp_path):
    _, rows = rows_of(folder, tmp_path / "out")
    assert rows["turned_later", "dit small"]["Training step (ms)"] == "20.0§"
    assert rows["turned_later", "dit small"]["Sampling (ms/molecule)"] == "50.0"
    assert "§ trains nothing" in (tmp_path / "out" / "main.md").read_text()


def test_a_value_of_fewer_seeds_than_its_row_is_marked(folder, tmp_path):
    """Control: with all seeds there is no mark."""
    assert not any("¶" in note for note in main.notes(load(folder)))
    path = folder / run_name("bare", "dit", 1) / "eval.json"
    edit(path, values=[value for value in read_json(path)["values"] if value["name"] != "atom_stability"])
    _, rows = rows_of(folder, tmp_path / "out")
    assert rows["bare", "dit small"]["Atom stability (%)"].startswith("70.0¶")
    assert "¶" not in rows["bare", "dit small"]["Molecule stability (%)"]
    assert "¶ of fewer seeds than its row" in (tmp_path / "out" / "main.md").read_text()


def test_rows_with_samples_that_diverged_are_named(folder, tmp_path):
    """Control: where none has, there is no such note."""
    failed = {"name": "failed_samples", "label": "Failed samples", "unit": "fraction", "kind": "diagnostic"}

    def notes_with(share: float) -> list[str]:
        path = folder / run_name("bare", "dit", 1) / "eval.json"
        kept = [value for value in read_json(path)["values"] if value["name"] != "failed_samples"]
        edit(path, values=[*kept, failed | {"value": share}])
        return [note for note in main.notes(load(folder)) if "not finite" in note]

    assert notes_with(0.0) == []
    assert notes_with(0.004) == [
        "Samples with positions that are not finite, which count as failures in every rate: bare on dit small 0.4 %."
    ]


def test_older_and_uncommitted_code_is_marked(folder, tmp_path):
    _, rows = rows_of(folder, tmp_path / "out")
    assert ("bare", "dit small") in rows
    assert "†" not in (tmp_path / "out" / "main.md").read_text()
    edit(folder / run_name("bare", "dit", 0) / "manifest.json", code__commit="b" * 40)
    edit(folder / run_name("turned", "dit", 1) / "manifest.json", code__dirty=True)
    _, rows = rows_of(folder, tmp_path / "out")
    assert ("bare†", "dit small") in rows
    assert ("turned‡", "dit small") in rows
    assert "bbbbbbbbbb" in (tmp_path / "out" / "main.md").read_text()


def test_a_row_that_several_codes_trained_is_marked(folder, tmp_path):
    """Control: one code alone."""
    file = folder / run_name("strict", "egnn", 0) / "manifest.json"
    code = read_json(file)["code"]
    trained = [{**code, "steps": 300}]
    edit(file, code__training=trained)
    assert ("strict", "egnn small") in rows_of(folder, tmp_path / "out")[1]
    edit(file, code__training=[*trained, {**code, "commit": "b" * 40, "dirty": True, "steps": 100}])
    assert ("strict†‡", "egnn small") in rows_of(folder, tmp_path / "out")[1]


def test_caption_states_what_was_measured(folder):
    told = main.caption(load(folder)) + main.provenance(load(folder))
    for word in (
        "Invented molecules, at most 14 atoms",
        "0123456789ab",
        "100 sampling steps",
        "seeds 0, 1",
        "400 optimiser",
    ):
        assert word in told
    for word in ("aaaaaaaaaa", "CPU: none", "float32", "eager", "torch 2.0", "equibench 0.1.0"):
        assert word in told


@pytest.mark.parametrize(("installed", "told"), [(["pair_mlp", "dit_passes"], "pair_mlp and dit_passes"), ([], "none")])
def test_provenance_states_which_kernels_ran(folder, installed, told):
    """Control: records of before kernels were named say nothing."""
    assert "kernels" not in main.provenance(load(folder))
    edit(folder / run_name("bare", "dit", 0) / "manifest.json", environment__kernels=installed)
    assert f"eager, kernels {told}, " in main.provenance(load(folder))


def test_partial_study_is_called_partial_and_a_whole_one_is_not(folder):
    assert main.caption(load(folder)).startswith("PARTIAL: 6 of 8 runs done.")
    for method, backbone, seed in (("strict", "egnn", 1), ("turned_later", "dit", 1)):
        shutil.rmtree(folder / run_name(method, backbone, seed))
    for method, backbone in (("strict", "egnn"), ("turned_later", "dit")):
        shutil.rmtree(folder / run_name(method, backbone, 0))
    assert not main.caption(load(folder)).startswith("PARTIAL")


def test_both_layouts_give_the_same_main_table(tmp_path):
    live, published = tmp_path / "runs" / "made_up", tmp_path / "results" / "made_up"
    for folder, is_published in ((live, False), (published, True)):
        main.build(load(write_study(folder, is_published)), folder / "report")
    names = ["main.md", "main.csv", "main.tex", "values.csv"]
    same = [filecmp.cmp(live / "report" / name, published / "report" / name, shallow=False) for name in names]
    assert all(same)
    edit_value(published / run_name("bare", "dit", 0) / "eval.json", "atom_stability", value=0.71)  # control
    main.build(load(published), published / "report")
    same = [filecmp.cmp(live / "report" / name, published / "report" / name, shallow=False) for name in names]
    assert not any(same)


def test_csv_keeps_the_records_numbers(folder, tmp_path):
    main.build(load(folder), tmp_path)
    data, bare, *_ = csv.DictReader(io.StringIO((tmp_path / "main.csv").read_text()))
    assert float(data["atom_stability"]) == 0.993
    assert float(bare["atom_stability"]) == pytest.approx(0.71)
    assert float(bare["step_seconds"]) == pytest.approx(0.02)
    assert float(bare["nll"]) == pytest.approx((-37.0 - 38.2) / 2)


def test_study_without_any_finished_run_still_gives_a_table(folder, tmp_path):
    for path in folder.glob("*/eval.json"):
        path.unlink()
    _, rows = rows_of(folder, tmp_path / "out")
    assert rows["bare", "dit small"]["Status"] == "2 not evaluated"
    assert paired.build(load(folder), tmp_path) == []


def test_paired_table_takes_differences_seed_by_seed(folder, tmp_path):
    paired.build(load(folder), tmp_path)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "paired.csv").read_text())))
    found = next(row for row in rows if row["method"] == "turned" and row["quantity"] == "atom_stability")
    assert found["reference"] == "bare / dit small"
    assert found["differences_by_seed"] == "0:0.1 1:0.101"
    assert found["primary"] == "False"
    assert float(found["difference"]) == pytest.approx(0.1005)
    assert float(found["high95"]) - float(found["low95"]) == pytest.approx(2 * 12.7062 * 0.0005, rel=1e-4)


def test_paired_table_says_that_two_seeds_are_few(folder, tmp_path):
    paired.build(load(folder), tmp_path)
    assert "12.71" in (tmp_path / "paired.md").read_text()


def test_single_pair_has_no_interval_and_is_never_bold(folder):
    table = paired.paired_table(load(folder))
    later = next(row for row in table.rows if row[0].text == "turned_later")
    assert later[3].text == "1"
    assert all(cell.small == "" and not cell.bold for cell in later)


def test_terminal_table_fits_120_columns(folder):
    long = "a_method_with_a_very_long_name_indeed_and_then_some_more_words"
    for path in folder.glob("bare*/manifest.json"):
        edit(path, method={"name": long})
    printed = main.print_table(load(folder))
    assert max(map(len, printed.splitlines())) <= 120
    assert "6 of 8 runs done" in printed
    assert "with_a_very_long" in printed


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_rows_that_differ_never_look_the_same_on_a_terminal(width):
    """Names that differ at their end alone, in columns that are too wide: nothing is cut."""
    names = [f"target_symmetrisation_of_everything (lr=0.00{i}, optimiser=adamw)" for i in (1, 2)]
    backbones = [f"a_backbone_with_a_long_name_{end}" for end in ("left", "right")]
    rows = [[Cell(name), Cell(backbone), Cell("1.0", "±0.1")] for name in names for backbone in backbones]
    lines = text(Table(["method", "backbone", "X %"], rows, "", n_text=2), width).splitlines()
    assert max(map(len, lines)) <= width
    per_row = (len(lines) - 2) // 4
    shown = ["".join(line.split("1.0")[0] for line in lines[2 + i * per_row :][:per_row]) for i in range(4)]
    assert len(set(shown)) == 4
    letters = "".join(lines).replace(" ", "")
    assert sorted(letters.replace("-", "")) == sorted(
        "".join(cell.plain for row in rows for cell in row).replace(" ", "") + "methodbackboneX%"
    )


def test_the_terminal_table_is_as_wide_as_asked_for(folder):
    for path in folder.glob("*/eval.json"):
        for i in range(4):
            edit_value(path, f"extra{i}", label=f"Extra {i}", value=1.0, at={})
    blocks = {width: main.print_table(load(folder), width).count("backbone") for width in (70, 120, 300)}
    assert blocks[70] > blocks[120] > blocks[300] == 2


TABLE = Table(
    ["A_b", "C"], [[Cell("x_y"), Cell("−1.0", "± 0.1", bold=True)], [Cell("p|q"), Cell("<5 %")]], "Caption & more"
)


def test_markup_of_cells_is_escaped_in_every_format():
    assert "p\\|q" in markdown(TABLE)
    assert "&lt;5 %" in html(TABLE)
    assert "Caption &amp; more" in html(TABLE)
    assert html(TABLE).count('<th scope="col"') == html(TABLE).count('<button type="button">') == 2
    assert r"x\_y & \textbf{$-$1.0} $\pm$ 0.1 \\" in latex([TABLE], "tab:x")
    assert r"Caption \& more" in latex([TABLE], "tab:x")
    assert tex("100 % of {a}") == r"100 \% of \{a\}"


def test_conditions_stand_in_a_note_below_a_caption_of_two_lines(folder, tmp_path):
    """In every markup, for every table; a line of a caption has some 120 letters."""
    study = load(folder)
    main.build(study, tmp_path)
    paired.build(study, tmp_path)
    for stem in ("main", "paired"):
        code = (tmp_path / f"{stem}.tex").read_text()
        (caption,) = re.findall(r"\\caption\{(.*)\}", code)
        assert len(caption) < 200
        assert f"\\label{{tab:{stem}-made_up}}" in code
        assert code.count(r"\begin{tabular}") == code.count(r"\end{tabular}")
        assert code.index(r"\bottomrule") < code.index(r"\parbox{\linewidth}")
    main_tex, written = (tmp_path / "main.tex").read_text(), (tmp_path / "main.md").read_text()
    assert main_tex.index("Bold: best mean") > main_tex.rindex(r"\end{tabular}")
    assert written.index("Bold: best mean") > written.rindex("\n|")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex, with booktabs")
def test_latex_tables_compile(folder, tmp_path):
    study = load(folder)
    main.build(study, tmp_path)
    paired.build(study, tmp_path)
    page = (
        r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
        r"\input{main}\input{paired}\ref{tab:main-made\string_up}\end{document}"
    )
    (tmp_path / "page.tex").write_text(page.replace(r"\string", ""))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page"]
    for _ in range(2):
        told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert told.returncode == 0, told.stdout[-2000:]
    for fault in ("Overfull", "undefined", "Missing character"):
        assert fault not in told.stdout


def test_latex_has_words_for_the_signs_of_the_notes():
    """A bar is a dash and a square is lost in the default font of LaTeX."""
    assert tex("|R|²") == r"\textbar{}R\textbar{}$^2$"


def test_text_columns_are_flush_left_and_numbers_flush_right():
    header, _, first, _ = text(TABLE).splitlines()
    assert first.startswith("x_y")
    assert header.endswith("C")
    assert len(header) == len(first)


@pytest.mark.parametrize(("value", "digits"), [(1234.0, 0), (123.4, 0), (12.34, 1), (1.234, 2), (0.1234, 3), (0.0, 2)])
def test_three_significant_figures(value, digits):
    assert significant(value) == digits


def test_values_show_in_the_columns_unit():
    column = Column("x", "X", "%", scale=100.0, digits=1)
    assert column.title == "X (%)"
    assert column.show(0.8761) == "87.6"
    assert column.show(-0.01) == "−1.0"
    assert column.show(0.01, signed=True) == "+1.0"
    assert column.show(None) == column.show(float("nan")) == "–"


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [(3.2e-6, None, "3.2e−06"), (1.1e-5, None, "0.000011"), (0.0, None, "0.00"), (3.2e-6, 2, "0.00")],
)
def test_tiny_values_have_an_exponent_where_the_column_sets_no_decimals(value, digits, shown):
    assert Column("x", "X", "", digits=digits).show(value) == shown


def test_a_half_width_is_shown_as_its_value_is():
    """3e-6 ± 4e-8: zeros would say that nothing is uncertain."""
    assert Column("x", "X", "").show(4e-8, like=3e-6) == "4.0e−08"


@pytest.mark.parametrize(
    ("unit", "value", "shown"),
    [
        ("fraction", 0.123, "12.3 %"),
        ("s", 2e-4, "200 µs"),
        ("s", 0.04, "40.0 ms"),
        ("s", 12.0, "12.0 s"),
        ("s", 267.0, "4.45 min"),
        ("s", 7200.0, "2.00 h"),
        ("s/molecule", 0.026, "26.0 ms/molecule"),
        ("MB", 700.4, "700 MB"),
        ("count", 91.0, "91 "),
        ("count", 652_000.0, "652 10³"),
        ("count", 29_300_000.0, "29 10⁶"),
        ("nats/molecule", -32.25, "−32.2 nats/molecule"),
        ("nats", 0.213, "0.213 nats"),
        ("angstrom", 0.0123, "0.0123 angstrom"),
        ("furlong", 3.0, "3.00 furlong"),
        ("", 0.5, "0.500 "),
    ],
)
def test_units_are_shown_as_people_read_them(unit, value, shown):
    known, scale, digits = display(unit, abs(value))
    assert f"{Column('x', 'X', known, scale=scale, digits=digits).show(value)} {known}" == shown


def test_a_column_has_one_unit_for_all_its_values(folder, tmp_path):
    """The largest decides, so that rows compare."""
    edit_value(folder / run_name("strict", "egnn", 0) / "eval.json", "step_seconds", value=3.0)
    header, rows = rows_of(folder, tmp_path / "out")
    assert "Training step (s)" in header
    assert rows["bare", "dit small"]["Training step (s)"] == "0.0200"


def test_terminal_table_shares_out_columns_among_blocks(folder):
    assert main.print_table(load(folder)).count("backbone") == 2
    for path in folder.glob("*/eval.json"):
        for i in range(9):
            edit_value(path, f"extra{i}", label=f"Extraordinary quantity {i}", value=1.0, at={})
    printed = main.print_table(load(folder))
    assert printed.count("backbone") == 4
    assert max(map(len, printed.splitlines())) <= 120


def test_many_numbers_of_steps_are_told_as_a_range(folder):
    """Control: a few are listed."""
    paths = sorted(folder.glob("*/eval.json"))
    for i, path in enumerate(paths[:2]):
        edit(path, step=100 + i)
    assert "; 100, 101, 400 optimiser steps" in main.caption(load(folder))
    for i, path in enumerate(paths):
        edit(path, step=100 + i)
    assert re.search(r"; 100 to 10\d optimiser steps", main.caption(load(folder)))


def test_a_difference_without_a_unit_has_no_empty_brackets(folder):
    for path in folder.glob("*/eval.json"):
        edit_value(path, "wobble", label="Wobble", unit="", value=0.5)
    header = paired.paired_table(load(folder)).header
    assert "Wobble" in header
    assert "Atom stability (points)" in header
