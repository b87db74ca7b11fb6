"""Training: one plain loop, in which noise is drawn, the target made, the network called and the clock read."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.batches import Batches
from bench.checkpoint import CheckpointError, load_state, save_state, state_step
from bench.config import RunConfig, TrainConfig
from bench.model import Model
from bench.molecules import Molecules
from bench.optimise import MovingAverage, Optimiser, QueueClip, clip_gradients, learning_rate, progress
from bench.records import STEP, check, read_json, read_steps, write_atomically
from bench.streams import StepStreams, Streams
from bench.structures import Structures

log = logging.getLogger("equibench.train")


class TrainingError(RuntimeError):
    """Training stopped: the loss is no longer finite."""


def training_loss(model: Model, x0: Molecules, rng: StepStreams) -> Tensor:
    """Loss of each molecule of a batch [B]: the whole of what is compared between methods.

    Args:
        x0: clean, scaled, centred molecules.
        rng: the step's streams; `method` draws never shift the others.
    """
    diffusion, method = model.diffusion, model.method
    x0 = method.augment(x0, rng.method)
    level = diffusion.schedule.draw(len(x0), rng.time, dtype=x0.x.dtype)
    eps = diffusion.noise(x0.layout, rng.noise, x0.x.dtype)
    z_t = diffusion.noising(x0, eps, level)
    target = diffusion.noise_target(method.target(x0, z_t, level, rng.method), x0, eps, level)
    eps_hat = method.predict(model.denoiser, z_t, level, rng.method)
    error = method.loss(eps_hat, target, level)
    return diffusion.training_loss(error, eps_hat, target, x0, z_t, level)


def training_step(
    model: Model,
    x0: Molecules,
    rng: StepStreams,
    settings: TrainConfig,
    weights: dict[str, nn.Parameter],
    average: MovingAverage,
    optimiser: Optimiser,
    queue: QueueClip,
    rate: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One optimiser step on a batch at a learning rate: what a run repeats, and what `equibench time` measures.

    Returns:
        loss, gradient norm before clipping, whether it was clipped (0. or 1.): scalars on the device.
    """
    with torch.autocast(x0.x.device.type, torch.bfloat16, enabled=settings.bf16):
        loss = training_loss(model, x0, rng).mean()
    optimiser.zero_grad()
    loss.backward()
    norm, clipped = clip_gradients(list(weights.values()), settings, queue)
    optimiser.step(rate)
    average.update(weights)
    return loss.detach(), norm, clipped


def train(
    cfg: RunConfig,
    model: Model,
    structures: Structures,
    valid: Structures,
    folder: Path,
    on_log: Callable[[int], None] = lambda _: None,
) -> int:
    """Train a run from its last checkpoint, or from the start, to its last step.

    Writes steps.jsonl and checkpoints into `folder`; a killed run that is called again gives, on a CPU with the same
    number of threads, the same losses and weights bit for bit.

    Args:
        structures: training molecules.
        valid: validation molecules, of which `n_valid` are followed.
        on_log: called with the step after each logging interval.
    Returns:
        optimiser steps done; the model then holds the averaged weights.
    Raises:
        TrainingError: a loss was not finite; the last checkpoint is from before.
        OSError: a file could not be written.
    """
    settings = cfg.train
    device = torch.device(settings.device)
    model.to(device)
    weights = model.named_weights()
    average = MovingAverage(weights, settings.ema_decay)
    optimiser = Optimiser(weights.values(), settings)
    queue = QueueClip(device)
    streams = Streams(cfg.seed, device)
    batches = Batches(structures, model.diffusion, settings.batch_size, cfg.seed, settings.device)
    validation = Validation(model, valid, settings)

    step, seconds = _resume(folder, settings, weights, average, optimiser, queue)
    steps = [line for line in read_steps(folder / "steps.jsonl") if line["step"] <= step]
    _write_steps(folder / "steps.jsonl", steps)  # lines after the checkpoint are made again
    saved = time.monotonic()
    totals = torch.zeros(4, dtype=torch.float64, device=device)  # loss, gradient norm, clipped, steps
    diagnostics: dict[str, Tensor] = {}  # sums of what the method reports
    finite = torch.ones((), dtype=torch.bool, device=device)
    calls = 0  # of the network, in training steps since the last line

    while progress(step, seconds, settings) < 1:
        # at a logging interval, so that a run resumed from here averages its losses over whole intervals
        if step == cooldown_start(settings) // settings.log_every * settings.log_every:
            save_state(folder / "stable.safetensors", step, seconds, weights, average, optimiser, queue)
        rate = learning_rate(step, seconds, settings)
        x0 = batches(step)

        started, before = clock(device), model.denoiser.n_calls
        loss, norm, clipped = training_step(
            model, x0, streams.at(step), settings, weights, average, optimiser, queue, rate
        )
        finite &= torch.isfinite(loss) & torch.isfinite(norm)
        totals += torch.stack([loss.double(), norm.double(), clipped.double(), torch.ones_like(clipped).double()])
        for name, value in model.method.diagnostics.items():
            diagnostics[name] = diagnostics.get(name, 0) + value.double()
        seconds += clock(device) - started
        calls += model.denoiser.n_calls - before
        step += 1

        finished = progress(step, seconds, settings) >= 1
        if step % settings.log_every == 0 or finished:
            if not finite:
                raise TrainingError(
                    f"loss or gradient not finite within the {settings.log_every} steps before {step}; "
                    "lower train.lr, or clip harder; the last checkpoint is kept"
                )
            line = {"step": step, "seconds": round(seconds, 4), "lr": rate}
            line |= dict(zip(("loss", "grad_norm", "clipped"), (totals[:3] / totals[3]).tolist(), strict=True))
            line["network_calls"] = calls / totals[3].item()
            if diagnostics:
                line["diagnostics"] = {name: (sum_ / totals[3]).item() for name, sum_ in diagnostics.items()}
                diagnostics = {}
            totals.zero_()
            calls = 0
            if step % settings.valid_every == 0 or finished:
                average.swap(weights)
                line["valid_loss"] = validation()
                average.swap(weights)
            check(line, STEP, "steps.jsonl")
            _append_step(folder / "steps.jsonl", line)
            log.info("step %d of %d, loss %.4f", step, settings.n_steps, line["loss"])
            on_log(step)
            if finished or time.monotonic() - saved > settings.checkpoint_seconds:
                save_state(folder / "state.safetensors", step, seconds, weights, average, optimiser, queue)
                saved = time.monotonic()
    average.swap(weights)  # what is sampled and evaluated is the average
    return step


