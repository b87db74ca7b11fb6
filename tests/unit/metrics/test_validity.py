"""Validity, uniqueness, novelty, intervals and `equibench score` on molecules small enough to judge by eye."""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem

from bench.cli import score as command
from bench.metrics import validity
from bench.metrics.molecules import MoleculeEvaluation, error_of_ratio, evaluate_molecules, undefined_values
from bench.metrics.stability import Bonds, infer_bonds
from bench.metrics.validity import rebuild, smiles_from_bonds, smiles_of, to_smiles
from bench.records.intervals import Z_95, rate_interval
from bench.records.values import Better, Value
from bench.structures import files
from bench.structures.structures import Structures


def one(symbols: str, positions) -> Structures:
    numbers = np.array([{"H": 1, "C": 6, "N": 7, "O": 8}[symbol] for symbol in symbols])
    return Structures.from_list([(numbers, np.array(positions, float))])


HYDROGEN = one("HH", [[0, 0, 0], [0.74, 0, 0]])
NITROGEN = one("NN", [[0, 0, 0], [1.10, 0, 0]])
CARBON_MONOXIDE = one("CO", [[0, 0, 0], [1.13, 0, 0]])  # C#O has an oxygen of valence 3: not valid
NITROGEN_AND_HYDROGEN = one("HHNN", [[9, 0, 0], [9.74, 0, 0], [0, 0, 0], [1.10, 0, 0]])
THREE_PIECES = one("HHNNO", [[9, 0, 0], [9.74, 0, 0], [0, 0, 0], [1.10, 0, 0], [0, 30, 0]])


def together(*parts: Structures) -> Structures:
    return Structures.concatenate(parts)


def made_up(smiles: list[str | None], train=None, stable=None) -> MoleculeEvaluation:
    n = len(smiles)
    stable = np.full(n, 4) if stable is None else np.asarray(stable)
    chains = Bonds(
        np.tile(np.array([[1, 0], [2, 1], [3, 2]], np.int32), (n, 1)), np.ones(3 * n, np.int8), 3 * np.arange(n + 1)
    )
    return MoleculeEvaluation(np.full(n, 4), stable, smiles, train, chains)


def test_a_molecule_is_valid_when_rdkit_sanitises_it():
    evaluation = evaluate_molecules(together(HYDROGEN, CARBON_MONOXIDE, NITROGEN))
    assert evaluation.smiles == ["[H][H]", None, "N#N"]
    assert evaluation.valid.tolist() == [True, False, True]


def test_a_molecule_in_pieces_is_valid_and_written_by_its_largest_piece():
    assert evaluate_molecules(THREE_PIECES).smiles == ["[H][H]"]  # the first of two largest
    assert evaluate_molecules(NITROGEN_AND_HYDROGEN.select(np.array([0]))).smiles == ["[H][H]"]
    with_water = one("OHHHH", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0], [9, 0, 0], [9.74, 0, 0]])
    assert evaluate_molecules(with_water).smiles == ["[H]O[H]"]


def test_one_bad_piece_makes_the_whole_molecule_invalid():
    both = one("HHCO", [[9, 0, 0], [9.74, 0, 0], [0, 0, 0], [1.13, 0, 0]])
    assert evaluate_molecules(both).smiles == [None]


def test_training_molecules_are_written_whole():
    assert smiles_of(NITROGEN_AND_HYDROGEN) == ["N#N.[H][H]"]
    # so the largest piece of a training molecule in pieces is novel, as in the published code
    assert evaluate_molecules(NITROGEN_AND_HYDROGEN, smiles_of(NITROGEN_AND_HYDROGEN)).summary()["novelty"] == 1.0


def test_only_value_errors_mean_invalid(monkeypatch):
    def broken(_):
        raise RuntimeError("a fault of ours")

    with monkeypatch.context() as patch:
        patch.setattr(Chem, "SanitizeMol", broken)
        with pytest.raises(RuntimeError, match="a fault of ours"):
            to_smiles(rebuild([1], []), whole=False)
    kekulisation = rebuild([6] * 5, [])
    assert to_smiles(kekulisation, whole=False) == "C"
    assert to_smiles(rebuild([8, 1, 1, 1], [(1, 0, 1), (2, 0, 1), (3, 0, 1)]), whole=False) is None


