"""What Slurm does to jobs, and what is lost by it; `python -m faults.on_slurm` prints rows as JSON.

Runs of a tiny study train as jobs of a real Slurm of one node (`slurm.cluster`), each until a random step. There a
time limit meets them, or a job of a higher partition takes their place, or the node loses its power. Slurm queues them
again, and what they end with is compared bit for bit with the study run straight through on this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from e2e.test_study import TINY, command, contents, write_study
from faults.kills import row
from slurm.cluster import Cluster, install, wait_for

PAUSE = Path(__file__).parents[1] / "slurm" / "pause"
BASE = {**TINY["base"], "train": {**TINY["base"]["train"], "n_steps": 20, "valid_every": 10}}
LAUNCH = {"cluster": "slurm", "slurm_partition": "low", "timeout_min": 60}
# leaves a run time to start on a busy machine; Slurm looks at limits every 30 s
SHORT = {"timeout_min": 2, "slurm_signal_delay_s": 15}
RUNS = 8  # that meet each fault, at a time
SECONDS = 900.0  # for a study to end


def grid(seeds: Sequence[int]) -> list[dict[str, Any]]:
    return [{"method": ["haar"], "backbone": [{"name": "dit", "size": "tiny"}], "seed": list(seeds)}]


class Study:
    """A study on the cluster, in a folder of its own.

    Attributes:
        log: what its launchers have said.
    """

    def __init__(self, cluster: Cluster, folder: Path, grid: list[dict[str, Any]], **launch: Any) -> None:
        self.cluster, self.folder = cluster, folder
        self.path = write_study(folder, base=BASE, grid=grid, launch=LAUNCH | launch)
        self.runs, self.pause, self.log = folder / "runs/tiny", folder / "pause", folder / "launcher.log"
        self.pause.mkdir()
        self.launchers: list[subprocess.Popen[bytes]] = []

    def close(self) -> None:
        """Leave nothing of it in Slurm, nor a launcher, however the trial went."""
        for launcher in self.launchers:
            launcher.kill()
            launcher.wait()
        if left := [job["JobId"] for job in self.jobs().values() if job["JobState"] in ("PENDING", "RUNNING")]:
            self.cluster.ask("scancel", *left)
        wait_for(lambda: not self.cluster.ask("squeue", "--noheader"), "an empty queue")

    @property
    def environment(self) -> dict[str, str]:
        """Of launchers, and so of their jobs."""
        path = os.pathsep.join(filter(None, (str(PAUSE), os.environ.get("PYTHONPATH"))))
        ours = {"PYTHONPATH": path, "EQUIBENCH_TEST_PAUSE": str(self.pause)}
        return {**self.cluster.environment, "OMP_NUM_THREADS": "1", **ours}

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """`equibench run` of it, in a process of its own."""
        line = [sys.executable, "-m", "bench.cli.main", "run", str(self.path), *arguments]
        with self.log.open("a") as log:
            launcher = subprocess.Popen(line, cwd=self.folder, env=self.environment, stdout=log, stderr=log)
        self.launchers.append(launcher)
        return launcher

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another command of ours."""
        line = [sys.executable, "-m", "bench.cli.main", *arguments]
        return subprocess.run(line, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)

    def wait_paused(self, n: int) -> None:
        """Until n jobs, and all there are, stand at a training step or have been queued again before."""

        def paused() -> bool:
            jobs = self.jobs().values()
            there = [job for job in jobs if (self.pause / job["JobId"]).exists() or job["Restarts"] != "0"]
            return n <= len(there) == len(jobs)

        wait_for(paused, f"{n} runs to train", SECONDS)

    def go_on(self) -> None:
        (self.pause / "go").touch()

    def jobs(self) -> dict[str, dict[str, str]]:
        """What Slurm knows of the study's jobs."""
        return {number: job for number, job in self.cluster.jobs().items() if job["WorkDir"] == str(self.folder)}

    def end(self, launcher: subprocess.Popen[bytes]) -> int:
        """The launcher's exit code. Jobs that were queued again wait two minutes by Slurm's rule, here five seconds: a
        node kills one that starts in the second of its requeueing, since its credential is revoked."""
        hurried: set[tuple[str, str]] = set()

        def ended() -> bool:
            for number, job in self.jobs().items():
                again = number, job["Restarts"]
                if job["JobState"] == "PENDING" and job["Reason"] == "BeginTime" and again not in hurried:
                    self.cluster.ask("scontrol", "update", f"JobId={number}", "StartTime=now+5")
                    hurried.add(again)
            return launcher.poll() is not None

        wait_for(ended, f"the study to end; its launcher said:\n{self.log.read_text()[-2000:]}", SECONDS)
        return launcher.returncode


