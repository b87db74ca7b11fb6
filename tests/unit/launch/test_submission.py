"""What runs ask a cluster for, and what happens when it refuses them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from submitit.core.utils import FailedJobError
from support import run_config

from bench.config.run import ConfigError, LaunchConfig
from bench.launch import submit as runners
from bench.launch.launches import Register
from bench.launch.submit import Item, Needs, Submission, needs, word
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


@pytest.fixture
def register(tmp_path) -> Iterator[Register]:
    path = tmp_path / "register.jsonl"
    with path.open("ab", buffering=0) as file:
        yield Register(path, file, "local")


def items(n: int, **train) -> list[Item]:
    return [Item(run_config("haar", "dit", **train), Path(f"run{i}"), {}) for i in range(n)]


def test_a_run_asks_for_its_threads_processes_and_gpus():
    launch = LaunchConfig(cpus_per_task=2, gpus_per_node=1)
    assert needs(run_config("haar", "dit"), launch) == Needs(cpus=2, gpus=0)
    assert needs(run_config("haar", "dit", n_threads=4), launch) == Needs(cpus=4, gpus=0)
    assert needs(run_config("haar", "dit", n_threads=4, n_processes=2), launch) == Needs(cpus=8, gpus=0)
    assert needs(run_config("haar", "dit", device="cuda"), launch) == Needs(cpus=2, gpus=1)
    assert needs(run_config("haar", "dit", device="cuda", n_processes=2), LaunchConfig()) == Needs(cpus=2, gpus=2)


def test_what_is_refused_later_is_tried_again_after_a_while(register, monkeypatch, caplog):
    """Control: where nothing was ever taken, it is an error of the page."""
    executor, clock = Executor(), iter(range(0, 1000, 40))
    monkeypatch.setattr(runners, "make_executor", lambda *_: executor)
    monkeypatch.setattr(runners, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    submit = Submission(LaunchConfig(), Path("study"), register)
    first, second = items(2), items(1)
    assert submit(first) == []
    executor.error = REFUSAL
    assert submit(second) == second
    assert "local refuses 1 runs that need 1 cores and 0 GPUs each: Job violates policy; trying again" in caplog.text
    executor.error, before = None, executor.n_jobs
    assert submit(second) == second  # not asked, within the minute
    assert executor.n_jobs == before
    assert submit(second) == []
    submitted = [json.loads(line)["run"] for line in register.path.read_text().splitlines()[1:]]
    assert submitted == ["run0", "run1", "run0"]

    monkeypatch.setattr(runners, "make_executor", lambda *_: Executor(REFUSAL))
    with pytest.raises(ConfigError, match="Job violates policy"):
        Submission(LaunchConfig(), Path("study"), register)(first)


def test_a_command_that_is_not_there_is_no_file_that_could_not_be_written(register, monkeypatch):
    """Control: on a full disk the files of submitit are named, and that nothing is lost."""
    missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "sbatch")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    said = []
    for error in (missing, full):
        monkeypatch.setattr(runners, "make_executor", lambda *_, error=error: Executor(error))
        with pytest.raises(OSError, match="No ") as caught:
            Submission(LaunchConfig(), Path("study"), register)(items(1))
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
    assert word(RuntimeError(text)) == expected