def test_summary_has_the_metrics_of_the_records_with_their_denominators():
    molecules = together(HYDROGEN, HYDROGEN, HYDROGEN, NITROGEN, CARBON_MONOXIDE)
    summary = evaluate_molecules(molecules, smiles_of(together(NITROGEN, CARBON_MONOXIDE))).summary()
    assert summary == {
        "n_molecules": 5,
        "atom_stability": 8 / 10,
        "molecule_stability": 4 / 5,
        "validity": 4 / 5,  # of all
        "connected_and_valid": 4 / 5,  # of all
        "uniqueness": 2 / 4,  # of the valid
        "novelty": 1 / 2,  # of the unique
    }


def test_metrics_without_denominator_are_null():
    summary = evaluate_molecules(CARBON_MONOXIDE, ["N#N"]).summary()
    assert (summary["validity"], summary["uniqueness"], summary["novelty"]) == (0.0, None, None)
    assert evaluate_molecules(HYDROGEN).summary()["novelty"] is None
    assert set(evaluate_molecules(CARBON_MONOXIDE, ["N#N"]).intervals()) == {
        "atom_stability",
        "molecule_stability",
        "validity",
        "connected_and_valid",
    }
    with pytest.raises(ValueError, match="no molecules to evaluate"):
        evaluate_molecules(HYDROGEN.select(np.zeros(0, int)))


def test_values_are_the_summary_with_its_intervals():
    smiles = ["a", "a", "b", None, "c"] * 4
    evaluation = made_up(smiles, frozenset("a"), [4, 4, 3, 0, 4] * 4)
    summary, intervals = evaluation.summary(), evaluation.intervals()
    values = {value.name: value for value in evaluation.values()}
    assert list(values) == [*(name for name in summary if name != "n_molecules"), "valid_and_unique"]
    for name, interval in intervals.items():
        assert values[name].value == summary[name]
        assert (values[name].low, values[name].high) == interval
        assert values[name].sem == evaluation.standard_errors()[name]
    assert values["valid_and_unique"].value == summary["validity"] * summary["uniqueness"] == pytest.approx(3 / 20)
    assert {(value.unit, value.better) for value in values.values()} == {("fraction", Better.HIGHER)}
    for value in values.values():
        assert Value.from_dict(json.loads(json.dumps(value.to_dict()))) == value


def test_a_metric_that_is_not_defined_is_a_value_without_number():
    undefined = undefined_values()
    assert {value.value for value in undefined} == {None}
    values = {value.name: value for value in evaluate_molecules(CARBON_MONOXIDE, ["N#N"]).values()}
    assert [*values] == [value.name for value in undefined]
    nameless = [name for name, value in values.items() if value.value is None]
    assert nameless == ["uniqueness", "novelty", "valid_and_unique"]
    assert all(values[name].low is None and values[name].high is None for name in nameless)


def test_smiles_do_not_depend_on_workers_or_tasks(monkeypatch):
    molecules = together(*[HYDROGEN, CARBON_MONOXIDE, NITROGEN, THREE_PIECES] * 5)
    bonds = infer_bonds(molecules)
    expected = ["[H][H]", None, "N#N", "[H][H]"] * 5
    assert smiles_from_bonds(molecules, bonds, n_workers=1) == expected
    monkeypatch.setattr(validity, "MOLECULES_PER_TASK", 3)
    assert smiles_from_bonds(molecules, bonds, n_workers=1) == expected
    assert smiles_from_bonds(molecules, bonds, n_workers=2) == expected


# intervals


