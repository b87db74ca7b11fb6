"""Batches of the training set: a function of (seed, step), so that resuming needs no state of a loader."""

from __future__ import annotations

import numpy as np
import torch

from bench.geometry.state import State
from bench.streams import Stream, seed_of
from bench.structures.structures import Structures
from bench.tasks.contract import Task


class Batches:
    """Epochs are permutations drawn from the data stream; the last, incomplete batch of an epoch is left out. A batch of
    the whole training set is in stored order, and encoded once.

    A batch is sorted by size, which the backbones' dense blocks want; the order means nothing to the mathematics.

    Args:
        structures: training molecules.
        task: encodes them as clean states.
    """

    def __init__(self, structures: Structures, task: Task, batch_size: int, seed: int, device: str = "cpu") -> None:
        self.structures, self.task, self.device, self.seed = structures, task, device, seed
        self.batch_size = min(batch_size, len(structures))
        self.per_epoch = len(structures) // self.batch_size
        self._epoch, self._order = -1, torch.arange(len(structures))
        self._whole: State | None = None

    def indices(self, step: int) -> torch.Tensor:
        """State of a step [batch_size]."""
        if self.batch_size == len(self.structures):
            return self._order
        epoch, i = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            rng = torch.Generator().manual_seed(seed_of(self.seed, Stream.DATA, epoch))
            self._epoch, self._order = epoch, torch.randperm(len(self.structures), generator=rng)
        return self._order[i * self.batch_size : (i + 1) * self.batch_size]

    def in_order(self, step: int) -> np.ndarray:
        """State of a step, in the order in which they stand in its batch."""
        index = self.indices(step).numpy()
        return index[self.structures.n_atoms[index].argsort(kind="stable")]

    def __call__(self, step: int) -> State:
        if self._whole is not None:
            return self._whole
        state = self.task.encode(self.structures.select(self.in_order(step)), self.device)
        if self.batch_size == len(self.structures):
            self._whole = state
        return state
