"""EGNN: E(n)-equivariant message passing on all pairs of atoms, the network of EDM.

Satorras et al., E(n) equivariant graph neural networks (arXiv:2102.09844); as used by Hoogeboom et al.
(arXiv:2203.17003), appendix C. Exactly equivariant under O(3) and permutations, at any weights.

A block, for d_ij^2 the current and d0_ij^2 the initial squared distance:
    m_ij = SiLU(W2 SiLU(W1 [h_i, h_j, d_ij^2, d0_ij^2])),  a_ij = sigmoid(w m_ij + b)
    h_i <- h_i + W4 SiLU(W3 [h_i, sum_{j != i} a_ij m_ij])
    x_i <- x_i + sum_j (x_i - x_j) / (d_ij + 1) 15 tanh(V3 SiLU(V2 SiLU(V1 [h_i, h_j, d_ij^2, d0_ij^2])))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bench.geometry.layout import Layout
from bench.geometry.state import State
from bench.kernels import pair_mlp
from bench.nn.linear import Float32Linear, RowLinear, row_linear
from bench.nn.pairs import differences, off_diagonal, pair_input, weighted_sum
from bench.references import Reference
from bench.registry import backbones


@dataclass
class EGNNConfig:
    """Options of the EGNN; a named size sets width and depth."""

    width: int = 256
    depth: int = 9
    coordinate_range: float = 15.0  # of one block's update, before the weight (x_i - x_j) / (d + 1)


class MessagePassing(nn.Module):
    """Messages with attention on all pairs and the update of features by their sum: m_ij, a_ij and h_i as above.

    Args:
        n_distances: columns of the pair input beside the two atoms' features.
        itself: whether an atom is a partner of its own.
    """

    def __init__(self, width: int, n_distances: int, itself: bool) -> None:
        super().__init__()
        self.itself = itself
        self.message_in = nn.Linear(2 * width + n_distances, width)
        self.message_out = nn.Linear(width, width)
        self.attention = nn.Linear(width, 1)
        self.node_in = RowLinear(2 * width, width)
        self.node_out = RowLinear(width, width)

    def in_c(self, x: Tensor) -> bool:
        """Whether `pair_mlp` is for numbers like these."""
        return pair_mlp.available(x, self.attention.in_features)

    def update(self, h: Float[Tensor, "A H"], distances: Float[Tensor, "P D"], layout: Layout) -> Float[Tensor, "A H"]:
        """h_i + W4 SiLU(W3 [h_i, sum_j a_ij m_ij])."""
        first = first_terms(self.message_in, h, distances)
        if self.in_c(distances):
            gathered = pair_mlp.attended_sum(first, self.message_out, self.attention, layout, self.itself)
        else:
            message, attention = self.message(pair_input(*first, layout))
            counts = attention if self.itself else attention * off_diagonal(layout, distances)
            gathered = weighted_sum(counts, message, layout)
        return h + self.node_out(F.silu(self.node_in(torch.cat([h, gathered], dim=1))))

    def message(self, first: Float[Tensor, "P H"]) -> tuple[Tensor, Tensor]:
        """m_ij [P, H] and a_ij [P] from the first layer's output."""
        message = F.silu(self.message_out(F.silu(first)))
        return message, torch.sigmoid(_one_output(self.attention, message))