def test_intervals_hold_the_value_and_lie_within_bounds():
    rng = np.random.default_rng(0)
    drawn = [None if k > 3900 else str(k) for k in rng.integers(0, 4000, 500)]
    evaluation = made_up(drawn, frozenset(map(str, range(400))), rng.integers(2, 5, 500))
    summary = evaluation.summary()
    for name, (low, high) in evaluation.intervals().items():
        assert 0 <= low <= summary[name] <= high <= 1
        assert low < high


def test_no_rate_has_an_interval_without_width():
    """Control: the normal approximation has none at 0, at 1, and where all molecules are alike."""
    for stable in (0, 3, 4):
        for smiles in ([None] * 50, [str(k) for k in range(50)]):
            evaluation = made_up(smiles, frozenset(), np.full(50, stable))
            assert 0 in evaluation.standard_errors().values()
            for name, (low, high) in evaluation.intervals().items():
                assert 0 <= low <= evaluation.summary()[name] <= high <= 1
                assert high - low > 0.05


def test_atoms_count_by_molecule():
    # atoms of a molecule stand or fall together: the spread is that of 400 molecules, not of 1600 atoms
    stable = np.where(np.arange(400) % 2, 4, 0)
    low, high = made_up(["x"] * 400, None, stable).intervals()["atom_stability"]
    expected = 2 * 1.96 * np.sqrt(0.25 / 400)
    assert high - low == pytest.approx(expected, rel=0.02)
    assert high - low != pytest.approx(expected / 2, rel=0.5)  # control: what independent atoms would give


@pytest.mark.parametrize("rate", [0.97, 0.7])
def test_intervals_of_atoms_cover_the_truth(rate):
    """500 molecules of 14 atoms with beta-binomial counts; control: Wilson's interval of independent atoms does not."""
    rng, covered, naive = np.random.default_rng(0), [], []
    for _ in range(800):
        stable = rng.binomial(14, rng.beta(2 * rate, 2 * (1 - rate), size=500))
        p = float(stable.mean() / 14)
        for found, error in (
            (covered, error_of_ratio(stable, np.full(500, 14))),
            (naive, (p * (1 - p) / (500 * 14)) ** 0.5),
        ):
            low, high = rate_interval(p, Z_95 * error, 500)
            found.append(low <= rate <= high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)
    assert np.mean(naive) < 0.75


@pytest.mark.parametrize("name", ["uniqueness", "novelty"])
def test_intervals_of_distinct_counts_cover_the_repeated_experiment(name):
    def draw(seed):
        rng = np.random.default_rng(seed)
        return made_up([str(k) for k in rng.integers(0, 3000, 400)], frozenset(map(str, range(900))))

    values = np.array([draw(seed).summary()[name] for seed in range(300)])
    intervals = np.array([draw(seed).intervals()[name] for seed in range(40)])
    covered = (intervals[:, 0] <= values.mean()) & (values.mean() <= intervals[:, 1])
    assert covered.mean() >= 0.85
    assert np.diff(intervals).mean() < 3 * 2 * 1.96 * values.std()  # and not by being wide
    naive = made_up(list(np.random.default_rng(0).choice(draw(0).smiles, 400))).summary()["uniqueness"]
    assert naive < values.min()  # control: resampled molecules repeat themselves


# the command


def run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(a) for a in arguments]))


@pytest.fixture
def two_files(tmp_path) -> list[Path]:
    paths = [tmp_path / "a.xyz", tmp_path / "b.npz"]
    files.write(paths[0], together(HYDROGEN, CARBON_MONOXIDE))
    files.write(paths[1], NITROGEN)
    return paths


