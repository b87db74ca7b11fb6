"""Training: one plain loop, in which noise is drawn, the target made, the network called and the clock read."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.config.run import OnOutOfMemory, RunConfig, TrainConfig
from bench.diffusion.process import weighted_error
from bench.geometry.noised import Level, Noised
from bench.geometry.state import State
from bench.records.store import STEP, append_line, as_line, check, read_steps, write_atomically
from bench.run.batches import Batches
from bench.run.checkpoint import PREVIOUS, STABLE, STATE, save_state
from bench.run.clock import Deadline, Timer, TimeUpError
from bench.run.model import Model
from bench.run.optimiser import TrainingState, cooldown_start, learning_rate, progress
from bench.run.parallel import Processes
from bench.run.parts import Part
from bench.run.resume import resume
from bench.run.watch import DIVERGED_FILE, Watch, record_fault
from bench.streams import StepStreams, Streams
from bench.structures.structures import Structures

log = logging.getLogger("equibench.train")


class TrainingError(RuntimeError):
    """Training stopped: the loss diverged, or memory does not suffice."""


def example(model: Model, clean: State, rng: StepStreams, level: Level | None = None) -> tuple[Noised, State]:
    """A noised batch, and what the network regresses on.

    Args:
        clean: clean states, scaled and within their spaces.
        rng: the step's streams; `method` draws never shift the others.
        level: noise levels, drawn unless they are given.
    """
    process, method = model.process, model.method
    clean = method.augment(clean, rng.method)
    if level is None:
        level = process.draw(len(clean), rng.time, clean.dtype)
    noise = method.couple(clean, process.noise(clean.layout, rng.noise, clean.dtype, clean.context), rng.method)
    noised = process.noised(clean, noise, level)
    return noised, process.parametrisation.target(method.target(noised, rng.method), noised)


def training_loss(model: Model, clean: State, rng: StepStreams, level: Level | None = None) -> Tensor:
    """Loss of each molecule of a batch [B]: with `example` the whole of what is compared between methods."""
    noised, target = example(model, clean, rng, level)
    prediction = model.method.predict(model.denoiser, noised.z_t, noised.level, rng.method)
    error = model.method.loss(prediction, target, noised)
    return model.process.training_loss(error, prediction, target, noised)


class BatchLoss(nn.Module):
    """`training_loss` as a module, which is what DistributedDataParallel wraps."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, clean: State, rng: StepStreams) -> Tensor:
        return training_loss(self.model, clean, rng)


def training_step(
    loss_of: nn.Module,
    x0: State,
    rng: StepStreams,
    settings: TrainConfig,
    state: TrainingState,
    rate: float,
    processes: Processes = Processes(),  # noqa: B008 - it is frozen
) -> tuple[Tensor, Tensor, Tensor]:
    """One optimiser step on a batch at a learning rate: what a run repeats, and what `equibench time` measures.

    Args:
        loss_of: a `BatchLoss`.
        state: weights, average, optimiser and queue are changed. The micro-batches that it states are taken one after
            the other; their gradients are summed.
        processes: each takes its share of the batch.
    Returns:
        losses [B] (0 where another process has the molecule), gradient norm before clipping, whether it was clipped
        (0. or 1.): on the device.
    Raises:
        torch.OutOfMemoryError: before anything but gradients was changed, so that the step can be made again.
    """
    state.optimiser.zero_grad()
    losses = gradients(loss_of, x0, rng, settings, state.micro_batches, processes)
    try:
        norm, clipped = state.update(settings, rate)
    except torch.OutOfMemoryError as error:
        raise TrainingError("out of memory for the optimiser's state; choose a smaller model") from error
    return losses, norm, clipped


def gradients(
    loss_of: nn.Module, x0: State, rng: StepStreams, settings: TrainConfig, micro_batches: int, processes: Processes
) -> Tensor:
    """Leave the gradient of the mean loss of a batch in the weights; returns the losses [B] of this process."""
    n = micro_batches * processes.n
    losses = torch.zeros(len(x0), device=x0.x.device)
    for i in range(micro_batches):
        part = None if n == 1 else Part(x0.layout, processes.rank + i * processes.n, n)
        with torch.autocast(x0.x.device.type, torch.bfloat16, enabled=settings.bf16):
            # every part from the same, unused streams
            mine = loss_of(x0, dataclasses.replace(rng))
            # gradients are averaged over processes
            loss = mine.mean() * (len(mine) * processes.n / len(x0))
        loss.backward()
        losses[slice(None) if part is None else part.molecules] = mine.detach().to(losses.dtype)
    return losses


