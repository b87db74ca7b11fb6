"""`equibench status` and `logs` on made-up records and workers: no training, no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fabricated_study import edit, manifest, run_name, write_study

from bench.cli.main import main
from bench.launch import queue, status
from bench.launch.queue import submitted
from bench.records import schema
from bench.records import store as records
from bench.records.store import StudyFolder, write_json

TRAIN = {"n_steps": 400, "max_seconds": None}
CONFIG = {"train": TRAIN, "sample": {"n_molecules": 10, "batch_size": 4}}
HOLD = """
import sys, time
from pathlib import Path
from bench.records.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def start():
    """Start workers that hold a run's folder."""
    started = []

    def hold(folder: Path) -> subprocess.Popen:
        line = [sys.executable, "-c", HOLD, str(folder)]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """runs/made_up: done, failed and skipped runs, one at work (bare 0), and one that has not begun (bare 7)."""
    monkeypatch.chdir(tmp_path)
    folder = write_study(Path("runs/made_up"))
    for run in StudyFolder(folder).runs():
        (run / "config.yaml").write_text(yaml.safe_dump(CONFIG))
        (run / "lock").touch()
    edit(folder / run_name("bare", "dit", 0) / "manifest.json", status="running")
    whole = [manifest("bare", "dit", seed, 0) for seed in (0, 7)]
    keys = ("run", "study", "method", "backbone", "seed", "guarantee", "n_steps", "data")
    runs = [{key: one[key] for key in keys} | {"config": CONFIG} for one in whole]
    plan = {
        "schema": schema.SCHEMA_VERSION,
        "written_by": "0.1.0",
        "study": "made_up",
        "argument": "study.yaml",
        "created": "",
        "runs": runs,
    }
    write_json(folder / "runs.json", plan, schema.PLAN)
    return folder


def shown(study: Path) -> dict[str, str]:
    return {one.run: one.status for one in status.states(study)}


def test_every_run_stands_under_what_is_true_of_it(study: Path, start, capsys: pytest.CaptureFixture[str]):
    """The same record says 'running' where a process holds the lock, and 'killed' where none does."""
    bare = run_name("bare", "dit", 0)
    assert shown(study)[bare] == "killed"
    assert main(["status", "made_up"]) == 0
    assert "nothing runs; `equibench run study.yaml` does the rest" in capsys.readouterr().out
    start(study / bare)
    assert shown(study) == {
        bare: "running",
        run_name("bare", "dit", 7): "queued",
        run_name("bare", "dit", 1): "done",
        run_name("turned", "dit", 0): "done",
        run_name("turned", "dit", 1): "done",
        run_name("turned_later", "dit", 0): "done",
        run_name("turned_later", "dit", 1): "done",
        run_name("strict", "egnn", 0): "done",
        run_name("strict", "egnn", 1): "failed",
        run_name("strict", "dit", 0): "skipped",
    }
    assert main(["status", "made_up"]) == 0
    told = capsys.readouterr().out
    assert "nothing runs" not in told
    for words in (
        "loss is not finite at step 120",
        "needs an equivariant backbone",
        "10 runs: 6 done, 1 running, 1 queued, 1 failed, 1 skipped",
        "equibench run study.yaml --retry",
    ):
        assert words in told


def test_progress_and_time_left_follow_from_the_records(study: Path):
    folder = study / run_name("bare", "dit", 0)
    lines = [{"step": n, "seconds": n * 0.5, "loss": 0.25} for n in (20, 40, 100)]
    steps = folder / "steps.jsonl"
    steps.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 120, "sec')
    at = status.position(folder)
    assert (at.at, at.of, at.seconds_left) == (100, 400, 150.0)
    assert str(at) == "training, loss 0.2500, step 100 of 400, about 2 min left of it"
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "train": {"n_steps": 400, "max_seconds": 60}}))
    assert status.position(folder).seconds_left == 10.0
    steps.write_text(json.dumps({"step": 400, "seconds": 200.0}) + "\n")
    write_json(folder / "chunks/00000.json", {"seconds": 3.0, "calls": 5})
    at = status.position(folder)
    assert (at.stage, at.at, at.of, at.seconds_left) == ("sampling", 1, 3, 6.0)
    write_json(folder / "samples.json", {})
    assert status.position(folder).stage == "evaluating"
    (folder / "config.yaml").unlink()
    assert status.position(folder).stage == "starting"


