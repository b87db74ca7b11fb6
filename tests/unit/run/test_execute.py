"""One run: what its record says where it was stopped, and `--until sampled` with `evaluate` in place of all at once."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import yaml

from bench.config.run import ConfigError, resolve
from bench.config.study import load_study
from bench.launch.items import Item, plan
from bench.launch.status import state
from bench.records import schema
from bench.records import store as records
from bench.records.items import read_items
from bench.records.measured import values_of
from bench.records.values import Kind
from bench.registry import methods
from bench.run import evaluate
from bench.run.checkpoint import about_of, hash_of_weights, read_tensors, write_tensors
from bench.run.execute import Until, evaluate_folder, execute, is_done, reason_of
from bench.run.measure import opened
from bench.structures import files

STUDY = {
    "study": "tiny",
    "base": {
        "data": {"name": "mini", "n_train": 50},
        "train": {"n_steps": 2, "batch_size": 4, "n_valid": 8},
        "sample": {"n_molecules": 6, "n_steps": 3, "batch_size": 3},
        "measures": {"likelihood": {"n_molecules": 4, "n_passes": 1}},
    },
    "grid": [{"method": ["haar"], "backbone": [{"name": "dit", "size": "tiny"}]}],
}


def item(folder: Path, until: Until = Until.EVALUATED, overrides: list[str] | None = None) -> Item:
    path = folder / "tiny.yaml"
    folder.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(STUDY))
    return plan(load_study(str(path), overrides), folder / "runs", until)[0]


def stopped_by(error: Exception, run: Item) -> dict:
    with mock.patch("bench.run.execute.train", side_effect=error), pytest.raises(type(error)):
        execute(run.cfg, run.folder)
    return records.read_json(run.folder / "manifest.json", schema.MANIFEST)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_run_stopped_by_the_disk_has_not_failed(code, tmp_path):
    run = item(tmp_path)
    manifest = stopped_by(OSError(code, os.strerror(code)), run)
    assert (manifest["status"], run.status) == ("running", "running")  # and so it is continued
    assert os.strerror(code) in manifest["reason"]
    assert manifest["reason"].endswith(records.CONTINUES)
    assert manifest["reason"] in state(run.folder).detail
    assert "Traceback" not in (run.folder / "log.txt").read_text()


def test_any_other_error_is_a_failure(tmp_path):
    run = item(tmp_path)
    with (
        mock.patch("tempfile.mkstemp", side_effect=OSError(errno.EACCES, os.strerror(errno.EACCES))),
        pytest.raises(OSError, match="could not write") as caught,
    ):
        records.write_atomically(tmp_path / "file", b"content")
    manifest = stopped_by(caught.value, run)
    assert (manifest["status"], run.status) == ("failed", "failed")
    assert records.CONTINUES not in manifest["reason"]
    assert "Traceback" in (run.folder / "log.txt").read_text()


def test_a_disk_error_behind_another_one_counts(tmp_path):
    run = item(tmp_path)
    error = RuntimeError("cannot write the part")
    error.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    manifest = stopped_by(error, run)
    assert manifest["status"] == "running"
    assert manifest["reason"] == f"cannot write the part, {records.CONTINUES}"


def test_the_line_ends_once_with_what_to_do(tmp_path):
    with (
        mock.patch("tempfile.mkstemp", side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
        pytest.raises(OSError, match="could not write") as caught,
    ):
        records.write_atomically(tmp_path / "file", b"content")
    assert reason_of(caught.value) == f"{caught.value}"
    assert str(caught.value).count(records.CONTINUES) == 1


# ---------------------------------------------------------------------- sampled here, evaluated there


def judged(run: Item) -> list[dict]:
    """Values of an evaluation, but those that a clock or the machine's memory gives."""
    evaluation = records.read_json(run.folder / "eval.json", schema.EVALUATION)
    kept = [value.to_dict() for value in values_of(records.RunFolder(run.folder)) if value.kind is not Kind.COST]
    assert {value["name"] for value in kept} > {"atom_stability", "nll"}
    return kept + evaluation["data_values"]


def test_sampled_and_then_evaluated_equals_all_at_once(tmp_path):
    """The record keeps what sampled it, and says what evaluated it. Control: other samples have other values."""
    whole, parts = item(tmp_path / "whole"), item(tmp_path / "parts", Until.SAMPLED)
    execute(whole.cfg, whole.folder)
    execute(parts.cfg, parts.folder, until=Until.SAMPLED)
    before = records.read_json(parts.folder / "manifest.json", schema.MANIFEST)
    assert (before["status"], parts.status) == ("sampled", "done")
    assert not is_done(parts.folder)
    assert not (parts.folder / "eval.json").exists()

    evaluate_folder(parts.folder)
    after = records.read_json(parts.folder / "manifest.json", schema.MANIFEST)
    assert is_done(parts.folder)
    assert judged(parts) == judged(whole)
    assert after["code"] == before["code"]
    assert "evaluated" not in before
    assert after["evaluated"]["versions"]["rdkit"]
    evaluate_folder(parts.folder)  # again: the same
    assert judged(parts) == judged(whole)

    other = item(tmp_path / "other", overrides=["sample.seed=1"])
    execute(other.cfg, other.folder)
    assert judged(other) != judged(whole)


