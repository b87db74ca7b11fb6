"""Chains as inputs of networks: which atom of its residue an atom is, and how far two atoms are apart along the chain.

A task whose `context` is `CHAIN` gives each state a PyTorch Geometric batch with `place` and `atom` of atoms
(`bench.structures.graphs.chains_of`). Only differences of places are seen: a piece of a chain does not tell where it
was cut out. Their sign is seen, so the two directions of a chain differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from bench.geometry.state import State
from bench.nn.padded import slots_of
from bench.nn.pairs import Pairs

if TYPE_CHECKING:
    from torch_geometric.data import Batch

CHAIN = "chain"  # what a task's `context` is called, and what a backbone that reads it has in `contexts`
MAX_SEPARATION = 64  # places along the chain; atoms farther apart count as this far, in their direction
N_ATOMS = 3  # kinds: N, C-alpha, C


def chain_of(z: State) -> Batch:
    """The context of a state; raises ValueError where it holds no chain."""
    if z.context is None or "place" not in z.context:
        raise ValueError(
            "a network built for chains got a state without one in its context; choose a task that gives it"
        )
    return z.context


class ChainEmbedding(nn.Module):
    """Learned vectors of atoms, by their kind, and of ordered pairs, by their separation along the chain.

    Args:
        atom_width: channels of an atom.
        pair_width: channels of a pair.
        pair_std: standard deviation of initial weights of pairs; 0 for biases that start without effect.
    """

    def __init__(self, atom_width: int, pair_width: int, pair_std: float = 1.0) -> None:
        super().__init__()
        self.kinds = nn.Embedding(N_ATOMS, atom_width)
        self.separations = nn.Embedding(2 * MAX_SEPARATION + 1, pair_width)
        nn.init.normal_(self.separations.weight, std=pair_std)

    def atoms(self, z: State) -> Float[Tensor, "A H"]:
        return self.kinds(chain_of(z)["atom"])

    def pairs(self, z: State, pairs: Pairs) -> Float[Tensor, "P K"]:
        place = chain_of(z)["place"]
        return self._of(place.index_select(0, pairs.j) - place.index_select(0, pairs.i))

    def padded_pairs(self, z: State) -> Float[Tensor, "B N N K"]:
        """Vectors of pairs in padded slots; those of empty slots mean nothing."""
        place = slots_of(z.layout).pad(chain_of(z)["place"])
        return self._of(place[:, None, :] - place[:, :, None])

    def _of(self, separation: Int[Tensor, "*P"]) -> Float[Tensor, "*P K"]:
        code = separation.clamp(-MAX_SEPARATION, MAX_SEPARATION) + MAX_SEPARATION
        return F.embedding(code, self.separations.weight)
