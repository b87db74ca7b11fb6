"""Published state dicts: arrays under a public code's names, and how a plug-in declares its own.

Plug-ins describe their public code with `PublishedWeights`; `bench.published.weights` does the reading.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from bench.geometry.state import State


class PublishedError(ValueError):
    """Published arrays that cannot be used; one line: the array, what it holds, what was expected."""


class StateDict(dict[str, Tensor]):
    """Arrays by published name; a missing array or a wrong rank raises a one-line error."""

    def __missing__(self, name: str) -> Tensor:
        raise PublishedError(f"no array {name!r}; the other names imply that the network has it")

    def size(self, name: str, dim: int) -> int:
        """Length of one dimension."""
        shape = tuple(self[name].shape)
        if dim >= len(shape) or shape[dim] < 1:
            raise PublishedError(f"array {name!r} has shape {shape}, expected a positive length in dimension {dim}")
        return shape[dim]

    def n_blocks(self, stem: str) -> int:
        """How many different numbers follow `stem`: 'model.blocks.' counts the blocks of a transformer."""
        found = (re.match(rf"{re.escape(stem)}(\d+)\.", name) for name in self)
        return len({match[1] for match in found if match})


@dataclass(frozen=True)
class OwnWeights:
    """The network that a method owns, in a published state dict.

    Attributes:
        module: attribute of the method that holds it.
        trunk: published prefix of its transformer blocks.
        names: published layers outside the blocks -> ours; None where the public code holds a layer and never trains
            it.
        sizes: options of the method that are inferred from shapes.
        untold: options that no shape reveals; they come from a published size, or are given.
        config_names: keys of the `config` in parity fixtures -> options.
        rotation: (module, z_t, base rotation, noise, t) -> R [B, 3, 3] as the public code composes it, for
            the comparison with its numbers in `bench.published.parity`.
    """

    module: str
    trunk: str
    names: Mapping[str, str | None]
    sizes: Callable[[StateDict], dict[str, int]]
    untold: tuple[str, ...]
    config_names: Mapping[str, str]
    rotation: Callable[[Any, State, Tensor, Tensor, Tensor], Float[Tensor, "B 3 3"]]


@dataclass(frozen=True)
class PublishedWeights:
    """The public code whose state dicts hold the weights of a method and of its backbone.

    Attributes:
        network: the public class, for messages and records.
        prefixes: first parts of all its parameter names, by which a state dict is recognised.
        backbone: registered name of the backbone.
        trunk: published prefix of the backbone's blocks.
        own: the method's own network, where it has one.
        assumed: keys of the public code's configuration that names and shapes do not reveal, with the only supported
            value, that of all published runs.
        notes: how a run of these weights still differs from the public code; kept in its record.
    """

    network: str
    prefixes: frozenset[str]
    backbone: str
    trunk: str
    own: OwnWeights | None = None
    assumed: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
