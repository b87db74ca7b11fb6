"""Start the ranks that train one run together (`bench.run.distributed`).

`train.n_processes` starts them on one machine. On several nodes, with a folder that all of them see and in which
`equibench run` has written the configuration, torchrun starts them:

    torchrun --nnodes=2 --nproc-per-node=4 ... -m bench.run.workers runs/STUDY/RUN

with `train.n_processes` ranks in all, after which `equibench run` samples and evaluates.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from bench.config.run import read_run
from bench.records.store import disk_error
from bench.run.acceleration import accelerate
from bench.run.batches import load_data
from bench.run.distributed import World, joined
from bench.run.model import Model
from bench.run.parent import die_with
from bench.run.train import train


def start(target: Any, n: int, device: str, *args: Any) -> None:
    """Call target(*args) in n new workers that form a process group; the first error ends all and is raised here.

    The workers end with this one, however it ends.

    Raises:
        OSError: a worker's disk is full.
        RuntimeError: any other error of a worker, in one line.
    """
    # a queue of our own: a full disk may leave no room for torch's note of the error, and another worker, which loses
    # its connection, may end first
    full = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as store:
        given = (n, os.getpid(), f"file://{store}/store", device, full, target, args)
        try:
            mp.spawn(_worker, given, n)
        except (mp.ProcessRaisedException, mp.ProcessExitedException, EOFError) as error:
            if not full.empty():
                raise OSError(*full.get()) from error
            if isinstance(error, EOFError):
                raise RuntimeError(f"one of {n} workers died without an error message") from error
            raise RuntimeError(f"rank {error.error_index} of {n}: {str(error).strip().splitlines()[-1]}") from error


def _worker(
    rank: int, n: int, parent: int, store: str, device: str, full: Any, target: Any, args: tuple[Any, ...]
) -> None:
    die_with(parent)  # SIGKILL: a rank that waits for another one's message hears no other signal
    with joined(device, init_method=store, rank=rank, world_size=n):
        try:
            target(*args)
        except Exception as error:
            if disk := disk_error(error):
                full.put((disk.errno, disk.strerror))
            raise


def train_folder(folder: str) -> None:
    """Train the run of a folder that holds its configuration; called on each rank."""
    cfg = read_run(Path(folder))
    if World.here().writes:
        logging.basicConfig(
            filename=Path(folder) / "log.txt",
            level=logging.INFO,
            format="%(asctime)s %(name)s %(levelname)s %(message)s",
        )
    torch.set_num_threads(cfg.train.n_threads)
    data = load_data(cfg)
    model = Model.build(cfg, data.facts)
    accelerate(model, cfg.train)
    train(cfg, model, data.train, data.valid, Path(folder))


if __name__ == "__main__":
    with joined(read_run(Path(sys.argv[1])).train.device):
        train_folder(sys.argv[1])
