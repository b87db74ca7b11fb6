"""The process that watches a run."""

import subprocess
import sys

import pytest

INTERRUPTED = """
import signal, subprocess, sys
from bench.worker import Job

job = Job()

def on_signal(*_):
    again = job.checkpoint({}, sys.argv[1], 1)  # as submitit does on a time limit, in the middle of the waiting
    assert again.function.child is None and job.child.returncode is not None
    if sys.argv[2] == "queued again":
        sys.exit(3)
    raise subprocess.CalledProcessError(1, ["scontrol", "requeue"])

signal.signal(signal.SIGALRM, on_signal)
signal.setitimer(signal.ITIMER_REAL, 1.0)  # the run's process imports torch until then, or has been refused
try:
    while True:
        job.watch({}, sys.argv[1], 1)
except Exception:  # would be the result of submitit's job
    sys.exit(9)
"""


@pytest.mark.parametrize(("what", "code"), [("queued again", 3), ("refused", 1)])
def test_a_signal_while_a_run_is_waited_for_ends_it(tmp_path, what, code):
    """Slurm's time limit: the handler stops the run, and the job has no result, also where Slurm has other plans."""
    line = [sys.executable, "-c", INTERRUPTED, str(tmp_path), what]
    done = subprocess.run(line, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == code, done.stderr