def test_several_files_are_one_set_and_json_stands_alone_on_stdout(two_files, capfd):
    assert run(*two_files, "--json", "--train", *two_files[1:]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == {
        "n_molecules": 3,
        "atom_stability": 4 / 6,
        "molecule_stability": 2 / 3,
        "validity": 2 / 3,
        "connected_and_valid": 2 / 3,
        "uniqueness": 1.0,
        "novelty": 0.5,
        "bonds": "edm",
        "n_left_out": 0,
    }
    assert err == ""
    assert run(two_files[0], "--json") == 0
    assert json.loads(capfd.readouterr().out)["novelty"] is None


def test_the_table_names_the_denominators(two_files, capfd):
    assert run(*two_files) == 0
    out = capfd.readouterr().out
    for title in ("atom stability, of all atoms", "validity, of all molecules", "uniqueness, of the valid"):
        assert title in out
    assert "66.67 %" in out
    assert out.splitlines()[-1].split("  ")[0] == "novelty, of the unique"
    assert out.splitlines()[-1].endswith("none")


def test_per_molecule_lines(two_files, tmp_path):
    assert run(*two_files, "--per-molecule", tmp_path / "out.csv") == 0
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["index", "file", "n_atoms", "stable_atoms", "molecule_stable", "valid", "smiles"]
    assert [list(row.values()) for row in rows] == [
        ["0", str(two_files[0]), "2", "2", "1", "1", "[H][H]"],
        ["1", str(two_files[0]), "2", "0", "0", "0", ""],
        ["2", str(two_files[1]), "2", "2", "1", "1", "N#N"],
    ]


def test_what_cannot_be_evaluated_is_one_line_and_exit_code_2(two_files, tmp_path, caplog, capsys):
    np.savez(tmp_path / "bare.npz", charges=np.ones((1, 2), int))
    iron = tmp_path / "fe.xyz"
    iron.write_text("1\n\nFe 0 0 0\n")
    for arguments, expected in (
        ([tmp_path / "bare.npz"], "array 'num_atoms' is missing"),
        ([two_files[0], iron], "molecule 2 (counted from 0) has element Fe: RDKit knows no valence of it"),
        (
            [two_files[0], iron, "--bonds", "edm"],
            f"{iron}: molecule 0 (counted from 0) has element Fe: bond table 'edm'",
        ),
        ([*two_files, "--bonds", "file"], "its own bonds are missing"),
        ([*two_files, "--bonds", "openbabel"], "--bonds is 'openbabel', expected edm, geom, rdkit, file"),
        ([iron, "--bonds", "edm", "--skip-bad"], "no molecule is left to evaluate"),
        ([two_files[0], "--train", tmp_path / "none.npz"], "No such file"),
        ([two_files[0], "--per-molecule", two_files[1] / "out.csv"], ""),
    ):
        caplog.clear()
        assert run(*arguments) == 2
        assert len(caplog.records) == 1
        assert expected in caplog.messages[0]
        assert "\n" not in caplog.messages[0]
        assert capsys.readouterr().out == ""


def test_evaluation_needs_no_torch():
    code = "import sys; import bench.cli.score, bench.metrics.molecules; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# elements, files and folders that EDM's table does not cover


def embedded(*smiles: str, hydrogens: bool = True) -> str:
    """An sdf of molecules with RDKit's coordinates and bonds."""
    blocks = []
    for text in smiles:
        mol = Chem.AddHs(Chem.MolFromSmiles(text))
        AllChem.EmbedMolecule(mol, randomSeed=1)
        AllChem.MMFFOptimizeMolecule(mol)
        blocks.append(Chem.MolToMolBlock(mol if hydrogens else Chem.RemoveHs(mol)) + "$$$$\n")
    return "".join(blocks)


MANY = ["CCS", "CS(=O)(=O)C", "COP(=O)(O)O", "CCCl", "CCBr", "CCI", "c1ccsc1", "C[N+](=O)[O-]", "FC(F)F", "c1ccccc1Cl"]


@pytest.mark.parametrize("rule", [None, "rdkit", "file"])
def test_other_elements_are_scored_by_rules_that_know_them(tmp_path, capfd, rule):
    """S, P, Cl, Br, I and a nitro group; the rule is named. Control: stretched by a half, few are valid."""
    path = tmp_path / "many.sdf"
    path.write_text(embedded(*MANY))
    asked = [] if rule is None else ["--bonds", rule]
    assert run(path, "--json", *asked) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["bonds"] == (rule or "rdkit")
    assert [found[name] for name in ("atom_stability", "molecule_stability", "validity", "uniqueness")] == [1.0] * 4
    molecules = files.read(path)
    files.write(tmp_path / "far.xyz", Structures(molecules.numbers, molecules.positions * 1.5, molecules.ptr))
    assert run(tmp_path / "far.xyz", "--json", "--bonds", "rdkit") == 0
    assert json.loads(capfd.readouterr().out)["validity"] < 0.2


def test_edm_scores_what_it_covers_and_counts_the_rest(tmp_path, capfd):
    (tmp_path / "many.sdf").write_text(embedded(*MANY))
    assert run(tmp_path / "many.sdf", "--json", "--bonds", "edm", "--skip-bad") == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["n_molecules"], found["n_left_out"], found["bonds"]) == (2, 8, "edm")
    assert found["molecule_stability"] == 0.5  # the nitro group needs charges


