"""Roofline: a lower bound on the time of a training step.

The step's arithmetic over the machine's peak rate, or its memory traffic over the bandwidth, whichever takes longer.
Operations are the multiplications and additions of the network's matrix products, counted on one forward pass in plain
torch (not compiled, no kernels) and tripled: the backward pass makes a product for the inputs' gradient and one for the
weights' of each. Element-wise work and products repeated in the backward pass are left out. Bytes are those of the
state that a step must move whatever it computes: activations can stay in a cache.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.geometry.state import State
from bench.run.clock import clock
from bench.run.model import Model
from bench.streams import StepStreams

# float32 numbers per parameter that AdamW (amsgrad) and the moving average move in one step:
# read weight, gradient, three moments and average; write all but the gradient
OPTIMISER_TRAFFIC = 11
# the forward and the backward pass each read a weight, and its gradient is written
NETWORK_TRAFFIC = 3

# sides of the square matrices whose product is timed; a CPU peaks with matrices that fit its caches
SIDES = {"cpu": (512, 1024, 2048), "cuda": (8192,)}
COPIED = 2**26  # float32 numbers copied, more than a cache holds


@dataclass(frozen=True)
class Work:
    """Work of one training step: floating-point operations and bytes."""

    flops: float
    bytes: float

    def seconds(self, machine: Machine) -> float:
        """Shortest time, with arithmetic and memory traffic overlapping."""
        return max(self.flops / machine.flops_per_second, self.bytes / machine.bytes_per_second)


@dataclass(frozen=True)
class Machine:
    """Measured peaks of a device: of its best matrix product and of one large copy."""

    flops_per_second: float
    bytes_per_second: float


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    """q k^T and its product with v; shapes [B, heads, n, width]."""
    return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


# products that torch's counter lacks
EXTRA = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


@torch.no_grad()
def training_work(model: Model, x0: State, rng: StepStreams) -> Work:
    """Work of one training step of a model on a batch, in plain torch.

    Args:
        model: neither compiled nor with kernels (their products are not counted).
        x0: clean scaled molecules.
    """
    level = model.process.path.draw(len(x0), rng.time)
    with FlopCounterMode(display=False, custom_mapping=EXTRA) as counter:
        model.predict(x0, level, rng.method)
    state = sum(4 * p.numel() for p in model.named_weights().values())
    return Work(3.0 * counter.get_total_flops(), float((OPTIMISER_TRAFFIC + NETWORK_TRAFFIC) * state))


def machine(device: str, dtype: torch.dtype, repeats: int = 5) -> Machine:
    """Measure the peaks of a device: the best of several runs, since other load can only slow them down.

    Args:
        dtype: of the matrix product.
    """
    flops_per_second = 0.0
    for n in SIDES[torch.device(device).type]:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        product = torch.empty_like(a)
        seconds = best(functools.partial(torch.mm, a, b, out=product), device, repeats)
        flops_per_second = max(flops_per_second, 2 * n**3 / seconds)
    source = torch.ones(COPIED, device=device)
    copy = torch.empty_like(source)
    return Machine(
        flops_per_second,
        2 * source.nbytes / best(lambda: copy.copy_(source), device, repeats),
    )


def best(action: Callable[[], object], device: str, repeats: int) -> float:
    """Shortest time of an action in seconds, after one warm-up call."""
    action()
    times = []
    for _ in range(repeats):
        started = clock(torch.device(device))
        action()
        times.append(clock(torch.device(device)) - started)
    return min(times)