def train(
    cfg: RunConfig,
    model: Model,
    structures: Structures,
    valid: Structures,
    folder: Path,
    on_log: Callable[[int], None] = lambda _: None,
    deadline: Deadline = Deadline(),  # noqa: B008 - it never passes
) -> int:
    """Train a run from its last checkpoint, or from the start, to its last step.

    Writes steps.jsonl and checkpoints into `folder`; a killed run that is called again gives, on a CPU with the same
    number of threads, the same losses and weights bit for bit. Several processes of torch.distributed train it
    together (`bench.run.parallel`).

    Args:
        structures: training molecules.
        valid: validation molecules, of which `n_valid` are followed.
        on_log: called with the step after each logging interval.
        deadline: of one process: the last logging interval that can end before it ends with a checkpoint.
    Returns:
        optimiser steps done; the model then holds the averaged weights.
    Raises:
        TrainingError: a loss was not finite, with the step in diverged.json; the last checkpoint is from before. Or
            out of memory.
        CheckpointError: no checkpoint is readable, though there are some; or it is another model's.
        OSError: a file could not be written.
        TimeUpError: at the deadline.
    """
    settings, processes = cfg.train, Processes.here()
    device = torch.device(settings.device)
    model.to(device)
    streams = Streams(cfg.seed, device)
    batches = Batches(structures, model.task, settings.batch_size, cfg.seed, settings.device)
    if batches.batch_size < processes.n:
        raise TrainingError(f"a batch of {batches.batch_size} molecules cannot be shared by {processes.n} processes")
    validation = Validation(model, valid, settings)

    state = TrainingState.at_start(model.named_weights(), settings)
    resume(folder, settings, processes, state)
    if processes.writes:
        steps = [line for line in read_steps(folder / "steps.jsonl") if line["step"] <= state.step]
        if state.step != (steps[-1]["step"] if steps else 0):
            log.warning("%s: lines before step %d are missing, and not made again", folder / "steps.jsonl", state.step)
        _write_steps(folder / "steps.jsonl", steps)  # lines after the checkpoint are made again
        (folder / DIVERGED_FILE).unlink(missing_ok=True)
    loss_of = processes.wrap(BatchLoss(model))
    saved = logged = time.monotonic()
    totals = torch.zeros(4, dtype=torch.float64, device=device)  # loss, gradient norm, clipped, steps
    diagnostics: dict[str, Tensor] = {}  # sums of what the method reports
    watch = Watch(state.step, batches.batch_size, device)
    timer = Timer(device)
    calls = 0  # of the network, in training steps since the last line

    while progress(state.step, state.seconds, settings) < 1:
        # at a logging interval, so that a run resumed from here averages its losses over whole intervals
        if processes.writes and state.step == cooldown_start(settings) // settings.log_every * settings.log_every:
            save_state(folder / STABLE, state)
        rate = learning_rate(state.step, state.seconds, settings)
        x0 = batches(state.step)

        timer.start()
        before = model.denoiser.n_calls
        try:
            losses, norm, clipped = training_step(loss_of, x0, streams.at(state.step), settings, state, rate, processes)
        except torch.OutOfMemoryError as error:
            halve(state, len(x0), settings, processes, error)
            continue
        loss = losses.mean()
        watch(loss, losses, norm)
        totals += torch.stack([loss.double(), norm.double(), clipped.double(), torch.ones_like(clipped).double()])
        for name, value in model.method.diagnostics.items():
            diagnostics[name] = diagnostics.get(name, 0) + value.double()
        timer.stop()
        calls += (model.denoiser.n_calls - before) // state.micro_batches  # each on a part of the batch
        state.step += 1
        if settings.max_seconds is not None:  # waits for the device at each step
            state.seconds = processes.of_first(state.seconds + timer.read())

        finished = progress(state.step, state.seconds, settings) >= 1
        if state.step % settings.log_every == 0 or finished:
            if fault := watch.fault(state.weights, processes):
                if processes.writes:
                    record_fault(folder, fault, state.step, model, batches, streams, settings)
                raise TrainingError(
                    f"{fault.reason} at step {fault.step} ({DIVERGED_FILE} has its molecules); "
                    "lower train.lr, or clip harder; the last checkpoint is kept"
                )
            state.seconds += timer.read()
            processes.sum(totals[:1])  # the other quantities are the same everywhere
            line = {"step": state.step, "seconds": round(state.seconds, 4), "lr": rate}
            line |= dict(zip(("loss", "grad_norm", "clipped"), (totals[:3] / totals[3]).tolist(), strict=True))
            line["network_calls"] = calls / totals[3].item()
            if diagnostics:
                line["diagnostics"] = {name: (sum_ / totals[3]).item() for name, sum_ in diagnostics.items()}
                diagnostics = {}
            totals.zero_()
            calls = 0
            if not processes.writes:
                continue
            if state.step % settings.valid_every == 0 or finished:
                state.average.swap(state.weights)
                line["valid_loss"] = validation()
                state.average.swap(state.weights)
            check(line, STEP, "steps.jsonl")
            append_line(folder / "steps.jsonl", line)
            log.info("step %d of %d, loss %.4f", state.step, settings.n_steps, line["loss"])
            on_log(state.step)
            now = time.monotonic()
            time_is_up = deadline.passed(now - logged) and not finished
            if finished or time_is_up or now - saved > settings.checkpoint_seconds:
                save_state(folder / STATE, state, keep=folder / PREVIOUS)
                saved = time.monotonic()
            if time_is_up:
                raise TimeUpError
            logged = now
    state.average.swap(state.weights)  # what is sampled and evaluated is the average
    return state.step