# ---------------------------------------------------------------------- what happens to jobs


def time_limit(study: Study) -> None:
    """Slurm tells jobs that their limit is near, and submitit has them queued again."""
    wait_for(lambda: queued_again(study), "the time limit", 300.0)


def preemption(study: Study) -> None:
    """A job of the partition `high` takes the whole node."""
    study.cluster.ask("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    wait_for(lambda: queued_again(study), "the preemption", 120.0)


def node_restart(study: Study) -> None:
    """The node's processes are killed, it is down, and comes back."""
    study.cluster.restart_node()
    wait_for(lambda: queued_again(study), "the node", 120.0)


def queued_again(study: Study) -> bool:
    return all(job["Restarts"] != "0" for job in study.jobs().values())


FAULTS: dict[str, tuple[Callable[[Study], None], dict[str, Any], str]] = {
    "Slurm time limit": (time_limit, SHORT, "signal before the limit; queued again through submitit"),
    "Slurm preemption": (preemption, {}, "by a job of a higher partition; queued again by Slurm"),
    "Slurm node restart": (node_restart, {}, "SIGKILL of all its processes, node down and back; queued again by Slurm"),
}


def trial(cluster: Cluster, straight: Path, fault: str, n: int, folder: Path) -> dict[str, Any]:
    """The row of n runs that meet a fault together; a run may meet it more than once."""
    happens, launch, detail = FAULTS[fault]
    with contextlib.closing(Study(cluster, folder, grid(range(n)), **launch)) as study:
        launcher = study.start()
        study.wait_paused(n)
        happens(study)
        code = study.end(launcher)
        n_trials = sum(int(job["Restarts"]) for job in study.jobs().values())
    ours, theirs = contents(study.runs), contents(straight / "runs/tiny")
    theirs = {key: value for key, value in theirs.items() if any(f"-s{seed}-" in key for seed in range(n))}
    lost = {key.split("/")[0] for key in theirs if ours.get(key) != theirs[key]}
    return row(fault, n_trials, n if code else len(lost), f"{detail}; {n} runs")


def run_straight(folder: Path, n: int) -> Path:
    """The study without Slurm and without faults."""
    done = command("run", str(write_study(folder, base=BASE, grid=grid(range(n)))), cwd=folder)
    if done.returncode:
        raise RuntimeError(f"the study fails without any fault: {done.stderr[-500:]}")
    return folder


def campaign() -> list[dict[str, Any]]:
    """All rows."""
    if reason := install():
        print(f"no trials on Slurm: {reason}", file=sys.stderr)
        return []
    with (
        tempfile.TemporaryDirectory() as name,
        tempfile.TemporaryDirectory(prefix="slurm") as place,  # of its own, because munge's user has to enter it
        Cluster(Path(place)) as cluster,
    ):
        straight = run_straight(Path(name) / "straight", RUNS)
        return [trial(cluster, straight, fault, RUNS, Path(name) / str(i)) for i, fault in enumerate(FAULTS)]


if __name__ == "__main__":
    print(json.dumps(campaign(), indent=1))
