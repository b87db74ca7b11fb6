"""One run: what its record says where it was stopped, and `--until sampled` with `evaluate` in place of all at once."""

import errno
import os
from pathlib import Path
from unittest import mock

import pytest
import yaml

from bench.config.run import ConfigError
from bench.config.study import load_study
from bench.launch.status import state
from bench.launch.submit import Item, plan
from bench.records import schema
from bench.records import store as records
from bench.run.execute import Until, evaluate_folder, execute, is_done, reason_of

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


def item(folder: Path, until: Until = Until.EVALUATED) -> Item:
    path = folder / "tiny.yaml"
    folder.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(STUDY))
    return plan(load_study(str(path)), folder / "runs", until)[0]


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
    assert manifest["reason"] in state(run.folder).words
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
    kept = [value for value in evaluation["values"] if value.get("kind") != "cost"]
    assert {value["name"] for value in kept} > {"atom_stability", "nll"}
    return kept + evaluation["data_values"]


def test_sampled_and_then_evaluated_equals_all_at_once(tmp_path):
    """The record keeps what sampled it, and says what evaluated it. Control: other samples have other values."""
    whole, parts = item(tmp_path / "whole"), item(tmp_path / "parts", Until.SAMPLED)
    execute(whole.cfg, whole.folder)
    execute(parts.cfg, parts.folder, until=Until.SAMPLED)
    before = records.read_json(parts.folder / "manifest.json", schema.MANIFEST)
    assert (before["status"], parts.status) == ("sampled", "done")
    assert not is_done(parts.cfg, parts.folder)
    assert not (parts.folder / "eval.json").exists()

    evaluate_folder(parts.folder)
    after = records.read_json(parts.folder / "manifest.json", schema.MANIFEST)
    assert is_done(parts.cfg, parts.folder)
    assert judged(parts) == judged(whole)
    assert after["code"] == before["code"]
    assert "evaluated" not in before
    assert after["evaluated"]["versions"]["rdkit"]
    evaluate_folder(parts.folder)  # again: the same
    assert judged(parts) == judged(whole)

    other = item(tmp_path / "other")
    other.cfg.sample.seed = 1
    execute(other.cfg, other.folder)
    assert judged(other) != judged(whole)


def test_a_sampled_run_is_evaluated_by_the_plain_command_too(tmp_path):
    """Without training or sampling again."""
    run = item(tmp_path, Until.SAMPLED)
    execute(run.cfg, run.folder, until=Until.SAMPLED)
    with (
        mock.patch("bench.run.train.training_step", side_effect=AssertionError),
        mock.patch("bench.run.evaluate.sample_prompt", side_effect=AssertionError),
    ):
        execute(run.cfg, run.folder)
    assert is_done(run.cfg, run.folder)


def test_only_a_sampled_run_can_be_evaluated(tmp_path):
    run = item(tmp_path)
    with pytest.raises(ConfigError, match="no run folder"):
        evaluate_folder(run.folder)
    stopped_by(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), run)
    with pytest.raises(ConfigError, match="is running, expected a sampled run; `equibench run --until sampled` first"):
        evaluate_folder(run.folder)
