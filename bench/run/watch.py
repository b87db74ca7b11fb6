"""Divergence: detects losses and gradients that are not finite without synchronising the device."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench.records.store import RunFolder, write_json
from bench.run.batches import Batches
from bench.run.checkpoint import PREVIOUS, STATE, about_of
from bench.run.distributed import Ranks
from bench.run.model import Model
from bench.streams import Streams

DIVERGED = 1e6  # training stops if every loss of a logging interval exceeds it; predicting zero gives a loss near 1


@dataclasses.dataclass(frozen=True)
class Fault:
    """Reason for stopping, and the first offending step with its losses [B] and gradient norm."""

    reason: str
    step: int
    losses: list[float]
    norm: float


class Watch:
    """Divergence flags on the device, updated at every step; `fault` reads them at logging intervals.

    Losses and norm are those of the last step or, once a step was not finite, of the first such step.
    """

    def __init__(self, start: int, batch_size: int, device: torch.device) -> None:
        self.start = start
        self.sound = torch.ones((), dtype=torch.bool, device=device)
        self.n_sound = torch.zeros((), dtype=torch.int64, device=device)  # finite steps before the first fault
        self.norm = torch.zeros((), device=device)
        self.losses = torch.zeros(batch_size, device=device)
        self.lowest = torch.full((), math.inf, device=device)  # lowest loss of a step since `fault` was last called

    def __call__(self, loss: Tensor, losses: Tensor, norm: Tensor) -> None:
        self.norm = torch.where(self.sound, norm, self.norm)
        self.losses = torch.where(self.sound, losses, self.losses)
        self.sound = self.sound & torch.isfinite(loss) & torch.isfinite(norm)
        self.n_sound += self.sound
        self.lowest = torch.minimum(self.lowest, loss)

    def fault(self, weights: dict[str, nn.Parameter], ranks: Ranks) -> Fault | None:
        """The fault, the same on all ranks, or None. Checks the weights too, because they are saved next."""
        norms = torch.stack(torch._foreach_norm([p.detach() for p in weights.values()]))
        sound, finite = torch.stack([self.sound, torch.isfinite(norms).all()]).tolist()
        bad = torch.tensor([not sound, not finite, self.lowest.item() > DIVERGED], dtype=torch.float64)
        self.lowest = torch.full_like(self.lowest, math.inf)
        not_sound, not_finite, high = (ranks.sum(bad.to(self.norm.device)) > 0).tolist()
        if not (not_sound or not_finite or high):
            return None
        if not_sound:
            reason = "loss or gradient not finite"
        elif not_finite:
            reason = "weights not finite after the update"
        else:
            reason = f"loss above {DIVERGED:.0e} in every step of an interval"
        # gradients are averaged over ranks, so all ranks see the same first step
        step = self.start + int(self.n_sound.item()) - int(sound)
        return Fault(reason, step, ranks.gather(self.losses.double()).tolist(), self.norm.item())


def record_fault(
    folder: Path,
    fault: Fault,
    seen: int,
    rate: float,
    model: Model,
    batches: Batches,
    streams: Streams,
    n_shares: int = 1,
) -> None:
    """Write diverged.json: the offending step and its molecules, whose times are redrawn from the step's streams."""
    order, t, losses = _molecules(fault, model, batches, streams, n_shares)
    kept = [about_of(path)["step"] for name in (STATE, PREVIOUS) if (path := folder / name).exists()]
    record = {
        "reason": fault.reason,
        "step": fault.step,  # steps done before it
        "seen_after": seen,
        "last_checkpoint": max(kept, default=0),
        "batch_size": len(order),
        "loss": _number(sum(fault.losses) / len(order)),
        "gradient_norm": _number(fault.norm),
        "lr": rate,
        "molecules": [
            {"index": int(i), "n_atoms": int(n), "t": time_, "loss": _number(loss)}
            for i, n, time_, loss in zip(order, batches.structures.n_atoms[order], t, losses, strict=True)
        ],
    }
    with contextlib.suppress(OSError):  # a full disk must not hide what went wrong
        write_json(RunFolder(folder).diverged, record)


def _molecules(
    fault: Fault, model: Model, batches: Batches, streams: Streams, n_shares: int
) -> tuple[np.ndarray, list[float], list[float]]:
    """Molecules of the offending step, share after share, with their times and losses."""
    whole = batches.in_order(fault.step)
    order = [whole[share::n_shares] for share in range(n_shares)]
    t = [
        model.process.draw(len(indices), streams.at(fault.step, share).time).t.tolist()
        for share, indices in enumerate(order)
    ]
    return np.concatenate(order), [time for times in t for time in times], fault.losses


def _number(value: float) -> float | str:
    """A number for JSON; infinities and NaN, which it lacks, as text."""
    return value if math.isfinite(value) else str(value)
