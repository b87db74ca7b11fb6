"""Clipping, AdamW and Muon, moving average, learning rate; and the training state."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bench.config.run import Clip, OptimiserName, TrainConfig


class QueueClip:
    """EDM's clipping: allowed norm = 1.5 mean + 2 std (population) of the last 50 norms, as clipped.

    Source: published code of arXiv:2203.17003 (`utils.gradient_clipping`). The queue starts as [3000], so the first
    call allows 4500.
    """

    LENGTH = 50

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.norms = torch.zeros(self.LENGTH, dtype=torch.float64, device=device)
        self.norms[0] = 3000.0
        self.pushed = torch.ones((), dtype=torch.int64, device=device)

    def allowed(self) -> Tensor:
        n = self.pushed.clamp(max=self.LENGTH)
        valid = torch.arange(self.LENGTH, device=self.norms.device) < n
        mean = (self.norms * valid).sum() / n
        std = (((self.norms - mean).square() * valid).sum() / n).sqrt()
        return 1.5 * mean + 2 * std

    def push(self, norm: Tensor, allowed: Tensor) -> None:
        # a ring buffer: the statistics do not depend on the order
        self.norms[self.pushed % self.LENGTH] = torch.minimum(norm.double(), allowed)
        self.pushed += 1


def global_norm(gradients: list[Tensor]) -> Tensor:
    """Norm of all gradients together."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def clip(norm: Tensor, cfg: TrainConfig, queue: QueueClip) -> tuple[Tensor, Tensor]:
    """The factor that clips gradients of this global norm; the norm enters the queue.

    Returns:
        the factor, and whether the norm exceeded the allowed one (0. or 1.), scalars on the device.
    """
    allowed = queue.allowed() if cfg.clip is Clip.QUEUE else torch.tensor(cfg.clip_norm, device=norm.device)
    if cfg.clip is Clip.QUEUE:
        queue.push(norm, allowed)
    return (allowed / (norm + 1e-6)).clamp(max=1.0).to(norm.dtype), (norm > allowed).to(norm.dtype)


class MovingAverage:
    """Exponential moving average of weights: shadow <- decay shadow + (1 - decay) weights, after every step."""

    def __init__(self, weights: dict[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.shadow = {name: p.detach().clone() for name, p in weights.items()}

    @torch.no_grad()
    def update(self, weights: dict[str, nn.Parameter]) -> None:
        torch._foreach_lerp_(list(self.shadow.values()), list(weights.values()), 1 - self.decay)

    @torch.no_grad()
    def swap(self, weights: dict[str, nn.Parameter]) -> None:
        """Exchange weights and their average; a second call undoes the first."""
        for name, p in weights.items():
            mine = self.shadow[name].clone()
            self.shadow[name].copy_(p)
            p.copy_(mine)


def progress(step: int, seconds: float, cfg: TrainConfig) -> float:
    """Fraction of the training done, by steps or, if `max_seconds` is set, by seconds, whichever is larger."""
    by_steps = step / max(cfg.n_steps, 1)
    return by_steps if cfg.max_seconds is None else max(by_steps, seconds / cfg.max_seconds)


def learning_rate(step: int, seconds: float, cfg: TrainConfig) -> float:
    """Linear warm-up, constant or stepwise decay, linear cool-down to zero over the last `cooldown_fraction`."""
    rate = cfg.lr * cfg.lr_decay ** (step // cfg.lr_decay_every)
    if step < cfg.warmup_steps:
        rate *= (step + 1) / cfg.warmup_steps
    if cfg.cooldown_fraction > 0:
        rate *= min(1.0, (1 - progress(step, seconds, cfg)) / cfg.cooldown_fraction)
    return max(rate, 0.0)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and steps of AdamW's size, batched over matrices of one shape or its transpose.

    One by one, as in torch's own Muon, the matrices of small networks take several times as long.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override] # no closure
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in parameters]
            for p in parameters:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in parameters]
            torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, buffers, group["momentum"])  # Nesterov's
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for p, update in zip(parameters, updates, strict=True):
                rows, columns = sorted(p.shape)
                alike.setdefault((rows, columns), []).append((p, update))
            for (rows, columns), pairs in alike.items():
                wide = torch.stack([u if u.shape == (rows, columns) else u.T for _, u in pairs])
                moved = newton_schulz(wide).to(wide.dtype)
                back = [m if p.shape == (rows, columns) else m.T for (p, _), m in zip(pairs, moved, strict=True)]
                rate = group["lr"] * 0.2 * math.sqrt(columns)
                torch._foreach_add_([p for p, _ in pairs], back, alpha=-rate)


