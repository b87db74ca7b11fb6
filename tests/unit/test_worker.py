"""The process that watches a run."""

import subprocess
import sys

INTERRUPTED = """
import signal, sys
from bench.worker import Job

job = Job()

def on_signal(*_):
    again = job.checkpoint({}, sys.argv[1], 1)  # as submitit does on a time limit, in the middle of the waiting
    assert again.function.child is None and job.child.returncode is not None
    sys.exit(3)

signal.signal(signal.SIGALRM, on_signal)
signal.setitimer(signal.ITIMER_REAL, 1.0)  # the run's process imports torch until then, or has been refused
while True:
    job.watch({}, sys.argv[1], 1)
"""


def test_a_signal_while_a_run_is_waited_for_ends_it(tmp_path):
    """Slurm's time limit: the handler stops the run and hands back what is to be queued again."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 3, done.stderr
