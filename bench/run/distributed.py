"""Several ranks that train one run together: rank, world size, gradients and sums over ranks (torch.distributed).

Each rank takes an ordinary share of every batch, with draws of its own (`Streams.at`); DistributedDataParallel averages
the gradients. `bench.run.workers` starts the ranks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """The ranks that train this run; a single one unless torch.distributed has been started."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> World:
        started = dist.is_available() and dist.is_initialized()
        return cls(dist.get_rank(), dist.get_world_size()) if started else cls()

    @property
    def writes(self) -> bool:
        """Rank 0 alone writes into the run's folder."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over ranks, starting from the weights of rank 0."""
        if self.size == 1:
            return module
        return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)

    @staticmethod
    def accumulating(module: nn.Module) -> AbstractContextManager[None]:
        """Leave gradients on this rank: they are averaged with those of the step's last micro-batch."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def of_first(self, value: Any) -> Any:
        """Rank 0's value (a small object), on all ranks."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]


@contextmanager
def joined(device: str, **init: Any) -> Iterator[None]:
    """Join the process group; `init` as for torch.distributed, by default torchrun's environment."""
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK") or init.get("rank", 0)))
    dist.init_process_group("nccl" if on_gpu else "gloo", **init)
    try:
        yield
    finally:
        dist.destroy_process_group()
        if not on_gpu:
            # A gloo thread may still hold the tensors of the last message; it releases them under Python's lock and
            # aborts the worker if the interpreter has ended by then (torch 2.13). Microseconds are enough.
            time.sleep(0.2)