def test_a_value_is_the_mean_of_its_items(tmp_path):
    """Each molecule's own values are kept beside eval.json, and make the values in it: a mean, or a ratio of sums."""
    run = item(tmp_path)
    execute(run.cfg, run.folder)
    folder = records.RunFolder(run.folder)
    values = {value.name: value.value for value in values_of(folder)}
    of_test, of_samples = (
        read_items(folder.measurement("likelihood").with_suffix(".npz")),
        read_items(folder.sample_items),
    )
    assert set(of_test) == {"nll"}
    assert set(of_samples) == {"atom_stability", "molecule_stability", "validity", "connected_and_valid"}
    for name, array in (of_test | of_samples).items():
        sums = np.nansum(array, axis=0)
        ratio = sums[0] / sums[1] if array.ndim == 2 else np.nanmean(array)
        assert ratio == pytest.approx(values[name], rel=1e-5), name
    assert np.isfinite(of_test["nll"]).sum() == 4  # `n_molecules`
    assert len(of_test["nll"]) == records.read_json(folder.manifest, schema.MANIFEST)["data"]["n_test"]
    assert len(of_samples["validity"]) == 6


def breaking(places: set[int]):
    """`sample_prompt` whose samples at some places have diverged."""
    drawn = evaluate.sample_prompt

    def broken(model, prompt, *given):
        samples = drawn(model, prompt, *given)
        gone = np.isin(prompt.places, list(places))[samples.of_atoms()]
        return replace(samples, positions=np.where(gone[:, None], np.nan, samples.positions))

    return mock.patch("bench.run.evaluate.sample_prompt", broken)


def test_a_sample_that_diverges_counts_as_a_failed_one(tmp_path):
    """Control: a run all of whose samples diverge fails, and says so."""
    run, other, all_gone = (item(tmp_path / name) for name in ("broken", "whole", "gone"))
    with breaking({4}):
        execute(run.cfg, run.folder)
    execute(other.cfg, other.folder)
    for each, share in ((run, 1 / 6), (other, 0)):
        values = {value.name: value.value for value in values_of(records.RunFolder(each.folder))}
        assert values["failed_samples"] == pytest.approx(share)
    broken, whole = (read_items(records.RunFolder(each.folder).sample_items) for each in (run, other))
    assert (broken["validity"][4], broken["atom_stability"][4, 0]) == (0, 0)
    kept = np.arange(6) != 4
    assert all(np.array_equal(broken[name][kept], whole[name][kept]) for name in whole)
    assert len(files.read(records.RunFolder(run.folder).drawn)) == 5
    with opened(run.folder) as found:
        assert found.samples is not None
        assert len(found.samples) == 5  # what measures see
    with breaking(set(range(6))), pytest.raises(evaluate.SamplingError, match="none of 6 samples has finite positions"):
        execute(all_gone.cfg, all_gone.folder)


def test_a_sampled_run_is_evaluated_by_the_plain_command_too(tmp_path):
    """Without training or sampling again."""
    run = item(tmp_path, Until.SAMPLED)
    execute(run.cfg, run.folder, until=Until.SAMPLED)
    with (
        mock.patch("bench.run.train.training_step", side_effect=AssertionError),
        mock.patch("bench.run.evaluate.sample_prompt", side_effect=AssertionError),
    ):
        execute(run.cfg, run.folder)
    assert is_done(run.folder)


def test_only_a_sampled_run_can_be_evaluated(tmp_path):
    run = item(tmp_path)
    with pytest.raises(ConfigError, match="no run folder"):
        evaluate_folder(run.folder)
    stopped_by(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), run)
    with pytest.raises(ConfigError, match="is running, expected a sampled run; `equibench run --until sampled` first"):
        evaluate_folder(run.folder)


# ---------------------------------------------------------------------- continued by other code


@contextlib.contextmanager
def made_by(code: dict) -> Iterator[None]:
    """Code of another commit."""
    with (
        mock.patch("bench.run.train.code_version", return_value=code),
        mock.patch("bench.run.provenance.code_version", return_value=code),
    ):
        yield


