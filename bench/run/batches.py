"""Batches of the training set as a function of (seed, step), so that resuming needs no loader state."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import torch

from bench.config.run import PlugIn, RunConfig, resolve
from bench.geometry.state import State
from bench.registry import datasets
from bench.streams import Stream, seed_of
from bench.structures.dataset import DataSet
from bench.structures.fetch import CannotStartError
from bench.structures.structures import Structures
from bench.tasks.contract import Task

log = logging.getLogger("equibench")
STOP = "error"  # value of a data set's option `offline`: nothing stands in


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


def load_or_stand_in(chosen: PlugIn) -> tuple[PlugIn, DataSet]:
    """The data set of a study's page, and how a run's record names it.

    A data set that may be out of reach can have an option `offline`: 'error', or the data set to use then. A record
    names the data set that was used, with `offline: error`: a run that is repeated from its record never falls back.

    Raises:
        CannotStartError: out of reach, and nothing stands in. DataError: as the data set.
    """
    offline = getattr(chosen.options, "offline", STOP)
    if offline == STOP:
        return chosen, datasets[chosen.name].build(chosen.options)
    strict = dataclasses.replace(chosen, options=dataclasses.replace(chosen.options, offline=type(offline)(STOP)))
    try:
        return strict, datasets[strict.name].build(strict.options)
    except CannotStartError as error:
        log.warning("THE DATA SET IS %r INSTEAD OF %r: %s", str(offline), chosen.name, error)
    known = {field.name for field in dataclasses.fields(datasets[offline].config)}
    given = {key: value for key, value in chosen.to_plain().items() if key in known}
    other = resolve(datasets, {**given, "name": str(offline), "in_place_of": chosen.name}, "data")
    return other, datasets[other.name].build(other.options)
