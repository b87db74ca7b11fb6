"""Where training goes on: the newest undamaged checkpoint that lies on the path to a run's end."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from bench.config.run import TrainConfig
from bench.records.store import read_json, write_json
from bench.run.checkpoint import (
    PREVIOUS,
    STABLE,
    STATE,
    CheckpointError,
    DamagedError,
    about_of,
    load_state,
    save_state,
)
from bench.run.optimiser import TrainingState, cooldown_start
from bench.run.parallel import Processes

log = logging.getLogger("equibench.train")


def resume(folder: Path, settings: TrainConfig, processes: Processes, state: TrainingState) -> None:
    """Restore the newest fit state, if there is any; one process chooses it, the others read the same.

    Raises:
        CheckpointError: no checkpoint is readable, though there are some; or it is another model's or plan's.
    """
    chosen = processes.of_first(_newest(folder, settings, state) if processes.writes else None)
    if chosen is not None and not processes.writes:
        load_state(folder / chosen, state)


def _newest(folder: Path, settings: TrainConfig, state: TrainingState) -> str | None:
    """Restore the newest undamaged state on the path to this run's end, and keep no state of another end.

    Returns:
        name of its file; None: from the start.
    """
    plan = folder / "plan.json"
    planned = read_json(plan, {"n_steps": int})["n_steps"] if plan.exists() else settings.n_steps
    states: dict[str, int] = {}
    damaged: dict[str, DamagedError] = {}
    for name in (STATE, PREVIOUS, STABLE):
        if (folder / name).exists():
            try:
                states[name] = int(about_of(folder / name)["step"])
            except DamagedError as error:
                damaged[name] = error
    on_path = _on_path(states, planned, settings, folder)
    chosen = None
    for name in sorted(on_path, key=lambda name: -on_path[name]):
        try:
            load_state(folder / name, state)
            chosen = name
            break
        except DamagedError as error:
            damaged[name] = error
    if damaged and chosen is None:
        raise CheckpointError(" and ".join(str(error) for error in damaged.values()))
    for name, error in damaged.items():
        log.warning("%s; it is set aside as %s.damaged, training continues from %s", error, name, chosen)
        (folder / name).replace(folder / f"{name}.damaged")  # not over the good one before it, at the next checkpoint
    if chosen:
        log.info("continuing at step %d", state.step)
    if planned != settings.n_steps or not plan.exists():
        if chosen:
            save_state(folder / STATE, state)
            chosen = STATE
        for name, other in states.items():  # of another end
            if other > state.step and name != chosen:
                (folder / name).unlink(missing_ok=True)
        write_json(plan, {"n_steps": settings.n_steps})
    return chosen


def _on_path(states: dict[str, int], planned: int, settings: TrainConfig, folder: Path) -> dict[str, int]:
    """Those of the states, given with their steps, that a run planned with today's settings passes through.

    A run that was cooled down to an earlier end continues from where its cool-down began, so that extending a run
    gives what planning it longer would have given.
    """
    if planned == settings.n_steps:
        return states
    if max(states.values(), default=0) > settings.n_steps:
        raise CheckpointError(
            f"{folder} was trained to {planned} steps; it can be extended but not cut to {settings.n_steps}: "
            "choose more"
        )
    if settings.cooldown_fraction == 0:
        return states
    # beyond the start of the earlier cool-down, states belong to the earlier end
    last = cooldown_start(dataclasses.replace(settings, n_steps=min(planned, settings.n_steps)))
    return {name: step for name, step in states.items() if step <= last}