class Block(MessagePassing):
    """One EGNN block; parameters named by what they do."""

    def __init__(self, width: int, coordinate_range: float) -> None:
        super().__init__(width, n_distances=2, itself=False)
        self.coordinate_range = coordinate_range
        self.coordinate_in = nn.Linear(2 * width + 2, width)
        self.coordinate_mid = nn.Linear(width, width)
        self.coordinate_out = nn.Linear(width, 1, bias=False)
        nn.init.xavier_uniform_(self.coordinate_out.weight, gain=0.001)

    def forward(
        self,
        h: Float[Tensor, "A H"],
        x: Float[Tensor, "A 3"],
        d0: Float[Tensor, "P 1"],
        layout: Layout,
    ) -> tuple[Tensor, Tensor]:
        difference = differences(x, layout)
        d2 = difference.square().sum(1, keepdim=True)
        distances = torch.cat([d2, d0], dim=1)
        h = self.update(h, distances, layout)
        first = first_terms(self.coordinate_in, h, distances)
        if self.in_c(distances):
            score = pair_mlp.pair_scores(first, self.coordinate_mid, self.coordinate_out, layout)
        else:
            score = self.score(pair_input(*first, layout))
        strength = self.coordinate_range * torch.tanh(score)
        x = x + weighted_sum(strength / ((d2[:, 0] + 1e-8).sqrt() + 1), difference, layout)
        return h, x

    def score(self, first: Float[Tensor, "P H"]) -> Float[Tensor, "P"]:
        """V3 SiLU(V2 SiLU(.)) from the first layer's output."""
        return _one_output(self.coordinate_out, F.silu(self.coordinate_mid(F.silu(first))))


def _one_output(linear: nn.Linear, inputs: Float[Tensor, "P H"]) -> Float[Tensor, "P"]:
    """A layer of one output as a matrix-vector product, whose backward pass is an outer product, not a matrix one."""
    out = torch.mv(inputs, linear.weight[0].to(inputs.dtype))  # autocast does not reach products with vectors
    return out if linear.bias is None else out + linear.bias


def first_terms(linear: nn.Linear, h: Float[Tensor, "A H"], D: Float[Tensor, "P C"]) -> tuple[Tensor, Tensor, Tensor]:
    """Terms [a, b], D, W_D of W [h_i, h_j, D_ij] + bias = a_i + b_j + D_ij W_D; products with h once per atom.

    In D's precision also under autocast, because distances do not survive bf16.
    """
    H, W = h.shape[1], linear.weight
    of_h = torch.cat([W[:, :H], W[:, H : 2 * H]])
    ab = row_linear(h, of_h, torch.cat([linear.bias, torch.zeros_like(linear.bias)]))
    return ab.to(D.dtype), D, W[:, 2 * H :].t().to(D.dtype)


def first_layer(
    linear: nn.Linear, h: Float[Tensor, "A H"], D: Float[Tensor, "P C"], layout: Layout
) -> Float[Tensor, "P K"]:
    """W [h_i, h_j, D_ij] + bias on all pairs."""
    return pair_input(*first_terms(linear, h, D), layout)


@backbones.register("egnn", EGNNConfig)
class EGNN(nn.Module):
    """E(n)-equivariant message passing on all pairs (the network of EDM)."""

    equivariant: ClassVar[bool] = True
    static_function: ClassVar[str] = "forward"
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

    def __init__(self, cfg: EGNNConfig, n_features: int) -> None:
        super().__init__()
        self.embedding = Float32Linear(n_features + 1, cfg.width)
        self.blocks = nn.ModuleList(Block(cfg.width, cfg.coordinate_range) for _ in range(cfg.depth))
        # the published network reads out the time channel too and drops it: its row is kept so that weights load
        self.readout = Float32Linear(cfg.width, n_features + 1)

    def forward(self, z: State, t: Float[Tensor, "B"]) -> State:
        """Raw output: displacement x_L - x_0 [A, 3] and features [A, F]."""
        layout = z.layout.by_size
        x = x_in = z.layout.to_sorted(z.x)
        h = self.embedding(z.layout.to_sorted(torch.cat([z.h, z.per_atom(t)[:, None]], dim=1)))
        d0 = differences(x, layout).square().sum(1, keepdim=True)
        for block in self.blocks:
            h, x = block(h, x, d0, layout)
        features = self.readout(h)[:, :-1]
        return z.replace(x=z.layout.from_sorted(x - x_in), h=z.layout.from_sorted(features))
