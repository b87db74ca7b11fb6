"""What runs ask a cluster for, and what happens when it refuses them."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from submitit.core.utils import FailedJobError
from support import run_config
from tqdm import tqdm

from bench.config.run import ConfigError, LaunchConfig
from bench.config.study import StudyConfig
from bench.launch import progress, queue, submission, submit
from bench.launch.items import Item
from bench.launch.queue import last_job, submitted
from bench.launch.status import Position, state
from bench.launch.submission import Needs, Submission, last_line, make_executor, needs, outcome
from bench.launch.submit import sort_waiting
from bench.records.store import CONTINUES

REFUSAL = FailedJobError("sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Job violates policy")


DATA = {"name": "x", "label": "x", "source": "x", "fingerprint": "0", "n_train": 1, "n_valid": 1, "n_test": 1}
DATA |= {"mean_atoms": 1.0, "elements": [1], "notes": []}


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
    return [Item(run_config("haar", "dit", **train), folder / f"run{i}", DATA) for i in range(n)]


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
    monkeypatch.setattr(submission, "make_executor", lambda *_: executor)
    monkeypatch.setattr(submission, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    submitting = Submission(LaunchConfig(), tmp_path)
    first, second = items(tmp_path, 2), items(tmp_path / "later", 1)
    assert submitting(first) == []
    executor.error = REFUSAL
    assert submitting(second) == second
    assert "local refuses 1 runs that need 1 cores and 0 GPUs each: Job violates policy; trying again" in caplog.text
    executor.error, before = None, executor.n_jobs
    assert submitting(second) == second  # not asked, within the minute
    assert executor.n_jobs == before
    assert submitting(second) == []
    assert [last_job(item.folder) for item in (*first, *second)] == [{"cluster": "local", "job": n} for n in "124"]

    monkeypatch.setattr(submission, "make_executor", lambda *_: Executor(REFUSAL))
    with pytest.raises(ConfigError, match="Job violates policy"):
        Submission(LaunchConfig(), tmp_path)(first)


def test_a_command_that_is_not_there_is_no_file_that_could_not_be_written(tmp_path, monkeypatch):
    """Control: on a full disk the files of submitit are named, and that nothing is lost."""
    missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "sbatch")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    said = []
    for error in (missing, full):
        monkeypatch.setattr(submission, "make_executor", lambda *_, error=error: Executor(error))
        with pytest.raises(OSError, match="No ") as caught:
            Submission(LaunchConfig(), tmp_path)(items(tmp_path, 1))
        said.append(str(caught.value))
    assert said[0] == str(missing) == "[Errno 2] No such file or directory: 'sbatch'"
    assert f"could not write {Executor.folder}; nothing already written was lost, {CONTINUES}" in said[1]


def test_a_run_that_cannot_be_started_says_so_in_its_record(tmp_path, monkeypatch):
    """Refused by the cluster, a command that is missing, a job that is gone, and a device that torch does not know."""
    missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "sbatch")

    def gone():
        raise FailedJobError("Job 3 has not produced any output (state: GONE)")

    told = {}
    for name, error in (("refused", REFUSAL), ("missing", missing), ("gone", None)):
        (item,) = items(tmp_path / name, 1)
        monkeypatch.setattr(submission, "make_executor", lambda *_, error=error: Executor(error))
        submitting = Submission(LaunchConfig(), tmp_path)
        if error is None:
            submitting([item])
            item.job = SimpleNamespace(result=gone)
            outcome(item)
        else:
            with pytest.raises((ConfigError, OSError)):
                submitting([item])
        assert item.status == "running"  # the same command starts it
        told[name] = state(item.folder)
        assert told[name].status == "killed"
        assert CONTINUES in told[name].detail
    assert "Job violates policy" in told["refused"].detail
    assert "No such file or directory: 'sbatch'" in told["missing"].detail
    assert "state: GONE" in told["gone"].detail

    (item,) = items(tmp_path / "device", 1)
    item.cfg.train.device = "gpu"  # past the reader
    item.job = SimpleNamespace(result=lambda: "RuntimeError: no device type gpu")
    outcome(item)
    assert (item.status, item.reason) == ("failed", "RuntimeError: no device type gpu")


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
    monkeypatch.setattr(submission, "watch_queue", lambda: None)
    monkeypatch.setattr(queue.shutil, "which", lambda _: "squeue")
    answer = lambda *_, **__: SimpleNamespace(returncode=answers[0] is None, stdout=answers[0])  # noqa: E731
    monkeypatch.setattr(queue.subprocess, "run", answer)
    waiting, forgotten, new = items(tmp_path, 3)
    submitted(waiting.folder, "slurm", "7_0")
    submitted(forgotten.folder, "slurm", "6")
    submitting = Submission(LaunchConfig(cluster="slurm"), tmp_path)
    everything = [waiting, forgotten, new]
    ready, elsewhere = sort_waiting(everything, submitting.by_others(everything))
    assert ready == [forgotten, new]
    assert elsewhere == {waiting.folder: None}
    assert waiting.shared

    answers[0] = ""  # the job has ended, and Slurm is asked again after a while
    assert submitting.by_others(everything) == {waiting.folder.name}
    submitting.asked -= 2 * submission.QUEUE_SECONDS
    assert submitting.by_others(everything) == set()
    submitting.queued, submitting.asked, answers[0] = (
        {waiting.folder.name},
        submitting.asked - 2 * submission.QUEUE_SECONDS,
        None,
    )
    assert submitting.by_others(everything) == {waiting.folder.name}  # no answer: what was known goes on


def test_a_local_launcher_does_not_ask_slurm(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("asked")

    monkeypatch.setattr(submission, "queued_jobs", refuse)
    assert Submission(LaunchConfig(), tmp_path).by_others(items(tmp_path, 1)) == set()


def test_a_job_has_left_the_queue_when_two_answers_lack_it(monkeypatch):
    """Slurm's answer can lack a job in the moment of its requeueing; control: the second such answer counts."""
    from submitit.slurm import slurm

    monkeypatch.setattr(slurm.SlurmJob, "watcher", slurm.SlurmJob.watcher)
    submission.watch_queue()
    watcher = slurm.SlurmJob.watcher
    watcher.register_job("1_7")
    there, away = "1_7|RUNNING|None\n", "1_6|RUNNING|None\n"
    states = [watcher.read_info(answer)["1_7"]["State"] for answer in (there, away, there, away, away)]
    assert states == ["PENDING", "PENDING", "PENDING", "PENDING", "GONE"]


