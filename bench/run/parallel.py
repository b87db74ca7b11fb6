"""One run trained by several processes: torch's DistributedDataParallel around the loss, and the loop stays ours.

Each process takes its molecules of every batch (`bench.run.parts`) with the draws of the whole batch, so the losses are
those of one process at the same batch size but for the order of sums. All read the run's folder; rank 0 alone writes.
`train.n_processes` starts them on one machine. Elsewhere, on one folder that all nodes see, once `equibench run` has
written its configuration:

    torchrun --nnodes=2 --nproc-per-node=4 ... -m bench.run.parallel runs/STUDY/RUN

after which `equibench run` samples and scores.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bench.records.store import RunFolder, disk_error


@dataclass(frozen=True)
class Processes:
    """The processes that train this run together; one, unless torch.distributed has been started."""

    rank: int = 0
    n: int = 1

    @classmethod
    def here(cls) -> Processes:
        started = dist.is_available() and dist.is_initialized()
        return cls(dist.get_rank(), dist.get_world_size()) if started else cls()

    @property
    def writes(self) -> bool:
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Gradients of the module's parameters become means over processes; its weights those of rank 0."""
        if self.n == 1:
            return module
        return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over processes, in place."""
        if self.n > 1:
            dist.all_reduce(values)
        return values

    def of_first(self, value: Any) -> Any:
        """What rank 0 holds (a small object)."""
        if self.n == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]


@contextmanager
def joined(device: str, **init: Any) -> Iterator[None]:
    """This process as one of several; `init` as for torch.distributed, by default torchrun's environment."""
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK") or init.get("rank", 0)))
    dist.init_process_group("nccl" if on_gpu else "gloo", **init)
    try:
        yield
    finally:
        dist.destroy_process_group()
        if not on_gpu:
            # A thread of gloo's may still hold the last message's tensors. It lets go of them under Python's lock, and
            # aborts the process if Python has ended by then (torch 2.13); it needs microseconds of this time.
            time.sleep(0.2)


def start(target: Any, n: int, device: str, *args: Any) -> None:
    """Call target(*args) in n new processes that are joined; the first error ends all and is raised here.

    The processes end with this one, however it ends, so that nobody writes into a run whose lock is free.
    """
    # a full disk may leave no room for torch's own note of what was raised, and another process, which loses its
    # connection, may end first
    full = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as store:
        given = (n, os.getpid(), f"file://{store}/store", device, full, target, args)
        try:
            mp.spawn(_started, given, n)
        except (mp.ProcessRaisedException, mp.ProcessExitedException, EOFError) as error:
            if not full.empty():
                raise OSError(*full.get()) from error
            if isinstance(error, EOFError):
                raise RuntimeError(f"one of {n} processes ended without a word") from error
            raise RuntimeError(f"process {error.error_index} of {n}: {str(error).strip().splitlines()[-1]}") from error


def _started(
    rank: int, n: int, parent: int, store: str, device: str, full: Any, target: Any, args: tuple[Any, ...]
) -> None:
    _die_with(parent)
    with joined(device, init_method=store, rank=rank, world_size=n):
        try:
            target(*args)
        except Exception as error:
            if disk := disk_error(error):
                full.put((disk.errno, disk.strerror))
            raise


def _die_with(parent: int) -> None:
    """SIGKILL when the parent dies (Linux); a process that waits for another one's message hears no other signal."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def train_folder(folder: str) -> None:
    """Train the run of a folder whose configuration is written; called in each of several processes."""
    from bench.config.run import read_run
    from bench.run.acceleration import accelerate
    from bench.run.execute import load_data
    from bench.run.model import Model
    from bench.run.train import train

    cfg = read_run(Path(folder))
    if Processes.here().writes:
        logging.basicConfig(
            filename=RunFolder(Path(folder)).log,
            level=logging.INFO,
            format="%(asctime)s %(name)s %(levelname)s %(message)s",
        )
    torch.set_num_threads(cfg.train.n_threads)
    data = load_data(cfg)
    model = Model.build(cfg, data.facts)
    accelerate(model, cfg.train)
    train(cfg, model, data.train, data.valid, Path(folder))


if __name__ == "__main__":
    from bench.config.run import read_run

    with joined(read_run(Path(sys.argv[1])).train.device):
        train_folder(sys.argv[1])