def test_the_record_names_every_commit_that_trained_the_run(tmp_path):
    """Also where the first record and state are from before such lists. Control: one code alone."""
    settings = ["train.log_every=1", "train.valid_every=1", "train.checkpoint_seconds=0"]
    first, second = ({"version": "1", "commit": commit, "dirty": False} for commit in "ab")
    run = item(tmp_path, overrides=settings)
    stop = mock.patch("bench.run.train.Validation.__call__", side_effect=[0.5, KeyboardInterrupt])
    with made_by(first), stop, pytest.raises(KeyboardInterrupt):
        execute(run.cfg, run.folder)
    assert about_of(run.folder / "state.safetensors")["code"] == [first | {"steps": 1}]
    tensors, about = read_tensors(run.folder / "state.safetensors")
    del about["code"]
    write_tensors(run.folder / "state.safetensors", tensors, about)
    with made_by(second):
        execute(run.cfg, run.folder)
    manifest = records.read_json(run.folder / "manifest.json", schema.MANIFEST)
    assert manifest["code"] == first | {"training": [first | {"steps": 1}, second | {"steps": 1}]}

    alone = item(tmp_path / "alone", overrides=settings)
    with made_by(first):
        execute(alone.cfg, alone.folder)
    manifest = records.read_json(alone.folder / "manifest.json", schema.MANIFEST)
    assert manifest["code"] == first | {"training": [first | {"steps": 2}]}


# ---------------------------------------------------------------------- other settings


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_other_sampling_is_another_run_on_the_same_weights(tmp_path):
    """Nothing of the first run changes. Control: other training is trained."""
    first, other = item(tmp_path), item(tmp_path, overrides=["sample.n_steps=2"])
    execute(first.cfg, first.folder)
    before = contents(first.folder)
    with mock.patch("bench.run.execute.train", side_effect=AssertionError("trained again")):
        execute(other.cfg, other.folder)
        longer = item(tmp_path, overrides=["train.n_steps=3"])
        with pytest.raises(AssertionError, match="trained again"):
            execute(longer.cfg, longer.folder)
    assert contents(first.folder) == before
    manifest = records.read_json(other.folder / "manifest.json", schema.MANIFEST)
    assert (manifest["status"], manifest["weights_from"]) == ("done", first.folder.name)
    assert records.read_json(other.folder / "eval.json", schema.EVALUATION)["n_sampling_steps"] == 2
    assert is_done(first.folder)
    assert is_done(other.folder)


@pytest.mark.parametrize(("first", "second"), [("n_steps=4", "n_steps=2"), ("n_steps=2", "max_seconds=100.0")])
def test_other_training_never_touches_a_finished_run(first, second, tmp_path):
    """Such as a shorter one after a longer one. Control: the same settings are the same run."""
    run, other = (item(tmp_path, overrides=[f"train.{words}"]) for words in (first, second))
    execute(run.cfg, run.folder)
    before = contents(run.folder)
    assert other.folder != run.folder
    execute(other.cfg, other.folder)
    assert contents(run.folder) == before
    assert is_done(run.folder)
    assert is_done(other.folder)
    assert item(tmp_path, overrides=[f"train.{first}"]).folder == run.folder


def test_a_result_beside_other_weights_is_made_again_and_kept(tmp_path):
    """Weights are known by their content. Control: copies and clocks change nothing."""
    first, other = item(tmp_path), item(tmp_path, overrides=["sample.n_steps=2"])
    execute(first.cfg, first.folder)
    execute(other.cfg, other.folder)
    before = records.read_json(other.folder / "manifest.json", schema.MANIFEST)
    assert before["weights_sha256"] == hash_of_weights(first.folder / "state.safetensors")
    for path, when in ((first.folder, 2**31), (other.folder, 0)):  # newer than what was made of it, by far
        for file in path.iterdir():
            os.utime(file, (when, when))
    runs = Path(shutil.copytree(tmp_path / "runs", tmp_path / "copy"))
    assert is_done(other.folder)
    assert is_done(runs / "tiny" / other.folder.name)

    tensors, about = read_tensors(first.folder / "state.safetensors")
    name = next(name for name in tensors if name.startswith("average/"))
    tensors[name] = tensors[name] + 0.5
    write_tensors(first.folder / "state.safetensors", tensors, {k: v for k, v in about.items() if k != "weights"})
    assert is_done(first.folder)
    assert not is_done(other.folder)
    results = {path.name: path.read_bytes() for path in other.folder.rglob("*.*") if path.suffix in (".npz", ".json")}
    execute(other.cfg, other.folder)
    after = records.read_json(other.folder / "manifest.json", schema.MANIFEST)
    assert after["weights_sha256"] == hash_of_weights(first.folder / "state.safetensors") != before["weights_sha256"]
    assert is_done(other.folder)
    aside = other.folder / f"of-weights-{before['weights_sha256'][:12]}"
    assert (aside / "samples.npz").read_bytes() == results["samples.npz"] != (other.folder / "samples.npz").read_bytes()
    assert (aside / "eval.json").read_bytes() == results["eval.json"]
    for name in ("likelihood.json", "likelihood.npz", "validation_loss.json"):
        assert (aside / "measured" / name).read_bytes() == results[name]
    made_again = contents(other.folder)
    execute(other.cfg, other.folder)  # and not without end
    assert contents(other.folder) | {"lock": b""} == made_again | {"lock": b""}


