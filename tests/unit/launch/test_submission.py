"""What runs ask a cluster for, and what happens when it refuses them."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from submitit.core.utils import FailedJobError
from support import run_config

from bench.config.run import ConfigError, LaunchConfig
from bench.config.study import StudyConfig
from bench.launch import queue
from bench.launch import submit as runners
from bench.launch.queue import last_job, submitted
from bench.launch.submit import Item, Needs, Submission, last_line, needs, sort_waiting
from bench.records.store import CONTINUES

REFUSAL = FailedJobError("sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Job violates policy")


class Executor:
    """Takes jobs, or raises what it is given."""

    folder = Path("study/.submitit")

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.n_jobs = error, 0

    @contextlib.contextmanager
    def batch(self):
        yield
        if self.error is not None:
            raise self.error

    def submit(self, *_):
        self.n_jobs += 1
        return SimpleNamespace(job_id=str(self.n_jobs))


def items(folder: Path, n: int, **train) -> list[Item]:
    return [Item(run_config("haar", "dit", **train), folder / f"run{i}", {}) for i in range(n)]


def test_a_run_asks_for_its_threads_ranks_and_gpus():
    launch = LaunchConfig(cpus_per_task=2, gpus_per_node=1)
    assert needs(run_config("haar", "dit"), launch) == Needs(cpus=2, gpus=0)
    assert needs(run_config("haar", "dit", n_threads=4), launch) == Needs(cpus=4, gpus=0)
    assert needs(run_config("haar", "dit", n_threads=4, n_processes=2), launch) == Needs(cpus=8, gpus=0)
    assert needs(run_config("haar", "dit", device="cuda"), launch) == Needs(cpus=2, gpus=1)
    assert needs(run_config("haar", "dit", device="cuda", n_processes=2), LaunchConfig()) == Needs(cpus=2, gpus=2)


def test_what_is_refused_later_is_tried_again_after_a_while(tmp_path, monkeypatch, caplog):
    """Control: where nothing was ever taken, it is an error of the study file."""
    executor, clock = Executor(), iter(range(0, 1000, 40))
    monkeypatch.setattr(runners, "make_executor", lambda *_: executor)
    monkeypatch.setattr(runners, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    submit = Submission(LaunchConfig(), tmp_path)
    first, second = items(tmp_path, 2), items(tmp_path / "later", 1)
    assert submit(first) == []
    executor.error = REFUSAL
    assert submit(second) == second
    assert "local refuses 1 runs that need 1 cores and 0 GPUs each: Job violates policy; trying again" in caplog.text
    executor.error, before = None, executor.n_jobs
    assert submit(second) == second  # not asked, within the minute
    assert executor.n_jobs == before
    assert submit(second) == []
    assert [last_job(item.folder) for item in (*first, *second)] == [{"cluster": "local", "job": n} for n in "124"]

    monkeypatch.setattr(runners, "make_executor", lambda *_: Executor(REFUSAL))
    with pytest.raises(ConfigError, match="Job violates policy"):
        Submission(LaunchConfig(), tmp_path)(first)


def test_a_command_that_is_not_there_is_no_file_that_could_not_be_written(tmp_path, monkeypatch):
    """Control: on a full disk the files of submitit are named, and that nothing is lost."""
    missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "sbatch")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    said = []
    for error in (missing, full):
        monkeypatch.setattr(runners, "make_executor", lambda *_, error=error: Executor(error))
        with pytest.raises(OSError, match="No ") as caught:
            Submission(LaunchConfig(), tmp_path)(items(tmp_path, 1))
        said.append(str(caught.value))
    assert said[0] == str(missing) == "[Errno 2] No such file or directory: 'sbatch'"
    assert f"could not write {Executor.folder}; nothing already written was lost, {CONTINUES}" in said[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Job 3 has not produced any output (state: GONE)\nsubmitit WARNING (2026) - Bypassing signal SIGTERM\n"
            "slurmstepd-n1: error: *** JOB 3 ON n1 CANCELLED AT 2026 DUE TO TIME LIMIT ***\nsrun: error: n1: Killed",
            "JOB 3 ON n1 CANCELLED AT 2026 DUE TO TIME LIMIT",
        ),
        ("with trace:\nTraceback:\n  File x\nlib.SomeError: not queued again\n---", "lib.SomeError: not queued again"),
        ("", "RuntimeError"),
    ],
)
def test_the_most_telling_line_is_shown(text, expected):
    assert last_line(RuntimeError(text)) == expected


def test_what_waits_in_slurms_queue_is_not_submitted_again(tmp_path, monkeypatch):
    """By another launcher, alive or dead. Control: a job that Slurm has forgotten, and a run that never had one."""
    answers: list[str | None] = ["7_0|PENDING|Priority\n"]
    monkeypatch.setattr(runners, "watch_queue", lambda: None)
    monkeypatch.setattr(queue.shutil, "which", lambda _: "squeue")
    answer = lambda *_, **__: SimpleNamespace(returncode=answers[0] is None, stdout=answers[0])  # noqa: E731
    monkeypatch.setattr(queue.subprocess, "run", answer)
    waiting, forgotten, new = items(tmp_path, 3)
    submitted(waiting.folder, "slurm", "7_0")
    submitted(forgotten.folder, "slurm", "6")
    submit = Submission(LaunchConfig(cluster="slurm"), tmp_path)
    everything = [waiting, forgotten, new]
    ready, elsewhere = sort_waiting(everything, submit.by_others(everything))
    assert ready == [forgotten, new]
    assert elsewhere == {waiting.folder: None}
    assert waiting.shared

    answers[0] = ""  # the job has ended, and Slurm is asked again after a while
    assert submit.by_others(everything) == {waiting.folder.name}
    submit.asked -= 2 * runners.QUEUE_SECONDS
    assert submit.by_others(everything) == set()
    submit.queued, submit.asked, answers[0] = {waiting.folder.name}, submit.asked - 2 * runners.QUEUE_SECONDS, None
    assert submit.by_others(everything) == {waiting.folder.name}  # no answer: what was known goes on


def test_a_local_launcher_does_not_ask_slurm(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("asked")

    monkeypatch.setattr(runners, "queued_jobs", refuse)
    assert Submission(LaunchConfig(), tmp_path).by_others(items(tmp_path, 1)) == set()


def test_an_interrupted_launcher_stops_its_jobs_on_this_machine(tmp_path, monkeypatch):
    """Those of a cluster go on (control)."""
    stopped: list[str] = []

    def interrupted(waiting, *_):
        for item, ended in zip(waiting, (True, False), strict=True):
            name = item.folder.name
            item.job = SimpleNamespace(done=lambda ended=ended: ended, cancel=lambda name=name: stopped.append(name))
        raise KeyboardInterrupt

    for name in ("write_plan", "watch_queue"):
        monkeypatch.setattr(runners, name, lambda *_: None)
    monkeypatch.setattr(runners, "plan", lambda *_: items(tmp_path, 2))
    monkeypatch.setattr(runners, "work_off", interrupted)
    for cluster, expected in (("slurm", []), ("local", ["run1"])):
        study = StudyConfig("study", [], LaunchConfig(cluster=cluster), {})
        with pytest.raises(KeyboardInterrupt):
            runners.run_study(study, tmp_path)
        assert stopped == expected
