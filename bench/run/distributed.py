"""Training one run on several ranks of torch.distributed.

Each rank takes every n-th molecule of a batch, draws from its own streams and computes its share of the mean loss;
DistributedDataParallel averages the gradients. All ranks read the run's folder; rank 0 alone writes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Ranks:
    """This rank and the number of ranks; one, unless torch.distributed has been initialised."""

    rank: int = 0
    n: int = 1

    @classmethod
    def here(cls) -> Ranks:
        initialised = dist.is_available() and dist.is_initialized()
        return cls(dist.get_rank(), dist.get_world_size()) if initialised else cls()

    @property
    def writes(self) -> bool:
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Wrap for data parallelism: gradients are averaged over ranks, weights start as those of rank 0."""
        if self.n == 1:
            return module
        return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)

    def synchronise(self, module: nn.Module, last: bool) -> Any:
        """Context of a micro-batch: gradients are averaged over ranks only after the last one."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) and not last else nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.n > 1:
            dist.all_reduce(values)
        return values

    def gather(self, values: Tensor) -> Tensor:
        """Concatenation over ranks."""
        if self.n == 1:
            return values
        found = [torch.empty_like(values) for _ in range(self.n)]
        dist.all_gather(found, values)
        return torch.cat(found)

    def from_first(self, value: Any) -> Any:
        """Broadcast a small object from rank 0."""
        if self.n == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]


@contextmanager
def joined(device: str, **init: Any) -> Iterator[None]:
    """Join the process group as one rank; `init` as for `init_process_group`, by default torchrun's environment."""
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK") or init.get("rank", 0)))
    dist.init_process_group("nccl" if on_gpu else "gloo", **init)
    try:
        yield
    finally:
        dist.destroy_process_group()
        if not on_gpu:
            # A gloo thread may still hold tensors of the last message, which it frees within microseconds under the
            # interpreter's lock; if the interpreter has ended by then, it aborts (torch 2.13).
            time.sleep(0.2)
