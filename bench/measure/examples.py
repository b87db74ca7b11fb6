"""Examples as in training, with some of their draws held, and gradients of their losses: shared by several measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bench.geometry.noised import Level
from bench.geometry.state import State
from bench.measure.contract import Subject
from bench.measure.nested import Sketch
from bench.streams import Streams
from bench.structures.structures import Structures
from bench.symmetry.contract import Method

GRADIENT_VARIANCE = (
    "variance of the gradient of one training example's loss at the weights evaluated, summed over weights"
)
SKETCH = 4096  # numbers that stand for a gradient: its squared norm to a relative standard error below 2.3 %
DATA, PROJECTION = 28_000_000, 29_000_000  # places of the streams


def clean_states(subject: Subject, of: Structures, n: int, place: int) -> State:
    """n clean states drawn from structures with replacement, by size; `place` names the draw."""
    index = np.random.default_rng([subject.seed, place]).integers(len(of), size=n)
    index = index[np.argsort(of.n_atoms[index], kind="stable")]
    return subject.encode(of.select(index), subject.device)


@contextmanager
def hooks(method: Method, **replaced: Callable[..., Any]) -> Iterator[None]:
    """Replace hooks of a method for a while, so that its examples and losses are computed with others.

    Args:
        replaced: by name; called like the hooks, without `self`.
    """
    vars(method).update(replaced)
    try:
        yield
    finally:
        for name in replaced:
            del vars(method)[name]


def unchanged(clean: State, *_: object) -> State:
    """Hook `augment` for clean states that have their pose already."""
    return clean


def gradient(subject: Subject, loss: Float[Tensor, ""]) -> Float[Tensor, "P"]:
    """Gradient of a loss in all trained weights, as one vector."""
    weights = list(subject.weights.values())
    each = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in each])


def of_all(levels: Level, j: int, n: int) -> Level:
    """Level j for each of n molecules."""
    return levels[torch.full((n,), j, device=levels.t.device)]


def sketch_of(subject: Subject) -> Sketch:
    """The projection of this subject's gradients, the same for all with equally many weights."""
    length = sum(weight.numel() for weight in subject.weights.values())
    return Sketch(length, SKETCH, Streams(0, subject.device).at(PROJECTION).method)


def one_by_one(subject: Subject, n: int, place: int) -> list[State]:
    """n training molecules as batches of one: a gradient each, and draws that no other molecule shifts."""
    return [clean_states(subject, subject.data.train, 1, place + 1000 * (i + 1)) for i in range(n)]
