"""Lists of the ordered pairs (i, j) of atoms of one molecule, gathers from atoms to pairs and sums over partners.

Shapes: A atoms, P pairs, H and K channels. Pairs come molecule after molecule, sorted by i and then by j; there is no
padding. Under bf16 autocast, distances and sums over partners are float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from bench.geometry.layout import Layout
from bench.nn.linear import without_autocast


@dataclass(frozen=True)
class Pairs:
    """Atoms i and their partners j, P ordered pairs within molecules."""

    i: Int[Tensor, "P"]
    j: Int[Tensor, "P"]
    layout: Layout
    include_self: bool


def pairs_of(layout: Layout, include_self: bool = False) -> Pairs:
    """All ordered pairs of a layout, with or without i = j, cached in it."""
    key = ("pairs", include_self)
    if key not in layout.memo:
        layout.memo[key] = _list(layout, include_self)
    return layout.memo[key]


def _list(layout: Layout, include_self: bool) -> Pairs:
    sizes = layout.sizes
    size_of_atom = np.repeat(sizes, sizes)
    first_of_atom = np.repeat(np.cumsum(sizes) - sizes, sizes)  # first atom of its molecule
    i = np.repeat(np.arange(len(size_of_atom)), size_of_atom)
    first_pair = np.cumsum(size_of_atom) - size_of_atom
    j = first_of_atom[i] + np.arange(len(i)) - first_pair[i]
    if not include_self:
        i, j = i[i != j], j[i != j]
    return Pairs(torch.from_numpy(i).to(layout.device), torch.from_numpy(j).to(layout.device), layout, include_self)


def differences(x: Float[Tensor, "A D"], pairs: Pairs) -> Float[Tensor, "P D"]:
    """x_i - x_j."""
    return x.index_select(0, pairs.i) - x.index_select(0, pairs.j)


def sum_over_partners(values: Float[Tensor, "P ..."], pairs: Pairs) -> Float[Tensor, "A ..."]:
    """sum_j v_ij, at least in float32."""
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    return values.new_zeros(pairs.layout.n_total, *values.shape[1:]).index_add(0, pairs.i, values)


def pair_linear(
    linear: nn.Linear, h: Float[Tensor, "A H"], distances: Float[Tensor, "P C"] | None, pairs: Pairs
) -> Float[Tensor, "P K"]:
    """W [h_i, h_j, d_ij] + bias, in the precision of h.

    The product with h is computed per atom instead of per pair. The product with distances is exempt from autocast:
    bf16 has three digits.
    """
    of_i, of_j, of_distances = linear.weight.split([h.shape[1], h.shape[1], linear.in_features - 2 * h.shape[1]], dim=1)
    a, b = F.linear(h, of_i, linear.bias).to(h.dtype), F.linear(h, of_j).to(h.dtype)
    out = a.index_select(0, pairs.i) + b.index_select(0, pairs.j)
    if distances is None:
        return out
    with without_autocast(out.device):
        return out + distances @ of_distances.t()
