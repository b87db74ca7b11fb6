"""`equibench measure`: what is kept, when it is found again, and what becomes of measures that do not apply."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import yaml

from analysis.load import load
from bench.cli.main import main
from bench.config.study import load_study
from bench.launch.publish import publish
from bench.launch.submit import plan
from bench.records.items import read_items
from bench.records.lock import locked
from bench.records.measured import read_measurement, values_of
from bench.records.store import RunFolder
from bench.records.values import Kind, Value
from bench.registry import measures
from bench.run.checkpoint import read_tensors, write_tensors
from bench.run.execute import execute

STUDY = {
    "study": "tiny",
    "base": {
        "data": {"name": "mini", "n_train": 50},
        "train": {"n_steps": 2, "batch_size": 4, "n_valid": 8, "ema_decay": 0.5},
        "sample": {"n_molecules": 6, "n_steps": 3, "batch_size": 3},
        "measures": {"likelihood": {"n_molecules": 4, "n_passes": 1}},
    },
    "grid": [{"method": ["haar"], "backbone": [{"name": "dit", "size": "tiny"}], "seed": [0, 1]}],
}


@dataclass
class SpyConfig:
    """Options."""

    n_batches: int = 1
    n_samples: int | None = None


SEEN: list[tuple] = []  # what the measure `spy` was called with


@pytest.fixture(scope="module", autouse=True)
def spy():
    """A measure of a sum over the weights, which refuses negative numbers of batches."""

    @measures.register("spy", SpyConfig)
    def measure(subject, cfg):
        """A spy."""
        if cfg.n_batches < 0:
            raise ValueError("measure 'spy' takes no negative number of batches")
        for _ in range(cfg.n_batches):
            subject.on_batch()
        SEEN.append((cfg.n_batches, subject.samples))
        total = sum(p.double().sum().item() for p in subject.weights.values())
        items = np.arange(4.0)
        return [
            Value("weight_sum", "Sum of weights", total, kind=Kind.DIAGNOSTIC, items=items),
            Value("weight_sum", "Sum of weights", total, kind=Kind.DIAGNOSTIC, at={"t": 0.5}),
        ]

    yield measure
    del measures.entries["spy"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A study of two runs."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(STUDY))
    for run in plan(load_study(str(folder / "tiny.yaml")), folder / "runs"):
        execute(run.cfg, run.folder)
    (folder / "runs/tiny/study.yaml").write_text(yaml.safe_dump(STUDY))
    return folder / "runs/tiny"


@pytest.fixture
def study(trained, tmp_path, monkeypatch) -> Path:
    """A copy of it."""
    SEEN.clear()
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "runs/tiny"))


@pytest.fixture
def run(study) -> RunFolder:
    return RunFolder(sorted(study.glob("haar-*"))[0])


def measured(*words: object) -> int:
    return main(["measure", *map(str, words)])


def test_values_are_found_once_for_each_weights_and_options(run, capsys):
    """Controls: other options, other weights, `--force` and a damaged file are found again; other times are not."""
    assert measured(run.path, "--only", "spy") == 0
    path = run.measurement("spy")
    record = read_measurement(path).record
    assert (record["options"], record["weights"], record["step"]) == ({"n_batches": 1, "n_samples": None}, "trained", 2)
    assert record["code"]["version"]
    assert record["environment"]["versions"]["torch"]
    assert measured(run.path, "--only", "spy") == 0
    assert "1 there already" in capsys.readouterr().out
    assert len(SEEN) == 1
    assert measured(run.path, "spy.n_batches=3", "--only", "spy") == 0
    assert measured(run.path, "--only", "spy", "n_batches=3") == 0
    assert [n for n, _ in SEEN] == [1, 3]
    assert measured(run.path, "--only", "spy", "n_batches=3", "--force") == 0
    path.write_text(path.read_text().replace("0.5", "0.6"))
    assert measured(run.path, "--only", "spy", "n_batches=3") == 0
    assert [n for n, _ in SEEN] == [1, 3, 3, 3]

    before = values_of(run)
    tensors, about = read_tensors(run.state)
    tensors = {name: a + 0.5 if name.startswith("average/") else a for name, a in tensors.items()}
    write_tensors(run.state, tensors, {key: value for key, value in about.items() if key != "weights"})
    assert measured(run.path, "--only", "spy", "n_batches=3") == 0
    assert len(SEEN) == 5
    assert values_of(run) != before


def test_what_does_not_apply_is_no_failure_unless_it_was_asked_for(study, run, capsys, caplog):
    assert measured(run.path, "--only", "pushforward") == 1
    assert "does not apply" in capsys.readouterr().out
    assert measured(study, "--only", "spy", "n_batches=-1") == 1
    assert [path.stem for path in run.measurements()] == ["likelihood", "validation_loss"]
    few = {name: measures.entries[name] for name in ("field", "likelihood", "pushforward", "spy")}
    with mock.patch.dict(measures.entries, few, clear=True):
        assert measured(run.path) == 0
    assert "pushforward does not apply: measure 'pushforward' takes one point" in caplog.text


def test_bad_arguments_are_one_line(study, run, capsys, caplog):
    for words, told in {
        (run.path, "--only", "spi"): "did you mean 'spy'",
        (run.path, "n_batches=3"): "of which measure? Write NAME.n_batches=3",
        (run.path, "spy.n_batch=3"): "unknown key 'measures.spy.n_batch'; did you mean 'n_batches'",
        ("nowhere",): "no records of study 'nowhere'",
    }.items():
        caplog.clear()
        assert measured(*words) == 2
        assert told in caplog.text
    assert not SEEN


def test_initial_weights_are_measured_beside_the_trained_ones(study, run):
    """They follow from the seed; their values and items have a place of their own."""
    assert measured(study, "--only", "spy") == 0
    assert measured(study, "--only", "spy", "--weights", "initial") == 0
    trained, initial = (read_measurement(run.measurement("spy", w)) for w in ("trained", "initial"))
    assert (trained.record["step"], initial.record["step"]) == (2, 0)
    assert trained.record["weights_sha256"] != initial.record["weights_sha256"]
    assert trained.values[0].value != initial.values[0].value
    found = load(study)
    assert not found.problems
    columns = set(found.values[found.values["measure"] == "spy"]["column"])
    assert columns == {"weight_sum", "weight_sum[weights=initial]"}
    assert set(found.items[run.path.name]) >= columns
    seeds = found.scalars[found.scalars["column"] == "weight_sum[weights=initial]"]["value"]
    assert seeds.nunique() == 2


def test_samples_are_those_of_the_run_or_drawn_as_they_were(run):
    """A published run has none. Control: a measure that names no number gets what there is."""
    assert measured(run.path, "--only", "spy", "n_samples=4") == 0
    samples = run.samples.read_bytes()
    run.samples.unlink()
    assert measured(run.path, "--only", "spy", "n_samples=4", "--force") == 0
    assert measured(run.path, "--only", "spy") == 0
    (_, kept), (_, drawn), (_, none) = SEEN
    assert len(kept) == len(drawn) == 4
    assert none is None
    np.testing.assert_allclose(drawn.positions, kept.positions, atol=1e-4)
    run.samples.write_bytes(samples)
    assert measured(run.path, "--only", "spy", "--force") == 0
    assert len(SEEN[-1][1]) == 6


def test_a_run_at_work_is_left_alone(study, run, caplog):
    with locked(run.path):
        assert measured(study, "--only", "spy") == 1
    assert "is being worked on" in caplog.text
    assert len(SEEN) == 1  # the other run


def test_measurements_are_published_and_old_ones_go(study, run, tmp_path):
    """What was measured of published weights stays until they change. Control: it is not in the source."""
    publish("tiny", tmp_path / "runs", tmp_path / "results")
    there = RunFolder(tmp_path / "results/tiny" / run.path.name)
    assert there.measurement("likelihood").read_bytes() == run.measurement("likelihood").read_bytes()
    assert set(read_items(there.measurement("likelihood").with_suffix(".npz"))) == {"nll"}
    assert measured(there.path, "--only", "spy") == 0
    publish("tiny", tmp_path / "runs", tmp_path / "results")
    assert there.measurement("spy").exists()
    assert not run.measurement("spy").exists()
    manifest = json.loads(run.manifest.read_text())
    del manifest["checksum"]
    run.manifest.write_text(json.dumps({**manifest, "weights_sha256": "0" * 64}))
    publish("tiny", tmp_path / "runs", tmp_path / "results")
    assert not there.measurement("spy").exists()


def test_values_of_other_weights_are_left_out_of_reports(study, run):
    assert measured(study, "--only", "spy") == 0
    path = run.measurement("spy")
    record = json.loads(path.read_text())
    del record["checksum"]
    path.write_text(json.dumps({**record, "weights_sha256": "0" * 64}))
    found = load(study)
    assert "of other weights than the run has now" in found.problems[0]
    assert set(found.values[found.values["measure"] == "spy"]["run"]) == {p.name for p in study.glob("haar-*")} - {
        run.path.name
    }


def test_values_of_an_early_record_give_way_to_measured_ones(study, run):
    """Its eval.json holds them too."""
    record = json.loads(run.eval.read_text())
    del record["checksum"]
    early = [Value("nll", "NLL", 1.0).to_dict(), Value("gone", "Not measured since", 2.0).to_dict()]
    run.eval.write_text(json.dumps({**record, "values": record["values"] + early}))
    values = {value.name: value.value for value in values_of(run)}
    assert values["gone"] == 2.0
    assert values["nll"] != 1.0
    row = load(study).runs.set_index("run").loc[run.path.name]
    assert (row["value.gone"], row["value.nll"]) == (2.0, values["nll"])


def test_costs_are_measured_apart_and_replace_those_of_the_run(study, run):
    """Rate times seconds is the arithmetic, parts are the whole. Control: more molecules a step, more arithmetic."""
    assert measured(study, "--only", "cost", "n_steps=2", "n_sampling_steps=2") == 0
    values = {(v.name, *v.at.values()): v.value for v in read_measurement(run.measurement("cost")).values}
    seconds = values["step_seconds", "apart"]
    assert values["flop_rate",] * seconds == pytest.approx(values["flop",])
    assert values["step_seconds_quartile", "25 %"] <= seconds <= values["step_seconds_quartile", "75 %"]
    assert min(values["call_seconds",], values["sample_seconds_per_molecule", "apart"]) > 0
    assert ("step_joules",) not in values
    assert ("peak_memory", "apart") not in values  # one interpreter measures many runs
    parts = sum(value for (name, *_), value in values.items() if name == "parameters_of")
    assert parts == json.loads(run.manifest.read_text())["parameters"]["total"]
    assert {"step_seconds[timed=apart]"} == {c.name for c in load(study).costs if c.name.startswith("step_seconds")}

    page = yaml.safe_load(run.config.read_text())
    page["train"]["batch_size"] = 12
    run.config.write_text(yaml.safe_dump(page))
    assert measured(run.path, "--only", "cost", "n_steps=2", "n_sampling_steps=2", "--force") == 0
    more = {v.name: v.value for v in read_measurement(run.measurement("cost")).values}
    assert more["flop"] > 2 * values["flop",]
