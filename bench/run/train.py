"""Training: one plain loop that draws noise, makes the target, calls the network and measures time."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.config.run import RunConfig, TrainConfig
from bench.diffusion.process import squared_error
from bench.geometry.noised import Level, Noised
from bench.geometry.state import State
from bench.records.schema import STEP, check
from bench.records.store import RunFolder, append_line, as_line, read_steps, write_atomically
from bench.run.batches import Batches
from bench.run.checkpoint import PREVIOUS, STATE, about_of, about_state, resume, save_state, write_average
from bench.run.clock import Timer
from bench.run.code import code_version, trained_with
from bench.run.distributed import Ranks
from bench.run.model import Model
from bench.run.optimiser import TrainingState, learning_rate, progress
from bench.run.watch import Watch, record_fault
from bench.streams import StepStreams, Streams
from bench.structures.structures import Structures

log = logging.getLogger("equibench.train")


class TrainingError(RuntimeError):
    """Training stopped: the loss diverged, or the batch cannot be split into equal shares."""


def example(model: Model, clean: State, rng: StepStreams, level: Level | None = None) -> tuple[Noised, State]:
    """A noised batch and the regression target of the network.

    Args:
        clean: clean states, scaled and within their spaces.
        rng: the step's streams; draws of the method never shift the others.
        level: noise levels; drawn if None.
    """
    process, method = model.process, model.method
    clean = method.augment(clean, rng.method)
    if level is None:
        level = process.draw(len(clean), rng.time, clean.dtype)
    noise = method.couple(clean, process.noise(clean.layout, rng.noise, clean.dtype, clean.context), rng.method)
    noised = process.noised(clean, noise, level)
    return noised, process.parametrisation.target(method.target(noised, rng.method), noised)


def training_loss(model: Model, clean: State, rng: StepStreams, level: Level | None = None) -> Tensor:
    """Loss of each molecule of a batch [B]; with `example`, this is all that is compared between methods."""
    noised, target = example(model, clean, rng, level)
    prediction = model.method.predict(model.denoiser, noised.z_t, noised.level, rng.method)
    error = model.method.loss(prediction, target, noised)
    return model.process.training_loss(error, prediction, target, noised)


class BatchLoss(nn.Module):
    """`training_loss` as a module, as DistributedDataParallel needs."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, clean: State, rng: StepStreams) -> Tensor:
        return training_loss(self.model, clean, rng)


def training_step(
    loss_of: nn.Module,
    shares: list[State],
    rngs: list[StepStreams],
    settings: TrainConfig,
    state: TrainingState,
    rate: float,
    ranks: Ranks = Ranks(),  # noqa: B008 - it is frozen
) -> tuple[Tensor, Tensor, Tensor]:
    """One optimiser step at a learning rate; runs repeat it and `equibench time` measures it.

    Args:
        loss_of: a `BatchLoss`.
        shares: the batch, or the micro-batches of this rank's share of it, whose gradients are summed.
        rngs: the streams of each share.
        state: its weights, average, optimiser and queue are changed.
        ranks: all ranks that train together.
    Returns:
        losses of all shares, concatenated; gradient norm before clipping, and whether it was clipped (0. or 1.); all on
        the device.
    """
    state.optimiser.zero_grad()
    n_molecules = sum(len(clean) for clean in shares)
    losses = []
    for i, (clean, rng) in enumerate(zip(shares, rngs, strict=True)):
        with ranks.synchronise(loss_of, last=i == len(shares) - 1):
            with torch.autocast(clean.layout.device.type, torch.bfloat16, enabled=settings.bf16):
                mine = loss_of(clean, rng)
                loss = mine.mean() if len(shares) == 1 else mine.sum() / n_molecules
            loss.backward()
        losses.append(mine.detach())
    norm, clipped = state.update(settings, rate)
    return torch.cat(losses), norm, clipped