def halve(
    state: TrainingState, batch_size: int, settings: TrainConfig, processes: Processes, error: torch.OutOfMemoryError
) -> None:
    """Twice as many micro-batches from here on, half as large, because memory did not hold one.

    Raises:
        TrainingError: the configuration does not ask for it, or a micro-batch is one molecule already.
    """
    size = math.ceil(batch_size / (state.micro_batches * processes.n))
    line = f"out of memory at step {state.step} with {size} molecules at a time"
    if settings.on_out_of_memory is OnOutOfMemory.FAIL or processes.n > 1:
        advice = "lower train.batch_size" + ("" if processes.n > 1 else ", or set train.on_out_of_memory=accumulate")
        raise TrainingError(f"{line}; {advice}") from error
    if 2 * state.micro_batches > batch_size:
        raise TrainingError(f"{line}, and fewer there are not; choose a smaller model") from error
    state.micro_batches *= 2
    log.warning("%s; from here on %d micro-batches per batch of %d", line, state.micro_batches, batch_size)


class Validation:
    """Plain training error on validation molecules, the same times and noise each time.

    It is the same quantity for every method, whatever the method regresses on.
    """

    BATCH = 128

    def __init__(self, model: Model, structures: Structures, settings: TrainConfig) -> None:
        self.model = model
        # a fixed permutation, because splits are sorted by index and their first molecules are the smallest
        chosen = np.random.default_rng(0).permutation(len(structures))[: settings.n_valid]
        self.batches = [
            model.task.encode(structures.select(chosen[i : i + self.BATCH]), settings.device)
            for i in range(0, len(chosen), self.BATCH)
        ]
        self.streams = Streams(0, torch.device(settings.device))

    @torch.no_grad()
    def __call__(self) -> float:
        losses = []
        process = self.model.process
        for i, clean in enumerate(self.batches):
            rng = self.streams.at(i)
            level = process.draw(len(clean), rng.time, decoder_level=False)
            noised = process.noised(clean, process.noise(clean.layout, rng.noise, context=clean.context), level)
            target = process.parametrisation.target(noised.noise, noised)
            prediction = self.model.predict(noised.z_t, level, rng.method)
            losses.append(process.training_loss(weighted_error(prediction, target), prediction, target, noised))
        return torch.cat(losses).double().mean().item()


def _write_steps(path: Path, steps: list[dict[str, Any]]) -> None:
    write_atomically(path, "".join(map(as_line, steps)).encode())
