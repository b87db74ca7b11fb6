"""AdamW with the clip before it and the moving average after it, in one pass over the state, for a CPU (adamw.c).

As operations of torch they are four, which read and write gradients, weights and averages again, and each goes through
the weights one by one. The state is torch's own, made by its first step, and so are the formulas (Loshchilov & Hutter,
arXiv:1711.05101, algorithm 2; with amsgrad Reddi et al., arXiv:1904.09237).
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from bench.kernels.native import required, usable
from bench.kernels.threads import n_threads

SOURCE = Path(__file__).with_suffix(".c")


class Pass:
    """One step of all weights that have a gradient, with their gradients, moments and averages.

    Args:
        last: of the step before; where the state is still the same, it need not be looked at again.
    """

    def __init__(
        self, optimiser: torch.optim.AdamW, averages: dict[nn.Parameter, Tensor], last: Pass | None = None
    ) -> None:
        self.averages = averages
        (self.group,) = optimiser.param_groups
        self.weights = [p for p in self.group["params"] if p.grad is not None]
        moments = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if self.group["amsgrad"] else ("exp_avg", "exp_avg_sq")
        states = [optimiser.state[p] for p in self.weights]
        self.arrays: list[list[Tensor]] = []  # of each weight, in the order of adamw.c
        if all("exp_avg" in state for state in states):  # after torch's first step
            of_weights = zip(self.weights, states, strict=True)
            self.arrays = [[p, *(state[key] for key in moments), averages[p], state["step"]] for p, state in of_weights]
        # a weight may be given other memory (`weight.data`, as by `Module.to`); else other arrays are other objects
        self.key = [id(x) for arrays in self.arrays for x in arrays], [p.data_ptr() for p in self.weights]
        self.table = last.table if last is not None and last.key == self.key else self._table()
        gradients = [cast(Tensor, p.grad) for p in self.weights]  # no attribute: they would be kept until the next pass
        precisions = (torch.float32, torch.bfloat16)
        self.fits = len(self.table) > 0 and all(g.dtype in precisions and g.is_contiguous() for g in gradients)
        if self.fits:
            self.table[:, 0] = torch.tensor([g.data_ptr() for g in gradients])
            self.table[:, -1] = torch.tensor([g.dtype is torch.bfloat16 for g in gradients])

    def _table(self) -> Tensor:
        """For each weight an `Array` of adamw.c without its gradient: addresses, 0 for the largest square without
        amsgrad, and numbers. Empty where not all are float32 numbers one after the other on a CPU."""
        gap, rows = [] if self.group["amsgrad"] else [0], []
        for weight, *others, steps in self.arrays:
            for x in (weight, *others):
                if not (x.dtype is torch.float32 and x.is_cpu and x.is_contiguous() and x.numel() == weight.numel()):
                    return torch.empty(0)
            *before, average = [x.data_ptr() for x in (weight, *others)]
            rows.append([0, *before, *gap, average, steps.data_ptr(), weight.numel(), 0])
        return torch.tensor(rows, dtype=torch.int64)

    def available(self) -> bool:
        """Whether C can make this step: float32 on a CPU, gradients also bf16, with the state of a step of torch's."""
        return self.fits and usable(SOURCE, self.weights[0])

    @property
    def threads(self) -> int:
        return n_threads(sum(p.numel() for p in self.weights))

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
        torch.autograd.graph.increment_version(self.weights)  # whoever saved one for a backward pass is to know
        if others := {p: average for p, average in self.averages.items() if p.grad is None}:
            torch._foreach_lerp_(list(others.values()), list(others), 1 - decay)