def test_an_interrupted_launcher_stops_its_jobs_on_this_machine(tmp_path, monkeypatch):
    """Those of a cluster go on (control)."""
    stopped: list[str] = []

    def interrupted(waiting, *_):
        for item, ended in zip(waiting, (True, False), strict=True):
            name = item.folder.name
            item.job = SimpleNamespace(done=lambda ended=ended: ended, cancel=lambda name=name: stopped.append(name))
        raise KeyboardInterrupt

    monkeypatch.setattr(submit, "write_plan", lambda *_: None)
    monkeypatch.setattr(submission, "watch_queue", lambda: None)
    monkeypatch.setattr(submit, "plan", lambda *_: items(tmp_path, 2))
    monkeypatch.setattr(submit, "work_off", interrupted)
    for cluster, expected in (("slurm", []), ("local", ["run1"])):
        study = StudyConfig("study", [], LaunchConfig(cluster=cluster), {})
        with pytest.raises(KeyboardInterrupt) as caught:
            submit.run_study(study, tmp_path)
        assert stopped == expected
        line = str(caught.value)
        assert line.startswith(f"interrupted: 0 of 2 runs done, 0 begun; {CONTINUES}")
        assert ("scancel --name equibench-study" in line) == (cluster == "slurm")


# ---------------------------------------------------------------------- the batch file


