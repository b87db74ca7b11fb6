"""The contract of a task: parts of a state and their spaces, group, encoding, decoding, prompts, evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from bench.diffusion.process import DiffusionConfig, Process
from bench.geometry.groups import Group
from bench.geometry.state import State
from bench.records.values import Value
from bench.references import Reference
from bench.streams import Stream, seed_of
from bench.structures.dataset import DataSet, Facts
from bench.structures.sizes import SizeDistribution
from bench.structures.structures import Structures

N_DRAWN = 8  # samples kept for figures: the first ones, unselected


@dataclass(frozen=True)
class Prompt:
    """The conditions of one batch of samples.

    Attributes:
        number: of the batch, from 0.
        places: indices of its molecules in the whole set of samples; a molecule's selects its random streams.
        sizes: number of atoms of each, ascending.
        n_padded: the largest known size, to which published code pads all samples.
        context: conditioning (bonds, composition), or None.
    """

    number: int
    places: np.ndarray
    sizes: np.ndarray
    n_padded: int
    context: Any = None


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of a run's samples.

    Attributes:
        values: of the samples.
        data_values: the same values of the test split: what samples as good as the data would get.
        bonds: of each of the first samples, rows (first atom, second atom, order); None: no figure is drawn.
    """

    values: list[Value]
    data_values: list[Value] = field(default_factory=list)
    bonds: list[np.ndarray] | None = None


class Task(ABC):
    """A problem: what to generate, and how samples are evaluated.

    Class attributes:
        groups: symmetry groups of the data, by their name in a configuration; the first is the default.
        references: papers to cite for it.
        one_size: whether it takes backbones marked `one_size`: those for states of one number of points, and those of
            crystals, whose states have a cell.
        context: what the context of its states holds, such as 'graph'; backbones that name it in their `contexts` are
            built with it, others are refused. None: states have none, or one that a backbone may leave unread.

    Attributes:
        facts: statistics of the training set that a model needs.
        group: the symmetry group chosen.
        process: the diffusion process over the task's spaces.
    """

    groups: ClassVar[Mapping[str, Callable[[], Group]]]
    references: ClassVar[tuple[Reference, ...]] = ()
    one_size: ClassVar[bool] = False
    context: ClassVar[str | None] = None

    facts: Facts
    group: Group
    process: Process

    @abstractmethod
    def __init__(self, cfg: Any, diffusion: DiffusionConfig, group: str, facts: Facts) -> None:
        """Set the attributes; raise ValueError for inconsistent options."""

    @abstractmethod
    def encode(
        self, structures: Structures, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> State:
        """Clean states of structures, scaled and projected onto their spaces."""

    @abstractmethod
    def decode(self, state: State) -> Structures:
        """Structures of final states."""

    def prompts(self, n: int, batch_size: int, seed: int, data: DataSet | None = None) -> list[Prompt]:
        """Batches to sample: n sizes drawn from the training set's histogram, sorted.

        Args:
            data: whose test split a conditional task takes its contexts from; None where a run is sampled without it.
        Returns:
            prompts whose places are 0, 1, ..., each once: n, or fewer where the contexts do not add up to n.
        """
        del data
        sizes = SizeDistribution(self.facts.sizes)
        drawn = sizes.draw(n, np.random.default_rng(seed_of(seed, Stream.SAMPLING, 0)))
        order = np.argsort(drawn, kind="stable")
        return [
            Prompt(i // batch_size, order[i : i + batch_size], drawn[order[i : i + batch_size]], int(sizes.sizes[-1]))
            for i in range(0, n, batch_size)
        ]

    @abstractmethod
    def evaluate(self, samples: Structures, data: DataSet, cache: Path) -> Evaluation:
        """Evaluate samples against a data set.

        Args:
            cache: folder for results that are computed once per data set.
        """

    @classmethod
    def chosen_group(cls, name: str) -> Group:
        """The group of this name; raises ValueError with the choices."""
        if name not in cls.groups:
            raise ValueError(f"'group' is {name!r}, expected {' or '.join(cls.groups)} for this task")
        return cls.groups[name]()
