"""Two `equibench run` on one study at a time, and what is lost by it: `python -m faults.launchers` prints rows as JSON.

Both start within a random time of each other; in every second trial one of them is killed at a random moment, with all
that it had started, and the other has to end the study alone. It must end with the bits of the study run straight
through, and without a kill no run may have been executed twice.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from e2e.test_study import command, contents, write_study
from faults.kills import BASE, row

STUDY = {
    "base": BASE,
    "grid": [{"method": ["haar"], "backbone": [{"name": "dit", "size": "tiny"}], "seed": [0, 1, 2]}],
}
TRIALS = 10  # of each kind
APART = 2.0  # seconds between the two starts, at most
KILLED_WITHIN = 15.0  # seconds
SECONDS = 600.0  # for a study to end


def trial(folder: Path, kill: bool, rng: random.Random, expected: dict[str, object]) -> tuple[bool, bool]:
    """Whether one was killed before its end, and whether something was lost."""
    path = write_study(folder, **STUDY, launch={"cluster": rng.choice(("debug", "local")), "n_parallel": 2})
    first = command("run", str(path), cwd=folder, start=True)
    time.sleep(rng.uniform(0, APART))
    second = command("run", str(path), cwd=folder, start=True)
    if kill:
        time.sleep(rng.uniform(0, KILLED_WITHIN))
        stop(first)
    try:
        codes = [process.wait(timeout=SECONDS) for process in (first, second)]
        found = contents(folder / "runs/tiny")
    except (subprocess.TimeoutExpired, OSError):  # it hangs, or a file is not there
        codes, found = [first.poll(), None], {}
    finally:
        stop(first)
        stop(second)
    killed = codes[0] == -signal.SIGKILL
    logs = [log.read_text() for log in (folder / "runs/tiny").glob("*/log.txt")]
    once = all(log.count("INFO done\n") == 1 for log in logs)
    return killed, not (codes[1] == 0 and (killed or (codes[0] == 0 and once)) and found == expected)


def stop(process: subprocess.Popen) -> None:
    """Kill a launcher and all it has started, if it has not ended."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def campaign() -> list[dict[str, Any]]:
    """Rows of studies shared by two launchers, and of those in which one of the two is killed."""
    rng = random.Random(0)
    trials, losses = {False: 0, True: 0}, {False: 0, True: 0}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        done = command("run", str(write_study(home / "straight", **STUDY)), cwd=home / "straight")
        if done.returncode:
            raise RuntimeError(f"the study fails without any fault: {done.stderr[-500:]}")
        expected = contents(home / "straight/runs/tiny")
        number = 0
        while min(trials.values()) < TRIALS:
            number += 1
            killed, lost = trial(home / str(number), trials[True] < TRIALS and number % 2 == 0, rng, expected)
            trials[killed] += 1
            losses[killed] += lost
    return [
        row(
            "two launchers on one study",
            trials[False],
            losses[False],
            f"started within {APART:g} s; each run executed once",
        ),
        row(
            "two launchers, one killed", trials[True], losses[True], "with all it had started; the other ends the study"
        ),
    ]


if __name__ == "__main__":
    print(json.dumps(campaign(), indent=1))