def train(
    cfg: RunConfig,
    model: Model,
    structures: Structures,
    valid: Structures,
    folder: Path,
    on_log: Callable[[int], None] = lambda _: None,
) -> int:
    """Train a run from its last checkpoint, or from the start, to its last step.

    Writes steps.jsonl and checkpoints into `folder`. On a CPU with the same number of threads, a killed and resumed run
    gives the same losses and weights bit for bit. Several ranks of torch.distributed train it together
    (`bench.run.distributed`).

    Args:
        structures: training molecules.
        valid: validation molecules, of which `n_valid` are used.
        on_log: called with the step after each logging interval.
    Returns:
        optimiser steps done; the model then holds the averaged weights.
    Raises:
        TrainingError: the loss diverged (diverged.json has the step, the last checkpoint precedes it), or the batch
            cannot be split among ranks.
        CheckpointError: there are checkpoints but none is readable, or they are from another model.
        OSError: a file could not be written.
    """
    settings, ranks = cfg.train, Ranks.here()
    device = torch.device(settings.device)
    model.to(device).train()
    streams = Streams(cfg.seed, device)
    batches = Batches(structures, model.task, settings.batch_size, cfg.seed, settings.device)
    if ranks.n != settings.n_processes:
        raise TrainingError(f"started on {ranks.n} ranks, expected train.n_processes = {settings.n_processes}")
    n_shares = ranks.n * settings.accumulate
    if batches.batch_size % n_shares:
        raise TrainingError(
            f"a batch of {batches.batch_size} molecules cannot be cut into {n_shares} equal shares (train.n_processes "
            f"{ranks.n} times train.accumulate {settings.accumulate}); choose another train.batch_size"
        )
    mine = [ranks.rank * settings.accumulate + i for i in range(settings.accumulate)]
    validation = Validation(model, valid, settings.n_valid, settings.device)

    state = TrainingState.at_start(model.named_weights(), settings)
    resume(folder, ranks, state)
    lowest = math.inf  # validation loss so far
    earlier, code = state.code, code_version() if ranks.writes else {}
    if ranks.writes:
        steps = [line for line in read_steps(RunFolder(folder).steps) if line["step"] <= state.step]
        if state.step != (steps[-1]["step"] if steps else 0):
            log.warning("%s: lines before step %d are missing, and not made again", RunFolder(folder).steps, state.step)
        lowest = min((line["valid_loss"] for line in steps if "valid_loss" in line), default=math.inf)
        if RunFolder(folder).best.exists() and about_of(RunFolder(folder).best)["step"] > state.step:
            lowest = math.inf  # the file is from steps that are made again
        _write_steps(RunFolder(folder).steps, steps)  # without the lines after the checkpoint
        RunFolder(folder).diverged.unlink(missing_ok=True)
    loss_of = ranks.wrap(BatchLoss(model))
    saved = time.monotonic()
    totals = torch.zeros(4, dtype=torch.float64, device=device)  # loss, gradient norm, clipped, steps
    diagnostics: dict[str, Tensor] = {}  # sums of what the method reports of its last micro-batch, on rank 0
    watch = Watch(state.step, batches.batch_size // ranks.n, device)
    timer = Timer(device)
    calls = 0  # network calls in training steps since the last line

    while progress(state.step, state.seconds, settings) < 1:
        rate = learning_rate(state.step, state.seconds, settings)
        shares = [batches(state.step, share, n_shares) for share in mine]
        rngs = [streams.at(state.step, share) for share in mine]

        timer.start()
        before = model.denoiser.n_calls
        losses, norm, clipped = training_step(loss_of, shares, rngs, settings, state, rate, ranks)
        loss = losses.mean()
        watch(loss, losses, norm)
        totals += torch.stack([loss.double(), norm.double(), clipped.double(), torch.ones_like(clipped).double()])
        for name, value in model.method.diagnostics.items():
            diagnostics[name] = diagnostics.get(name, 0) + value.double()
        timer.stop()
        calls += (model.denoiser.n_calls - before) // len(shares)
        state.step += 1
        if settings.max_seconds is not None:  # synchronises at every step
            state.seconds = ranks.from_first(state.seconds + timer.read())

        finished = progress(state.step, state.seconds, settings) >= 1
        if state.step % settings.log_every == 0 or finished:
            if fault := watch.fault(state.weights, ranks):
                if ranks.writes:
                    record_fault(folder, fault, state.step, rate, model, batches, streams, n_shares)
                raise TrainingError(
                    f"{fault.reason} at step {fault.step} ({RunFolder(folder).diverged.name} has its molecules); "
                    "lower train.lr, or clip harder; the last checkpoint is kept"
                )
            state.seconds += timer.read()
            totals[:1] = ranks.sum(totals[:1]) / ranks.n  # the others are equal on all ranks
            line = {"step": state.step, "seconds": round(state.seconds, 4), "lr": rate}
            line |= dict(zip(("loss", "grad_norm", "clipped"), (totals[:3] / totals[3]).tolist(), strict=True))
            line["network_calls"] = calls / totals[3].item()
            if diagnostics:
                line["diagnostics"] = {name: (sum_ / totals[3]).item() for name, sum_ in diagnostics.items()}
                diagnostics = {}
            totals.zero_()
            calls = 0
            if not ranks.writes:
                continue
            state.code = trained_with(earlier, code, state.step)
            if state.step % settings.valid_every == 0 or finished:
                state.average.swap(state.weights)
                line["valid_loss"] = validation()
                if settings.keep_best and line["valid_loss"] < lowest:
                    lowest = line["valid_loss"]
                    write_average(RunFolder(folder).best, model.named_weights(), about_state(state))
                state.average.swap(state.weights)
            check(line, STEP, str(RunFolder(folder).steps))
            append_line(RunFolder(folder).steps, line)
            log.info("step %d of %d, loss %.4f", state.step, settings.n_steps, line["loss"])
            on_log(state.step)
            if finished or time.monotonic() - saved > settings.checkpoint_seconds:
                save_state(folder / STATE, state, keep=folder / PREVIOUS)
                saved = time.monotonic()
    state.average.swap(state.weights)  # what is sampled and evaluated is the average
    return state.step


class Validation:
    """Plain training error on validation molecules, at fixed times and noise.

    It is the same quantity for every method, whatever its regression target.
    """

    BATCH = 128

    def __init__(self, model: Model, structures: Structures, n: int, device: str) -> None:
        self.model = model
        # a fixed permutation, because splits are sorted by index and their first molecules are the smallest
        chosen = np.random.default_rng(0).permutation(len(structures))[:n]
        self.batches = [
            model.task.encode(structures.select(chosen[i : i + self.BATCH]), device)
            for i in range(0, len(chosen), self.BATCH)
        ]
        self.streams = Streams(0, torch.device(device))

    def __call__(self) -> float:
        return self.per_molecule().mean().item()

    @torch.no_grad()
    def per_molecule(self) -> Tensor:
        """Errors of the n molecules [n], float64: the same ones, in the same order, for every run on the data."""
        losses = []
        process = self.model.process
        self.model.eval()
        for i, clean in enumerate(self.batches):
            rng = self.streams.at(i)
            level = process.draw_uniform(len(clean), rng.time)
            noised = process.noised(clean, process.noise(clean.layout, rng.noise, context=clean.context), level)
            target = process.parametrisation.target(noised.noise, noised)
            prediction = self.model.predict(noised.z_t, level, rng.method)
            losses.append(process.training_loss(squared_error(prediction, target), prediction, target, noised))
        self.model.train()
        return torch.cat(losses).double()


def _write_steps(path: Path, steps: list[dict[str, Any]]) -> None:
    write_atomically(path, "".join(map(as_line, steps)).encode())
