"""Start the ranks that train one run together (`bench.run.distributed`).

`train.n_processes` starts them on one machine. On several nodes, with a folder that all of them see and in which
`equibench run` has written the configuration, torchrun starts as many:

    torchrun --nnodes=2 --nproc-per-node=4 ... -m bench.run.spawn runs/STUDY/RUN

after which `equibench run` samples and evaluates.
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
from bench.run.distributed import Ranks, joined
from bench.run.model import Model
from bench.run.parent import die_with
from bench.run.train import train


def train_on_ranks(folder: Path, n: int, device: str) -> None:
    """Train a run's folder on n new ranks of this machine; the first error ends all and is raised here.

    The ranks end with this OS process, however it ends.

    Raises:
        OSError: the disk is full. RuntimeError: any other failure, in one line.
    """
    # A full disk may leave no room for torch's own note of the error, and another rank, which loses its connection,
    # may end first.
    full = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as store:
        given = (n, os.getpid(), f"file://{store}/store", device, full, str(folder))
        try:
            mp.spawn(_rank, given, n)
        except (mp.ProcessRaisedException, mp.ProcessExitedException, EOFError) as error:
            if not full.empty():
                raise OSError(*full.get()) from error
            if isinstance(error, EOFError):
                raise RuntimeError(f"one of {n} ranks died without an error message") from error
            last_line = str(error).strip().splitlines()[-1]
            raise RuntimeError(f"rank {error.error_index} of {n}: {last_line}") from error


def _rank(rank: int, n: int, parent: int, store: str, device: str, full: Any, folder: str) -> None:
    die_with(parent)  # SIGKILL: a rank that waits for another rank's message handles no other signal
    with joined(device, init_method=store, rank=rank, world_size=n):
        try:
            train_folder(Path(folder), trusted=True)  # whose configuration this rank's parent has written
        except Exception as error:
            if disk := disk_error(error):
                full.put((disk.errno, disk.strerror))
            raise


def train_folder(folder: Path, trusted: bool = False) -> None:
    """Train the run of a folder whose configuration is written; called on each rank.

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
    train(cfg, model, data.train, data.valid, folder)


if __name__ == "__main__":
    run = Path(sys.argv[1])
    with joined(read_run(run).train.device):
        train_folder(run)
