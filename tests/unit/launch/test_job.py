"""The submit job: the supervisor of a run's child process."""

import signal
import subprocess
import sys

import pytest

INTERRUPTED = """
import signal, subprocess, sys
from bench.launch.job import Job

job = Job()

def on_signal(*_):
    again = job.checkpoint({}, sys.argv[1], 1, "evaluated")  # as submitit on a time limit, while waiting
    assert again.function.child is None and job.child.returncode is not None
    if sys.argv[2] == "queued again":
        sys.exit(3)
    raise subprocess.CalledProcessError(1, ["scontrol", "requeue"])

signal.signal(signal.SIGALRM, on_signal)
signal.setitimer(signal.ITIMER_REAL, 1.0)  # by then the run imports torch, or has refused its configuration
try:
    while True:
        job.watch({}, sys.argv[1], 1, "evaluated")
except Exception:  # would be the result of submitit's job
    sys.exit(9)
"""


@pytest.mark.parametrize(("what", "code"), [("queued again", 3), ("refused", 1)])
def test_a_signal_while_waiting_for_a_run_ends_it(tmp_path, what, code):
    """Slurm's time limit: the handler stops the run, and the job has no result, also where Slurm has other plans."""
    line = [sys.executable, "-c", INTERRUPTED, str(tmp_path), what]
    done = subprocess.run(line, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == code, done.stderr


SIGNALLED = """
import os, signal, subprocess, sys
from bench.launch.job import Job

for number in (signal.SIGTERM, signal.SIGUSR2):  # submitit has answers of its own
    signal.signal(number, lambda *_: None)
Popen = subprocess.Popen

def started(*args, **kwargs):
    child = Popen(*args, **kwargs)
    os.kill(child.pid, getattr(signal, sys.argv[2]))  # before the first line of Python in the run
    return child

subprocess.Popen = started
print(Job().watch({}, sys.argv[1], 1, "evaluated"))
"""


@pytest.mark.parametrize(("name", "dies"), [("SIGTERM", False), ("SIGUSR2", False), ("SIGHUP", True)])
def test_a_run_that_starts_leaves_slurms_signals_to_its_watcher(tmp_path, name, dies):
    """Else it would end with a result, and the job would be over instead of requeued. Control: SIGHUP."""
    line = [sys.executable, "-c", SIGNALLED, str(tmp_path), name]
    done = subprocess.run(line, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    refusal = f"killed by signal {signal.SIGHUP.value}" if dies else "is missing"  # of an empty configuration
    assert refusal in done.stdout, done.stdout
