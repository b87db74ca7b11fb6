"""AdamW with the clip before it and the moving average after it, in one pass over the state, for a CPU (adamw.c).

As operations of torch they are four, which read and write gradients, weights and averages again, and each goes through
the weights one by one. The state is torch's own, made by its first step, and so are the formulas (Loshchilov & Hutter,
arXiv:1711.05101, algorithm 2; with amsgrad Reddi et al., arXiv:1904.09237).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from bench.native import required, usable
from bench.threads import n_threads

SOURCE = Path(__file__).with_suffix(".c")


class Pass:
    """One step of all weights that have a gradient, with their gradients, moments and averages."""

    def __init__(self, optimiser: torch.optim.AdamW, averages: dict[nn.Parameter, Tensor]) -> None:
        self.optimiser, self.averages = optimiser, averages
        (self.group,) = optimiser.param_groups
        self.weights = [p for p in self.group["params"] if p.grad is not None]
        self.sizes = [p.numel() for p in self.weights]
        self.threads = n_threads(sum(self.sizes))

    def available(self) -> bool:
        """Whether C can make this step: float32 on a CPU, gradients also bf16, with the state of a step of torch's."""
        states = [self.optimiser.state[p] for p in self.weights]
        if not states or not all("exp_avg" in state for state in states) or not usable(SOURCE, self.weights[0]):
            return False
        of_gradients = (torch.float32, torch.bfloat16)
        return all(p.grad.dtype in of_gradients and p.grad.is_contiguous() for p in self.weights) and all(
            x.dtype is torch.float32 and x.is_cpu and x.is_contiguous() and x.numel() == size
            for size, (_, *arrays, _) in zip(self.sizes, self.arrays, strict=True)
            for x in arrays
        )

    @functools.cached_property
    def arrays(self) -> list[list[Tensor]]:
        """Of each weight, in the order of adamw.c."""
        moments = ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * self.group["amsgrad"]
        found = []
        for p in self.weights:
            state = self.optimiser.state[p]
            found.append([cast(Tensor, p.grad), p, *(state[key] for key in moments), self.averages[p], state["step"]])
        return found

    @functools.cached_property
    def table(self) -> Tensor:
        """For each weight an `Array` of adamw.c: addresses, 0 for the largest square without amsgrad, and numbers."""
        gap, rows = [] if self.group["amsgrad"] else [0], []
        for size, arrays in zip(self.sizes, self.arrays, strict=True):
            *before, average, steps = [x.data_ptr() for x in arrays]
            rows.append([*before, *gap, average, steps, size, int(arrays[0].dtype is torch.bfloat16)])
        return torch.tensor(rows, dtype=torch.int64)

    def norm(self) -> Tensor:
        """Of all gradients together, a scalar."""
        sums = torch.empty(self.threads, dtype=torch.float64)
        required(SOURCE).squares(self.threads, len(self.table), self.table, sums)
        return sums.sum().sqrt().float()

    @torch.no_grad()
    def step(self, factor: Tensor, decay: float) -> None:
        """AdamW's step on gradients times a factor, then averages <- decay averages + (1 - decay) weights."""
        settings = (self.group["lr"], *self.group["betas"], self.group["weight_decay"], self.group["eps"], decay)
        numbers = torch.tensor(settings, dtype=torch.float64)
        required(SOURCE).step(self.threads, len(self.table), self.table, factor, numbers)
        if others := {p: average for p, average in self.averages.items() if p.grad is None}:
            torch._foreach_lerp_(list(others.values()), list(others), 1 - decay)