@pytest.fixture
def sbatch(tmp_path, monkeypatch) -> Path:
    """A folder for commands: `sbatch` takes every job, `srun` starts nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, answer in (("sbatch", "Submitted batch job 7"), ("srun", ""), ("squeue", "")):
        (folder / name).write_text(f"#!/bin/sh\necho {answer}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(submission, "watch_queue", lambda: None)
    return folder


def batch_files(study_folder: Path) -> list[str]:
    return [path.read_text() for path in study_folder.glob(".submitit/*/*_submission.sh") if not path.is_symlink()]


def past_the_reader(**values: Any) -> LaunchConfig:
    """A configuration whose reader let something through."""
    launch = LaunchConfig(cluster="slurm")
    vars(launch).update(values)
    return launch


HOSTILE = {
    "partition": past_the_reader(slurm_partition="cpu\ntouch PWNED\n#"),
    "value": past_the_reader(slurm_options={"account": "me\ntouch PWNED\n#"}),
    "carriage return": past_the_reader(slurm_options={"account": "me\rtouch PWNED"}),
    "name": past_the_reader(slurm_options={"account=me\ntouch PWNED\n#": "x"}),
    "a second option": past_the_reader(slurm_options={"account": "me --wrap=reboot"}),
    "quote": past_the_reader(slurm_options={"comment": "it's"}),
    "semicolon": past_the_reader(slurm_options={"account": "me;touch PWNED"}),
    "substitution": past_the_reader(slurm_options={"account": "$(touch PWNED)"}),
    "backticks": past_the_reader(slurm_options={"account": "`touch PWNED`"}),
    "line separator": past_the_reader(slurm_options={"account": "me\u2028x"}),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_option_becomes_a_line_of_the_batch_file(kind, tmp_path, sbatch):
    """However it got past the reader of the study file: refused in one line, before anything is written."""
    study_folder = tmp_path / "study"
    with pytest.raises(ConfigError, match=r"launch: Slurm option .* expected letters, digits") as caught:
        Submission(HOSTILE[kind], study_folder)(items(study_folder, 1))
    assert "\n" not in str(caught.value)
    assert batch_files(study_folder) == []


def test_a_folder_with_a_line_break_is_refused_too(tmp_path, sbatch):
    study_folder = tmp_path / "a\ntouch PWNED"
    with pytest.raises(ConfigError, match="has a line break"):
        Submission(LaunchConfig(cluster="slurm"), study_folder)(items(study_folder, 1))


def test_a_batch_file_holds_its_options_and_one_command(tmp_path, sbatch):
    """Control of the refusals, and what they stand for: without them a value becomes a line of the shell."""
    study_folder = tmp_path / "study"
    options = {"account": "me", "constraint": "a100&(ib|eth)", "exclude": "n[1-3,7]", "gres": "gpu:a100:2"}
    options |= {"time": "1-00:00:00", "mail_user": "me@home.org", "licenses": "x:2", "exclusive": True}
    launch = LaunchConfig(cluster="slurm", slurm_partition="cpu", slurm_options=options)
    assert Submission(launch, study_folder)(items(study_folder, 2)) == []
    (text,) = batch_files(study_folder)
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines[0] == "export SUBMITIT_EXECUTOR=slurm"
    assert lines[1].startswith("srun ")
    assert f"{shlex.quote(sys.executable)} -P -u -m submitit.core._submit" in lines[1]  # whatever the environment
    assert len(lines) == 2
    assert "#SBATCH --account=me" in text
    assert "#SBATCH --constraint='a100&(ib|eth)'" in text


def test_without_the_refusal_a_value_is_a_line_of_the_shell(tmp_path, sbatch, monkeypatch):
    monkeypatch.setattr(submission, "refuse_shell_lines", lambda *_: None)
    study_folder = tmp_path / "study"
    Submission(HOSTILE["value"], study_folder)(items(study_folder, 1))
    (text,) = batch_files(study_folder)
    assert "touch PWNED" in text.splitlines()


def test_a_worker_on_this_machine_starts_with_the_working_directory_off_its_path(tmp_path):
    executor = make_executor(LaunchConfig(cluster="local"), Needs(1, 0), tmp_path / "study")
    assert executor._executor._submitit_command_str.startswith(f"{shlex.quote(sys.executable)} -P -u -m submitit")


def test_an_interrupted_launcher_says_what_is_saved(tmp_path, monkeypatch):
    """Control: a run without a checkpoint is begun, and nothing of it is saved."""
    first, second = items(tmp_path, 2)
    monkeypatch.setattr(Item, "status", property(lambda _: "running"))
    monkeypatch.setattr(submit, "last_checkpoint", lambda folder: 400 if folder == first.folder else 0)
    line = submit.interrupted(StudyConfig("study", [], LaunchConfig(), {}), [first, second])
    assert line == f"interrupted: 0 of 2 runs done, 2 begun, saved run0 to step 400; {CONTINUES}"


def test_standard_error_goes_to_a_file_and_comes_back(tmp_path, capfd):
    """Also that of children; control: outside of the context."""
    with submission.standard_error_to(tmp_path / "a" / "log"):
        subprocess.run([sys.executable, "-c", "import sys; print('child', file=sys.stderr)"], check=True)
    with submission.standard_error_to(None):
        os.write(2, b"control\n")
    assert (tmp_path / "a" / "log").read_text() == "child\n"
    assert capfd.readouterr().err == "control\n"


# ---------------------------------------------------------------------- progress


def progress_of(monkeypatch, at: list[Position], terminal: bool = True) -> progress.Progress:
    """A progress display of two runs whose position is always the last of `at`."""
    monkeypatch.setattr(progress, "position", lambda _: at[-1])
    monkeypatch.setattr(progress.sys, "stderr", SimpleNamespace(isatty=lambda: terminal, write=len, flush=lambda: None))
    return progress.Progress("study", 2)


def test_rates_count_the_steps_of_this_session_alone(tmp_path, monkeypatch):
    """A resumed run starts its bar where it is. Control: a bar from 0 would count what earlier sessions did."""
    at = [Position("training", 900, 1000, "step")]
    (item,) = items(tmp_path, 1)
    with progress_of(monkeypatch, at) as progress:
        progress.show([item])
        at.append(Position("training", 910, 1000, "step"))
        progress.show([item])
        bar = progress.bars[item.folder]
        assert (bar.initial, bar.n, bar.total) == (900, 910, 1000)
        about = bar.format_dict
        counted = tqdm.format_meter(**about | {"elapsed": 10.0})
        assert "1.00step/s" in counted
        assert "91.00step/s" in tqdm.format_meter(**about | {"elapsed": 10.0, "initial": 0})
        at.append(Position("training", 880, 1000, "step"))  # it went back to its checkpoint
        progress.show([item])
        assert progress.bars[item.folder].initial == 880
        at.append(Position("sampling", 1, 4, "chunk"))
        progress.show([item])
        bar = progress.bars[item.folder]
        assert (bar.initial, bar.total, bar.unit) == (1, 4, "chunk")


def test_a_study_has_a_bar_and_a_line_of_its_own(tmp_path, monkeypatch):
    first, second = items(tmp_path, 2)
    with progress_of(monkeypatch, [Position("training", 0, 10, "step")]) as progress:
        assert progress.whole is not None
        progress.show([first, second])
        progress.finished(first, "done")
        assert (progress.whole.n, progress.whole.total, progress.whole.desc) == (1, 2, "study")
        assert list(progress.bars) == [second.folder]
    with progress_of(monkeypatch, [], terminal=False) as progress:
        assert progress.whole is None
        assert progress.line(60.0) == "study: 0 of 2 runs ended"
        progress.finished(first, "done")
        assert progress.line(60.0) == "study: 1 of 2 runs ended, about 60 s left"
