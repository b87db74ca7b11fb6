"""A study through a real Slurm of one node (`make test-slurm`): arrays, needs, deaths, and what Slurm does to jobs.

Where Slurm's packages are not there and cannot be installed, the tests are skipped with the reason.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from e2e.test_study import TINY, contents
from faults.on_slurm import FAULTS, Study, grid, run_straight, trial
from slurm.cluster import Cluster, install, wait_for

from bench.records.lock import holder

pytestmark = pytest.mark.slurm
WITH_CHILD = [{**TINY["grid"][0], "seed": [0]}]  # a method on the weights of another, which it stands before
KILLED = "killed by signal 9 (SIGKILL, as where memory runs out)"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if reason := install():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm") as folder, Cluster(Path(folder)) as one:
        yield one


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds on this machine, without Slurm."""
    return run_straight(tmp_path_factory.mktemp("straight"), 2)


@pytest.fixture
def study_of(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Study]]:
    """Makes the study of a test; nothing of it is left for the next."""
    with contextlib.ExitStack() as stack:

        def make(cells: list[dict], **launch: object) -> Study:
            return stack.enter_context(contextlib.closing(Study(cluster, tmp_path, cells, **launch)))

        yield make


@pytest.fixture
def held(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, while it starts nothing."""
    node = f"NodeName={cluster.node}"
    cluster.ask("scontrol", "update", node, "State=DRAIN", "Reason=test")
    yield cluster
    cluster.ask("scontrol", "update", node, "State=RESUME")


def same(study: Study, straight: Path, seed: int) -> bool:
    """Whether a run ended with the bits of the one without Slurm."""
    ours, theirs = contents(study.runs), contents(straight / "runs/tiny")
    keys = [key for key in theirs if f"-s{seed}-" in key]
    assert keys
    return all(ours.get(key) == theirs[key] for key in keys)


def manifests(study: Study) -> dict[int, dict]:
    """Seed -> manifest."""
    return {m["seed"]: m for m in (json.loads(path.read_text()) for path in study.runs.glob("*/manifest.json"))}


def lines(study: Study) -> dict[str, str]:
    """Run -> its line in `equibench status`."""
    shown = [line.split(maxsplit=1) for line in study.call("status", "tiny").stdout.splitlines() if "-s" in line[:30]]
    return {name.rsplit("-", 1)[0]: rest for name, rest in shown}


def executed_once(study: Study) -> bool:
    return all(path.read_text().count("INFO done\n") == 1 for path in study.runs.glob("*/log.txt"))


def test_what_runs_need_is_asked_for_and_nothing_twice(held, study_of):
    """One array for each distinct need; `status` shows them queued; a second launcher leaves alone what waits."""
    cells = [
        {**grid([0, 1])[0]},
        {**grid([2])[0], "train.n_threads": [3]},
        {**grid([3])[0], "train.device": ["cuda"]},
    ]
    study = study_of(cells, mem_gb=0.5, slurm_options={"comment": "sweep"})
    launcher = study.start()
    wait_for(lambda: len(held.ask("squeue", "--array", "--noheader").splitlines()) == 4, "four jobs", 300.0)
    asked = set()
    for job in study.jobs().values():
        given = [job[key] for key in ("TimeLimit", "MinMemoryNode", "Requeue", "Comment")]
        assert given == ["01:00:00", "512M", "1", "sweep"]
        asked.add((job.get("ArrayTaskId"), job["CPUs/Task"], job.get("TresPerNode")))
    assert asked == {("0-1%2", "1", None), (None, "3", None), (None, "1", "gres:gpu:1")}
    shown = lines(study)
    assert len(shown) == 4
    assert all(line.startswith("queued") and "Slurm job" in line for line in shown.values()), shown

    before = set(study.jobs())
    study.start()
    wait_for(lambda: study.log.read_text().count("4 to do") == 2, "the second launcher", 300.0)
    time.sleep(5)  # ten looks at what can be started
    assert set(study.jobs()) == before
    assert launcher.poll() is None


def test_a_study_ends_done_and_a_dependent_run_comes_after_its_parent(straight, study_of):
    study = study_of(WITH_CHILD)
    study.go_on()
    assert study.end(study.start()) == 0, study.log.read_text()
    assert all(line.startswith("done") for line in lines(study).values())
    assert same(study, straight, 0)
    (child,), (parent,) = (study.runs.glob(f"{method}-*/manifest.json") for method in ("symdiff_haar", "haar"))
    assert json.loads(child.read_text())["weights_from"] == parent.parent.name
    submitted = max(datetime.fromisoformat(job["SubmitTime"]).timestamp() for job in study.jobs().values())
    assert submitted >= datetime.fromisoformat(json.loads(parent.read_text())["updated"]).timestamp()


def test_a_killed_run_fails_alone_and_is_retried_on_request(straight, study_of):
    """SIGKILL of the process of one run of an array; `status` shows the runs at work, then which has failed."""
    study = study_of(grid([0, 1]))
    launcher = study.start()
    study.wait_paused(2)
    shown = lines(study)
    assert all(line.startswith("running") and "Slurm job" in line for line in shown.values()), shown
    assert {job["ArrayTaskId"] for job in study.jobs().values()} == {"0", "1"}
    (victim,) = study.runs.glob("haar-dit-s0-*")
    who = holder(victim / "lock")
    assert who is not None
    os.kill(who.pid, signal.SIGKILL)
    study.go_on()
    assert study.end(launcher) == 1
    assert {seed: m["status"] for seed, m in manifests(study).items()} == {0: "failed", 1: "done"}
    assert manifests(study)[0]["reason"] == KILLED
    assert lines(study)["haar-dit-s0"].startswith(f"failed      {KILLED}")
    assert study.end(study.start("--retry")) == 0
    assert same(study, straight, 0)
    assert same(study, straight, 1)


def test_the_jobs_of_a_killed_launcher_are_taken_up(straight, study_of):
    """The same command waits for them, runs what was never submitted, and submits nothing twice."""
    study = study_of(grid([0, 1]), slurm_array_parallelism=1)
    launcher = study.start()
    study.wait_paused(1)
    launcher.kill()
    launcher.wait()
    again = study.start()
    wait_for(lambda: "2 to do" in study.log.read_text().partition("2 to do")[2], "the second launcher", 300.0)
    study.go_on()
    assert study.end(again) == 0, study.log.read_text()
    assert "done by another launcher" in study.log.read_text()
    assert len(study.jobs()) == 2
    assert executed_once(study)
    assert same(study, straight, 0)
    assert same(study, straight, 1)


def test_a_job_that_slurm_lets_go_is_noticed_without_accounting(cluster, straight, study_of):
    """As on a cluster that cancels where others queue again: here behind the launcher's back, which tells and ends."""
    study = study_of(grid([0]))
    launcher = study.start()
    study.wait_paused(1)
    cluster.ask("scancel", *study.jobs())
    assert study.end(launcher) == 1
    assert "CANCELLED" in study.log.read_text()
    assert "the same command continues it" in study.log.read_text()
    assert manifests(study)[0]["status"] == "running"
    study.go_on()
    assert study.end(study.start()) == 0
    assert same(study, straight, 0)


def test_a_partition_that_is_not_there_is_refused_in_one_line(study_of):
    study = study_of(grid([0]), slurm_partition="nowhere")
    done = study.call("run", str(study.path))
    assert done.returncode == 2
    assert "slurm refuses 1 runs that need 1 cores and 0 GPUs each" in done.stderr.splitlines()[-1]
    assert "partition" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_that_slurm_queues_again_ends_with_the_same_bits(cluster, straight, tmp_path, fault):
    """Negative control of the comparison: `test_the_comparison_notices_another_seed` beside the tests of studies."""
    row = trial(cluster, straight, fault, 1, tmp_path)
    assert row["trials"] >= 1
    assert row["losses"] == 0
