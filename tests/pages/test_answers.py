"""docs/answers.md shows what is published, and says what is not."""

import shutil
from pathlib import Path

import pytest
from fabricated_study import edit

from analysis import answers
from bench.records.measured import write_measurement
from bench.records.schema import INITIAL, TRAINED
from bench.records.store import RunFolder, read_json
from bench.records.values import Kind, Value

ROOT = Path(__file__).parents[2]


@pytest.fixture
def results(tmp_path):
    """One published run on QM9."""
    folder = sorted((ROOT / "results/qm9_laptop").glob("haar-*"))[0]
    shutil.copytree(folder, tmp_path / "results/qm9_laptop" / folder.name)
    shutil.rmtree(tmp_path / "results/qm9_laptop" / folder.name / "measured", ignore_errors=True)
    return tmp_path / "results"


def measured(results, name, values, weights=TRAINED, runs="haar-*"):
    for path in results.glob(f"*/{runs}"):
        run = RunFolder(path)
        manifest = read_json(run.manifest)
        environment = {"device": "CPU", "n_threads": 1, "platform": "Linux", "versions": {}}
        record = {"measure": name, "options": {}, "weights": weights, "step": 1, "seconds": 1.0, "created": "now"}
        record |= {"weights_sha256": manifest.get("weights_sha256", "0" * 64), "environment": environment}
        code = {key: manifest["code"][key] for key in ("version", "commit", "dirty")}
        write_measurement(run, record | {"code": code}, values)


@pytest.mark.slow
def test_the_page_shows_what_is_published(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert answers.main(["--check"]) == 0


def test_what_is_missing_is_said_to_be(results):
    page = answers.page(results)
    assert page.count("Not measured yet") == len(answers.QUESTIONS)
    assert answers.page(results / "nothing").count("Not measured yet") == len(answers.QUESTIONS)


def test_a_measured_value_is_quoted_with_its_interval(results, monkeypatch, tmp_path):
    """Initial weights beside the trained ones. Control: the other questions stay open."""
    error = {"name": answers.ERROR, "label": "Equivariance error, mean"}
    measured(results, "equivariance", [Value(**error, value=0.125, low=0.1, high=0.15, kind=Kind.SYMMETRY)])
    measured(results, "equivariance", [Value(**error, value=0.75, sem=0.01, kind=Kind.SYMMETRY)], INITIAL)
    page = answers.page(results)
    (line,) = [line for line in page.splitlines() if line.startswith("| haar |")]
    assert "| 6500 | 11262 | 0.125 (0.100 to 0.150) | 0.750 (0.730 to 0.770) | 1 | qm9_laptop |" in line
    assert page.count("Not measured yet") == len(answers.QUESTIONS) - 1
    assert [line for line in page.splitlines() if line.startswith("- ")] == [
        "- Error after 6500 steps: `haar` on pairformer 80x4 0.125."
    ]

    points = [
        Value("gradient_variance_removed", "Gradient variance removed", t, at={"t": t, "part": "data"})
        for t in (0.1, 0.9)
    ]
    measured(results, "variance", points)
    page = answers.page(results)
    assert "| Row |  | Steps | Trained on | 0.1 | 0.9 | Runs | Study |" in page
    assert "part data" in page

    (run,) = results.glob("*/haar-*")
    shutil.copytree(run, other := run.with_name("haar-again"))
    edit(RunFolder(other).manifest, seed=1, run=other.name)
    measured(results, "equivariance", [Value(**error, value=0.375, kind=Kind.SYMMETRY)], runs=other.name)
    assert "| 0.250 [0.125 to 0.375] |" in answers.page(results)  # the mean of two runs, and both
    shutil.rmtree(other)
    monkeypatch.chdir(tmp_path)
    assert answers.main(["--check"]) == 1
    assert answers.main([]) == 0
    assert answers.main(["--check"]) == 0
    assert (tmp_path / answers.PAGE).read_text() == page


def test_answers_in_short_are_those_of_the_tables(results):
    """Control: a question whose measure says too little has none."""
    kinds = {"exact": (2.75, 0.125), "uniform": (0.5, 0.0625)}
    removed = [
        Value(name, name, value, "fraction" if name == answers.GRADIENT else "", at={"estimator": kind})
        for kind, values in kinds.items()
        for name, value in zip((answers.TARGET, answers.GRADIENT), values, strict=True)
    ]
    measured(results, "variance", [*removed, Value(answers.LIMIT, "Limit", 3.0)])
    law = [
        Value("rotation_law_second_mean", "Second moment", value, at={"rotation": rotation})
        for rotation, value in (("own", 0.25), ("Haar", 0.5))
    ]
    measured(results, "rotation_law", law)
    measured(results, "equivariance", [Value(f"{answers.GAIN}_mean", "Gain", 0.125, "fraction")])
    (run,) = results.glob("*/haar-*")
    shutil.copytree(run, other := results / answers.TURNED / run.name)
    values = read_json(RunFolder(other).eval)["values"]
    stable = next(value for value in values if value["name"] == "molecule_stability")
    stored, stable["value"] = 100 * stable["value"], 0.5
    edit(RunFolder(other).eval, values=values)
    page = answers.page(results).replace("\n  ", " ")
    short = [line for line in page.splitlines() if line.startswith("- ")]
    assert short[:2] == [
        "- qm9_laptop: of the target's variance, exact 2.75, uniform 0.500 units (at small noise 3.00).",
        "- qm9_laptop: of the gradient's, exact 12.5, uniform 6.2 %, from row to row.",
    ]
    assert f"Molecule stability (%) 50.0 (stored: {stored:.1f})" in short[-1]
    assert all(line.startswith("- qm9_turned: of the") for line in short[2:4])
    assert short[4] == "- By how many % the loss is lower on stored than on turned data: all other rows 12.5."
    assert len(short) == 6  # nothing of the law of rotations, which has no p-value
    measured(results, "rotation_law", [*law, Value(answers.P, "p", 0.5, at={"rotation": "own"})])
    line = "`haar` on pairformer 80x4: second moment 0.250, of as many draws from Haar 0.500; p-value of Haar 0.500."
    assert line in answers.page(results).replace("\n  ", " ")