def newton_schulz(matrices: Tensor) -> Tensor:
    """Approximately the nearest matrices with orthonormal rows, [K, rows, columns] with rows <= columns, in bf16.

    Source: Jordan et al. 2024, Muon: an optimizer for hidden layers; five times X <- a X + (b A + c A^2) X with
    A = X X^T.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    X = matrices.bfloat16()
    X = X / torch.linalg.matrix_norm(X, keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X


class Optimiser:
    """AdamW on all parameters, or Muon on the hidden matrices and AdamW on the rest (`TrainConfig.optimiser`).

    Muon's update is the nearest orthogonal matrix of the momentum (Jordan et al. 2024, Muon: an optimizer for hidden
    layers), scaled to the size of AdamW's (Liu et al., arXiv:2502.16982, eq. 4), so that both share one learning rate.
    Vectors and matrices with a side below `HIDDEN` (what goes in and out of a network, or a head of one output) stay
    with AdamW.
    """

    HIDDEN = 16

    def __init__(self, parameters: Iterable[nn.Parameter], cfg: TrainConfig) -> None:
        hidden: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for p in parameters:
            is_hidden = p.ndim == 2 and min(p.shape) >= self.HIDDEN
            (hidden if cfg.optimiser is OptimiserName.MUON and is_hidden else rest).append(p)
        self.parts: list[torch.optim.Optimizer] = []
        if hidden:
            self.parts.append(Muon(hidden, cfg.lr, cfg.weight_decay))
        if rest:
            betas = (0.9, cfg.adam_beta2)
            self.parts.append(
                torch.optim.AdamW(
                    rest, lr=cfg.lr, betas=betas, weight_decay=cfg.weight_decay, amsgrad=cfg.amsgrad, fused=True
                )
            )
        self._part_of = {p: part for part in self.parts for group in part.param_groups for p in group["params"]}

    def step(self, rate: float) -> None:
        """One step of all parameters at this learning rate."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()

    def zero_grad(self) -> None:
        for p in self._part_of:  # faster than torch's own
            p.grad = None

    def state(self, p: nn.Parameter) -> dict[str, Tensor]:
        """Moments of one parameter, by reference."""
        return self._part_of[p].state[p]


@dataclass
class TrainingState:
    """Everything that training changes and a checkpoint holds.

    Attributes:
        weights: of the model itself, by name.
        step: optimiser steps done.
        seconds: trained.
        code: that has done these steps, in order, each with its number of them (`bench.records.schema.TRAINED_BY`).
    """

    weights: dict[str, nn.Parameter]
    average: MovingAverage
    optimiser: Optimiser
    queue: QueueClip
    step: int = 0
    seconds: float = 0.0
    code: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def at_start(cls, weights: dict[str, nn.Parameter], cfg: TrainConfig) -> TrainingState:
        """Before the first step."""
        optimiser = Optimiser(weights.values(), cfg)
        return cls(weights, MovingAverage(weights, cfg.ema_decay), optimiser, QueueClip(cfg.device))

    def update(self, cfg: TrainConfig, rate: float) -> tuple[Tensor, Tensor]:
        """Clip the gradients (in place), step all weights at this learning rate, and update their average.

        Returns:
            norm before clipping, and whether it was clipped (0. or 1.), scalars on the device.
        """
        gradients = [p.grad for p in self.weights.values() if p.grad is not None]
        norm = global_norm(gradients)
        factor, clipped = clip(norm, cfg, self.queue)
        torch._foreach_mul_(gradients, factor)
        self.optimiser.step(rate)
        self.average.update(self.weights)
        return norm, clipped
