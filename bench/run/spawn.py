"""Distributed training of a run's folder.

`train.n_processes` starts ranks on one machine. For several machines with a shared file system, create the run's folder
with `equibench run` and start the ranks with torchrun:

    torchrun --nnodes=2 --nproc-per-node=4 ... -m bench.run.spawn runs/STUDY/RUN

Then `equibench run` samples and evaluates. Under torchrun, runs with plug-in files are refused.
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
from bench.records.store import RunFolder, disk_error
from bench.run.acceleration import accelerate
from bench.run.batches import load_data
from bench.run.compile import compile_networks
from bench.run.distributed import Ranks, joined
from bench.run.model import Model
from bench.run.parent import die_with
from bench.run.train import train


def train_on_ranks(folder: Path, n: int, device: str) -> None:
    """Train a run's folder on n new ranks of this machine. The first error ends all ranks and is raised here.

    The ranks die with this OS process, which holds the run's lock.

    Raises:
        OSError: the disk is full. RuntimeError: any other failure, in one line.
    """
    # a queue for disk errors: torch writes tracebacks to a file, which fails on a full disk, and another rank may fail
    # first because of its lost connection
    full = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as store:
        given = (n, os.getpid(), f"file://{store}/store", device, full, str(folder))
        try:
            mp.spawn(_rank, given, n)
        except (mp.ProcessRaisedException, mp.ProcessExitedException, EOFError) as error:
            if not full.empty():
                raise OSError(*full.get()) from error
            if isinstance(error, EOFError):
                raise RuntimeError(f"one of {n} ranks ended without a message") from error
            last_line = str(error).strip().splitlines()[-1]
            raise RuntimeError(f"rank {error.error_index} of {n}: {last_line}") from error


def _rank(rank: int, n: int, parent: int, store: str, device: str, full: Any, folder: str) -> None:
    die_with(parent)
    with joined(device, init_method=store, rank=rank, world_size=n):
        try:
            train_folder(Path(folder), trusted=True)  # the parent has written this configuration
        except Exception as error:
            if disk := disk_error(error):
                full.put((disk.errno, disk.strerror))
            raise


def train_folder(folder: Path, trusted: bool = False) -> None:
    """Train the run of an existing folder; called on each rank.

    Args:
        trusted: execute the plug-in files that the configuration names.
    """
    cfg = read_run(folder, trusted)
    if Ranks.here().writes:
        logging.basicConfig(
            filename=RunFolder(folder).log,
            level=logging.INFO,
            format="%(asctime)s %(name)s %(levelname)s %(message)s",
        )
    torch.set_num_threads(cfg.train.n_threads)
    data = load_data(cfg)
    model = Model.build(cfg, data.facts)
    accelerate(model, cfg.train)
    if cfg.train.compile:
        model.to(cfg.train.device)
        compile_networks(model, data)
    train(cfg, model, data.train, data.valid, folder)


if __name__ == "__main__":
    run = Path(sys.argv[1])
    with joined(read_run(run).train.device):
        train_folder(run)
