"""Read by every Python whose PYTHONPATH has this folder: a run in the first life of a Slurm job waits at a random step.

It tells so by a file of the job's number in the folder that EQUIBENCH_TEST_PAUSE names, and goes on once there is a
file `go`. So a test can do to a run what it wants while it trains, however busy the machine is. A job that was queued
again does not wait.
"""

import importlib.abc
import importlib.util
import os
import random
import sys
import time
from pathlib import Path

JOB = os.environ.get("SLURM_JOB_ID")
FOLDER = Path(os.environ.get("EQUIBENCH_TEST_PAUSE", "/nowhere"))
LAST_STEP = 18  # of the steps of the study


def wait() -> None:
    (FOLDER / str(JOB)).touch()
    while not (FOLDER / "go").exists():
        time.sleep(0.1)


class Pause(importlib.abc.MetaPathFinder):
    """Wraps the step when the module that has it is imported."""

    def find_spec(self, name, path=None, target=None):
        if name != "bench.run.train":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load, left = spec.loader.exec_module, random.Random(JOB).randint(1, LAST_STEP)

        def load_and_wrap(module):
            load(module)
            step = module.training_step

            def paused(*args, **kwargs):
                nonlocal left
                left -= 1
                if left == 0:
                    wait()
                return step(*args, **kwargs)

            module.training_step = paused

        spec.loader.exec_module = load_and_wrap
        return spec


if JOB and FOLDER.is_dir() and os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
    sys.meta_path.insert(0, Pause())
