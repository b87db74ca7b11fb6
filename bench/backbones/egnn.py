"""EGNN: E(n)-equivariant message passing on all pairs of atoms, the network of EDM.

Satorras et al., E(n) equivariant graph neural networks (arXiv:2102.09844); as used by Hoogeboom et al.
(arXiv:2203.17003), appendix C. Exactly equivariant under O(3) and permutations, at any weights.

A block, for d_ij^2 the current and d0_ij^2 the initial squared distance:
    m_ij = SiLU(W2 SiLU(W1 [h_i, h_j, d_ij^2, d0_ij^2])),  a_ij = sigmoid(w m_ij + b)
    h_i <- h_i + W4 SiLU(W3 [h_i, sum_{j != i} a_ij m_ij])
    x_i <- x_i + sum_j (x_i - x_j) / (d_ij + 1) 15 tanh(V3 SiLU(V2 SiLU(V1 [h_i, h_j, d_ij^2, d0_ij^2])))
Where a task gives bond graphs or chains, embeddings of the atoms are added to h at the start, and those of bond and
topological distance, or of the separation along the chain, stand beside d_ij^2 and d0_ij^2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bench.geometry.state import State
from bench.nn.chain import CHAIN
from bench.nn.context import embedding_of
from bench.nn.graph import GRAPH
from bench.nn.linear import Float32Linear, answer, features_of
from bench.nn.pairs import Pairs, differences, pair_linear, pairs_of, sum_over_partners
from bench.references import Reference
from bench.registry import backbones


@dataclass
class EGNNConfig:
    """Options of the EGNN; a named size sets width and depth."""

    width: int = 256
    depth: int = 9
    coordinate_range: float = 15.0  # bound of a pair's update in one block, before the weight (x_i - x_j) / (d + 1)


N_PAIR = 16  # channels of what the context says of a pair


class MessagePassing(nn.Module):
    """Messages with attention on pairs and the update of features by their sum: m_ij, a_ij and h_i as above.

    Args:
        n_distances: columns of the pair input beside the two atoms' features.
    """

    def __init__(self, width: int, n_distances: int) -> None:
        super().__init__()
        self.message_in = nn.Linear(2 * width + n_distances, width)
        self.message_out = nn.Linear(width, width)
        self.attention = nn.Linear(width, 1)
        self.node_in = nn.Linear(2 * width, width)
        self.node_out = nn.Linear(width, width)

    def update(
        self, h: Float[Tensor, "A H"], distances: Float[Tensor, "P D"] | None, pairs: Pairs
    ) -> Float[Tensor, "A H"]:
        """h_i + W4 SiLU(W3 [h_i, sum_j a_ij m_ij])."""
        gathered = self.gather(h, distances, pairs)
        return h + self.node_out(F.silu(self.node_in(torch.cat([h, gathered], dim=1))))

    def gather(
        self, h: Float[Tensor, "A H"], distances: Float[Tensor, "P D"] | None, pairs: Pairs
    ) -> Float[Tensor, "A H"]:
        """sum_j a_ij m_ij."""
        message = F.silu(self.message_out(F.silu(pair_linear(self.message_in, h, distances, pairs))))
        return sum_over_partners(torch.sigmoid(self.attention(message)) * message, pairs)


class Block(MessagePassing):
    """One EGNN block; parameters named by what they do."""

    def __init__(self, width: int, coordinate_range: float, n_pair: int = 0) -> None:
        super().__init__(width, n_distances=2 + n_pair)
        self.coordinate_range = coordinate_range
        self.coordinate_in = nn.Linear(2 * width + 2 + n_pair, width)
        self.coordinate_mid = nn.Linear(width, width)
        self.coordinate_out = nn.Linear(width, 1, bias=False)
        nn.init.xavier_uniform_(self.coordinate_out.weight, gain=0.001)

    def forward(
        self, h: Float[Tensor, "A H"], x: Float[Tensor, "A D"], given: Float[Tensor, "P K"], pairs: Pairs
    ) -> tuple[Tensor, Tensor]:
        """given: what does not change from block to block, d0_ij^2 first."""
        difference = differences(x, pairs)
        d2 = difference.square().sum(1, keepdim=True)
        distances = torch.cat([d2, given], dim=1)
        h = self.update(h, distances, pairs)
        strength = self.coordinate_range * torch.tanh(self.strength(h, distances, pairs))
        x = x + sum_over_partners(difference * (strength / ((d2 + 1e-8).sqrt() + 1)), pairs)
        return h, x

    def strength(self, h: Float[Tensor, "A H"], distances: Float[Tensor, "P D"], pairs: Pairs) -> Float[Tensor, "P 1"]:
        """V3 SiLU(V2 SiLU(V1 [h_i, h_j, d_ij^2, d0_ij^2]))."""
        hidden = F.silu(pair_linear(self.coordinate_in, h, distances, pairs))
        return self.coordinate_out(F.silu(self.coordinate_mid(hidden)))


@backbones.register("egnn", EGNNConfig)
class EGNN(nn.Module):
    """E(n)-equivariant message passing on all pairs (the network of EDM)."""

    equivariant: ClassVar[bool] = True
    contexts: ClassVar[frozenset[str]] = frozenset({GRAPH, CHAIN})
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "satorras2021en",
            "E(n) Equivariant Graph Neural Networks",
            ("Satorras, Victor Garcia", "Hoogeboom, Emiel", "Welling, Max"),
            2021,
            arxiv="2102.09844",
        ),
    )
    sizes: ClassVar[dict[str, dict[str, int]]] = {
        "tiny": {"width": 16, "depth": 2},
        "small": {"width": 64, "depth": 4},
        "medium": {"width": 128, "depth": 6},
        "published": {"width": 256, "depth": 9},
        "published_geom": {"width": 256, "depth": 4},
    }

    def __init__(self, cfg: EGNNConfig, channels: Mapping[str, int], context: str | None = None) -> None:
        super().__init__()
        self.graph = embedding_of(context, cfg.width, N_PAIR)  # under its first name, so that weights load
        n_pair = 0 if self.graph is None else N_PAIR
        n_features = channels.get("h", 0)
        self.embedding = Float32Linear(n_features + 1, cfg.width)
        self.blocks = nn.ModuleList(Block(cfg.width, cfg.coordinate_range, n_pair) for _ in range(cfg.depth))
        # the published network also reads out the time channel and discards it; the row is kept so that weights load
        self.readout = Float32Linear(cfg.width, n_features + 1)

    def forward(self, z: State, t: Float[Tensor, "B"]) -> State:
        """Raw output: displacement x_L - x_0 [A, D] and features [A, F]."""
        pairs = pairs_of(z.layout)
        x = z.x
        h = self.embedding(torch.cat([features_of(z), z.per_atom(t)[:, None]], dim=1))
        given = differences(x, pairs).square().sum(1, keepdim=True)
        if self.graph is not None:
            h = h + self.graph.atoms(z)
            given = torch.cat([given, self.graph.pairs(z, pairs)], dim=1)
        for block in self.blocks:
            h, x = block(h, x, given, pairs)
        return answer(z, x - z.x, self.readout(h)[:, :-1])