def test_a_run_that_is_only_begun_lends_no_weights(tmp_path):
    first, other = item(tmp_path), item(tmp_path, overrides=["sample.n_steps=2"])
    stopped_by(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), first)
    execute(other.cfg, other.folder)
    assert records.read_json(other.folder / "manifest.json", schema.MANIFEST)["weights_from"] is None
    execute(first.cfg, first.folder)  # and now takes those that are finished
    assert records.read_json(first.folder / "manifest.json", schema.MANIFEST)["weights_from"] == other.folder.name


def test_a_method_that_trains_nothing_finds_weights_that_were_sampled_otherwise(tmp_path):
    first = item(tmp_path)
    execute(first.cfg, first.folder)
    study = load_study(str(tmp_path / "tiny.yaml"), ["sample.n_steps=2"])
    study.runs[0].method = resolve(methods, "symdiff_haar", "method")
    wanted = next(i for i in plan(study, tmp_path / "runs") if i.cfg.method.name == "symdiff_haar")
    execute(wanted.cfg, wanted.folder)
    assert records.read_json(wanted.folder / "manifest.json", schema.MANIFEST)["weights_from"] == first.folder.name


def test_best_and_last_weights_are_two_runs_of_one_training(tmp_path):
    """The second waits for the first. Control: weights that training does not keep are refused."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(STUDY | {"grid": [{**STUDY["grid"][0], "sample.weights": ["last", "best"]}]}))
    kept = ["train.keep_best=true", "train.log_every=1", "train.valid_every=1", "train.lr=1.0"]
    last, best = plan(load_study(str(path), kept), tmp_path / "runs")
    assert (last.needs, best.needs) == (None, last)
    for run in (last, best):
        execute(run.cfg, run.folder)
    records_of = {
        run.folder.name: records.read_json(run.folder / "eval.json", schema.EVALUATION) for run in (last, best)
    }
    assert [record["weights"] for record in records_of.values()] == ["ema", "ema (best)"]
    assert (last.folder / "best.safetensors").exists()
    assert not (best.folder / "state.safetensors").exists()
    manifest = records.read_json(best.folder / "manifest.json", schema.MANIFEST)
    assert manifest["weights_from"] == last.folder.name
    with pytest.raises(ConfigError, match=r"sample\.weights.*keep_best"):
        load_study(str(path), ["train.keep_best=false"])


@pytest.mark.parametrize("sampler", ["heun", "ancestral"])
def test_a_sampler_that_the_path_does_not_have_is_refused_before_training(sampler, tmp_path):
    """Control: Euler's method runs on both paths."""
    linear = ["diffusion.path=linear", "diffusion.parametrisation=velocity"]
    toys = {"data": {"name": "toys", "toy": "planar_one"}, "diffusion": {"n_levels": 10}}
    page = STUDY | {"base": STUDY["base"] | toys | {"task": "planar"}}
    page["grid"] = [{"method": ["haar"], "backbone": [{"name": "mlp", "size": "tiny", "n_points": 3}]}]
    overrides = {"heun": [], "ancestral": linear}[sampler]
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(page))
    (wrong,) = plan(load_study(str(path), [*overrides, f"sample.sampler={sampler}"]), tmp_path / "runs")
    (right,) = plan(load_study(str(path), [*overrides, "sample.sampler=euler"]), tmp_path / "runs")
    with mock.patch("bench.run.execute.train", side_effect=AssertionError("trained")):
        with pytest.raises(ValueError, match=f"sampler '{sampler}' needs"):
            execute(wrong.cfg, wrong.folder)
        with pytest.raises(AssertionError, match="trained"):
            execute(right.cfg, right.folder)


def test_a_worker_leaves_alone_what_a_launcher_is_writing(tmp_path):
    """`job.json` is written without the run's lock. Control: a leftover of a file that the worker writes goes."""
    run = item(tmp_path)
    run.folder.mkdir(parents=True)
    for name in (".job.json.abc", ".manifest.json.abc"):
        (run.folder / name).write_text("{")
    execute(run.cfg, run.folder)
    assert [path.name for path in run.folder.glob(".*")] == [".job.json.abc"]
