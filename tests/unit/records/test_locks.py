"""Locks: who holds one is told without disturbing it, and a dead holder leaves none."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.records.lock import BusyError, Holder, hold, holder, last_holder, locked

HOLD = """
import sys, time
from pathlib import Path
from bench.records.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def another(tmp_path: Path):
    """A process that holds tmp_path/lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_held_lock_names_its_process_and_refuses_others(tmp_path: Path, another: subprocess.Popen):
    who = holder(tmp_path / "lock")
    assert who is not None
    assert (who.pid, who.is_here) == (another.pid, True)
    with pytest.raises(BusyError), locked(tmp_path):
        pass
    assert holder(tmp_path / "lock") == who  # neither asking nor trying has wiped or freed it


def test_a_killed_holder_leaves_its_name_and_no_lock(tmp_path: Path, another: subprocess.Popen):
    another.send_signal(signal.SIGKILL)
    another.wait()
    assert holder(tmp_path / "lock") is None
    last = last_holder(tmp_path / "lock")
    assert last is not None
    assert last.pid == another.pid
    with locked(tmp_path):
        pass


def test_no_file_no_holder(tmp_path: Path):
    assert holder(tmp_path / "lock") is None
    assert last_holder(tmp_path / "lock") is None


def test_a_lock_file_of_an_older_version_is_still_a_lock(tmp_path: Path, another: subprocess.Popen):
    """Its holder is known from the kernel where the file says nothing, or says who was there before."""
    for text in ("", '{"host": "elsewhere"}\n', "no JSON\n"):
        (tmp_path / "lock").write_text(text)
        who = holder(tmp_path / "lock")
        assert who is not None
        assert who.pid == another.pid


def test_jobs_are_named_by_what_submitit_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_ID", "4")  # the allocation in which a launcher itself runs
    with hold(tmp_path / "lock"):
        pass
    assert (last_holder(tmp_path / "lock") or Holder("", 0, "")).job == "17"
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    with hold(tmp_path / "lock"):
        pass
    last = last_holder(tmp_path / "lock")
    assert last is not None
    assert (last.job, last.slurm) == ("5_2", True)