def test_the_bonds_of_a_file_are_used_or_said_not_to_be(tmp_path, capfd, caplog):
    text = embedded("CCO")
    wrong = text.replace("  1  2  1  0", "  1  2  2  0")
    assert wrong != text
    for content, differ, stability in ((text, 0, 1.0), (wrong, 1, 7 / 9)):
        (tmp_path / "a.sdf").write_text(content)
        caplog.clear()
        assert run(tmp_path / "a.sdf", "--json") == 0
        assert json.loads(capfd.readouterr().out)["atom_stability"] == 1.0
        assert f"(--bonds file uses them); {differ} of 1 molecules have other bonds" in caplog.text
        caplog.clear()
        assert run(tmp_path / "a.sdf", "--json", "--bonds", "file") == 0
        assert json.loads(capfd.readouterr().out)["atom_stability"] == stability
        assert caplog.text == ""


def test_absent_hydrogens_and_far_atoms_are_told(tmp_path, caplog):
    (tmp_path / "a.sdf").write_text(embedded("CCO", hydrogens=False))
    assert run(tmp_path / "a.sdf") == 0
    assert "the bonds of 1 of 1 molecules call for 6 hydrogens that are no atoms of the file" in caplog.text
    caplog.clear()
    files.write(tmp_path / "bohr.xyz", Structures(HYDROGEN.numbers, HYDROGEN.positions / 0.529177, HYDROGEN.ptr))
    assert run(tmp_path / "bohr.xyz") == 0
    assert "are these angstrom?" in caplog.text


def test_bad_molecules_are_counted_in_the_result(two_files, tmp_path, capfd, caplog):
    (tmp_path / "c.xyz").write_text("2\n\nH 0 0 0\nH nan 0 0\n2\n\nH 0 0 0\nH 0.74 0 0\n")
    assert run(tmp_path) == 2
    assert "(1 of 2 molecules are bad); --skip-bad leaves such molecules out" in caplog.text
    assert run(tmp_path, "--skip-bad") == 0
    out = capfd.readouterr().out.splitlines()
    assert out[:3] == [
        "bonds by EDM's table of lengths and valences",
        f"{'left out':36}{1:>10}",
        f"{'molecules':36}{4:>10}    95 % interval",
    ]


CASES = Path("/work/shared/cases")


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared folder of failing inputs is not here")
@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("joined_without_delimiter.sdf", 2, "line 40 is a second 'M  END'"),
        ("flat_2d.sdf", 2, "molecule 1 is a flat drawing"),
        ("gdb_comment_without_closing_lines.xyz", 0, '"n_molecules": 2, "atom_stability": 1.0'),
        ("one_bad_of_three.xyz", 2, "(1 of 3 molecules are bad)"),
        ("sulphur_and_chlorine.xyz", 0, '"n_molecules": 3, "atom_stability": 1.0'),
        ("deuterium.xyz", 0, '"n_molecules": 1, "atom_stability": 1.0'),
        ("bohr.xyz", 0, "are these angstrom?"),
    ],
)
def test_inputs_that_once_failed(name, code, words, capfd, caplog):
    assert run(CASES / name, "--json") == code
    assert words in capfd.readouterr().out + caplog.text
