"""Locks: who holds one is told without disturbing it, and a dead holder leaves none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bench.records import lock
from bench.records.lock import BusyError, Holder, hold, holder, last_holder, locked

HOLD = """
import os, sys, time
from pathlib import Path
from bench.records.lock import hold
with hold(Path(sys.argv[1])):
    if "fork" not in sys.argv or not os.fork():
        print("held", flush=True)
    time.sleep(60)
"""


def held_elsewhere(path: Path, *how: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), *how], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def another(tmp_path: Path):
    """A process that holds tmp_path/lock."""
    process = held_elsewhere(tmp_path / "lock")
    yield process
    process.kill()
    process.wait()


def test_a_held_lock_names_its_process_and_refuses_others(tmp_path: Path, another: subprocess.Popen):
    who = holder(tmp_path / "lock")
    assert who is not None
    assert (who.pid, who.is_here) == (another.pid, True)
    with pytest.raises(BusyError, match=f"being worked on by process {another.pid} on"), locked(tmp_path):
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


def test_a_child_of_a_killed_holder_does_not_keep_the_lock(tmp_path: Path):
    """Such as a pool that evaluates molecules, forked while the lock was held."""
    process = held_elsewhere(tmp_path / "lock", "fork")
    try:
        assert holder(tmp_path / "lock") is not None  # control
        process.kill()
        process.wait()
        os.killpg(process.pid, 0)  # the child lives
        assert holder(tmp_path / "lock") is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_no_file_no_holder(tmp_path: Path):
    assert holder(tmp_path / "lock") is None
    assert last_holder(tmp_path / "lock") is None
    assert list(tmp_path.iterdir()) == []  # asking leaves no file


def test_a_holder_that_says_nothing_still_holds(tmp_path: Path, another: subprocess.Popen):
    for text in ("", '{"host": "elsewhere"}\n', "no JSON\n"):
        (tmp_path / "lock").write_text(text)
        assert str(holder(tmp_path / "lock")) == "an unidentified process"
        with pytest.raises(BusyError, match="by another process"), locked(tmp_path):
            pass


def test_whoever_asks_does_not_turn_a_worker_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`holder` takes a free lock for a moment; a worker that comes in that moment waits for it."""
    asker = lock._lock(tmp_path / "lock", 0.0)
    asker.acquire()
    done = []

    def work() -> None:
        with locked(tmp_path):
            done.append("worked")

    worker = threading.Thread(target=work)
    worker.start()
    time.sleep(0.2)
    assert not done
    asker.release()
    worker.join()
    assert done
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.0)
    with lock._lock(tmp_path / "lock", 0.0), pytest.raises(BusyError):  # control
        lock.hold(tmp_path / "lock").__enter__()


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
