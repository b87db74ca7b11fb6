"""Padded view of a ragged batch: [B, N] slots, N the size of the largest molecule.

For attention and matrix products over partners; everything else works on atoms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from bench.geometry.layout import Layout
from bench.nn.pairs import Pairs


@dataclass(frozen=True)
class Slots:
    """The slot of each atom.

    Attributes:
        place: slot b N + n of each atom [A].
        filled: True for slots that hold an atom [B, N].
    """

    place: Int[Tensor, "A"]
    filled: Bool[Tensor, "B N"]

    def pad(self, values: Shaped[Tensor, "A ..."]) -> Shaped[Tensor, "B N ..."]:
        """Atom-wise values in their slots, zeros in empty ones."""
        B, N = self.filled.shape
        out = values.new_zeros(B * N, *values.shape[1:]).index_copy(0, self.place, values)
        return out.unflatten(0, (B, N))

    def pad_pairs(self, values: Float[Tensor, "P ..."], pairs: Pairs) -> Float[Tensor, "B N N ..."]:
        """Pair-wise values v_ij, zeros where there is no pair."""
        B, N = self.filled.shape
        place = self.place[pairs.i] * N + self.place[pairs.j] % N
        return values.new_zeros(B * N * N, *values.shape[1:]).index_copy(0, place, values).unflatten(0, (B, N, N))

    def unpad(self, values: Float[Tensor, "B N ..."]) -> Float[Tensor, "A ..."]:
        """Inverse of `pad`."""
        return values.flatten(0, 1).index_select(0, self.place)


def slots_of(layout: Layout) -> Slots:
    """The slots of a layout, cached in it."""
    if "slots" not in layout.memo:
        layout.memo["slots"] = _make(layout)
    return layout.memo["slots"]


def _make(layout: Layout) -> Slots:
    filled = np.arange(layout.n_largest) < layout.sizes[:, None]
    place, mask = torch.from_numpy(np.flatnonzero(filled)), torch.from_numpy(filled)
    return Slots(place.to(layout.device), mask.to(layout.device))