def test_the_last_lines_are_those_of_the_whole_file(tmp_path: Path):
    path = tmp_path / "steps.jsonl"
    lines = [{"step": n, "seconds": float(n), "note": "x" * 80} for n in range(1000)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert path.stat().st_size > 5 * 16_384
    assert records.last_steps(path, 3) == lines[-3:]
    assert records.last_steps(tmp_path / "none") == []


def test_status_loads_nothing_heavy():
    code = "import sys, bench.cli.main, bench.launch.status, bench.launch.queue; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "numpy", "pandas", "submitit", "omegaconf"}.isdisjoint(done.stdout.split())


# ---------------------------------------------------------------------- logs


def test_a_run_is_found_by_a_prefix_of_its_own(study: Path):
    roots = [Path("runs")]
    assert status.find_run("turned-dit-s0", roots).name == run_name("turned", "dit", 0)
    with pytest.raises(ValueError, match="may be any of 2 runs"):
        status.find_run("turned-dit", roots)
    with pytest.raises(ValueError, match="no run 'nothing' in runs/"):
        status.find_run("nothing", roots)


def test_logs_show_the_log_and_the_errors_of_its_own_job(study: Path, capsys: pytest.CaptureFixture[str]):
    folder = study / run_name("bare", "dit", 1)
    (folder / "log.txt").write_text("".join(f"line {n}\n" for n in range(100)))
    (folder / "lock").write_text(json.dumps({"host": "h", "pid": 1, "since": "", "job": "17"}) + "\n")
    for job in ("17", "171"):
        (study / ".submitit" / job).mkdir(parents=True)
        (study / ".submitit" / job / f"{job}_0_log.err").write_text(f"Traceback of {job}\n")
    assert main(["logs", "bare-dit-s1", "-n", "3"]) == 0
    told = capsys.readouterr().out
    assert "line 97\nline 98\nline 99" in told
    assert "line 96" not in told
    assert "Traceback of 17\n" in told
    assert "171" not in told


@pytest.mark.parametrize("hostile", ["\x1b]0;title\x07", "\x1b[2J", "\r", "\u202e", "\x9b31m"])
def test_what_a_terminal_would_obey_is_shown_escaped(study: Path, capsys: pytest.CaptureFixture[str], hostile: str):
    """In reasons, names and logs; letters of other scripts stay."""
    edit(study / run_name("strict", "egnn", 1) / "manifest.json", reason=f"größer{hostile}\nfake  done")
    edit(study / run_name("bare", "dit", 1) / "manifest.json", updated=f"2026{hostile}")
    folder = study / run_name("bare", "dit", 0)
    (folder / "log.txt").write_text(f"größer\n{hostile}\tends\n")
    assert main(["status", "made_up"]) == 0
    assert main(["logs", str(folder)]) == 0
    told = capsys.readouterr().out
    assert hostile not in told
    assert told.replace("\n", "").replace("\t", "").isprintable()
    assert "größer" in told
    assert "\\nfake  done" in told  # a record is one line
    assert "\tends\n" in told  # a log has lines


def test_following_ends_with_the_last_words_of_the_run(study: Path, start):
    folder = study / run_name("bare", "dit", 0)
    log = folder / "log.txt"
    log.write_text("before\n")
    process = start(folder)

    def sleep(_: float) -> None:  # the run writes, and dies
        log.write_text("before\nlast words\n")
        process.kill()
        process.wait()

    parts = status.follow(folder, sleep=sleep)
    assert "".join(parts) == "last words\n"


# ---------------------------------------------------------------------- jobs in Slurm's queue


def test_a_run_that_waits_in_slurms_queue_is_queued_there(study: Path, monkeypatch: pytest.MonkeyPatch):
    """A run whose last job Slurm still has; control: a job that Slurm has forgotten, and one of a local launcher."""
    tools = Path("tools").absolute()
    tools.mkdir()
    known = r"42|PENDING|Priority\n50_1|PENDING|Resources\n"
    (tools / "squeue").write_text(f"#!/bin/sh\nprintf '{known}'\n")
    (tools / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    waiting, cut = (run_name("bare", "dit", seed) for seed in (7, 0))
    submitted(study / waiting, "slurm", "40")
    submitted(study / waiting, "slurm", "42")
    submitted(study / cut, "slurm", "50_1")
    told = {one.run: one for one in status.states(study)}
    assert (told[waiting].status, told[waiting].detail) == ("queued", "Slurm job 42, pending (Priority)")
    assert told[cut].status == "queued"
    assert "nothing runs" not in status.status(study)  # but in Slurm
    submitted(study / cut, "slurm", "39")
    assert shown(study)[cut] == "killed"
    assert "nothing runs" in status.status(study)
    submitted(study / cut, "local", "50_1")
    assert shown(study)[cut] == "killed"


def test_without_an_answer_of_slurm_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Control: where no run has a job of Slurm's, it is not asked."""
    monkeypatch.setattr(queue.shutil, "which", lambda _: None)
    submitted(tmp_path / "run", "slurm", "3")
    assert queue.queued_jobs([tmp_path / "run"]) is None
    assert queue.queued_jobs([tmp_path / "other"]) == {}
    (tmp_path / "run" / "job.json").write_text("{")
    assert queue.last_job(tmp_path / "run") is None
