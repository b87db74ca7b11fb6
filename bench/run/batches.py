"""Batches of the training set as a function of (seed, step), so that resuming needs no loader state."""

from __future__ import annotations

import numpy as np
import torch

from bench.config.run import RunConfig
from bench.geometry.state import State
from bench.registry import datasets
from bench.streams import Stream, seed_of
from bench.structures.dataset import DataSet
from bench.structures.structures import Structures
from bench.tasks.contract import Task


class Batches:
    """Epochs are permutations drawn from the data stream; the last, incomplete batch of an epoch is left out.

    Batches are sorted by size, for dense blocks; results do not depend on the order. A batch of the whole
    training set is encoded once.

    Args:
        structures: training molecules.
        task: encodes them as clean states.
    """

    def __init__(self, structures: Structures, task: Task, batch_size: int, seed: int, device: str = "cpu") -> None:
        self.structures, self.task, self.device, self.seed = structures, task, device, seed
        self.batch_size = min(batch_size, len(structures))
        self.per_epoch = len(structures) // self.batch_size
        self._epoch, self._order = -1, torch.arange(len(structures))
        self._whole: dict[tuple[int, int], State] = {}  # by share

    def indices(self, step: int) -> torch.Tensor:
        """Indices of the molecules of a step [batch_size]."""
        if self.batch_size == len(self.structures):
            return self._order
        epoch, i = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            rng = torch.Generator().manual_seed(seed_of(self.seed, Stream.DATA, epoch))
            self._epoch, self._order = epoch, torch.randperm(len(self.structures), generator=rng)
        return self._order[i * self.batch_size : (i + 1) * self.batch_size]

    def in_order(self, step: int) -> np.ndarray:
        """Indices of the molecules of a step, in batch order (by size)."""
        index = self.indices(step).numpy()
        return index[self.structures.n_atoms[index].argsort(kind="stable")]

    def __call__(self, step: int, share: int = 0, n_shares: int = 1) -> State:
        """Clean states of a step, or of every n-th molecule: batches are sorted by size, so shares cost the same."""
        if (share, n_shares) in self._whole:
            return self._whole[share, n_shares]
        state = self.task.encode(self.structures.select(self.in_order(step)[share::n_shares]), self.device)
        if self.batch_size == len(self.structures):
            self._whole[share, n_shares] = state
        return state


def load_data(cfg: RunConfig) -> DataSet:
    """Load the run's data set."""
    return datasets[cfg.data.name].build(cfg.data.options)
