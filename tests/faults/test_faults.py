"""What a study survives: killed and failing runs, two launchers at once; and `equibench plan`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from e2e.test_study import ONE, TINY, command, contents, straight, write_study

from bench.records.lock import holder

__all__ = ["straight"]  # a fixture

TWO = [{**ONE[0], "seed": [0, 1]}]
LOCAL = {"cluster": "local", "n_parallel": 2}
LONG = {**TINY["base"], "train": {**TINY["base"]["train"], "n_steps": 100_000}}  # type: ignore[index]


def wait_for(condition: Callable[[], object], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def training(runs: Path, n: int = 1) -> Callable[[], bool]:
    """Whether n runs have written lines of training."""
    return lambda: sum(path.stat().st_size > 0 for path in runs.glob("*/steps.jsonl")) >= n


def manifests(runs: Path) -> dict[int, dict]:
    """Seed -> manifest."""
    return {m["seed"]: m for m in (json.loads(path.read_text()) for path in runs.glob("*/manifest.json"))}


def n_done(runs: Path) -> int:
    return sum(json.loads(path.read_text())["status"] == "done" for path in runs.glob("*/manifest.json"))


@pytest.fixture
def started():
    """Start `equibench run`; what is left of its process group at the end is killed."""
    calls: list[subprocess.Popen] = []

    def start(path: Path, *arguments: str) -> subprocess.Popen:
        process = command("run", str(path), *arguments, cwd=path.parent, start=True)
        calls.append(process)
        return process

    yield start
    for process in calls:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_killed_run_fails_alone_and_is_retried_on_request(straight, tmp_path, started):
    """SIGKILL, as of a machine without memory, of one run: its record says so, the other is done, the report shows it;
    control: the same signal to a whole job, which says nothing about the run, leaves it to be continued."""
    path, runs = write_study(tmp_path, grid=TWO, launch=LOCAL), tmp_path / "runs/tiny"
    process = started(path)
    wait_for(lambda: list(runs.glob("haar-dit-s0-*/steps.jsonl")))
    (victim,) = runs.glob("haar-dit-s0-*")
    who = holder(victim / "lock")
    assert who is not None
    os.kill(who.pid, signal.SIGKILL)
    assert process.wait(timeout=300) == 1
    assert {seed: m["status"] for seed, m in manifests(runs).items()} == {0: "failed", 1: "done"}
    assert manifests(runs)[0]["reason"] == "killed by signal 9 (SIGKILL, as where memory runs out)"

    assert command("report", "tiny", cwd=tmp_path).returncode == 0
    report = (runs / "report/report.md").read_text()
    assert "PARTIAL: 1 of 2 runs done" in report
    assert "killed by signal 9" in report

    again = command("run", str(path), cwd=tmp_path)
    assert again.returncode == 1
    assert "0 to do" in again.stderr
    assert f"1 failed before and left alone; `equibench run {path} --retry` takes them up again" in again.stderr
    assert manifests(runs)[0]["status"] == "failed"
    assert command("run", str(path), "--retry", cwd=tmp_path).returncode == 0
    ours, theirs = contents(runs), contents(straight / "runs/tiny")
    same = [key for key in theirs if key.startswith("haar-dit-s0-")]
    assert same
    assert [key for key in same if ours[key] != theirs[key]] == []


def test_a_run_that_dies_before_its_record_is_recorded_too(tmp_path):
    """A device that is not there is noticed before there is a manifest; the launcher writes one."""
    path = write_study(tmp_path, grid=ONE, launch={"cluster": "debug"})
    done = command("run", str(path), "train.device=cuda", cwd=tmp_path)
    assert done.returncode == 1
    (manifest,) = manifests(tmp_path / "runs/tiny").values()
    assert manifest["status"] == "failed"
    assert "torch sees no GPU here" in manifest["reason"]
    assert "failed" in command("status", "tiny", cwd=tmp_path).stdout


@pytest.mark.slow
@pytest.mark.parametrize("n_parallel", [1, 2])
def test_two_launchers_share_a_study_without_clobbering(straight, tmp_path, started, n_parallel):
    path = write_study(tmp_path, launch={"cluster": "local", "n_parallel": n_parallel})
    processes = [started(path), started(path)]
    wait_for(training(tmp_path / "runs/tiny"))
    before = n_done(tmp_path / "runs/tiny")
    assert command("report", "tiny", cwd=tmp_path).returncode == 0
    shown = re.search("([0-3]) of 3 runs done", (tmp_path / "runs/tiny/report/report.md").read_text())
    assert shown
    assert before <= int(shown[1]) <= n_done(tmp_path / "runs/tiny")
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    ours, theirs = contents(tmp_path / "runs/tiny"), contents(straight / "runs/tiny")
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if ours[key] != theirs[key]] == []
    for log in (tmp_path / "runs/tiny").glob("*/log.txt"):
        assert log.read_text().count("INFO done\n") == 1  # executed once


@pytest.mark.parametrize("cluster", ["local", pytest.param("debug", marks=pytest.mark.slow)])
def test_an_interrupted_launcher_stops_its_runs_and_leaves_them_resumable(tmp_path, started, cluster):
    """SIGINT to the launcher alone. Control: before it, the workers are alive and nothing is left to continue."""
    launch = {**LOCAL, "cluster": cluster}
    path, runs = write_study(tmp_path, grid=TWO, launch=launch, base=LONG), tmp_path / "runs/tiny"
    process = started(path)
    wait_for(training(runs))
    held = [who.pid for lock in runs.glob("*/lock") if (who := holder(lock))]
    assert held
    assert all(map(psutil.pid_exists, held))
    assert "1 running" in (before := command("status", "tiny", cwd=tmp_path).stdout) or "2 running" in before
    assert "nothing runs" not in before
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    wait_for(lambda: not any(map(psutil.pid_exists, held)), 30.0)
    status = command("status", "tiny", cwd=tmp_path).stdout
    assert "killed" in status
    assert f"nothing runs; `equibench run {path}`" in status
    assert "failed" not in {m["status"] for m in manifests(runs).values()}


@pytest.mark.slow
def test_plan_measures_and_writes_nothing(tmp_path):
    path = write_study(tmp_path, grid=ONE, launch=LOCAL)
    done = command("plan", str(path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "left to do: 1 runs" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.yaml"]
    short = command("plan", str(path), "--memory", "0.15", cwd=tmp_path)  # less than the libraries take
    assert short.returncode == 1
    assert "0.1" in short.stderr.splitlines()[-1]
    assert len([line for line in short.stderr.splitlines() if line.startswith("equibench: ")]) == 1


def test_a_published_page_makes_its_run_again(straight, tmp_path):
    """What `trace` prints: the same folder name and the same samples."""
    (folder,) = (straight / "runs/tiny").glob("edm-egnn-*")
    traced = command("trace", "tiny", "edm egnn", "atom_stability", cwd=straight).stdout
    (again,) = (line.split()[1:] for line in traced.splitlines() if line.startswith("again"))
    assert again[:2] == ["equibench", "run"]
    assert yaml.safe_load((straight / again[2]).read_text())["method"]["name"] == "edm"
    done = command("run", str(straight / again[2]), "launch.cluster=debug", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    copy = tmp_path / "runs/tiny-again" / folder.name
    assert (copy / "samples.npz").read_bytes() == (folder / "samples.npz").read_bytes()
