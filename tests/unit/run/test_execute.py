"""What the record of a run says that was stopped: a full disk is no fault of the run, any other error is."""

import errno
import os
from pathlib import Path
from unittest import mock

import pytest
import yaml

from bench.config.study import load_study
from bench.launch.status import state
from bench.launch.submit import Item, plan
from bench.records import schema
from bench.records import store as records
from bench.run.execute import execute, reason_of

STUDY = {
    "study": "tiny",
    "base": {"data": {"name": "mini", "n_train": 50}, "train": {"n_steps": 2, "batch_size": 4}},
    "grid": [{"method": ["haar"], "backbone": [{"name": "dit", "size": "tiny"}]}],
}


def item(folder: Path) -> Item:
    page = folder / "tiny.yaml"
    page.write_text(yaml.safe_dump(STUDY))
    return plan(load_study(str(page)), folder / "runs")[0]


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
