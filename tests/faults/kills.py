"""Faults on a tiny study, and what is lost by them: `python -m faults.kills` prints rows as JSON.

Kills: chains of SIGKILLs, one in each stage at a random moment, each followed by the same command; when the study has
ended, everything that must not depend on interruptions is compared bit for bit with the study run straight through.
Damage: one file of a run's folder is cut short or has one bit flipped, and the same run is executed again. It must end
with the same bits, or say in one line which file is damaged. Anything else is a loss.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from e2e.test_study import ENVIRONMENT, TINY, command, contents, write_study

# one trained run and one that samples with its weights; a checkpoint at each of four logging intervals
BASE = {**TINY["base"], "train": {**TINY["base"]["train"], "n_steps": 20, "valid_every": 10}}
STUDY = {
    "base": BASE,
    "grid": [{"method": ["symdiff_haar"], "backbone": [{"name": "dit", "size": "tiny"}], "seed": [0]}],
}
KILLS = 50  # as far as possible as many in each stage
DAMAGED = 10  # truncations, and flips, of each file of each state
# stage -> the function in which the process dies, in how many of its calls, and within how many seconds of the call
STAGES: dict[str, tuple[str, int, float]] = {
    "training": ("bench.run.train.training_step", 12, 0.005),
    "checkpointing": ("bench.run.train.save_state", 2, 0.004),
    "sampling": ("bench.run.evaluate.sample_prompt", 3, 0.05),
    "measuring": ("bench.run.execute.measure_run", 1, 0.1),
    "evaluating": ("bench.run.execute.evaluate_run", 1, 0.1),
    "record writing": ("bench.records.store.write_atomically", 8, 0.001),
}


def row(fault: str, trials: int, losses: int, detail: str) -> dict[str, Any]:
    """One line of the table: a fault, how often it was made, how often something was lost, what happened otherwise."""
    return {"fault": fault, "trials": trials, "losses": losses, "detail": detail}


# ---------------------------------------------------------------------- kills


def die_in(where: str, call: int, delay: float) -> None:
    """Have this process killed `delay` seconds after the start of the given call of a function, if it lasts that long;
    else after the next one that does."""
    module_name, name = where.rsplit(".", 1)
    module = importlib.import_module(module_name)
    original: Callable[..., Any] = getattr(module, name)
    calls = 0

    @functools.wraps(original)
    def armed(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < call:
            return original(*args, **kwargs)
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL))
        timer.start()
        try:
            return original(*args, **kwargs)
        finally:
            timer.cancel()

    for other_name, other in list(sys.modules.items()):  # also where it was imported by name
        if other_name.startswith("bench.") and vars(other).get(name) is original:
            setattr(other, name, armed)


def victim(where: str, call: int, delay: float, arguments: list[str]) -> int:
    """`equibench ARGUMENTS`, to be killed on its way."""
    from bench.cli.main import main

    for module in ("bench.run.execute", "bench.run.train", "bench.run.evaluate", "bench.launch.submit"):
        importlib.import_module(module)
    die_in(where, call, delay)
    return main(arguments)


def killed(stage: str, rng: random.Random, path: Path) -> bool:
    """Run a study until it is killed in a stage; False when it has ended before."""
    where, most, seconds = STAGES[stage]
    given = [where, str(rng.randint(1, most)), str(rng.uniform(0, seconds))]
    line = [sys.executable, "-m", "faults.kills", "--victim", *given, "run", str(path)]
    paths = os.pathsep.join(str(Path(__file__).parents[up]) for up in (2, 1))
    done = subprocess.run(
        line, cwd=path.parent, env={**ENVIRONMENT, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the study failed before it was killed: {done.stderr[-500:]}")
    return done.returncode != 0


def kills(straight: Path, home: Path) -> list[dict[str, Any]]:
    """A row for each stage."""
    rng, trials, losses = random.Random(0), Counter[str](), Counter[str]()
    expected = contents(straight / "runs/tiny")
    number = 0
    while sum(trials.values()) < KILLS:
        number += 1
        folder = home / f"chain{number}"
        path = write_study(folder, **STUDY)
        left = KILLS - sum(trials.values())
        hit = [stage for stage in list(STAGES)[:left] if killed(stage, rng, path)]
        trials.update(hit)
        if command("run", str(path), cwd=folder).returncode != 0 or contents(folder / "runs/tiny") != expected:
            losses.update(hit)  # of a chain that ends elsewhere, each kill may be the cause
        shutil.rmtree(folder)
    where = {stage: STAGES[stage][0].removeprefix("bench.") for stage in STAGES}
    return [
        row(f"SIGKILL in {stage}", trials[stage], losses[stage], f"at a random moment of `{where[stage]}`")
        for stage in STAGES
    ]


# ---------------------------------------------------------------------- damaged files


class CutError(BaseException):
    """Ends a run as a kill would, within this process."""


@contextlib.contextmanager
def cut_at(where: str, call: int) -> Iterator[None]:
    calls = 0
    module, name = where.rsplit(".", 1)
    original = getattr(importlib.import_module(module), name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise CutError
        return original(*args, **kwargs)

    with mock.patch(where, counted):
        yield


def truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def damage(home: Path) -> list[dict[str, Any]]:
    """Rows for truncations and flips of each file of a run that was cut in training, in sampling, and is done."""
    from bench.config.study import load_study
    from bench.launch.items import plan
    from bench.run.execute import execute

    rng = random.Random(0)
    grid = [{**STUDY["grid"][0], "method": ["haar"]}]
    study = load_study(str(write_study(home / "damage", **{**STUDY, "grid": grid})))
    states = {
        "cut in training": ("bench.run.train.training_step", 18),
        "cut in sampling": ("bench.run.evaluate.sample_prompt", 3),
        "done": None,
    }
    trials, losses, ends = Counter[tuple[str, str]](), Counter[tuple[str, str]](), {}
    (item,) = plan(study, home / "undamaged")
    execute(item.cfg, item.folder)
    expected = contents(item.folder.parent)
    for state, at in states.items():
        (item,) = plan(study, home / state)
        with contextlib.suppress(CutError), cut_at(*at) if at else contextlib.nullcontext():
            execute(item.cfg, item.folder)
        files = [p for p in sorted(item.folder.rglob("*")) if p.is_file() and p.name not in ("lock", "log.txt")]
        for file in files:
            kind = file.suffix.lstrip(".") if file.parent != item.folder else file.name
            for how in (truncated, flipped):
                for _ in range(DAMAGED):
                    folder = home / "trial" / item.folder.parent.name / item.folder.name
                    shutil.rmtree(home / "trial", ignore_errors=True)
                    shutil.copytree(item.folder.parent, folder.parent)
                    target = folder / file.relative_to(item.folder)
                    target.write_bytes(how(target.read_bytes(), rng))
                    end = ending(item.cfg, folder, expected)
                    key = (how.__name__, kind if file.parent == item.folder else f"chunks/*.{kind}")
                    trials[key] += 1
                    losses[key] += end == "lost"
                    ends.setdefault(key, Counter())[end] += 1
    words = {"truncated": "truncation of", "flipped": "flipped bit in"}
    return [
        row(
            f"{words[how]} {kind}",
            trials[how, kind],
            losses[how, kind],
            ", ".join(f"{k}: {v}" for k, v in sorted(e.items())),
        )
        for (how, kind), e in sorted(ends.items())
    ]


def ending(cfg: Any, folder: Path, expected: dict[str, object]) -> str:
    """same: the run ends with the same bits; refused: one line that names a file; reported: a line in the log, and the
    run goes on; lost: anything else."""
    from bench.records import schema
    from bench.records import store as records
    from bench.run.execute import execute
    from bench.run.sample import load_run
    from bench.structures import files

    warned = Warnings()
    logging.getLogger("equibench").addHandler(warned)
    try:
        execute(cfg, folder)
        # what the run did not need is read by whoever uses it
        load_run(folder)
        files.read(folder / "samples.npz")
        records.read_json(folder / "manifest.json", schema.MANIFEST)
        evaluation = records.read_json(folder / "eval.json", schema.EVALUATION)
        records.read_steps(folder / "steps.jsonl", evaluation["step"])
    except (ValueError, RuntimeError, OSError) as error:
        line = str(error)
        ours = type(error).__module__.startswith("bench.")
        return "refused" if ours and "\n" not in line and folder.name in line else "lost"
    except Exception:
        return "lost"
    finally:
        logging.getLogger("equibench").removeHandler(warned)
    if contents(folder.parent) == expected:
        return "same"
    return "reported" if warned.lines else "lost"


class Warnings(logging.Handler):
    """Keeps what is warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def campaign() -> list[dict[str, Any]]:
    """All rows."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        straight = home / "straight"
        done = command("run", str(write_study(straight, **STUDY)), cwd=straight)
        if done.returncode:
            raise RuntimeError(f"the study fails without any fault: {done.stderr[-500:]}")
        return kills(straight, home) + damage(home)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--victim"]:
        sys.exit(victim(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5:]))
    print(json.dumps(campaign(), indent=1))