def clock(device: torch.device) -> float:
    """Seconds, once the device has done all it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def cooldown_start(settings: TrainConfig) -> int:
    """Step at which the learning rate begins to fall; -1 where it never does, or falls by the clock."""
    if settings.cooldown_fraction == 0 or settings.max_seconds is not None:
        return -1
    return math.floor(settings.n_steps * (1 - settings.cooldown_fraction))


class Validation:
    """Plain training error (weight 1 in noise space) on validation molecules, the same times and noise each time.

    It is the same quantity for every method, whatever the method regresses on.
    """

    BATCH = 128

    def __init__(self, model: Model, structures: Structures, settings: TrainConfig) -> None:
        self.model = model
        # a fixed permutation, because splits are sorted by index and their first molecules are the smallest
        chosen = np.random.default_rng(0).permutation(len(structures))[: settings.n_valid]
        self.parts = [
            model.diffusion.encode(structures.select(chosen[i : i + self.BATCH]), settings.device)
            for i in range(0, len(chosen), self.BATCH)
        ]
        self.streams = Streams(0, torch.device(settings.device))

    @torch.no_grad()
    def __call__(self) -> float:
        losses = []
        diffusion = self.model.diffusion
        for i, x0 in enumerate(self.parts):
            rng = self.streams.at(i)
            level = diffusion.schedule.draw(len(x0), rng.time, lowest=1)
            eps = diffusion.noise(x0.layout, rng.noise)
            z_t = diffusion.noising(x0, eps, level)
            eps_hat = self.model.predict(z_t, level, rng.method)
            error = 0.5 * eps_hat.combine(eps, torch.sub).squared_norm()
            losses.append(diffusion.training_loss(error, eps_hat, eps, x0, z_t, level))
        return torch.cat(losses).double().mean().item()


def _resume(folder: Path, settings: TrainConfig, weights, average, optimiser, queue) -> tuple[int, float]:
    """Restore the newest state that lies on the path to this run's end.

    A run that was cooled down to an earlier end continues from where its cool-down began, so that extending a run
    gives what planning it longer would have given.
    """
    plan = folder / "plan.json"
    planned = read_json(plan, {"n_steps": int})["n_steps"] if plan.exists() else settings.n_steps
    states = {
        path: state_step(path) for name in ("state", "stable") if (path := folder / f"{name}.safetensors").exists()
    }
    if planned != settings.n_steps:
        if max(states.values(), default=0) > settings.n_steps:
            raise CheckpointError(
                f"{folder} was trained to {planned} steps; it can be extended but not cut to {settings.n_steps}: "
                "choose more"
            )
        if settings.cooldown_fraction > 0:
            # beyond the start of the earlier cool-down, states belong to the earlier end
            on_path = cooldown_start(dataclasses.replace(settings, n_steps=min(planned, settings.n_steps)))
            states = {path: step for path, step in states.items() if step <= on_path}
    step, seconds = 0, 0.0
    if states:
        step, seconds = load_state(max(states, key=lambda path: states[path]), weights, average, optimiser, queue)
        log.info("continuing at step %d", step)
    if planned != settings.n_steps or not plan.exists():
        if step:
            save_state(folder / "state.safetensors", step, seconds, weights, average, optimiser, queue)
        else:
            (folder / "state.safetensors").unlink(missing_ok=True)
        write_atomically(plan, json.dumps({"n_steps": settings.n_steps}).encode())
    return step, seconds


def _write_steps(path: Path, steps: list[dict[str, Any]]) -> None:
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in steps).encode())


def _append_step(path: Path, line: dict[str, Any]) -> None:
    """A crash can cut this line short, which readers leave out and a resumed run writes again."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
